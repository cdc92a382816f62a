"""A scrape of any size passes through in bounded memory, however slow its reader."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    CONTENT_LENGTH,
    FRAMINGS,
    LAST_CHUNK,
    FakeExporter,
    Script,
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
CROWD, CROWDS = 150, 8
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
            assert daemon.get("/x/metrics").expect_ok().took_seconds < 2.0
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


@contextlib.contextmanager
def over_tls(directory: Path, *scripts: Script, **config: Any) -> Iterator[tuple[Daemon, ssl.SSLContext]]:
    """A daemon that speaks TLS, and how to come to it; its resident size is that after a first scrape."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = directory / "cert.pem", directory / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls = {"certfile": str(cert), "keyfile": str(key)}
    with proxied(respond(), *scripts, tls=tls, **config) as (daemon, _):
        daemon.get("/x/metrics", tls=trusting).expect_ok()
        yield daemon, trusting


def test_eight_readers_over_tls_of_an_answer_that_is_held(tmp_path: Path) -> None:
    """It is encrypted for each as he takes it, and not all at once, which would hold the event loop, too."""
    held = b"a_metric 1\n" * 600_000
    with over_tls(tmp_path, respond(body=held), route={"share_for": "1m"}) as (daemon, trusting):
        target = "/x/metrics?held"
        daemon.get(target, tls=trusting).expect_ok(held)
        before = daemon.rss_bytes()
        with contextlib.ExitStack() as wires:
            for _ in range(8):
                wire = wires.enter_context(daemon.connect(receive_buffer_bytes=4096, tls=trusting))
                wire.send(request(target)).read_head()
            daemon.get(target, tls=trusting).expect_ok(held)
            grown = daemon.rss_bytes() - before
        assert grown < GROWTH_BYTES, f"it grew by {grown / 1024 / 1024:.1f} MiB"


def test_reloads_keep_no_garbage(tmp_path: Path) -> None:
    """A body that is cut leaves some for the collector; a reload exempts from it what is there to stay."""
    cut = [send(head(200, [("Content-Length", "200000")]) + b"a 1\n" * 20_000), close()]
    with over_tls(tmp_path, cut) as (daemon, trusting):
        before = daemon.rss_bytes()
        for _ in range(12):
            for _ in range(10):
                daemon.get("/x/metrics", tls=trusting).expect_cut()
            assert "config reloaded" in daemon.reload()
        grown = daemon.rss_bytes() - before
        assert grown < 8 * 1024 * 1024, f"it grew by {grown / 1024 / 1024:.1f} MiB"


def test_crowds_that_connect_and_begin_no_handshake(tmp_path: Path) -> None:
    """TLS has buffers for each connection, which the C library does not give back when they are freed."""
    with over_tls(tmp_path, respond(), read_header_timeout="1m") as (daemon, _):
        before, descriptors = daemon.rss_bytes(), daemon.fd_count()
        for _ in range(CROWDS):
            with contextlib.ExitStack() as wires:
                for _ in range(CROWD):
                    wires.enter_context(daemon.connect())
                wait_until(lambda: daemon.fd_count() > descriptors + CROWD * 0.9, "all were accepted", 15.0)
            wait_until(lambda: daemon.fd_count() < descriptors + CROWD * 0.1, "all were let go of", 15.0)
        grown = daemon.rss_bytes() - before
        assert grown < 6 * 1024 * 1024, f"it grew by {grown / 1024 / 1024:.1f} MiB"
