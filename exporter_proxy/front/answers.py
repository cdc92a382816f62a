"""How an error looks on the wire: its reason as a header, one plain line as its body."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from exporter_proxy.reasons import RETRY_AFTER_SECONDS, Denied, Reason


def error_headers(reason: Reason, body_length: int, allow: str = "") -> list[tuple[bytes, bytes]]:
    """The headers of an error, with what its status asks for (RFC 9110 section 15)."""
    headers = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % body_length),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"X-Exporter-Proxy-Error", reason.encode()),
    ]
    if reason in RETRY_AFTER_SECONDS:
        headers.append((b"Retry-After", b"%d" % RETRY_AFTER_SECONDS[reason]))
    if reason is Reason.METHOD:
        headers.append((b"Allow", allow.encode()))
    return headers


def error_body(message: str) -> bytes:
    """The one line for a person with curl."""
    return f"exporter_proxy: {message}\n".encode("utf-8", "backslashreplace")


def closing_response(denied: Denied) -> bytes:
    """A whole response that refuses and announces the close."""
    body = error_body(denied.message)
    parts = [STATUS_LINE[denied.status]]
    for name, value in error_headers(denied.reason, len(body), denied.allow):
        parts += [name, b": ", value, b"\r\n"]
    return b"".join([*parts, b"Connection: close\r\n\r\n", body])
