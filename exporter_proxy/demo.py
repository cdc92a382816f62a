"""A small exporter of this host's load, memory and disk, for a host that has none yet.

It is a real one: a process of its own that serves HTTP on a free port of 127.0.0.1, scraped
like any other. The upper half of this module is that process, the lower half starts and stops
it from the daemon. Run by hand (``python -m exporter_proxy.demo``) it says where it listens and
ends with its standard input: keep a terminal open on it, not /dev/null.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

START_TIMEOUT_SECONDS = 10.0
"""It takes 0.2 s; a host that is starting everything at once may need more."""
STOP_TIMEOUT_SECONDS = 2.0
_IDLE_CLIENT_TIMEOUT_SECONDS = 10.0


class HostCollector(Collector):
    """Reads the host at each scrape. Of memory it shows what this kernel tells."""

    def collect(self) -> Iterator[Metric]:
        """Yield one gauge per family, in base units."""
        load1, load5, load15 = os.getloadavg()
        yield GaugeMetricFamily("demo_node_load1", "Load average over 1 minute.", load1)
        yield GaugeMetricFamily("demo_node_load5", "Load average over 5 minutes.", load5)
        yield GaugeMetricFamily("demo_node_load15", "Load average over 15 minutes.", load15)
        yield GaugeMetricFamily("demo_node_cpus", "CPUs of this host.", os.cpu_count() or 1)
        yield from _memory(Path("/proc/meminfo").read_text(encoding="ascii"))
        yield from _root_filesystem()
        boot_time = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(encoding="ascii"), re.MULTILINE)
        if boot_time:
            yield GaugeMetricFamily(
                "demo_node_boot_time_seconds", "When this host started, in Unix time.", int(boot_time[1])
            )


def _memory(meminfo: str) -> Iterator[Metric]:
    kibibytes = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}
    for key, name, text in (
        ("MemTotal", "demo_node_memory_total_bytes", "Memory of this host."),
        ("MemAvailable", "demo_node_memory_available_bytes", "Memory that new programs can have."),
    ):
        if key in kibibytes:
            yield GaugeMetricFamily(name, text, kibibytes[key] * 1024)


def _root_filesystem() -> Iterator[Metric]:
    root = os.statvfs("/")
    for name, text, blocks in (
        ("demo_node_filesystem_size_bytes", "Size of the file system.", root.f_blocks),
        ("demo_node_filesystem_avail_bytes", "Space left for ordinary users.", root.f_bavail),
    ):
        family = GaugeMetricFamily(name, text, labels=["mountpoint"])
        family.add_metric(["/"], blocks * root.f_frsize)
        yield family


class _Handler(WSGIRequestHandler):
    timeout = _IDLE_CLIENT_TIMEOUT_SECONDS

    def log_message(self, *args: object) -> None:
        """Stay silent: the daemon has the access log."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking DNS for the address's name, which WSGIServer does and may wait for."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]
        self.setup_environ()

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """A client that went away or said nothing is no event."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def main() -> int:
    """Serve until standard input ends or SIGTERM or SIGINT comes; return 0, the exit status.

    The parent holds the other end of standard input and never writes: the kernel closes it
    when the parent ends, in whatever way, so this process cannot outlive it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_quietly)
    registry = CollectorRegistry()
    registry.register(HostCollector())
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.set_app(make_wsgi_app(registry))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            os.write(1, f"listening 127.0.0.1:{server.server_port}\n".encode())
            while os.read(0, 4096):
                pass
        except OSError:
            pass  # the parent was gone already
    return 0


def _exit_quietly(_signal_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


class DemoExporterError(Exception):
    """The demo exporter did not start; the text says what was seen."""


class DemoExporter:
    """A running demo exporter, as its parent sees it."""

    def __init__(self, url: str, process: asyncio.subprocess.Process) -> None:
        self.url = url
        self.pid = process.pid
        self._process = process

    async def stop(self) -> None:
        """End the process and wait for that; one that hangs is killed. Safe to call twice."""
        await _end(self._process)


async def start_demo_exporter() -> DemoExporter:
    """Start a demo exporter and wait until it listens.

    It is detached from the terminal (setsid), so that Ctrl-C reaches only the daemon, which serves
    the scrapes in flight and then stops it.

    Raises:
        DemoExporterError: it ended, or said nothing for START_TIMEOUT_SECONDS.
    """
    # By file and with -P: what lies in the working directory is never imported.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        __file__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            line = await process.stdout.readline()
    except TimeoutError:
        await _end(process)
        raise DemoExporterError(
            f"the demo exporter did not start within {START_TIMEOUT_SECONDS:g} s"
        ) from None
    except asyncio.CancelledError:
        await _end(process)
        raise
    listening = re.fullmatch(rb"listening (127\.0\.0\.1:\d+)\n", line)
    if listening is None:
        await _end(process)
        raise DemoExporterError(
            f"the demo exporter ended with status {process.returncode} before it listened; "
            "its own message stands above"
        )
    return DemoExporter(f"http://{listening[1].decode()}/metrics", process)


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    sys.exit(main())
