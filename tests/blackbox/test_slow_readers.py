"""The end of an answer that its scraper has yet to read: the end of connection or daemon waits for it.

Once all of an answer is handed to the connection, its scrape is over, deadline and all; the kernel may
have taken only a part of it by then.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.daemon import Daemon
from tests.fakes.exporter import FakeExporter, respond
from tests.launcher import activated
from tests.wire import CONNECTION_CLOSE, Wire, request

BODY = b"a_metric 1\n" * 4000
"""More than the kernel takes here, and not so much that the daemon waits for room."""
BUFFER_BYTES = 4096
CONNECTIONS = "exporter_proxy_connections"
NOT_AT_ONCE_SECONDS = 2.0
ENOUGH_SECONDS = 30.0
"""For a stop that waits for nobody, on a busy machine; the daemon would wait for a minute."""


@contextmanager
def reluctant() -> Iterator[tuple[Daemon, Wire]]:
    """A daemon whose kernel takes little of an answer at once, and a connection with a small window."""
    with FakeExporter(respond(body=BODY)) as exporter, socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        config = {
            "listen": "systemd",
            "shutdown_timeout": "1m",
            "exporters": {"x": {"url": exporter.url()}},
        }
        with (
            activated(config, listening) as daemon,
            daemon.connect(receive_buffer_bytes=BUFFER_BYTES) as wire,
        ):
            yield daemon, wire


def wait_until_handed_over(daemon: Daemon) -> None:
    daemon.wait_for_metric(1, "exporter_proxy_scrapes_total", exporter="x", code="200")


def test_a_connection_that_is_to_close_waits_for_who_reads_slowly() -> None:
    with reluctant() as (daemon, wire), daemon.connect() as beside:
        wire.send(request("/x/metrics", CONNECTION_CLOSE))
        wait_until_handed_over(daemon)
        # One that has read its answer and does not close is left, and came later.
        beside.exchange(request("/-/ready", CONNECTION_CLOSE)).expect_ok()
        daemon.wait_for_metric(3, CONNECTIONS)  # the one that asks is the third
        daemon.wait_for_metric(2, CONNECTIONS)
        wire.read_reply().expect_ok(BODY)


def test_a_stop_waits_for_who_reads_slowly() -> None:
    with reluctant() as (daemon, wire):
        wire.send(request("/x/metrics"))
        wait_until_handed_over(daemon)
        daemon.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(NOT_AT_ONCE_SECONDS)
        wire.read_reply().expect_ok(BODY)
        assert daemon.process.wait(ENOUGH_SECONDS) == 0


def test_a_second_signal_waits_for_nobody() -> None:
    with reluctant() as (daemon, wire):
        wire.send(request("/x/metrics"))
        wait_until_handed_over(daemon)
        daemon.process.terminate()
        daemon.wait_for_log("msg=stopping")
        daemon.process.terminate()
        assert daemon.process.wait(ENOUGH_SECONDS) == 0
        assert len(wire.read_until_closed()) < len(BODY)
