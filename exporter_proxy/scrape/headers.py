"""Which headers of a message go on to the other side, as pure functions on header lists.

The request passes an allowlist: an exporter has no business with a scraper's credentials,
cookies, ranges or conditions. The response passes a denylist: an exporter's headers are
data, except those that speak of the connection (RFC 9110 section 7.6.1) or of a session.
"""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

SCRAPE_TIMEOUT_HEADER = b"x-prometheus-scrape-timeout-seconds"
ERROR_HEADER = b"X-Exporter-Proxy-Error"

FORWARDED = frozenset((b"accept", b"accept-encoding", b"user-agent", b"traceparent", b"tracestate"))

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

_NAMES_NO_HEADER = frozenset((b"close", b"keep-alive"))
"""All that a Connection line says, nearly always."""

_DROPPED_FROM_RESPONSE = HOP_BY_HOP | {b"set-cookie", b"set-cookie2", ERROR_HEADER.lower()}


def request_headers(received: Iterable[tuple[bytes, bytes]], allowed: frozenset[bytes]) -> Headers:
    """The scraper's headers that the exporter may see. ``received`` has lower-case names.

    A header that a ``Connection`` line names belongs to that connection, so it stays behind
    even where ``allowed`` names it.
    """
    kept: Headers = []
    connection_seen = False
    for pair in received:
        if pair[0] in allowed:
            kept.append(pair)
        elif pair[0] == b"connection":
            connection_seen = True
    if connection_seen:
        named = _named_by_connection(received)
        kept = [pair for pair in kept if pair[0] not in named]
    return kept


def response_headers(received: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The exporter's headers that the scraper may see, in their order and spelling.

    Repeated headers stay separate lines. Content-Length is the caller's business.
    """
    kept: Headers = []
    connection_seen = False
    for pair in received:
        name = pair[0].lower()
        if name in _DROPPED_FROM_RESPONSE:
            names_headers = name == b"connection" and pair[1].lower() not in _NAMES_NO_HEADER
            connection_seen = connection_seen or names_headers
        else:
            kept.append(pair)
    if connection_seen:
        named = _named_by_connection(received)
        kept = [pair for pair in kept if pair[0].lower() not in named]
    return kept


def without(name: bytes, headers: Headers) -> Headers:
    """``headers`` less every line called ``name``, which is in lower case."""
    return [pair for pair in headers if pair[0].lower() != name]


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """Lower-case header names listed by all Connection lines.

    Not those that say how to read the body: naming them must not make it unreadable.
    """
    named: set[bytes] = set()
    for name, value in headers:
        if len(name) == 10 and name.lower() == b"connection":
            named.update(token.strip(b" \t").lower() for token in value.split(b","))
    return named - {b"content-length", b"content-type", b"content-encoding"}
