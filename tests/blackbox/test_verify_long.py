"""``verify: true`` and pages that are longer than what is held back: they pass as far as they are good.

A page that turns out bad is never ended cleanly, and nothing from its first bad line on gets through.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.daemon import Daemon, proxied
from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    CONTENT_LENGTH,
    EXPOSITION,
    FRAMINGS,
    LAST_CHUNK,
    PAGE,
    FakeExporter,
    Script,
    chunk,
    close,
    head,
    respond,
    send,
    send_repeatedly,
    wait_for,
)
from tests.stalls import is_set_within
from tests.testdata.exposition.long_pages import LONG_OPENMETRICS, LONG_PROTOBUF, LONG_TEXT
from tests.testdata.exposition.pages import OPENMETRICS, PROTOBUF, TEXT, zipped
from tests.wire import Reply, Wire, request

HOLD_BYTES = 256 * 1024
"""Up to this size a body is judged before its status goes out."""
ERRORS = "exporter_proxy_scrape_errors_total"
SCRAPE = request("/x/metrics")
TWO_SECONDS = ("X-Prometheus-Scrape-Timeout-Seconds", "2")
BAD_LINE = b"oops: here is no sample\n"
LINES = LONG_TEXT.count(b"\n")


@dataclass(frozen=True)
class Long:
    """A page in two parts: with the second comes what makes it bad, on this line."""

    first: bytes
    rest: bytes
    content_type: str = TEXT
    line: int | None = None
    gzip: bool = False

    @property
    def headers(self) -> list[tuple[str, str]]:
        encoding = [("Content-Encoding", "gzip")] if self.gzip else []
        return [("Content-Type", self.content_type), *encoding]

    @property
    def body(self) -> bytes:
        return self.first + self.rest


def packed(first: bytes, rest: bytes, without: int = 0) -> tuple[bytes, bytes]:
    """One gzip body in two parts, ``without`` its last bytes."""
    packer = zlib.compressobj(1, wbits=31)
    first = packer.compress(first) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(rest) + packer.flush()
    return first, rest[: len(rest) - without]


# Bad at once where the second part begins; what follows it would be good.
IN_THE_MIDDLE = {
    "text": Long(LONG_TEXT, BAD_LINE + LONG_TEXT, TEXT, LINES + 1),
    "openmetrics": Long(LONG_TEXT, b"\n" + LONG_OPENMETRICS, OPENMETRICS, LINES + 1),
    "after-eof": Long(LONG_OPENMETRICS, LONG_OPENMETRICS, OPENMETRICS, LINES + 2),
    "protobuf": Long(LONG_PROTOBUF, b"\x04\x36" + LONG_PROTOBUF, PROTOBUF),
    "gzip": Long(*packed(LONG_TEXT, BAD_LINE + LONG_TEXT), TEXT, LINES + 1, gzip=True),
    "gzip-garbage": Long(packed(LONG_TEXT, b"")[0], b"\xff" * 300_000, gzip=True),
}
# Bad by what does not come any more; all that came might be a part of a good page.
AT_THE_END = {
    "openmetrics": Long(LONG_TEXT, b"last_metric 1\n", OPENMETRICS, LINES + 1),
    "openmetrics-gzip": Long(*packed(LONG_TEXT, LONG_TEXT), OPENMETRICS, 2 * LINES, gzip=True),
    "half-a-line": Long(LONG_TEXT, b"last_metric", TEXT, LINES + 1),
    "open-quote": Long(LONG_TEXT, b'a 1\nlast_metric{a="b} 1\nb 1\n', TEXT, LINES + 2),
    "protobuf": Long(LONG_PROTOBUF, LONG_PROTOBUF[:1000], PROTOBUF),
    "gzip": Long(*packed(LONG_TEXT, LONG_TEXT, without=4), gzip=True),
    "gzip-next-member": Long(zipped(LONG_TEXT, 1), zipped(LONG_TEXT, 1)[:5], gzip=True),
}


@pytest.fixture(scope="module")
def verifying() -> Iterator[tuple[Daemon, FakeExporter]]:
    with FakeExporter() as exporter:
        entries: dict[str, dict[str, Any]] = {
            "x": {},
            "small": {"max_response_bytes": "768KiB"},
            "bombed": {"max_response_bytes": "16MiB"},
        }
        entries = {name: {"url": exporter.url(), "verify": True, **entry} for name, entry in entries.items()}
        with Daemon({"exporters": entries}) as daemon:
            yield daemon, exporter


@pytest.fixture
def exporter(verifying: tuple[Daemon, FakeExporter]) -> Iterator[FakeExporter]:
    verifying[1].play()
    yield verifying[1]
    verifying[1].drop_connections()


@pytest.fixture
def daemon(verifying: tuple[Daemon, FakeExporter], exporter: FakeExporter) -> Daemon:
    return verifying[0]


def in_two_parts(page: Long, framing: str, relayed: threading.Event) -> Script:
    """Send the second part of the page only after ``relayed``."""
    how = {
        CONTENT_LENGTH: ("Content-Length", str(len(page.body))),
        CHUNKED: ("Transfer-Encoding", "chunked"),
        CLOSE: ("Connection", "close"),
    }[framing]
    first, rest = (chunk(page.first), chunk(page.rest)) if framing == CHUNKED else (page.first, page.rest)
    ending = {CHUNKED: [send(LAST_CHUNK)], CLOSE: [close()], CONTENT_LENGTH: []}[framing]
    return [send(head(200, [*page.headers, how]) + first), wait_for(relayed), send(rest), *ending]


def scrape_in_two_parts(
    daemon: Daemon, exporter: FakeExporter, page: Long, framing: str, sent: bytes = SCRAPE
) -> Reply:
    relayed = threading.Event()
    exporter.play(in_two_parts(page, framing, relayed), respond())
    with daemon.connect() as wire:
        wire.send(sent).read_head()  # so it is being passed on
        relayed.set()
        reply = wire.read_reply()
        assert reply.complete or wire.closes_within(3.0)
        return reply


def last_malformed(daemon: Daemon) -> dict[str, Any]:
    """What ``/-/exporters`` tells of the last malformed scrape of ``x``."""
    exporters = json.loads(daemon.get("/-/exporters").expect_ok().body)["exporters"]
    failure: dict[str, Any] = {one["name"]: one for one in exporters}["x"]["last_failures"]["malformed"]
    return failure


# -- Cut


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", IN_THE_MIDDLE)
def test_a_long_page_is_cut_before_its_first_bad_line(
    daemon: Daemon, exporter: FakeExporter, name: str, framing: str
) -> None:
    page = IN_THE_MIDDLE[name]
    errors = daemon.metric(ERRORS, exporter="x", reason="malformed")
    reply = scrape_in_two_parts(daemon, exporter, page, framing).expect_cut()
    assert reply.error is None
    assert reply.body
    assert page.first.startswith(reply.body)
    daemon.wait_for_metric(errors + 1, ERRORS, exporter="x", reason="malformed")
    failure = last_malformed(daemon)
    assert failure["status"] == 200
    if page.line is not None:
        assert f" line {page.line}: " in failure["message"]
    daemon.get("/x/metrics", TWO_SECONDS).expect_ok(PAGE)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", AT_THE_END)
def test_of_a_page_that_is_bad_at_its_end_the_last_bytes_are_withheld(
    daemon: Daemon, exporter: FakeExporter, name: str, framing: str
) -> None:
    page = AT_THE_END[name]
    errors = daemon.metric(ERRORS, exporter="x", reason="malformed")
    reply = scrape_in_two_parts(daemon, exporter, page, framing).expect_cut()
    assert page.body.startswith(reply.body)
    assert 0 < len(reply.body) < len(page.body)
    assert not reply.raw.endswith(LAST_CHUNK)
    daemon.wait_for_metric(errors + 1, ERRORS, exporter="x", reason="malformed")
    if page.line is not None:
        assert f" line {page.line}: " in last_malformed(daemon)["message"]
    daemon.get("/x/metrics", TWO_SECONDS).expect_ok(PAGE)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", ["text", "gzip"])
def test_for_an_http_1_0_scraper_the_cut_is_no_end_either(
    daemon: Daemon, exporter: FakeExporter, name: str, framing: str
) -> None:
    """Where the close itself would end the body it must be a reset."""
    page = IN_THE_MIDDLE[name]
    sent = request("/x/metrics", version="1.0", host=None)
    reply = scrape_in_two_parts(daemon, exporter, page, framing, sent).expect_cut()
    assert page.first.startswith(reply.body)


def test_the_exporters_connection_is_given_up_with_the_page(daemon: Daemon, exporter: FakeExporter) -> None:
    """Even where the exporter has much more to send."""
    relayed = threading.Event()
    chunked = head(headers=[EXPOSITION, ("Transfer-Encoding", "chunked")])
    more = send_repeatedly(chunk(LONG_TEXT), 10_000)
    exporter.play([send(chunked + chunk(LONG_TEXT)), wait_for(relayed), send(chunk(BAD_LINE)), more])
    with daemon.connect() as wire:
        wire.send(SCRAPE).read_head()
        relayed.set()
        wire.read_reply().expect_cut()
    assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)


# -- At the border


def page_of(size: int, *, ends: bool) -> bytes:
    """An OpenMetrics page of exactly this size."""
    end = b"# EOF\n" if ends else b"x 12345\n"
    body = LONG_TEXT[: size - 400].rpartition(b"\n")[0] + b"\n# HELP x "
    return body + b"x" * (size - len(body) - 1 - len(end)) + b"\n" + end


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [HOLD_BYTES - 1, HOLD_BYTES, HOLD_BYTES + 1])
def test_at_the_border_a_good_page_passes(
    daemon: Daemon, exporter: FakeExporter, size: int, framing: str
) -> None:
    page = page_of(size, ends=True)
    exporter.play(respond(200, [("Content-Type", OPENMETRICS)], page, framing))
    daemon.get("/x/metrics").expect_ok(page)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [HOLD_BYTES - 1, HOLD_BYTES, HOLD_BYTES + 1])
def test_at_the_border_a_bad_page_is_refused_or_cut(
    daemon: Daemon, exporter: FakeExporter, size: int, framing: str
) -> None:
    page = page_of(size, ends=False)
    exporter.play(respond(200, [("Content-Type", OPENMETRICS)], page, framing))
    reply = daemon.exchange(SCRAPE)
    if size <= HOLD_BYTES or reply.status != 200:
        reply.expect_refusal(502, "malformed", "x")
    else:
        assert len(reply.expect_cut().body) < size


@pytest.mark.parametrize("framing", [CONTENT_LENGTH, CHUNKED])
def test_at_the_border_the_status_waits_for_the_end(
    daemon: Daemon, exporter: FakeExporter, framing: str
) -> None:
    """All of it that can come before its end is there, and it might still be refused."""
    page, relayed = page_of(HOLD_BYTES, ends=False), threading.Event()
    parts = Long(page[:-1], page[-1:], OPENMETRICS)
    exporter.play(in_two_parts(parts, framing, relayed))
    with daemon.connect() as wire:
        wire.send(SCRAPE)
        exporter.wait_for_requests()
        assert not wire.readable_within(0.3)
        relayed.set()
        wire.read_reply().expect_refusal(502, "malformed", "x")


# -- Bombs


@pytest.mark.parametrize("size", [768 * 1024, 768 * 1024 + 1])
def test_a_long_gzip_page_may_decode_to_max_response_bytes(
    daemon: Daemon, exporter: FakeExporter, size: int
) -> None:
    page = page_of(size, ends=True)
    body = zipped(page, 1)
    assert len(body) > HOLD_BYTES
    errors = daemon.metric(ERRORS, exporter="small", reason="too_large")
    exporter.play(respond(200, [("Content-Type", OPENMETRICS), ("Content-Encoding", "gzip")], body))
    reply = daemon.exchange(request("/small/metrics"))
    if size == 768 * 1024:
        reply.expect_ok(body)
    elif reply.status == 200:
        assert len(reply.expect_cut().body) < len(body)
        daemon.wait_for_metric(errors + 1, ERRORS, exporter="small", reason="too_large")
    else:
        reply.expect_refusal(502, "too_large", "small")


def test_a_bomb_does_not_hold_up_other_scrapes(daemon: Daemon, exporter: FakeExporter) -> None:
    """A thousand to one, and nothing but blank lines: to be judged it takes its time, but not the others'."""
    bomb = zipped(b"\n" * (16 * 1024 * 1024 + 1))
    assert len(bomb) < HOLD_BYTES
    exporter.play(respond(200, [EXPOSITION, ("Content-Encoding", "gzip")], bomb), respond())
    with daemon.connect() as bombed, daemon.connect() as other:
        bombed.send(request("/bombed/metrics"))
        exporter.wait_for_requests()
        took = []
        while not bombed.readable_within(0):
            took.append(other.exchange(SCRAPE).expect_ok(PAGE).took_seconds)
        bombed.read_reply().expect_refusal(502, "too_large", "bombed")
    assert max(took, default=0.0) < 1.0, f"the slowest of {len(took)} scrapes took {max(took):.3f} s"


# -- Memory

READERS = 16
MIB = 1 << 20


@dataclass(frozen=True)
class Poured:
    """A body of 60 MB, a piece of it many times over, and what it may cost for each reader."""

    piece: bytes
    times: int
    growth_bytes: int
    encoding: str | None = None


POURED = {
    "samples": Poured(LONG_TEXT, 58, 3 * MIB // 2),
    # A body may be many members in a row.
    "gzip": Poured(zipped(LONG_TEXT, 1), 58, 2 * MIB, "gzip"),
    # Lines that are pending in the verifier while they are held back.
    "long-lines": Poured(b"# " + b"x" * 249_997 + b"\n", 240, 2 * MIB),
}


def read_slowly(wire: Wire, seconds: float) -> int:
    """How much came within this time, with pauses between the reads."""
    total, end = 0, time.monotonic() + seconds
    buffer = bytearray(1 << 16)
    while time.monotonic() < end and (received := wire.sock.recv_into(buffer)):
        total += received
        time.sleep(0.02)
    return total


def read_to_the_end(wire: Wire) -> int:
    total, buffer = 0, bytearray(1 << 20)
    while received := wire.sock.recv_into(buffer):
        total += received
    return total


@pytest.mark.parametrize("name", POURED)
def test_memory_is_bounded_with_slow_readers(name: str) -> None:
    body = POURED[name]
    headers = [EXPOSITION, ("Connection", "close")]
    if body.encoding is not None:
        headers.append(("Content-Encoding", body.encoding))
    asked = request("/x/metrics", ("Connection", "close"))
    with proxied(route={"verify": True, "timeout": "60s"}) as (daemon, exporter), ExitStack() as stack:
        daemon.get("/x/metrics").expect_ok(PAGE)
        before = daemon.rss_bytes()
        daemon.reset_peak_rss()
        exporter.play([send(head(headers=headers)), send_repeatedly(body.piece, body.times), close()])
        wires = [stack.enter_context(daemon.connect(receive_buffer_bytes=65536)) for _ in range(READERS)]
        for wire in wires:
            wire.send(asked)
        with ThreadPoolExecutor(READERS) as readers:
            got = list(readers.map(lambda wire: read_slowly(wire, 0.6), wires))
        assert min(got) > 0
        assert got[0] + read_to_the_end(wires[0]) > len(body.piece) * body.times
        grown = daemon.peak_rss_bytes() - before
        assert grown < READERS * body.growth_bytes, (
            f"it grew by {grown / MIB:.1f}, from {before / MIB:.1f} MiB"
        )
