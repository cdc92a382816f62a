"""How the daemon stops: it drains, cuts what hangs, obeys a second signal, and exits with status 0.

Also how it lives on when it runs out of file descriptors.
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from contextlib import ExitStack

import pytest

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import EXPOSITION, PAGE, FakeExporter, Script, head, respond, send, stall, wait_for
from tests.stalls import is_set_within
from tests.wire import Wire, request

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT]
IN_TIME_SECONDS = 3.0
"""What a stop may take beyond shutdown_timeout; the daemon itself grants up to 2 s for flushing."""


def held_open(go_on: threading.Event) -> Script:
    """An exporter's answer that pauses in mid-body until ``go_on``."""
    length = ("Content-Length", str(len(PAGE)))
    return [send(head(headers=[EXPOSITION, length]) + PAGE[:10]), wait_for(go_on), send(PAGE[10:])]


def is_refused(daemon: Daemon) -> bool:
    try:
        daemon.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # never accepted: it was in the queue as the listener was closed
    return False


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_finishes_what_is_under_way_and_lets_nobody_in(number: signal.Signals) -> None:
    go_on = threading.Event()
    with proxied([wait_for(go_on), *respond()]) as (daemon, exporter), ExitStack() as stack:
        scraping = stack.enter_context(daemon.connect())
        scraping.send(request("/x/metrics"))
        exporter.wait_for_requests()
        asked_before, silent = (stack.enter_context(daemon.connect()) for _ in range(2))
        asked_before.exchange(request("/-/ready")).expect_ok()

        daemon.process.send_signal(number)
        wait_until(lambda: is_refused(daemon), "new connections were refused")
        ready = asked_before.exchange(request("/-/ready")).expect_refusal(503, "draining")
        assert ready.header("connection") == "close"
        assert int(ready.header("retry-after") or 0) > 0
        assert asked_before.closes_within(2.0)
        assert daemon.running

        go_on.set()
        reply = scraping.read_reply().expect_ok(PAGE)
        assert reply.header("connection") == "close"
        assert daemon.process.wait(IN_TIME_SECONDS) == 0
        assert silent.closes_within(0.5)
        assert "msg=stopped" in daemon.log_tail()
        assert "level=error" not in daemon.log_tail()


def test_a_body_under_way_is_finished_too() -> None:
    go_on = threading.Event()
    with proxied(held_open(go_on)) as (daemon, _), daemon.connect() as wire:
        wire.send(request("/x/metrics")).read_head()
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(daemon), "new connections were refused")
        go_on.set()
        wire.read_reply().expect_ok(PAGE)
        assert wire.closes_within(2.0)
        assert daemon.process.wait(IN_TIME_SECONDS) == 0


def test_healthy_goes_on_while_it_drains() -> None:
    go_on = threading.Event()
    with proxied([wait_for(go_on), *respond()]) as (daemon, exporter), ExitStack() as stack:
        scraping, probe = (stack.enter_context(daemon.connect()) for _ in range(2))
        probe.exchange(request("/-/healthy")).expect_ok()
        scraping.send(request("/x/metrics"))
        exporter.wait_for_requests()
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(daemon), "new connections were refused")
        probe.exchange(request("/-/healthy")).expect_ok()
        go_on.set()
        scraping.read_reply().expect_ok(PAGE)


@pytest.mark.parametrize("shutdown_timeout", ["0s", "400ms"])
def test_shutdown_timeout_cuts_what_hangs(shutdown_timeout: str) -> None:
    with (
        FakeExporter([stall()]) as silent,
        FakeExporter([send(head(headers=[EXPOSITION]) + b"a 1\n"), stall()]) as stalling,
        Daemon(
            {
                "shutdown_timeout": shutdown_timeout,
                "exporters": {"silent": {"url": silent.url()}, "stalling": {"url": stalling.url()}},
            }
        ) as daemon,
        daemon.connect() as before_headers,
        daemon.connect() as in_body,
    ):
        before_headers.send(request("/silent/metrics"))
        in_body.send(request("/stalling/metrics")).read_head()
        silent.wait_for_requests()
        started = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        reply = before_headers.read_reply().expect_refusal(503, "draining", "silent")
        assert reply.header("connection") == "close"
        in_body.read_reply().expect_cut()
        assert daemon.process.wait(10) == 0
        at_least = 0.4 if shutdown_timeout == "400ms" else 0.0
        assert at_least <= time.monotonic() - started < at_least + IN_TIME_SECONDS


@pytest.mark.parametrize("second", STOP_SIGNALS)
@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_a_second_signal_stops_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with proxied([stall()], shutdown_timeout="1m") as (daemon, exporter), daemon.connect() as wire:
        wire.send(request("/x/metrics", ("X-Prometheus-Scrape-Timeout-Seconds", "90")))
        exporter.wait_for_requests()
        daemon.process.send_signal(first)
        wait_until(lambda: is_refused(daemon), "new connections were refused")
        daemon.process.send_signal(second)
        assert daemon.process.wait(IN_TIME_SECONDS) == 0


def test_a_scraper_that_does_not_read_cannot_hold_up_a_stop() -> None:
    with (
        proxied(respond(body=b"a 1\n" * 4_000_000), shutdown_timeout="300ms") as (daemon, _),
        daemon.connect(receive_buffer_bytes=4096) as wire,
    ):
        wire.send(request("/x/metrics")).read_head()
        assert daemon.stop(timeout_seconds=0.3 + IN_TIME_SECONDS) == 0


def test_idle_connections_do_not_hold_up_a_stop() -> None:
    with proxied(shutdown_timeout="1m") as (daemon, _), ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(daemon.connect())
        asked: Wire = stack.enter_context(daemon.connect())
        asked.exchange(request("/x/metrics")).expect_ok()
        half = stack.enter_context(daemon.connect())
        half.send(b"GET /x/metrics HTTP/1.1\r\nHost:")
        assert daemon.stop(timeout_seconds=IN_TIME_SECONDS) == 0


def test_a_reload_while_it_drains_does_no_harm() -> None:
    go_on = threading.Event()
    with proxied([wait_for(go_on), *respond()]) as (daemon, exporter), daemon.connect() as wire:
        wire.send(request("/x/metrics"))
        exporter.wait_for_requests()
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(daemon), "new connections were refused")
        daemon.reload()
        go_on.set()
        wire.read_reply().expect_ok(PAGE)
        assert daemon.process.wait(IN_TIME_SECONDS) == 0


def test_connections_to_exporters_are_closed() -> None:
    with proxied() as (daemon, exporter):
        daemon.get("/x/metrics").expect_ok()
        (connection,) = exporter.connections
        assert not connection.closed_by_peer.is_set()
        assert daemon.stop() == 0
        assert is_set_within(connection.closed_by_peer, 5.0)


def limit_descriptors(daemon: Daemon, further: int) -> None:
    """Let it open so many more than it has now."""
    limit = daemon.fd_count() + further
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (limit, limit))


def test_fewer_descriptors_than_connections_need_are_warned_of() -> None:
    with proxied() as (daemon, _):
        soft, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        assert soft >= 1024, "as usual"
        assert "max_connections" not in "".join(daemon.log_lines)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (1023, hard))
        daemon.reload()
        warning = daemon.wait_for_log("max_connections 512 can take 1024 file descriptors")
        assert "this process may have 1023: raise its limit" in warning


def test_out_of_descriptors_idle_connections_make_room() -> None:
    with proxied() as (daemon, _), ExitStack() as stack:
        daemon.get("/x/metrics").expect_ok()  # from now on its connection to the exporter is kept
        limit_descriptors(daemon, 15)
        for _ in range(40):
            stack.enter_context(daemon.connect())
        reply = daemon.get("/x/metrics").expect_ok(PAGE)
        assert reply.took_seconds < 2.0
        assert "level=error" in daemon.wait_for_log("cannot accept connections for now")
        stack.close()
        daemon.wait_for_log("accepting connections again")
        for _ in range(20):
            daemon.get("/x/metrics").expect_ok(PAGE)
        assert sum("cannot accept" in one for one in daemon.log_lines) < 5


def test_out_of_descriptors_whoever_got_the_last_one_is_served() -> None:
    with proxied() as (daemon, _):
        limit_descriptors(daemon, 1)
        daemon.get("/-/healthy").expect_ok()


def test_out_of_descriptors_it_waits_without_spinning_and_recovers() -> None:
    go_on = threading.Event()
    with proxied([wait_for(go_on), *respond()]) as (daemon, exporter), ExitStack() as stack:
        scraping = [stack.enter_context(daemon.connect()).send(request("/x/metrics")) for _ in range(5)]
        exporter.wait_for_requests(5)
        limit_descriptors(daemon, 0)
        waiting = stack.enter_context(daemon.connect()).send(request("/x/metrics"))
        daemon.wait_for_log("cannot accept connections for now")
        used_before, since = daemon.cpu_seconds(), time.monotonic()
        assert not waiting.readable_within(1.0)
        assert daemon.cpu_seconds() - used_before < 0.3 * (time.monotonic() - since)
        assert sum("cannot accept" in one for one in daemon.log_lines) == 1
        go_on.set()
        for wire in scraping:
            wire.read_reply().expect_ok(PAGE)
            wire.close()
        waiting.read_reply().expect_ok(PAGE)
        daemon.wait_for_log("accepting connections again")


def test_out_of_descriptors_for_the_exporter_the_scrape_says_so() -> None:
    with proxied() as (daemon, _), daemon.connect() as wire:
        wire.exchange(request("/-/healthy")).expect_ok()
        limit_descriptors(daemon, 0)
        reply = wire.exchange(request("/x/metrics")).expect_refusal(502, "connect", "x")
        assert b"LimitNOFILE" in reply.body
