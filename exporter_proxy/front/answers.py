"""How an error looks on the wire: its reason as a header, one plain line as its body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from exporter_proxy.reasons import RETRY_AFTER_SECONDS, Denied, Reason

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class AddedHeaders:
    """``http_server_config.headers``: on every response, made ready once for each configuration."""

    wire: bytes
    """Whole header lines."""
    names: frozenset[bytes]
    """In lower case; they replace a response's own headers of these names."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> AddedHeaders | None:
        """The headers in ``pairs``; ``None`` for none, which costs a response nothing."""
        if not pairs:
            return None
        wire = "".join(f"{name}: {value}\r\n" for name, value in pairs)
        return cls(wire.encode("ascii"), frozenset(name.lower().encode("ascii") for name, _ in pairs))

    def others(self, headers: Headers) -> Headers:
        """Those of ``headers`` that are not replaced."""
        return [pair for pair in headers if pair[0].lower() not in self.names]


def denial_headers(denied: Denied, body_length: int) -> Headers:
    """The headers of a refusal, with what its status asks for (RFC 9110 section 15)."""
    headers = error_headers(denied.reason, body_length)
    if denied.reason is Reason.METHOD:
        headers.append((b"Allow", denied.allow.encode()))
    headers.extend(denied.headers)
    return headers


def error_headers(reason: Reason, body_length: int) -> Headers:
    """What the headers of every error have."""
    headers = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % body_length),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"X-Exporter-Proxy-Error", reason.encode()),
    ]
    if reason in RETRY_AFTER_SECONDS:
        headers.append((b"Retry-After", b"%d" % RETRY_AFTER_SECONDS[reason]))
    return headers


def error_body(message: str) -> bytes:
    """The one line for a person with curl."""
    return f"exporter_proxy: {message}\n".encode("utf-8", "backslashreplace")


def closing_response(denied: Denied, is_head: bool, added: AddedHeaders | None) -> bytes:
    """A whole response that refuses and announces the close; to HEAD it has no body."""
    body = error_body(denied.message)
    parts = [STATUS_LINE[denied.status]]
    headers = denial_headers(denied, len(body))
    if added is not None:
        headers = added.others(headers)
        parts.append(added.wire)
    for name, value in headers:
        parts += [name, b": ", value, b"\r\n"]
    return b"".join([*parts, b"Connection: close\r\n\r\n", b"" if is_head else body])
