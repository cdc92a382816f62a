"""What one scraper or one exporter can use up at most: bytes, slots, connections, time for the headers."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack

import pytest

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    PAGE,
    FakeExporter,
    close,
    pause,
    reset,
    respond,
    send,
    stall,
    wait_for,
)
from tests.fakes.exporter import head as response_head
from tests.stalls import is_set_within, stalled_since
from tests.wire import request

DENIED = "exporter_proxy_requests_denied_total"
SCRAPE = request("/x/metrics")


# -- max_response_bytes


@pytest.mark.parametrize("framing", ["content-length", CHUNKED, CLOSE])
@pytest.mark.parametrize("size", [1023, 1024])
def test_max_response_bytes_lets_a_body_of_that_size_pass(framing: str, size: int) -> None:
    body = b"x" * size
    with proxied(respond(body=body, framing=framing), route={"max_response_bytes": 1024}) as (daemon, _):
        daemon.get("/x/metrics").expect_ok(body)


def test_max_response_bytes_judges_the_announced_length_before_the_body_comes() -> None:
    announced = response_head(200, [("Content-Length", "1025")])
    with proxied([send(announced), stall()], defaults={"max_response_bytes": "1KiB"}) as (daemon, exporter):
        reply = daemon.get("/x/metrics").expect_refusal(502, "too_large", "x")
        assert reply.took_seconds < 2.0
        assert "1025" in reply.body.decode()
        assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)


# -- max_concurrent


def test_max_concurrent_scrapes_wait_for_a_slot_and_are_then_served() -> None:
    free = threading.Event()
    script = [wait_for(free), *respond()]
    with proxied(script, route={"max_concurrent": 2}) as (daemon, exporter), ExitStack() as wires:
        scrapes = [wires.enter_context(daemon.connect()).send(SCRAPE) for _ in range(6)]
        exporter.wait_for_requests(2)
        daemon.metrics()  # once around the daemon's loop: the other four have been read
        assert len(exporter.requests) == 2
        free.set()
        for wire in scrapes:
            wire.read_reply().expect_ok(PAGE)
        assert len(exporter.connections) == 2, "a slot is a connection"


def test_max_concurrent_of_one_exporter_does_not_hold_up_another() -> None:
    with FakeExporter([stall()]) as stuck, FakeExporter() as lively:
        entries = {"stuck": {"url": stuck.url(), "max_concurrent": 1}, "lively": {"url": lively.url()}}
        with Daemon({"exporters": entries}) as daemon, ExitStack() as wires:
            for _ in range(5):
                wires.enter_context(daemon.connect()).send(request("/stuck/metrics"))
            stuck.wait_for_requests()
            reply = daemon.get("/lively/metrics").expect_ok(PAGE)
            assert reply.took_seconds < 2.0


# -- max_connections


def test_max_connections_the_connection_idling_longest_makes_room() -> None:
    with proxied(max_connections=3) as (daemon, _), ExitStack() as wires:
        first, second, third = (wires.enter_context(daemon.connect()) for _ in range(3))
        for wire in (second, first, third):
            wire.exchange(SCRAPE).expect_ok(PAGE)
        with daemon.connect() as fourth:
            fourth.exchange(SCRAPE).expect_ok(PAGE)
            assert second.closes_within(3.0), "it had been idle for longest"
            first.exchange(SCRAPE).expect_ok(PAGE)
            third.exchange(SCRAPE).expect_ok(PAGE)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /x/metrics HTTP/1.1\r\nHost: p"], ids=["silent", "half-a-request"]
)
def test_max_connections_one_that_never_completed_a_request_makes_room(sent: bytes) -> None:
    with proxied(max_connections=2) as (daemon, _), ExitStack() as wires:
        hoarders = [wires.enter_context(daemon.connect()) for _ in range(2)]
        for wire in hoarders:
            wire.send(sent)
        # Where all come in one turn of the loop, the first two are in, and this is one too many.
        wait_until(lambda: daemon.get("/x/metrics").status == 200, "there was room")
        for _ in range(3):
            daemon.get("/x/metrics").expect_ok(PAGE)
        assert hoarders[0].closes_within(3.0)


def test_max_connections_a_working_connection_never_makes_room() -> None:
    free = threading.Event()
    with proxied([wait_for(free), *respond()], max_connections=2) as (daemon, exporter), ExitStack() as wires:
        working = [wires.enter_context(daemon.connect()).send(SCRAPE) for _ in range(2)]
        exporter.wait_for_requests(2)
        with daemon.connect() as third:
            third.exchange(SCRAPE).expect_refusal(503, "connection_limit")
            assert third.closes_within(3.0)
        free.set()
        for wire in working:
            wire.read_reply().expect_ok(PAGE)
        daemon.get("/x/metrics").expect_ok(PAGE)


def test_max_connections_of_a_crowd_that_comes_at_once_the_first_are_served() -> None:
    with proxied(max_connections=2) as (daemon, _), ExitStack() as wires:
        daemon.process.send_signal(signal.SIGSTOP)
        crowd = [wires.enter_context(daemon.connect()).send(SCRAPE) for _ in range(5)]
        daemon.process.send_signal(signal.SIGCONT)
        for wire in crowd[:2]:
            wire.read_reply().expect_ok(PAGE)
        for wire in crowd[2:]:
            wire.read_reply().expect_refusal(503, "connection_limit")


# -- read_header_timeout, keep_alive_timeout


@pytest.mark.parametrize(
    ("data", "interval_seconds"),
    [
        (b"GET /x/metrics HTTP/1.1\r\nHost: proxy.test\r\n", 0.0),
        (SCRAPE, 0.05),
    ],
    ids=["stops-half-way", "drips"],
)
def test_read_header_timeout_is_for_the_whole_head(data: bytes, interval_seconds: float) -> None:
    with proxied(read_header_timeout="300ms") as (daemon, exporter):
        started = time.monotonic()
        with daemon.connect() as wire:
            if not interval_seconds:
                wire.send(data)
            stop_at = started + 0.9
            for byte in data if interval_seconds else b"":
                if time.monotonic() > stop_at or wire.readable_within(interval_seconds):
                    break
                wire.sock.sendall(bytes([byte]))
            wire.read_reply().expect_refusal(408, "header_timeout")
            assert 0.25 < time.monotonic() - started < 0.9 + stalled_since(started)
            assert wire.closes_within(3.0)
        daemon.wait_for_metric(1, DENIED, reason="header_timeout")
        assert exporter.requests == []


@pytest.mark.parametrize("nothing", [b"", b"\r\n" * 20], ids=["silent", "empty-lines"])
def test_read_header_timeout_closes_a_connection_that_asks_nothing(nothing: bytes) -> None:
    """With or without 408: no request was begun."""
    with proxied(read_header_timeout="300ms") as (daemon, _), daemon.connect(timeout_seconds=10.0) as wire:
        for byte in nothing:
            wire.sock.sendall(bytes([byte]))
        answer = wire.read_until_closed()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_read_header_timeout_does_not_end_an_idle_connection_but_its_next_slow_head() -> None:
    with proxied(read_header_timeout="300ms") as (daemon, _), daemon.connect() as wire:
        wire.exchange(SCRAPE).expect_ok(PAGE)
        assert not wire.closes_within(0.6), "between two requests keep_alive_timeout holds"
        wire.exchange(SCRAPE).expect_ok(PAGE)
        wire.exchange(SCRAPE[:20]).expect_refusal(408, "header_timeout")
        assert wire.closes_within(3.0)


def test_read_header_timeout_does_not_end_a_scrape() -> None:
    with proxied([pause(0.6), *respond()], read_header_timeout="300ms") as (daemon, _):
        daemon.exchange(SCRAPE).expect_ok(PAGE)


def test_keep_alive_timeout_closes_an_idle_connection() -> None:
    with proxied(keep_alive_timeout="300ms") as (daemon, _), daemon.connect() as wire:
        wire.exchange(SCRAPE).expect_ok(PAGE)
        started = time.monotonic()
        wire.exchange(SCRAPE).expect_ok(PAGE)
        assert wire.closes_within(10.0)
        assert time.monotonic() - started > 0.2
        assert daemon.metric(DENIED, reason="header_timeout") == 0


# -- max_header_bytes

OVER = {
    "one-long-header": request("/x/metrics", ("A", "a" * 40_000)),
    "many-headers": request("/x/metrics", *[("A", "a" * 10)] * 3_000),
    "long-query": request("/x/metrics?" + "a" * 40_000),
    "long-name": request("/x/metrics", ("A" * 40_000, "a")),
    "header-without-an-end": request("/x/metrics", ("A", "a" * 40_000))[:-4],
    "path-without-an-end": b"GET /" + b"a" * 40_000,
}


@pytest.mark.parametrize("name", OVER)
def test_max_header_bytes_is_answered_431_without_waiting(
    daemon: Daemon, exporter: FakeExporter, name: str
) -> None:
    with daemon.connect() as wire:
        reply = wire.exchange(OVER[name]).expect_refusal(431, "bad_request")
        assert reply.took_seconds < 2.0
        assert wire.closes_within(3.0)
    assert exporter.requests == []


def test_max_header_bytes_lets_smaller_heads_pass(daemon: Daemon, exporter: FakeExporter) -> None:
    with daemon.connect() as wire:
        for _ in range(3):  # the limit is for each head, not for the connection
            wire.exchange(request("/x/metrics", ("X-Passed", "a" * 30_000))).expect_ok(PAGE)
    assert len(exporter.requests[0].header("x-passed") or "") == 30_000


def test_max_header_bytes_is_configurable() -> None:
    with proxied(max_header_bytes="1KiB") as (daemon, _):
        daemon.exchange(request("/x/metrics", ("A", "a" * 900))).expect_ok(PAGE)
        daemon.exchange(request("/x/metrics", ("A", "a" * 1100))).expect_refusal(431, "bad_request")


# -- pipelining


def test_pipelined_requests_are_answered_in_order(daemon: Daemon, exporter: FakeExporter) -> None:
    echo = respond(body=lambda asked: asked.target)
    exporter.play([pause(0.2), *echo], echo, [pause(0.1), *echo], echo)
    queries = ["?a", "?b", "?c", "?d"]
    with daemon.connect() as wire:
        wire.send(b"".join(request(f"/x/metrics{query}") for query in queries))
        assert [wire.read_reply().expect_ok().body for _ in queries] == [
            f"/metrics{q}".encode() for q in queries
        ]


def test_pipelined_requests_after_a_refusal_are_answered(daemon: Daemon, exporter: FakeExporter) -> None:
    with daemon.connect() as wire:
        wire.send(request("/nobody") + SCRAPE + request("/nobody", method="HEAD") + SCRAPE)
        wire.read_reply().expect_refusal(404, "not_found")
        wire.read_reply().expect_ok(PAGE)
        assert wire.read_reply("HEAD").status == 404
        wire.read_reply().expect_ok(PAGE)


def test_pipelined_requests_cost_no_more_than_one_at_a_time(daemon: Daemon, exporter: FakeExporter) -> None:
    """A scraper that asks a hundred times at once does not get a hundred exporter connections."""
    with daemon.connect() as wire:
        wire.send(SCRAPE * 100)
        for _ in range(100):
            wire.read_reply().expect_ok(PAGE)
    assert len(exporter.connections) == 1


def test_a_request_in_many_small_pieces_is_one_request(daemon: Daemon, exporter: FakeExporter) -> None:
    with daemon.connect() as wire:
        for byte in request("/x/metrics?a=1", ("Accept", "*/*")):
            wire.sock.sendall(bytes([byte]))
        wire.read_reply().expect_ok(PAGE)
    assert exporter.request.target == b"/metrics?a=1"
    assert exporter.request.header("accept") == "*/*"


# -- descriptors


def test_no_descriptor_is_left_behind() -> None:
    """Scrapes that fail in every way, scrapers that leave, and idle connections that are closed."""
    cut = [send(response_head(200, [("Content-Length", "9")]) + b"x"), close()]
    scripts = [respond(framing=CLOSE), cut, [reset()], [send(b"nonsense\r\n\r\n"), stall()]]
    with proxied(*scripts * 10) as (daemon, exporter):
        daemon.get("/x/metrics").expect_ok(PAGE)
        wait_until(lambda: daemon.metric("exporter_proxy_connections") == 1, "only this asks")
        before = daemon.fd_count()
        for _ in range(30):
            daemon.get("/x/metrics")
        exporter.play([stall()])
        for _ in range(10):
            daemon.connect().send(SCRAPE).close()
        wait_until(lambda: daemon.fd_count() <= before, "all descriptors were closed")
