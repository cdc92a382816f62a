"""Which headers go on: an allowlist towards the exporter, a denylist towards the scraper."""

from __future__ import annotations

import pytest

from exporter_proxy.scrape.headers import (
    ERROR_HEADER,
    FORWARDED,
    HOP_BY_HOP,
    SCRAPE_TIMEOUT_HEADER,
    Headers,
    request_headers,
    response_headers,
)

NEVER_FORWARDED = [
    b"authorization",
    b"cookie",
    b"range",
    b"if-none-match",
    b"if-modified-since",
    b"forwarded",
    b"x-forwarded-for",
    b"x-real-ip",
    b"host",
    b"content-length",
    b"expect",
    b"x-anything",
    SCRAPE_TIMEOUT_HEADER,
    *sorted(HOP_BY_HOP),
]


def names(headers: Headers) -> list[bytes]:
    return [name for name, _ in headers]


# Towards the exporter


@pytest.mark.parametrize("name", sorted(FORWARDED))
def test_what_is_forwarded(name: bytes) -> None:
    pair = (name, b" as it \xff is ")
    assert request_headers([(b"host", b"h"), pair, (b"x-other", b"v")], FORWARDED) == [pair]


@pytest.mark.parametrize("name", NEVER_FORWARDED)
def test_what_is_not(name: bytes) -> None:
    assert request_headers([(name, b"v"), (b"accept", b"text/plain")], FORWARDED) == [
        (b"accept", b"text/plain")
    ]


def test_nothing_is_added() -> None:
    assert request_headers([], FORWARDED) == []


def test_order_and_repetitions_stay() -> None:
    received = [(b"accept", b"a"), (b"user-agent", b"u"), (b"accept", b"b"), (b"accept", b"")]
    assert request_headers(received, FORWARDED) == received


def test_an_exporter_may_be_given_more() -> None:
    received = [(b"x-scope-orgid", b"1"), (b"authorization", b"secret")]
    assert request_headers(received, FORWARDED | {b"x-scope-orgid"}) == received[:1]


@pytest.mark.parametrize(
    "connection",
    [
        [b"x-passed"],
        [b"keep-alive, X-Passed"],
        [b"keep-alive ,\tx-PASSED\t,"],
        [b"", b"x-passed"],
        [b"", b"close", b"te, x-passed"],
        [b",,x-passed"],
    ],
)
def test_what_a_connection_line_names_stays_behind(connection: list[bytes]) -> None:
    """Several lines, comma lists, empty lines first: RFC 9110 section 7.6.1."""
    lines = [(b"connection", value) for value in connection]
    pair = (b"x-passed", b"v")
    allowed = FORWARDED | {b"x-passed"}
    for received in ([*lines, pair], [pair, *lines], [*lines[:1], pair, *lines[1:]]):
        assert request_headers([*received, (b"accept", b"a")], allowed) == [(b"accept", b"a")]


def test_a_connection_line_may_name_what_is_always_forwarded() -> None:
    received = [(b"accept", b"a"), (b"connection", b"Accept"), (b"user-agent", b"u")]
    assert request_headers(received, FORWARDED) == [(b"user-agent", b"u")]


# Towards the scraper


def test_the_exporters_headers_pass_in_their_order_and_spelling() -> None:
    received = [
        (b"Content-Type", b"text/plain; version=0.0.4"),
        (b"content-encoding", b"gzip"),
        (b"X-Custom", b"1"),
        (b"ETAG", b'"a"'),
        (b"X-Custom", b"2"),
        (b"Vary", b""),
        (b"Server", b"\xe9"),
        (b"Date", b"Sat, 01 Jan 2000 00:00:00 GMT"),
        (b"Content-Length", b"5"),
    ]
    assert response_headers(received) == received


@pytest.mark.parametrize(
    "name", [*sorted(HOP_BY_HOP), b"set-cookie", b"set-cookie2", ERROR_HEADER, b"x-exporter-proxy-ERROR"]
)
@pytest.mark.parametrize("spelled", [bytes.lower, bytes.upper, bytes.title])
def test_what_speaks_of_the_connection_or_a_session_does_not(name: bytes, spelled: type[bytes]) -> None:
    received = [(b"X-Before", b"1"), (spelled(name), b"v"), (b"X-After", b"2")]
    assert names(response_headers(received)) == [b"X-Before", b"X-After"]


@pytest.mark.parametrize(
    "connection",
    [[b"X-Internal"], [b"close, x-internal"], [b"", b"x-INTERNAL\t"], [b"close", b",x-internal,"]],
)
def test_what_the_exporters_connection_line_names_does_not(connection: list[bytes]) -> None:
    lines = [(b"Connection", value) for value in connection]
    pair = (b"X-Internal", b"v")
    for received in ([*lines, pair], [pair, *lines], [(b"CONNECTION", value) for _, value in lines] + [pair]):
        assert response_headers([*received, (b"X-Other", b"o")]) == [(b"X-Other", b"o")]


@pytest.mark.parametrize("name", [b"Content-Length", b"Content-Type", b"Content-Encoding"])
def test_a_connection_line_cannot_make_the_body_unreadable(name: bytes) -> None:
    received = [(b"Connection", name), (name, b"v")]
    assert response_headers(received) == [(name, b"v")]
