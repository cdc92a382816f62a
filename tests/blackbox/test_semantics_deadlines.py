"""Points 22 to 24: one deadline for the whole exchange, early enough for Prometheus to hear of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, proxied
from tests.fakes.exporter import (
    CHUNKED,
    EXPOSITION,
    PAGE,
    FakeExporter,
    Script,
    chunk,
    drip,
    head,
    pause,
    respond,
    send,
    send_repeatedly,
    stall,
)
from tests.fakes.ports import unanswering_port
from tests.stalls import is_set_within
from tests.wire import Reply, request

CHUNKED_HEAD = head(200, [EXPOSITION, ("Transfer-Encoding", CHUNKED)])
LONG_HEAD = head(200, [EXPOSITION, ("Content-Length", "1000")])


def scrape_timeout(value: str) -> tuple[str, str]:
    return ("X-Prometheus-Scrape-Timeout-Seconds", value)


def count(daemon: Daemon, reason: str) -> float:
    return daemon.metric("exporter_proxy_scrape_errors_total", exporter="x", reason=reason)


# -- 22: one deadline over everything. With a header of 1 it is 0.5 s: never reset by progress.

NEVER_A_HEAD: dict[str, Script] = {
    "nothing": [stall()],
    "half-a-head": [send(b"HTTP/1.1 200 OK\r\nContent-"), stall()],
    "dripping-head": [drip(CHUNKED_HEAD, 0.1)],
    "endless-1xx": [send(head(100, [])), pause(0.1)] * 30,
}
NEVER_AN_END: dict[str, Script] = {
    "stalls-after-the-head": [send(LONG_HEAD), stall()],
    "stalls-in-the-body": [send(LONG_HEAD + PAGE), stall()],
    "stalls-in-a-chunk": [send(CHUNKED_HEAD + b"fff\r\n" + PAGE), stall()],
    "drips-a-length": [send(LONG_HEAD), drip(b"x" * 999, 0.1)],
    "drips-until-closed": [send(head(200, [("Connection", "close")])), drip(b"x" * 99, 0.1)],
    "drips-chunks": [send(CHUNKED_HEAD), *[send(chunk(b"x")), pause(0.1)] * 30],
    "drips-a-chunk-size": [send(CHUNKED_HEAD), drip(b"0" * 99, 0.1)],
    "drips-trailers": [send(CHUNKED_HEAD + b"0\r\n"), drip(b"X-Sum: " + b"1" * 99, 0.1)],
}


@pytest.mark.parametrize("name", NEVER_A_HEAD)
def test_point_22_deadline_covers_the_head(daemon: Daemon, exporter: FakeExporter, name: str) -> None:
    before = count(daemon, "timeout")
    exporter.play(NEVER_A_HEAD[name])
    reply = daemon.get("/x/metrics", scrape_timeout("1")).expect_refusal(504, "timeout", "x")
    assert 0.49 < reply.ended_after_seconds < 0.95 + reply.stalled_seconds, "the scraper gives up after 1 s"
    assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)
    daemon.wait_for_metric(before + 1, "exporter_proxy_scrape_errors_total", exporter="x", reason="timeout")


@pytest.mark.parametrize("name", NEVER_AN_END)
def test_point_22_deadline_covers_the_body(daemon: Daemon, exporter: FakeExporter, name: str) -> None:
    before = count(daemon, "timeout")
    exporter.play(NEVER_AN_END[name])
    reply = daemon.exchange(request("/x/metrics", scrape_timeout("1")))
    assert 0.49 < reply.ended_after_seconds < 0.95 + reply.stalled_seconds, "the scraper gives up after 1 s"
    expect_abort_or_504(reply)
    assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)
    daemon.wait_for_metric(before + 1, "exporter_proxy_scrape_errors_total", exporter="x", reason="timeout")


def expect_abort_or_504(reply: Reply) -> None:
    """A daemon that holds the head back until the first byte of the body may still answer 504."""
    if reply.status == 200:
        reply.expect_cut()
    else:
        reply.expect_refusal(504, "timeout", "x")


def test_point_22_deadline_covers_the_connect() -> None:
    with (
        unanswering_port() as port,
        Daemon({"exporters": {"x": {"url": f"http://127.0.0.1:{port}/metrics"}}}) as daemon,
    ):
        reply = daemon.get("/x/metrics", scrape_timeout("1")).expect_refusal(504, "timeout", "x")
        assert 0.49 < reply.ended_after_seconds < 0.95 + reply.stalled_seconds


def test_point_22_deadline_covers_the_tls_handshake() -> None:
    with FakeExporter(greeting=[stall()]) as silent:
        entry = {"url": f"https://{silent.authority}/metrics", "insecure_skip_verify": True}
        with Daemon({"exporters": {"x": entry}}) as daemon:
            reply = daemon.get("/x/metrics", scrape_timeout("1")).expect_refusal(504, "timeout", "x")
            assert 0.49 < reply.ended_after_seconds < 0.95 + reply.stalled_seconds


def test_point_22_progress_that_ends_in_time_is_no_failure(daemon: Daemon, exporter: FakeExporter) -> None:
    body = [send(head(200, [EXPOSITION, ("Content-Length", str(len(PAGE)))])), drip(PAGE, 0.002)]
    exporter.play(body)
    daemon.get("/x/metrics", scrape_timeout("20")).expect_ok(PAGE)


def test_point_22_deadline_does_not_end_the_next_scrape(daemon: Daemon, exporter: FakeExporter) -> None:
    """Each scrape on a connection has a deadline of its own."""
    exporter.play([pause(0.45), *respond()])
    with daemon.connect() as wire:
        for _ in range(7):
            wire.exchange(request("/x/metrics", scrape_timeout("3.5"))).expect_ok(PAGE)


# -- 23: how long. What the exporter is told is what is left, so a scrape need not be waited out.


def told(exporter: FakeExporter) -> float | None:
    value = exporter.request.header("x-prometheus-scrape-timeout-seconds")
    return None if value is None else float(value)


@contextlib.contextmanager
def fresh(pair: tuple[Daemon, FakeExporter]) -> Iterator[tuple[Daemon, FakeExporter]]:
    pair[1].play()
    yield pair
    pair[1].drop_connections()


@pytest.mark.parametrize(
    ("value", "expected_seconds"),
    [
        ("10", 9.5),
        ("1.5", 1.0),
        ("1", 0.5),
        ("0.6", 0.3),
        ("10.0", 9.5),
        ("1e1", 9.5),
        ("120", 119.5),
        ("120.5", 120.0),
        ("300", 120.0),
        ("1e9", 120.0),
    ],
)
def test_point_23_the_exporter_is_told_what_is_left(
    daemon: Daemon, exporter: FakeExporter, value: str, expected_seconds: float
) -> None:
    daemon.get("/x/metrics", scrape_timeout(value)).expect_ok(PAGE)
    left = told(exporter)
    assert left is not None
    assert expected_seconds * 0.9 - 0.1 < left <= expected_seconds


IGNORED = [
    "",
    "abc",
    "10s",
    "1,5",
    "1_0",
    "nan",
    "NaN",
    "inf",
    "Infinity",
    "-inf",
    "1e400",
    "-1",
    "-0.5",
    "0",
    "0.0",
]


@pytest.mark.parametrize("value", IGNORED)
def test_point_23_an_ignored_header_leaves_ten_seconds(
    daemon: Daemon, exporter: FakeExporter, value: str
) -> None:
    daemon.get("/x/metrics", scrape_timeout(value)).expect_ok(PAGE)
    left = told(exporter)
    assert left is None or 9.5 < left <= 10


def test_point_23_two_headers_never_become_two(daemon: Daemon, exporter: FakeExporter) -> None:
    daemon.get("/x/metrics", scrape_timeout("10"), scrape_timeout("5")).expect_ok(PAGE)
    left = told(exporter)
    assert left is None or left <= 10


@pytest.fixture(scope="module")
def short_route() -> Iterator[tuple[Daemon, FakeExporter]]:
    with proxied(route={"timeout": "400ms"}) as pair:
        yield pair


@pytest.mark.parametrize("value", [None, *IGNORED])
def test_point_23_a_header_that_says_nothing_is_ignored(
    short_route: tuple[Daemon, FakeExporter], value: str | None
) -> None:
    """The route's own timeout holds: not zero, not for ever, and the nonsense is not forwarded."""
    headers = [] if value is None else [scrape_timeout(value)]
    with fresh(short_route) as (daemon, exporter):
        daemon.get("/x/metrics", *headers).expect_ok(PAGE)
        left = told(exporter)
        assert left is None or 0.2 < left <= 0.4
        exporter.play([stall()])
        reply = daemon.get("/x/metrics", *headers).expect_refusal(504, "timeout", "x")
        assert 0.39 < reply.ended_after_seconds < 1.2 + reply.stalled_seconds


@pytest.mark.parametrize(
    ("value", "expected_seconds"), [("10", 0.4), ("0.9", 0.4), ("0.8", 0.4), ("0.6", 0.3)]
)
def test_point_23_the_smaller_of_route_and_header_holds_and_the_route_is_not_reduced(
    short_route: tuple[Daemon, FakeExporter], value: str, expected_seconds: float
) -> None:
    with fresh(short_route) as (daemon, exporter):
        exporter.play([stall()])
        reply = daemon.get("/x/metrics", scrape_timeout(value)).expect_refusal(504, "timeout", "x")
        took = reply.ended_after_seconds
        assert expected_seconds - 0.01 < took < expected_seconds + 0.5 + reply.stalled_seconds
        left = told(exporter)
        assert left is not None
        assert expected_seconds - 0.2 < left <= expected_seconds


@pytest.mark.parametrize(
    ("offset", "value", "expected_seconds"),
    [("0s", "3", 3.0), ("1s", "3", 2.0), ("2s", "3", 1.5), ("1500ms", "3", 1.5), ("10ms", "0.5", 0.49)],
)
def test_point_23_offset_is_configurable_and_floored_at_half_the_header(
    offset: str, value: str, expected_seconds: float
) -> None:
    with proxied(defaults={"timeout_offset": offset}) as (daemon, exporter):
        daemon.get("/x/metrics", scrape_timeout(value)).expect_ok(PAGE)
        left = told(exporter)
        assert left is not None
        assert expected_seconds - 0.2 < left <= expected_seconds


def test_point_23_ten_seconds_with_neither_route_nor_header(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play([stall()])
    reply = daemon.get("/x/metrics").expect_refusal(504, "timeout", "x")
    assert 9.9 < reply.ended_after_seconds < 11 + reply.stalled_seconds


def test_point_23_what_is_left_shrinks_while_waiting_for_a_slot() -> None:
    script = [pause(0.5), *respond()]
    with (
        proxied(script, route={"max_concurrent": 1}) as (daemon, exporter),
        daemon.connect() as first,
        daemon.connect() as second,
    ):
        first.send(request("/x/metrics"))
        exporter.wait_for_requests()
        reply = second.exchange(request("/x/metrics", scrape_timeout("4"))).expect_ok(PAGE)
        first.read_reply().expect_ok(PAGE)
        left = exporter.requests[1].header("x-prometheus-scrape-timeout-seconds")
        assert left is not None
        assert 2.5 - reply.stalled_seconds < float(left) < 3.2


# -- 24: what the scraper sees of it


def test_point_24_before_the_head_504_says_who_and_how_long(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play([stall()])
    reply = daemon.get("/x/metrics", scrape_timeout("1")).expect_refusal(504, "timeout", "x")
    line = reply.body.decode()
    assert exporter.authority in line
    assert "0.5 s" in line, "the line names the limit that was reached"


def test_point_24_after_the_head_the_connection_is_aborted(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play([send(CHUNKED_HEAD + chunk(PAGE)), stall()])
    with daemon.connect() as wire:
        wire.send(request("/x/metrics", scrape_timeout("1"))).read_head()
        reply = wire.read_reply().expect_cut()
        assert reply.body == PAGE
        assert wire.closes_within(3.0)


def test_point_24_a_slow_scraper_is_not_blamed_on_the_exporter(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    before = count(daemon, "client_slow"), count(daemon, "timeout")
    exporter.play([send(head(200, [("Connection", "close")])), send_repeatedly(b"x" * 65536, 800), stall()])
    with daemon.connect(receive_buffer_bytes=4096) as wire:
        wire.send(request("/x/metrics", scrape_timeout("1"))).read_head()
        assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)
        daemon.wait_for_metric(
            before[0] + 1, "exporter_proxy_scrape_errors_total", exporter="x", reason="client_slow"
        )
        wire.read_reply().expect_cut()
    assert count(daemon, "timeout") == before[1]
