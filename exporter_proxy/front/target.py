"""What a request is for, judged as values: version, Host, request target; and what is no request.

The parser sees to the grammar; here is refused what it lets pass and what would leave it open
which host or path is meant (RFC 9112 section 3.2), and what it refuses is put into words.
"""

from __future__ import annotations

import re

import httptools

from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Denied, Reason
from exporter_proxy.scrape.headers import Headers

MAX_HEADER_LINES = 128
"""Of one request: a line of five bytes takes 150 in memory, so the size alone bounds nothing."""
HEADER_LINE_BYTES = 150

_REQUEST_START = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} ")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*\Z")
_ABSOLUTE_FORM = re.compile(rb"(https?)://([^/?#]*)(.*)\Z", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


def read_header_lines(
    exchange: Exchange, target: bytes, headers: Headers, max_header_bytes: int
) -> tuple[bytes | None, bool, int]:
    """What the header lines say of the request itself, names in lower case. Raises Denied.

    That is its Host, whether it has a body, and the bytes of all lines and of the request target.
    """
    host: bytes | None = None
    has_body = False
    head_bytes = len(target)
    for name, value in headers:
        head_bytes += len(name) + len(value) + 4
        if name == b"host":
            if host is not None:
                raise Denied(Reason.BAD_REQUEST, "two Host headers; send one")
            host = value
        elif name == b"user-agent":
            exchange.user_agent = value
        elif name == b"content-length":
            has_body = has_body or value.strip() != b"0"
        elif name == b"transfer-encoding":
            has_body = True
            if value.strip().lower() != b"chunked":  # RFC 9112 section 6.1
                raise Denied(Reason.BAD_REQUEST, "a Transfer-Encoding other than chunked")
    if head_bytes > max_header_bytes or len(headers) > MAX_HEADER_LINES:
        raise head_too_large(max_header_bytes)
    return host, has_body, head_bytes


def version_problem(version: str, target: bytes, raw_head: bytes) -> Denied | None:
    """For versions other than 1.1; llhttp takes RTSP/1.0 for HTTP/1.0."""
    if version != "1.0":
        return Denied(Reason.BAD_REQUEST, f"HTTP/{version} is not spoken; use HTTP/1.1")
    if target + b" RTSP/" in raw_head:
        return Denied(Reason.BAD_REQUEST, "RTSP is not spoken; use HTTP/1.1")
    return None


def host_problem(host: bytes | None, version: str) -> Denied | None:
    """Whether there is a Host where there has to be one, and whether it can be one."""
    if host is None:
        if version == "1.1":
            return Denied(Reason.BAD_REQUEST, "no Host header; HTTP/1.1 requires one")
    elif not _HOST.match(host.strip(b" \t")):
        return Denied(Reason.BAD_REQUEST, "the Host header is not a host")
    return None


def target_problem(exchange: Exchange, target: bytes, host: bytes | None) -> Denied | None:
    """Judge a request target that is no plain path.

    The absolute form is taken where it names the host that the Host header names; path and
    query of ``exchange`` become those in it.
    """
    if b"#" in target:
        return Denied(Reason.BAD_REQUEST, "a fragment (#) does not belong in a request")
    absolute = _ABSOLUTE_FORM.match(target)
    if absolute is None:
        if exchange.method in ("CONNECT", "OPTIONS"):
            return Denied(Reason.METHOD, f"{exchange.method} is not served; use GET or HEAD")
        return Denied(Reason.BAD_REQUEST, "the request target is not a path")
    scheme, authority, rest = absolute.groups()
    port = _DEFAULT_PORTS[scheme.lower()]
    if authority.lower().removesuffix(port) != (host or b"").strip(b" \t").lower().removesuffix(port):
        return Denied(Reason.BAD_REQUEST, "the request target names another host than the Host header")
    path, _, exchange.query = rest.partition(b"?")
    exchange.path = path or b"/"
    return None


def without_user(path: bytes) -> bytes:
    """The path of a target that is none, as it may be logged: without ``user:password@``."""
    before, at, after = path.rpartition(b"@")
    scheme, slashes, _ = before.partition(b"://")
    return (scheme + slashes + b"***@" if slashes else b"***@") + after if at else path


def method_of(received: bytes | bytearray) -> str:
    """The method of a request that begins so, be the rest of it what it may."""
    return _start(received).partition(b" ")[0].decode("latin-1")


def head_too_large(max_header_bytes: int) -> Denied:
    """The refusal of a request's first line and headers for their size or number."""
    limits = f"max_header_bytes ({max_header_bytes} bytes) or {MAX_HEADER_LINES} lines"
    return Denied(Reason.BAD_REQUEST, f"request headers over {limits}", status=431)


def malformed(error: httptools.HttpParserError, received: bytearray, has_asked: bool) -> Denied:
    """What the parser has against a request that begins so."""
    start = _start(received)
    if start.startswith(b"PROXY "):
        return Denied(Reason.BAD_REQUEST, "the PROXY protocol is not spoken; addresses are the peer's own")
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _REQUEST_START.match(start):
        return Denied(Reason.METHOD, "that method is not served; use GET or HEAD")
    if start[:2] == b"\x16\x03" and not has_asked:
        return Denied(Reason.BAD_REQUEST, "this port speaks plain HTTP; use http:// instead of https://")
    return Denied(Reason.BAD_REQUEST, f"malformed request: {error}")


def _start(received: bytes | bytearray) -> bytes:
    return bytes(received[:64]).lstrip(b"\r\n")
