"""The demo exporter: a real process, from its first line of output to its end."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from exporter_proxy import demo
from exporter_proxy.demo import DemoExporterError, start_demo_exporter

REPOSITORY = Path(__file__).parents[2]
PATIENCE_SECONDS = 20
EVENT_LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def has_ended(pid: int, timeout_seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait until a process that need not be our child has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended = select.poll()  # not select.select(), which takes no descriptor beyond 1023
        ended.register(process, select.POLLIN)
        return bool(ended.poll(timeout_seconds * 1000))
    finally:
        os.close(process)


def fetch(url: str, **headers: str) -> bytes:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        body: bytes = response.read()
        return body


@pytest.fixture
def by_hand() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``python -m exporter_proxy.demo`` with pipes, and the URL that it says."""
    with subprocess.Popen(
        [sys.executable, "-m", "exporter_proxy.demo"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said, _, address = process.stdout.readline().strip().partition(" ")
        assert said == "listening"
        assert address.startswith("127.0.0.1:")
        try:
            yield process, f"http://{address}/metrics"
        finally:
            process.kill()


def test_the_page_tells_of_this_host(by_hand: tuple[subprocess.Popen[str], str]) -> None:
    page = fetch(by_hand[1]).decode()
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    root = os.statvfs("/")
    assert values["demo_node_cpus",] == os.cpu_count()
    assert values["demo_node_filesystem_size_bytes", "/"] == root.f_blocks * root.f_frsize
    assert (
        0 < values["demo_node_filesystem_avail_bytes", "/"] <= values["demo_node_filesystem_size_bytes", "/"]
    )
    assert values["demo_node_memory_total_bytes",] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < values["demo_node_memory_available_bytes",] < values["demo_node_memory_total_bytes",]
    assert (
        abs(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - values["demo_node_boot_time_seconds",])
        < 5
    )
    assert all(values[f"demo_node_load{minutes}",] >= 0 for minutes in (1, 5, 15))
    assert all(name.startswith("demo_node_") for name, *_ in values)


def test_promtool_has_nothing_to_say(by_hand: tuple[subprocess.Popen[str], str]) -> None:
    try:
        result = subprocess.run(
            ["promtool", "check", "metrics"], input=fetch(by_hand[1]), capture_output=True, check=False
        )
    except FileNotFoundError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("promtool is not installed")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_it_compresses_like_other_exporters(by_hand: tuple[subprocess.Popen[str], str]) -> None:
    assert b"demo_node_load1 " in gzip.decompress(fetch(by_hand[1], **{"Accept-Encoding": "gzip"}))


def test_clients_that_say_nothing_or_reset_do_no_harm(by_hand: tuple[subprocess.Popen[str], str]) -> None:
    process, url = by_hand
    host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
    with socket.create_connection((host, int(port))) as silent:
        with socket.create_connection((host, int(port))) as reset:
            reset.sendall(b"GET /metrics HT")
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        assert b"demo_node_load1 " in fetch(url)
        silent.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert silent.recv(12) == b"HTTP/1.0 200"
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_without_a_word(
    by_hand: tuple[subprocess.Popen[str], str], number: signal.Signals
) -> None:
    process, _ = by_hand
    process.send_signal(number)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_it_ends_when_standard_input_ends(by_hand: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = by_hand
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


@EVENT_LOOPS
def test_start_and_stop_from_a_parent(new_loop: NewLoop) -> None:
    async def run() -> None:
        exporter = await start_demo_exporter()
        page = await asyncio.to_thread(fetch, exporter.url)
        assert b"demo_node_load1 " in page
        assert os.getsid(exporter.pid) == exporter.pid  # out of reach of the terminal's Ctrl-C
        await exporter.stop()
        assert has_ended(exporter.pid, 0)
        with pytest.raises(urllib.error.URLError, match="refused"):
            await asyncio.to_thread(fetch, exporter.url)
        await exporter.stop()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


@EVENT_LOOPS
def test_one_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, new_loop: NewLoop) -> None:
    monkeypatch.setattr(demo, "STOP_TIMEOUT_SECONDS", 0.2)

    async def run() -> None:
        exporter = await start_demo_exporter()
        os.kill(exporter.pid, signal.SIGSTOP)
        await exporter.stop()
        assert has_ended(exporter.pid, 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    parent = """
import asyncio, threading
from exporter_proxy.demo import start_demo_exporter
async def main():
    exporter = await start_demo_exporter()
    print(exporter.pid, exporter.url, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid, url = process.stdout.readline().split()
        assert b"demo_node_load1 " in fetch(url)
        assert not has_ended(int(pid), 0)
        process.kill()
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
        assert has_ended(int(pid))


@pytest.mark.parametrize(
    ("program", "timeout_seconds", "message"),
    [
        ("raise SystemExit(3)", PATIENCE_SECONDS, "ended with status 3 before it listened"),
        ("print('hello', flush=True)", PATIENCE_SECONDS, "ended with status 0 before it listened"),
        ("import time; time.sleep(60)", 0.5, "did not start within 0.5 s"),
    ],
    ids=["ended", "said something else", "hung"],
)
def test_a_failed_start_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, timeout_seconds: float, message: str
) -> None:
    broken = tmp_path / "demo.py"
    broken.write_text(program)
    monkeypatch.setattr(demo, "__file__", str(broken))
    monkeypatch.setattr(demo, "START_TIMEOUT_SECONDS", timeout_seconds)
    monkeypatch.setattr(demo, "STOP_TIMEOUT_SECONDS", timeout_seconds)
    with pytest.raises(DemoExporterError, match=message):
        asyncio.run(start_demo_exporter())


def test_cancelling_the_start_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "demo.py"
    mark = tmp_path / "pid"
    slow.write_text(
        f"import os, pathlib\npathlib.Path({str(mark)!r}).write_text(f'{{os.getpid()}}.')\ninput()\n"
    )
    monkeypatch.setattr(demo, "__file__", str(slow))

    async def run() -> int:
        start = asyncio.create_task(start_demo_exporter())
        end = time.monotonic() + PATIENCE_SECONDS
        while not (mark.exists() and mark.read_text().endswith(".")):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
        return int(mark.read_text().rstrip("."))

    assert has_ended(asyncio.run(run()), 0)


def test_many_clients_at_once(by_hand: tuple[subprocess.Popen[str], str]) -> None:
    pages: list[bytes] = []
    clients = [threading.Thread(target=lambda: pages.append(fetch(by_hand[1]))) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(PATIENCE_SECONDS)
    assert [page.count(b"\ndemo_node_cpus ") for page in pages] == [1] * 8
