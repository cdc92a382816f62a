"""``share_for`` and what is kept: how much of it, and until when at the latest."""

from __future__ import annotations

import time
from contextlib import ExitStack
from threading import Event
from typing import Any

import pytest

from tests.daemon import Daemon, proxied
from tests.fakes.exporter import PAGE, FakeExporter, respond, wait_for
from tests.testdata.exposition.long_pages import LONG_TEXT
from tests.wire import request

KEPT_BYTES = 1024 * 1024


def reload_with(daemon: Daemon, exporter: FakeExporter, entry: dict[str, Any]) -> None:
    exporters = {"x": {"url": exporter.url(), **entry}}
    daemon.write_config({"listen": f"127.0.0.1:{daemon.port}", "exporters": exporters})
    assert '"config reloaded"' in daemon.reload()


def test_the_oldest_answers_make_room() -> None:
    third = b"# " + b"x" * (KEPT_BYTES // 3 - 16_000) + b"\n"
    route = {"share_for": "60s", "share_max_bytes": KEPT_BYTES}
    with proxied(respond(body=third), route=route) as (daemon, exporter):
        for number in range(4):
            assert daemon.get(f"/x/metrics?n={number}").expect_ok(third).header("age") is None
        for number in (3, 2, 1):
            assert daemon.get(f"/x/metrics?n={number}").expect_ok(third).header("age") is not None
        assert daemon.get("/x/metrics?n=0").expect_ok(third).header("age") is None
        assert len(exporter.requests) == 5


@pytest.mark.parametrize(
    ("size", "query_size", "accept_size", "questions"),
    [(512 * 1024, 0, 0, 80), (20, 20_000, 0, 1500), (20, 0, 30_000, 1000)],
    ids=["large-bodies", "long-queries", "long-headers"],
)
def test_many_different_questions_do_not_fill_the_memory(
    size: int, query_size: int, accept_size: int, questions: int
) -> None:
    """A scraper asks whatever it likes; what is kept of it all has the size of one large answer."""
    body = b"# " + b"x" * (size - 3) + b"\n"
    route = {"share_for": "1h", "share_max_bytes": "2MiB"}
    with proxied(respond(body=body), route=route) as (daemon, _), daemon.connect() as wire:
        before = 0
        for number in range(-20, questions):
            if number == 0:
                before = daemon.rss_bytes()
            accept = ("Accept", f"{number}{'x' * accept_size}")
            wire.exchange(request(f"/x/metrics?{'x' * query_size}{number}", accept)).expect_ok(body)
        grown = daemon.rss_bytes() - before
    assert grown < 8 * 2**20, f"it grew by {grown / 2**20:.1f} MiB"


def test_slow_sharers_hold_one_copy_of_the_answer() -> None:
    body = LONG_TEXT * 7
    with (
        proxied(respond(body=body), route={"share_for": "1h", "timeout": "60s"}) as (daemon, exporter),
        ExitStack() as stack,
    ):
        for _ in range(2):
            daemon.get("/x/metrics").expect_ok(body)
        before = daemon.rss_bytes()
        daemon.reset_peak_rss()
        wires = [stack.enter_context(daemon.connect(receive_buffer_bytes=4096)) for _ in range(16)]
        for wire in wires:
            wire.send(request("/x/metrics")).read_head()
        wires[0].read_reply().expect_ok(body)
        grown = daemon.peak_rss_bytes() - before
        assert len(exporter.requests) == 1
    assert grown < len(body), f"it grew by {grown / 2**20:.1f} MiB"


@pytest.mark.parametrize("joins_kept", [False, True], ids=["asked-anew", "kept"])
def test_slow_scrapers_with_questions_of_their_own_do_not_fill_the_memory(joins_kept: bool) -> None:
    """What they have yet to read is no longer in flight or kept, and in memory all the same."""
    body = LONG_TEXT * 7
    route = {"share_for": "60s" if joins_kept else "1ms", "timeout": "60s"}
    with proxied(respond(body=body), route=route) as (daemon, exporter), ExitStack() as stack:
        daemon.get("/x/metrics").expect_ok(body)
        before = daemon.rss_bytes()
        daemon.reset_peak_rss()
        wires = []
        for number in range(20):
            ask = request(f"/x/metrics?{number}")
            if joins_kept:
                daemon.exchange(ask).expect_ok(body)
            wires.append(stack.enter_context(daemon.connect(receive_buffer_bytes=4096)))
            wires[-1].send(ask).read_head()
        grown = daemon.peak_rss_bytes() - before
        wires[-1].read_reply().expect_ok(body)
        for wire in wires:
            wire.close()
        daemon.wait_for_metric(0, "exporter_proxy_scrapes_in_flight", exporter="x")
        asked = len(exporter.requests)
        for _ in range(2):  # there is room again
            daemon.get("/x/metrics?again").expect_ok(body)
        assert len(exporter.requests) == asked + (1 if joins_kept else 2)
    assert grown < 6 * len(body), f"it grew by {grown / 2**20:.1f} MiB"


def test_a_reload_that_changes_the_exporter_drops_what_is_kept() -> None:
    pages = [b"page %d\n" % number for number in range(5)]
    route: dict[str, Any] = {"share_for": "60s"}
    changes: list[dict[str, Any]] = [
        {"headers": {"X-Scope": "db"}},
        {"share_for": "50s"},
        {"verify": True},
        {"share_for": "0s"},
    ]
    with proxied(*[respond(body=page) for page in pages], route=route) as (daemon, exporter):
        daemon.get("/x/metrics").expect_ok(pages[0])
        reload_with(daemon, exporter, route)
        assert daemon.get("/x/metrics").expect_ok(pages[0]).header("age") is not None
        for page, change in zip(pages[1:], changes, strict=True):
            reload_with(daemon, exporter, {**route, **change})
            assert daemon.get("/x/metrics").expect_ok(page).header("age") is None


def test_what_is_in_flight_at_a_reload_is_shared_to_its_end_and_then_dropped() -> None:
    go_on = Event()
    other_page = b"other_page 1\n"
    scripts = [[wait_for(go_on), *respond()], respond(body=other_page)]
    with proxied(*scripts, route={"share_for": "60s"}) as (daemon, exporter), ExitStack() as stack:
        wires = [stack.enter_context(daemon.connect()).send(request("/x/metrics")) for _ in range(2)]
        daemon.wait_for_metric(2, "exporter_proxy_scrapes_in_flight", exporter="x")
        reload_with(daemon, exporter, {"share_for": "50s"})
        daemon.get("/x/metrics").expect_ok(other_page)
        go_on.set()
        ages = {wire.read_reply().expect_ok(PAGE).header("age") for wire in wires}
        assert ages == {None, "0"}
        assert daemon.get("/x/metrics").expect_ok(other_page).header("age") is not None
        assert len(exporter.requests) == 2


def test_a_stop_does_not_wait_for_what_is_kept() -> None:
    with proxied(route={"share_for": "1h"}) as (daemon, _):
        daemon.get("/x/metrics").expect_ok(PAGE)
        started = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - started < 3.0
