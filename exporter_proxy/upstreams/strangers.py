"""Who answers where an exporter should: told by the first bytes, before a parser sees them."""

from __future__ import annotations

HTTP_START = b"HTTP/"

_TLS_ALERT = b"\x15\x03"
"""What a TLS server says to a plain request: an alert, of whichever version (RFC 8446 section 5.1)."""


def begins_like_http(data: bytes, offset: int) -> bool:
    """llhttp takes RTSP and ICE for HTTP; the first bytes, in however many reads, tell them apart."""
    start = data[: len(HTTP_START) - offset]
    return HTTP_START[offset : offset + len(start)] == start


def described(data: bytes) -> str:
    """What it is that answers so, and what to do; no HTTP in any case."""
    return "speaks TLS, use https:// in url" if data.startswith(_TLS_ALERT) else "does not answer in HTTP"
