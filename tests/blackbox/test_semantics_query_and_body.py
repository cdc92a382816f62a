"""Points 6 and 7: the query passes untouched, a request body not at all."""

from __future__ import annotations

import pytest

from tests.daemon import Daemon, proxied
from tests.fakes.exporter import PAGE, FakeExporter
from tests.wire import CONNECTION_CLOSE, Wire, request

# -- 6: the query


@pytest.mark.parametrize(
    "query",
    [
        b"collect[]=cpu&collect[]=meminfo",
        b"a=1&a=2;b=3",
        b"b=2&a=1&b=1",
        b"%zz",
        b"%",
        b"a=%2B+%20%2b",
        b"=",
        b"a&&b=&=c&",
        b"target=http://h:80/p?x=y",
        b"a=/../x&b=//",
        b"q={__name__=~%22a|b%22}",
        b"a=" + b"v" * 8000,
    ],
)
def test_point_06_query_reaches_the_exporter_byte_for_byte(
    daemon: Daemon, exporter: FakeExporter, query: bytes
) -> None:
    daemon.get(f"/x/metrics?{query.decode()}").expect_ok(PAGE)
    assert exporter.request.target == b"/metrics?" + query


@pytest.mark.parametrize(
    ("target", "params", "query", "expected"),
    [
        ("/probe?module=x", {}, "", b"/probe?module=x"),
        ("/probe?module=x", {}, "?target=y&a=%zz", b"/probe?module=x&target=y&a=%zz"),
        ("/probe?%zz&a=1;b", {}, "?c", b"/probe?%zz&a=1;b&c"),
        ("/probe", {"module": ["http_2xx"]}, "", b"/probe?module=http_2xx"),
        ("/probe", {"module": ["a", "b"], "n": ["1"]}, "?t=y", b"/probe?module=a&module=b&n=1&t=y"),
        ("/probe?own=1", {"module": ["m"]}, "?module=theirs", b"/probe?own=1&module=m&module=theirs"),
    ],
)
def test_point_06_own_query_comes_first_then_params_then_the_scrapers(
    target: str, params: dict[str, list[str]], query: str, expected: bytes
) -> None:
    with proxied(target=target, route={"params": params} if params else {}) as (daemon, exporter):
        daemon.get(f"/x/metrics{query}").expect_ok(PAGE)
        assert exporter.request.target == expected


# -- 7: bodies of requests


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        (("Content-Length", "1000000"), b""),
        (("Content-Length", "1000000"), b"x" * 1000),
        (("Content-Length", "3"), b"abc"),
        (("Transfer-Encoding", "chunked"), b""),
        (("Transfer-Encoding", "chunked"), b"3\r\nabc\r\n"),
        (("Transfer-Encoding", "chunked"), b"3\r\nabc\r\n0\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("expect", [(), (("Expect", "100-continue"),)], ids=["", "expect-continue"])
def test_point_07_get_with_a_body_is_answered_without_waiting_and_closed(
    daemon: Daemon,
    exporter: FakeExporter,
    framing: tuple[str, str],
    sent: bytes,
    expect: tuple[tuple[str, str], ...],
) -> None:
    with daemon.connect() as wire:
        reply = wire.exchange(request("/x/metrics", framing, *expect) + sent).expect_ok(PAGE)
        assert reply.header("connection") == "close"
        assert wire.closes_within(3.0)
    assert exporter.request.body == b""
    assert exporter.request.header_names == ["host"]


@pytest.mark.parametrize(
    "body_headers",
    [
        ("Content-Length: {length}\r\n\r\n{second}"),
        ("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{second}\r\n0\r\n\r\n"),
    ],
    ids=["content-length", "chunked"],
)
def test_point_07_a_request_hidden_in_a_body_is_not_a_request(
    daemon: Daemon, exporter: FakeExporter, body_headers: str
) -> None:
    second = request("/x/metrics?smuggled").decode()
    body = body_headers.format(length=len(second), second=second)
    with daemon.connect() as wire:
        wire.exchange(request("/x/metrics?first")[:-2] + body.encode()).expect_ok(PAGE)
        assert wire.closes_within(3.0)
    assert exporter.request.target == b"/metrics?first"


def test_point_07_a_request_after_a_body_is_left_to_the_next_connection(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    """The connection is closed after the answer, so what was pipelined behind it is never begun."""
    first = request("/x/metrics?first", ("Content-Length", "3")) + b"abc"
    with daemon.connect() as wire:
        wire.exchange(first + request("/x/metrics?second")).expect_ok(PAGE)
        assert wire.closes_within(3.0)
    assert exporter.request.target == b"/metrics?first"


def test_point_07_the_connection_of_a_get_without_a_body_stays_open(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    with daemon.connect() as wire:
        for headers in [(), (("Content-Length", "0"),), ()]:
            wire.exchange(request("/x/metrics", *headers)).expect_ok(PAGE)
    assert len(exporter.wait_for_requests(3)) == 3


def test_point_07_closing_while_the_body_still_comes_does_not_destroy_the_answer(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    """Closing a socket with unread data makes the kernel send RST, which can overtake the answer."""
    whole = request("/x/metrics", ("Content-Length", "300000"))
    replies = []
    for _ in range(5):
        with daemon.connect() as wire:
            replies.append(_send_whole_body(wire, whole, 300_000))
    assert replies == [PAGE] * 5
    assert [request.body for request in exporter.requests] == [b""] * 5


def _send_whole_body(wire: Wire, head: bytes, length: int) -> bytes:
    try:
        wire.send(head + b"x" * length)
    except ConnectionError:
        pass  # the daemon may well have closed before it was all sent
    return wire.read_reply().body


def test_connection_close_is_honoured(daemon: Daemon, exporter: FakeExporter) -> None:
    with daemon.connect() as wire:
        reply = wire.exchange(request("/x/metrics", CONNECTION_CLOSE)).expect_ok(PAGE)
        assert reply.header("connection") == "close"
        assert wire.closes_within(3.0)
    assert len(exporter.connections) == 1
