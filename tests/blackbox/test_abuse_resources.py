"""Clients that use up what they can: connections, time, memory, descriptors. Others are served meanwhile.

Afterwards nothing of it is left: no descriptor, no connection, no scrape, and hardly any memory.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.attacker import HALF_A_REQUEST, LEAVE, RESET, SILENT, flood
from tests.fakes.exporter import (
    EXPOSITION,
    PAGE,
    FakeExporter,
    head,
    respond,
    send,
    send_repeatedly,
    stall,
    wait_for,
)
from tests.honest import honest_scraper
from tests.stalls import stalled_since
from tests.wire import Wire, request

MIB = 1024 * 1024
CONNECTIONS = "exporter_proxy_connections"
SCRAPE = request("/x/metrics")


@contextlib.contextmanager
def siege(
    within_seconds: float = 3.0, growth_bytes: int = 8 * MIB, **config: Any
) -> Iterator[tuple[Daemon, FakeExporter]]:
    """A daemon before ``x``, which is attacked, and before another exporter, which someone honest scrapes."""
    with FakeExporter() as exporter, FakeExporter() as other:
        entries = {"x": {"url": exporter.url()}, "honest": {"url": other.url()}}
        with Daemon({**config, "exporters": entries}) as daemon:
            for name in entries:
                daemon.get(f"/{name}/metrics").expect_ok(PAGE)
            daemon.wait_for_metric(1, CONNECTIONS)
            descriptors, resident_bytes = daemon.fd_count(), daemon.rss_bytes()
            with honest_scraper(daemon, within_seconds=within_seconds):
                yield daemon, exporter
            wait_until(lambda: daemon.metric(CONNECTIONS) == 1, "only this is connected", 10.0)
            for name in entries:
                daemon.wait_for_metric(0, "exporter_proxy_scrapes_in_flight", exporter=name)
            wait_until(lambda: daemon.fd_count() <= descriptors, "all descriptors were closed")
            grown = daemon.rss_bytes() - resident_bytes
            assert grown < growth_bytes, f"it has grown by {grown / MIB:.1f} MiB"


# -- connections


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("behaviour", "count", "sources", "max_connections"),
    [
        (SILENT, 10_000, 500, 512),
        (SILENT, 10_000, 500, 4_000),  # making room may not take longer where there is much of it
        (SILENT, 2_000, 1, 512),
        (HALF_A_REQUEST, 2_000, 1, 512),
        (LEAVE, 4_000, 1, 512),
        (RESET, 1_000, 50, 512),
    ],
)
def test_a_flood_of_connections(behaviour: str, count: int, sources: int, max_connections: int) -> None:
    # Where the kernel's queue is full it drops a SYN, which is sent again after 1, 3 and 7 s.
    with (
        siege(within_seconds=9.0, growth_bytes=max_connections * 16_384, max_connections=max_connections) as (
            daemon,
            _,
        ),
        flood(daemon.port, count, behaviour, sources),
    ):
        assert daemon.metric(CONNECTIONS) <= max_connections
        assert daemon.fd_count() < max_connections + 64
        daemon.get("/x/metrics").expect_ok(PAGE)


def test_connections_from_a_denied_address_take_nobodys_place() -> None:
    with (
        siege(allow_clients=["127.0.0.1"], max_connections=8) as (daemon, _),
        contextlib.ExitStack() as wires,
    ):
        for _ in range(300):
            wires.enter_context(daemon.connect(source="127.66.0.1"))
        assert daemon.metric(CONNECTIONS) <= 8
        assert daemon.fd_count() < 8 + 64 + 32


# -- time


def test_slow_headers_from_many_connections() -> None:
    with siege(read_header_timeout="500ms") as (daemon, exporter), contextlib.ExitStack() as wires:
        slow = [wires.enter_context(daemon.connect()) for _ in range(300)]
        open_still, started = slow, time.monotonic()
        for byte in request("/x/metrics", ("X-Long", "x" * 240)):
            for wire in open_still:
                with contextlib.suppress(ConnectionError):
                    wire.sock.send(bytes([byte]))
            open_still = [wire for wire in open_still if not wire.readable_within(0.0)]
            if not open_still:
                break
            time.sleep(0.05)
        assert not open_still
        assert time.monotonic() - started < 8.0 + stalled_since(started), "each byte was given time anew"
        for wire in slow:
            wire.read_reply().expect_refusal(408, "header_timeout")
        assert exporter.requests[1:] == []


def test_slow_bodies_are_not_waited_for() -> None:
    with siege() as (daemon, _), contextlib.ExitStack() as wires:
        slow = [wires.enter_context(daemon.connect()) for _ in range(100)]
        for wire in slow:
            wire.exchange(request("/x/metrics", ("Content-Length", "1000000"))).expect_ok(PAGE)
        dripping, started = slow, time.monotonic()
        while dripping:  # they go on although the answer and its end are there
            assert time.monotonic() - started < 8.0 + stalled_since(started)
            dripping = [wire for wire in dripping if _still_takes(wire, b"x")]
            time.sleep(0.05)


def _still_takes(wire: Wire, data: bytes) -> bool:
    try:
        wire.sock.send(data)
    except ConnectionError:
        return False
    return True


def test_clients_that_never_read_a_scrape_are_left_at_its_deadline() -> None:
    with siege(growth_bytes=32 * MIB) as (daemon, exporter), contextlib.ExitStack() as wires:
        exporter.play(
            [send(head(200, [EXPOSITION, ("Connection", "close")])), send_repeatedly(b"x 1\n" * 16384, 800)]
        )
        timeout = ("X-Prometheus-Scrape-Timeout-Seconds", "1")
        for _ in range(30):
            wire = wires.enter_context(daemon.connect(receive_buffer_bytes=4096))
            wire.send(request("/x/metrics", timeout))
        exporter.wait_for_requests(30)
        daemon.wait_for_metric(0, "exporter_proxy_scrapes_in_flight", exporter="x")
        wait_until(lambda: daemon.metric(CONNECTIONS) <= 3, "their connections were closed")


def test_clients_that_never_read_a_page_do_not_keep_all_connections_for_ever() -> None:
    """A page has no deadline as a scrape has: three of them shut everyone out."""
    log = {"format": "json", "fields": ["path", "status", "reason"]}
    with FakeExporter() as exporter:
        entries = {f"x{number}": {"url": exporter.url()} for number in range(50)}  # they make /metrics long
        config = {"max_connections": 3, "keep_alive_timeout": "8s", "access_log": log, "exporters": entries}
        with Daemon(config) as daemon, contextlib.ExitStack() as wires:
            known = {key for key in daemon.metrics() if key[0] == "exporter_proxy_requests_denied_total"}
            for _ in range(3):
                seen = len(daemon.output_lines)
                wires.enter_context(daemon.connect(receive_buffer_bytes=4096)).send(request("/metrics") * 60)
                while len(daemon.output_lines) == seen:  # until the first page: it is busy and stays so
                    time.sleep(0.01)
            daemon.get("/x0/metrics").expect_refusal(503, "connection_limit")
            wait_until(lambda: daemon.get("/x0/metrics").status == 200, "another was let in", 60.0)
            daemon.wait_for_output('{"path": "/metrics", "status": 200, "reason": "client_slow"}')
            wait_until(lambda: daemon.metric(CONNECTIONS) == 1, "all were cut off", 60.0)
            denials = {key for key in daemon.metrics() if key[0] == "exporter_proxy_requests_denied_total"}
            assert denials == known, "nobody was denied anything, and no series appears later"


# -- size


def test_a_megabyte_of_headers() -> None:
    with siege() as (daemon, exporter):
        for block in (
            b"A: " + b"a" * MIB + b"\r\n",
            b"A" * MIB + b": a\r\n",
            b"a:\r\n" * 100_000,
            b"Cookie: a=b\r\n" * 100_000,
            b"X-Forwarded-For: 127.0.0.1\r\n" * 40_000,
        ):
            with daemon.connect() as wire:
                reply = wire.exchange(SCRAPE[:-2] + block + b"\r\n").expect_refusal(431, "bad_request")
                assert reply.took_seconds < 2.0
                assert wire.closes_within(3.0)
        assert len(exporter.requests) == 1, "the one that went before"


@pytest.mark.parametrize(("lines", "status"), [(127, 200), (128, 431), (5_000, 431)])
@pytest.mark.parametrize("is_cut", [False, True], ids=["at-once", "in-pieces"])
def test_header_lines_are_counted(
    daemon: Daemon, exporter: FakeExporter, lines: int, status: int, is_cut: bool
) -> None:
    data = SCRAPE[:-2] + b"a:\r\n" * lines + b"\r\n"
    with daemon.connect() as wire:
        for at in range(0, len(data), 300 if is_cut else len(data)):
            wire.send(data[at : at + 300] if is_cut else data)
        assert wire.read_reply().status == status
        assert wire.closes_within(1.0) == (status != 200)
    assert len(exporter.requests) == (status == 200)


def test_many_heads_of_many_short_lines_take_little_memory() -> None:
    """A line of five bytes takes thirty times as much in memory."""
    with siege(growth_bytes=32 * MIB) as (daemon, _), contextlib.ExitStack() as wires:
        resident_bytes = daemon.rss_bytes()
        for _ in range(200):
            unfinished = SCRAPE[:-2] + b"ab:\r\n" * 6_000
            wires.enter_context(daemon.connect()).send(unfinished)
        daemon.get("/x/metrics").expect_ok(PAGE)
        assert daemon.rss_bytes() - resident_bytes < 32 * MIB


# -- pipelining


def test_requests_ahead_of_their_answers_are_bounded() -> None:
    with siege() as (daemon, exporter), daemon.connect() as wire:
        exporter.play()
        wire.send(SCRAPE * 1_000)
        replies = [wire.read_reply()]
        while replies[-1].status == 200:
            replies.append(wire.read_reply())
        replies[-1].expect_refusal(400, "bad_request")
        assert 100 < len(replies) <= 1_000
        assert wire.closes_within(3.0)
        assert len(exporter.requests) == len(replies) - 1


def test_requests_ahead_of_their_answers_take_little_memory() -> None:
    with siege(growth_bytes=32 * MIB) as (daemon, exporter), contextlib.ExitStack() as wires:
        exporter.play([stall()])
        resident_bytes = daemon.rss_bytes()
        large = request("/x/metrics", ("A", "a" * 30_000))
        for _ in range(50):
            wires.enter_context(daemon.connect()).send(SCRAPE + large * 90)
        exporter.wait_for_requests(50)
        daemon.metrics()
        assert daemon.rss_bytes() - resident_bytes < 32 * MIB


def test_the_second_two_hundred_pipelining_clients_take_no_more_memory_than_the_first() -> None:
    with siege(growth_bytes=32 * MIB) as (daemon, _):
        resident_bytes = []
        for _ in range(2):
            with contextlib.ExitStack() as wires:
                for _ in range(200):
                    wires.enter_context(daemon.connect()).send(request("/nobody") * 50)
                daemon.metrics()
            resident_bytes.append(daemon.rss_bytes())
        assert resident_bytes[1] - resident_bytes[0] < 8 * MIB


# -- descriptors


@pytest.mark.parametrize("limit", [64, 256])
@pytest.mark.parametrize("is_busy", [False, True], ids=["silent", "scraping"])
def test_running_out_of_descriptors_is_recovered_from(limit: int, is_busy: bool) -> None:
    with proxied() as (daemon, exporter):
        daemon.get("/x/metrics").expect_ok(PAGE)
        daemon.wait_for_metric(1, CONNECTIONS)
        descriptors = daemon.fd_count()
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        exporter.play([stall()])
        began = time.monotonic()
        with contextlib.ExitStack() as wires:
            for _ in range(limit * 2):
                wire = wires.enter_context(daemon.connect())
                if is_busy:
                    wire.send(request("/x/metrics", ("X-Prometheus-Scrape-Timeout-Seconds", "1")))
            line = daemon.wait_for_log("cannot accept connections for now")
            assert "LimitNOFILE" in line
            # While they are still there: whoever is silent makes room, scrapes have a deadline.
            assert daemon.get("/-/healthy").status == 200
        exporter.play()
        daemon.get("/x/metrics").expect_ok(PAGE)
        daemon.wait_for_log("accepting connections again", timeout_seconds=10.0)
        daemon.wait_for_metric(1, CONNECTIONS)
        wait_until(lambda: daemon.fd_count() <= descriptors, "all descriptors were closed")
        said = [line for line in daemon.log_lines if "cannot accept" in line]
        # After a second without a shortage it is over: where all stood still for one, it may say so again.
        assert 1 <= len(said) <= 1 + stalled_since(began), "it says so once, not at each attempt"


def test_a_daemon_that_comes_round_late_does_not_take_the_shortage_for_over() -> None:
    """All that was due meanwhile is done at once, before it is seen whether there are descriptors again."""
    go_on = threading.Event()
    with proxied([wait_for(go_on), *respond()]) as (daemon, exporter), contextlib.ExitStack() as wires:
        scraping = [wires.enter_context(daemon.connect()).send(SCRAPE) for _ in range(5)]
        exporter.wait_for_requests(5)
        limit = daemon.fd_count()
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        waiting = wires.enter_context(daemon.connect()).send(SCRAPE)
        daemon.wait_for_log("cannot accept connections for now")
        daemon.process.send_signal(signal.SIGSTOP)
        assert not waiting.readable_within(1.5)  # longer than it takes to recover
        daemon.process.send_signal(signal.SIGCONT)
        assert not waiting.readable_within(0.5)  # longer than it takes to try again
        go_on.set()
        for wire in scraping:
            wire.read_reply().expect_ok(PAGE)
            wire.close()
        waiting.read_reply().expect_ok(PAGE)
        daemon.wait_for_log("accepting connections again")
        for text in ("cannot accept connections", "accepting connections again"):
            assert sum(text in line for line in daemon.log_lines) == 1
