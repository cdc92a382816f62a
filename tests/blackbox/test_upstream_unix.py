"""Exporters on unix sockets: everything that works over TCP, and what only a socket file can do wrong."""

from __future__ import annotations

import contextlib
import gzip
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    CONTENT_LENGTH,
    EXPOSITION,
    PAGE,
    FakeExporter,
    close,
    head,
    respond,
    send,
    stall,
)


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "exporter.sock"


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[Daemon]:
    """In front of ``socket_path``; ``allow_upstreams`` is about addresses and lets this one be."""
    entry = {"url": f"http+unix://{socket_path}:/metrics?own=a:b"}
    config = {"allow_upstreams": [], "access_log": {"format": "json"}, "exporters": {"x": entry}}
    with Daemon(config) as running:
        yield running


@pytest.fixture
def exporter(socket_path: Path) -> Iterator[FakeExporter]:
    with FakeExporter(unix=socket_path) as listening:
        yield listening


def test_a_scrape(daemon: Daemon, exporter: FakeExporter) -> None:
    for _ in range(3):
        daemon.get("/x/metrics?name=v").expect_ok(PAGE)
    assert len(exporter.connections) == 1, "the connection is used again"
    request = exporter.requests[0]
    assert request.target == b"/metrics?own=a:b&name=v"
    assert request.header("host") == "localhost"


def test_head(daemon: Daemon, exporter: FakeExporter) -> None:
    reply = daemon.get("/x/metrics", method="HEAD")
    assert (reply.status, reply.body, reply.error) == (200, b"", None)
    assert exporter.request.method == "HEAD"


@pytest.mark.parametrize("framing", [CONTENT_LENGTH, CHUNKED, CLOSE])
def test_bodies_pass_byte_for_byte(daemon: Daemon, exporter: FakeExporter, framing: str) -> None:
    body = gzip.compress(PAGE * 20_000)
    exporter.play(respond(headers=[EXPOSITION, ("Content-Encoding", "gzip")], body=body, framing=framing))
    reply = daemon.get("/x/metrics", ("Accept-Encoding", "gzip")).expect_ok(body)
    assert reply.header("content-encoding") == "gzip"


def test_a_truncated_body_is_cut(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play([send(head(200, [("Content-Length", "1000")]) + PAGE), close()])
    daemon.get("/x/metrics").expect_cut()


def test_a_hanging_exporter_times_out(daemon: Daemon, exporter: FakeExporter, socket_path: Path) -> None:
    exporter.play([stall()])
    reply = daemon.get("/x/metrics", ("X-Prometheus-Scrape-Timeout-Seconds", "0.4"))
    assert f"unix:{socket_path}" in reply.expect_refusal(504, "timeout", "x").body.decode()


def test_a_new_process_on_the_path_is_found(daemon: Daemon, socket_path: Path) -> None:
    with FakeExporter(respond(body=b"first 1\n"), unix=socket_path) as first:
        daemon.get("/x/metrics").expect_ok(b"first 1\n")
        socket_path.unlink()
        with FakeExporter(respond(body=b"second 1\n"), unix=socket_path):
            first.stop_accepting()
            first.drop_connections()
            daemon.get("/x/metrics").expect_ok(b"second 1\n")


def test_the_socket_is_the_backend_in_the_access_log(
    daemon: Daemon, exporter: FakeExporter, socket_path: Path
) -> None:
    daemon.get("/x/metrics").expect_ok()
    assert f'"backend": "unix:{socket_path}"' in daemon.wait_for_output('"path": "/x/metrics"')


def test_it_is_not_warned_of_as_an_exporter_elsewhere(socket_path: Path) -> None:
    with Daemon({"exporters": {"x": {"url": f"http+unix://{socket_path}:/metrics"}}}) as daemon:
        assert not [line for line in daemon.log_lines if "level=warn" in line]


# What can be wrong with the socket; missing permission is in tests/unit/test_connect.py.


def test_no_such_socket(daemon: Daemon, socket_path: Path) -> None:
    line = daemon.get("/x/metrics").expect_refusal(502, "connect", "x").body.decode()
    assert f"there is no socket at {socket_path}; is the exporter running" in line


def test_nobody_listens_on_the_socket(daemon: Daemon, socket_path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as left_behind:
        left_behind.bind(str(socket_path))
    line = daemon.get("/x/metrics").expect_refusal(502, "connect", "x").body.decode()
    assert f"connection refused by unix:{socket_path}: nobody listens there" in line


def test_a_file_that_is_no_socket(daemon: Daemon, socket_path: Path) -> None:
    socket_path.write_text("")
    line = daemon.get("/x/metrics").expect_refusal(502, "connect", "x").body.decode()
    assert f"connection refused by unix:{socket_path}" in line


def test_a_full_queue(daemon: Daemon, socket_path: Path) -> None:
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(socket_path))
        listener.listen(0)
        sockets.enter_context(socket.socket(socket.AF_UNIX)).connect(str(socket_path))
        line = daemon.get("/x/metrics").expect_refusal(502, "connect", "x").body.decode()
    assert "its queue is full; is the exporter hung or overloaded?" in line
