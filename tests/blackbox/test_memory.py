"""A scrape of any size passes through in bounded memory, however slow its reader."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, proxied
from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    CONTENT_LENGTH,
    FRAMINGS,
    LAST_CHUNK,
    FakeExporter,
    chunk,
    close,
    head,
    respond,
    send,
    send_repeatedly,
    stall,
)
from tests.wire import Wire, request

GROWTH_BYTES = 16 * 1024 * 1024
PIECE = b"x" * 1_000_000
PIECES = 200
HEADS = {
    CONTENT_LENGTH: ("Content-Length", str(len(PIECE) * PIECES)),
    CHUNKED: ("Transfer-Encoding", "chunked"),
    CLOSE: ("Connection", "close"),
}


@pytest.fixture(scope="module")
def roomy() -> Iterator[tuple[Daemon, FakeExporter]]:
    with proxied(route={"max_response_bytes": "1GiB", "timeout": "60s"}) as pair:
        yield pair


@contextlib.contextmanager
def growth_bounded(daemon: Daemon) -> Iterator[None]:
    """Fails where the resident size has at any time grown by more than ``GROWTH_BYTES``."""
    daemon.get("/x/metrics")  # whatever is loaded or allocated at a first scrape is no growth
    before = daemon.rss_bytes()
    daemon.reset_peak_rss()
    yield
    grown = daemon.peak_rss_bytes() - before
    assert grown < GROWTH_BYTES, f"it grew by {grown / 1024 / 1024:.1f} MiB"


def read_slowly_then_fast(wire: Wire) -> int:
    """The number of bytes until the daemon closes: the first second with pauses, then as they come."""
    total, started = 0, time.monotonic()
    buffer = bytearray(1 << 20)
    while received := wire.sock.recv_into(buffer):
        total += received
        if time.monotonic() - started < 1.0:
            time.sleep(0.02)
    return total


@pytest.mark.parametrize("framing", FRAMINGS)
def test_200_megabytes_to_a_slow_reader(roomy: tuple[Daemon, FakeExporter], framing: str) -> None:
    daemon, exporter = roomy
    exporter.play()
    with growth_bounded(daemon):
        piece = chunk(PIECE) if framing == CHUNKED else PIECE
        ending = {CHUNKED: [send(LAST_CHUNK)], CLOSE: [close()], CONTENT_LENGTH: []}[framing]
        exporter.play([send(head(200, [HEADS[framing]])), send_repeatedly(piece, PIECES), *ending])
        with daemon.connect(receive_buffer_bytes=65536) as wire:
            wire.send(request("/x/metrics", ("Connection", "close")))
            assert read_slowly_then_fast(wire) > len(PIECE) * PIECES


def test_eight_readers_that_do_not_read(roomy: tuple[Daemon, FakeExporter]) -> None:
    """Nothing is fetched for who does not take it; and the daemon goes on serving the others."""
    daemon, exporter = roomy
    exporter.play()
    with growth_bounded(daemon), contextlib.ExitStack() as wires:
        pouring = [send(head(200, [HEADS[CHUNKED]])), send_repeatedly(chunk(PIECE), PIECES), send(LAST_CHUNK)]
        exporter.play(*[pouring] * 8, respond())
        for _ in range(8):
            wires.enter_context(daemon.connect(receive_buffer_bytes=4096)).send(request("/x/metrics"))
        exporter.wait_for_requests(8)
        for _ in range(10):
            assert daemon.get("/x/metrics").expect_ok().ended_after_seconds < 2.0
    exporter.drop_connections()


def test_request_body_is_not_read_into_memory(roomy: tuple[Daemon, FakeExporter]) -> None:
    daemon, exporter = roomy
    exporter.play()
    with growth_bounded(daemon):
        exporter.play([stall()])
        with daemon.connect(timeout_seconds=1.0) as wire:
            wire.send(request("/x/metrics", HEADS[CONTENT_LENGTH]))
            # TimeoutError: the daemon has stopped reading; ConnectionError: it has closed.
            with contextlib.suppress(TimeoutError, ConnectionError):
                for _ in range(100):
                    wire.sock.sendall(PIECE)
    exporter.drop_connections()
