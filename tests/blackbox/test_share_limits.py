"""``share_for`` and its limits: who leaves, how long each waits, slots, and bodies too large to be shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from threading import Event
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.fakes.exporter import (
    CHUNKED,
    CONTENT_LENGTH,
    EVENT_SECONDS,
    EXPOSITION,
    FRAMINGS,
    PAGE,
    FakeExporter,
    close,
    head,
    respond,
    send,
    stall,
    wait_for,
)
from tests.stalls import is_set_within
from tests.testdata.exposition.long_pages import LONG_TEXT
from tests.wire import CONNECTION_CLOSE, Wire, request

SHARED = "exporter_proxy_shared_scrapes_total"
SCRAPES = "exporter_proxy_scrapes_total"
BYTES = "exporter_proxy_scrape_response_bytes_total"
IN_FLIGHT = "exporter_proxy_scrapes_in_flight"
TINY_BYTES = 64 * 1024
"""share_max_bytes of the exporters called tiny."""
QUERIES = count()


def seconds(value: float) -> tuple[str, str]:
    return "X-Prometheus-Scrape-Timeout-Seconds", f"{value:g}"


@pytest.fixture(scope="module")
def sharing() -> Iterator[tuple[Daemon, FakeExporter]]:
    with FakeExporter() as exporter:
        entries: dict[str, dict[str, Any]] = {
            "x": {},
            "tiny": {"share_max_bytes": TINY_BYTES},
            "tiny_verified": {"share_max_bytes": TINY_BYTES, "verify": True},
            "single": {"max_concurrent": 1},
            "single_tiny": {"max_concurrent": 1, "share_max_bytes": TINY_BYTES},
            "small": {"max_response_bytes": "1KiB"},
        }
        entries = {
            name: {"url": exporter.url(), "share_for": "60s", **entry} for name, entry in entries.items()
        }
        with Daemon({"exporters": entries}) as daemon:
            yield daemon, exporter


@pytest.fixture
def exporter(sharing: tuple[Daemon, FakeExporter]) -> Iterator[FakeExporter]:
    sharing[1].play()
    yield sharing[1]
    sharing[1].drop_connections()


@pytest.fixture
def daemon(sharing: tuple[Daemon, FakeExporter], exporter: FakeExporter) -> Daemon:
    return sharing[0]


@pytest.fixture
def query() -> str:
    """A query that no other test has asked with, so that nothing is kept for it."""
    return f"?test={next(QUERIES)}"


class Scrapers:
    """Scrapes under way at the same time, one after the other on its way before the next begins."""

    def __init__(self, daemon: Daemon, path: str) -> None:
        self._daemon = daemon
        self._path = path
        self._wires = ExitStack()
        self._before = daemon.metric(IN_FLIGHT, exporter=path)

    def __enter__(self) -> Scrapers:
        return self

    def __exit__(self, *_: object) -> None:
        self._wires.close()
        self.wait_for(0)

    def begin(self, target: str, *headers: tuple[str, str]) -> Wire:
        now = self._daemon.metric(IN_FLIGHT, exporter=self._path) - self._before
        wire = self._wires.enter_context(self._daemon.connect())
        wire.send(request(target, *headers, CONNECTION_CLOSE))
        self.wait_for(now + 1)
        return wire

    def wait_for(self, number: float) -> None:
        self._daemon.wait_for_metric(self._before + number, IN_FLIGHT, exporter=self._path)


# -- Leaving


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("who", ["first", "sharer"])
def test_one_that_leaves_takes_the_answer_from_nobody(
    daemon: Daemon, exporter: FakeExporter, query: str, who: str, how: str
) -> None:
    go_on = Event()
    exporter.play(
        [send(head(headers=[EXPOSITION, ("Connection", "close")])), wait_for(go_on), send(PAGE), close()]
    )
    with Scrapers(daemon, "x") as scrapers:
        wires = [scrapers.begin(f"/x/metrics{query}") for _ in range(3)]
        exporter.wait_for_requests()
        leaver = wires.pop(0 if who == "first" else 1)
        getattr(leaver, how)()
        scrapers.wait_for(2)
        go_on.set()
        for wire in wires:
            wire.read_reply().expect_ok(PAGE)
    assert len(exporter.requests) == 1
    assert daemon.get(f"/x/metrics{query}").expect_ok(PAGE).header("age") is not None


@pytest.mark.parametrize("sent", [b"", head() + b"fake"], ids=["before-the-head", "in-the-body"])
def test_when_all_have_left_the_exporter_is_let_go(
    daemon: Daemon, exporter: FakeExporter, query: str, sent: bytes
) -> None:
    exporter.play([send(sent), stall()], respond())
    with Scrapers(daemon, "x") as scrapers:
        wires = [scrapers.begin(f"/x/metrics{query}") for _ in range(3)]
        exporter.wait_for_requests()
        for left, wire in enumerate(wires, 1):
            assert not exporter.connections[-1].closed_by_peer.is_set()
            wire.close()
            scrapers.wait_for(3 - left)
    assert is_set_within(exporter.connections[-1].closed_by_peer, 5.0)
    assert daemon.get(f"/x/metrics{query}").expect_ok(PAGE).header("age") is None


def test_the_bytes_are_counted_where_the_first_has_left(exporter: FakeExporter) -> None:
    go_on = Event()
    exporter.play([wait_for(go_on), *respond()])
    entry = {"url": exporter.url(), "share_for": "60s"}
    with Daemon({"exporters": {"x": entry}}) as daemon, Scrapers(daemon, "x") as scrapers:
        first, second = (scrapers.begin("/x/metrics") for _ in range(2))
        first.close()
        scrapers.wait_for(1)
        go_on.set()
        second.read_reply().expect_ok(PAGE)
        daemon.wait_for_metric(1, SCRAPES, exporter="x", code="200")
        assert daemon.metric(BYTES, exporter="x") == len(PAGE)


# -- Deadlines


def test_a_sharer_with_a_shorter_deadline_gets_its_own_504(
    daemon: Daemon, exporter: FakeExporter, query: str
) -> None:
    go_on = Event()
    exporter.play([wait_for(go_on), *respond()])
    with Scrapers(daemon, "x") as scrapers:
        patient = scrapers.begin(f"/x/metrics{query}", seconds(10))
        hurried = scrapers.begin(f"/x/metrics{query}", seconds(3))
        reply = hurried.read_reply().expect_refusal(504, "timeout", "x")
        assert 2.45 < reply.ended_after_seconds < 3.0 + reply.stalled_seconds
        assert "3 s" in reply.body.decode()
        go_on.set()
        patient.read_reply().expect_ok(PAGE)
    assert len(exporter.requests) == 1


@pytest.mark.parametrize("sent", [b"", head() + PAGE[:9]], ids=["before-the-head", "in-the-body"])
def test_a_sharer_with_a_longer_deadline_gets_the_answer_after_the_firsts_has_passed(
    daemon: Daemon, exporter: FakeExporter, query: str, sent: bytes
) -> None:
    go_on = Event()
    whole = head() + PAGE
    exporter.play([send(sent), wait_for(go_on), send(whole[len(sent) :]), close()])
    with Scrapers(daemon, "x") as scrapers:
        hurried = scrapers.begin(f"/x/metrics{query}", seconds(3))
        patient = scrapers.begin(f"/x/metrics{query}", seconds(10))
        hurried.read_reply().expect_refusal(504, "timeout", "x")
        scrapers.wait_for(1)
        go_on.set()
        assert patient.read_reply().expect_ok(PAGE).header("age") == "0"
    assert len(exporter.requests) == 1


def test_past_the_firsts_deadline_nobody_joins_what_hangs(
    daemon: Daemon, exporter: FakeExporter, query: str
) -> None:
    """Scrapes that overlap could otherwise wait for it for ever, each for the rest of it."""
    exporter.play([stall()], respond())
    with Scrapers(daemon, "x") as scrapers:
        first = scrapers.begin(f"/x/metrics{query}", seconds(3))
        patient = scrapers.begin(f"/x/metrics{query}", seconds(5))
        first.read_reply().expect_refusal(504, "timeout", "x")
        assert daemon.get(f"/x/metrics{query}", seconds(3)).expect_ok(PAGE).header("age") is None
        assert daemon.get(f"/x/metrics{query}", seconds(3)).expect_ok(PAGE).header("age") == "0"
        patient.read_reply().expect_refusal(504, "timeout", "x")
        assert len(exporter.requests) == 2


def test_what_comes_late_is_not_kept_in_place_of_a_newer_answer(
    daemon: Daemon, exporter: FakeExporter, query: str
) -> None:
    go_on = Event()
    exporter.play([wait_for(go_on), *respond(body=b"late 1\n")], respond())
    with Scrapers(daemon, "x") as scrapers:
        first = scrapers.begin(f"/x/metrics{query}", seconds(3))
        patient = scrapers.begin(f"/x/metrics{query}", seconds(10))
        first.read_reply().expect_refusal(504, "timeout", "x")
        daemon.get(f"/x/metrics{query}", seconds(3)).expect_ok(PAGE)
        go_on.set()
        patient.read_reply().expect_ok(b"late 1\n")
        daemon.get(f"/x/metrics{query}", seconds(3)).expect_ok(PAGE)
    assert len(exporter.requests) == 2


def test_the_exporter_is_let_go_at_the_last_deadline(
    daemon: Daemon, exporter: FakeExporter, query: str
) -> None:
    exporter.play([stall()])
    with Scrapers(daemon, "x") as scrapers:
        wires = [scrapers.begin(f"/x/metrics{query}", seconds(each)) for each in (3, 5.6)]
        wires[0].read_reply().expect_refusal(504, "timeout", "x")
        assert not exporter.connections[-1].closed_by_peer.is_set()
        wires[1].read_reply().expect_refusal(504, "timeout", "x")
        assert exporter.connections[-1].closed_by_peer.wait(EVENT_SECONDS)


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (head(headers=[("Content-Length", "2000")]), 502, "too_large"),
        (head(302, [("Location", "/"), ("Content-Length", "20")]), 502, "redirect"),
        (head(headers=[EXPOSITION]) + b"# " + b"x" * 2000, 502, "too_large"),
    ],
    ids=["announced", "redirect", "too-much"],
)
def test_what_is_refused_is_not_waited_for(
    daemon: Daemon, exporter: FakeExporter, query: str, sent: bytes, status: int, reason: str
) -> None:
    """As without share_for: when it is clear that nothing comes of it, its end need not be awaited."""
    exporter.play([send(sent), stall()])
    reply = daemon.get(f"/small/metrics{query}", seconds(10)).expect_refusal(status, reason, "small")
    assert reply.took_seconds < 2.0
    assert is_set_within(exporter.connections[-1].closed_by_peer, 5.0)


# -- Slots


@pytest.mark.parametrize("path", ["single", "single_tiny"])
def test_many_sharers_need_one_slot(daemon: Daemon, exporter: FakeExporter, query: str, path: str) -> None:
    """Where the body is too large to be shared each of them has the slot in turn."""
    body = PAGE if path == "single" else LONG_TEXT[: 3 * TINY_BYTES]
    go_on = Event()
    exporter.play([wait_for(go_on), *respond(body=body)], respond(body=body))
    with Scrapers(daemon, path) as scrapers:
        wires = [scrapers.begin(f"/{path}/metrics{query}") for _ in range(12)]
        go_on.set()
        for wire in wires:
            wire.read_reply().expect_ok(body)
    assert len(exporter.requests) == (1 if path == "single" else 12)
    daemon.get(f"/{path}/metrics{query}&a=1").expect_ok(body)


def test_sharers_waiting_for_a_slot_are_saturated_at_their_own_deadline(
    daemon: Daemon, exporter: FakeExporter, query: str
) -> None:
    go_on = Event()
    exporter.play([wait_for(go_on), *respond()], respond())
    with Scrapers(daemon, "single") as scrapers:
        has_slot = scrapers.begin(f"/single/metrics{query}")
        exporter.wait_for_requests()
        hurried = scrapers.begin(f"/single/metrics{query}&a=1", seconds(3))
        sharer = scrapers.begin(f"/single/metrics{query}&a=1", seconds(3.4))
        patient = scrapers.begin(f"/single/metrics{query}&a=1")
        for wire in (hurried, sharer):
            wire.read_reply().expect_refusal(503, "saturated", "single")
        go_on.set()
        for wire in (has_slot, patient):
            wire.read_reply().expect_ok(PAGE)
    assert len(exporter.requests) == 2


# -- Large bodies


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [TINY_BYTES, TINY_BYTES + 1])
def test_share_max_bytes_is_the_largest_body_that_is_kept(
    daemon: Daemon, exporter: FakeExporter, query: str, size: int, framing: str
) -> None:
    body = b"# " + b"x" * (size - 3) + b"\n"
    exporter.play(respond(body=body, framing=framing))
    replies = [daemon.get(f"/tiny/metrics{query}").expect_ok(body) for _ in range(2)]
    is_kept = size <= TINY_BYTES
    assert [reply.header("age") is not None for reply in replies] == [False, is_kept]
    assert len(exporter.requests) == (1 if is_kept else 2)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("path", ["tiny", "tiny_verified"])
def test_a_body_too_large_to_be_shared_arrives_whole_for_all(
    daemon: Daemon, exporter: FakeExporter, query: str, path: str, framing: str
) -> None:
    shared, received = daemon.metric(SHARED, exporter=path), daemon.metric(BYTES, exporter=path)
    go_on = Event()
    exporter.play(*[[wait_for(go_on), *respond(body=LONG_TEXT, framing=framing)]] * 3)
    with Scrapers(daemon, path) as scrapers:
        wires = [scrapers.begin(f"/{path}/metrics{query}") for _ in range(3)]
        exporter.wait_for_requests()
        go_on.set()
        for wire in wires:
            assert wire.read_reply().expect_ok(LONG_TEXT).header("age") is None
    assert len(exporter.requests) == 3
    daemon.wait_for_metric(received + 3 * len(LONG_TEXT), BYTES, exporter=path)
    assert daemon.metric(SHARED, exporter=path) == shared


@pytest.mark.parametrize("framing", [CONTENT_LENGTH, CHUNKED])
def test_a_large_body_that_breaks_off_is_cut_for_whom_it_was_and_for_nobody_else(
    daemon: Daemon, exporter: FakeExporter, query: str, framing: str
) -> None:
    how = {CONTENT_LENGTH: ("Content-Length", "9999999"), CHUNKED: ("Transfer-Encoding", "chunked")}[framing]
    part = LONG_TEXT if framing == CONTENT_LENGTH else b"%x\r\n%b\r\n" % (len(LONG_TEXT), LONG_TEXT)
    go_on = Event()
    broken = [wait_for(go_on), send(head(headers=[EXPOSITION, how]) + part), close()]
    exporter.play(broken, respond(body=LONG_TEXT))
    with Scrapers(daemon, "tiny") as scrapers:
        wires = [scrapers.begin(f"/tiny/metrics{query}") for _ in range(2)]
        exporter.wait_for_requests()
        go_on.set()
        replies = sorted((wire.read_reply() for wire in wires), key=lambda reply: reply.complete)
    assert LONG_TEXT.startswith(replies[0].expect_cut().body)
    replies[1].expect_ok(LONG_TEXT)


@pytest.mark.parametrize("path", ["tiny", "tiny_verified"])
def test_one_that_leaves_a_large_body_lets_the_exporter_go(
    daemon: Daemon, exporter: FakeExporter, query: str, path: str
) -> None:
    length = ("Content-Length", str(10 * len(LONG_TEXT)))
    exporter.play([send(head(headers=[EXPOSITION, length]) + LONG_TEXT), stall()], respond())
    with Scrapers(daemon, path) as scrapers:
        wire = scrapers.begin(f"/{path}/metrics{query}")
        wire.read_head()
        wire.close()
        assert is_set_within(exporter.connections[-1].closed_by_peer, 5.0)
    daemon.get(f"/{path}/metrics{query}").expect_ok(PAGE)
