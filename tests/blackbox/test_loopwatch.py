"""The watch over event loops sees what it is there for and nothing else: planted cases, on both loops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY, Daemon, wait_until
from tests.held import WATCH, Holds, LoopHeld, watching

PROGRAM = """
import asyncio, concurrent.futures.thread, gc, os, socket, sys, threading, time
import bcrypt
{plant}

def spend(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

async def main():
    loop = asyncio.get_running_loop()
    time.sleep(0.03)
    open("/etc/hostname").close()  # all before it listens
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        loop.add_reader(listening, print)
        loop.add_reader(listening.fileno(), print)
        spend(0.03)
        await asyncio.sleep(0.01)
        await planted(loop)
        await asyncio.sleep(0.05)
        loop.remove_reader(listening.fileno())

if os.environ["EXPORTER_PROXY_LOOP"] == "asyncio":
    asyncio.run(main())
else:
    import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
"""

HOLDS = {
    "a task that computes": ("async def planted(loop):\n spend(0.05)", "ms of CPU time by <Task"),
    "a callback that computes": ("async def planted(loop):\n loop.call_soon(spend, 0.05)", "<function spend"),
    "a timer that computes": (
        "async def planted(loop):\n loop.call_later(0.01, spend, 0.05)\n await asyncio.sleep(0.2)",
        "<function spend",
    ),
    "a protocol that computes": (
        """
class Slow(asyncio.Protocol):
    def data_received(self, data):
        spend(0.05)
async def planted(loop):
    near, far = socket.socketpair()
    await loop.create_connection(Slow, sock=near)
    far.send(b"x")
    await asyncio.sleep(0.2)
    far.close()
    await asyncio.sleep(0.05)
""",
        "in Slow.data_received",
    ),
    "a password hashed": (
        "async def planted(loop):\n bcrypt.hashpw(b'x', bcrypt.gensalt(9))",
        "in planted",
    ),
    "a name looked up": (
        "async def planted(loop):\n socket.getaddrinfo('localhost', 80)",
        "made to wait: socket.getaddrinfo 'localhost'",
    ),
    "a sleep": ("async def planted(loop):\n time.sleep(0.001)", "made to wait: time.sleep"),
    "a file opened": ("async def planted(loop):\n open('x', 'w').close()", "made to wait: open 'x'"),
    "a program started": (
        "import subprocess\nasync def planted(loop):\n subprocess.run(['true'])",
        "made to wait: subprocess.Popen",
    ),
    "a write that waits": (
        """
async def planted(loop):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writing, True)
    threading.Timer(0.2, os.read, (reading, 1 << 16)).start()
    os.write(writing, bytes(4096))
""",
        "asleep in system call",
    ),
    "a lock that is held": (
        """
async def planted(loop):
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    lock.acquire()
""",
        "asleep in system call",
    ),
    "a blocking socket": (
        """
async def planted(loop):
    near, far = socket.socketpair()
    threading.Timer(0.2, far.send, (b"x",)).start()
    near.recv(1)
""",
        "asleep in system call",
    ),
}
HARMLESS = {
    "many small steps": """
async def planted(loop):
    for _ in range(40):
        spend(0.003)
        await asyncio.sleep(0)
""",
    "another thread that computes and keeps the lock": """
async def planted(loop):
    thread = threading.Thread(target=spend, args=(0.5,))
    thread.start()
    while thread.is_alive():
        sum(range(1000))
        await asyncio.sleep(0)
""",
    "processes on every CPU": """
import subprocess
before = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(6)]
async def planted(loop):
    for _ in range(100):
        spend(0.002)
        await asyncio.sleep(0.002)
    for one in before:
        one.kill()
""",
    "threads that begin late, and a watch that is late": """
pread = os.pread
def late_pread(*args):
    read = pread(*args)
    time.sleep(0.004)
    return read
os.pread = late_pread
begin = threading.Thread._bootstrap_inner
def begin_late(self):
    if self.name != "loopwatch": time.sleep(0.046)
    begin(self)
threading.Thread._bootstrap_inner = begin_late
async def planted(loop):
    for _ in range(20):
        threading.Thread(target=int).start()
        await asyncio.sleep(0.02)
""",
    "what blocks, in a thread": """
async def planted(loop):
    await asyncio.to_thread(time.sleep, 0.05)
    await asyncio.to_thread(socket.getaddrinfo, "localhost", 80)
    await asyncio.to_thread(spend, 0.05)
    await asyncio.to_thread(open("/proc/self/stat").close)
""",
    "a collection of much garbage": """
kept = [[i] for i in range(300_000)]
async def planted(loop):
    gc.collect()
""",
    "tasks whose stacks asyncio's debug mode keeps": """
import traceback
async def deep(n):
    if n: return await deep(n - 1)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 1000
    before = time.thread_time()
    for _ in range(20):
        tasks = [loop.create_task(asyncio.sleep(0)) for _ in range(10)]
    assert time.thread_time() - before > 0.02, "too few"
    loop.set_debug(False)
    await asyncio.gather(*tasks)
async def planted(loop):
    await deep(100)
""",
    "a loop that waits": "async def planted(loop):\n await asyncio.sleep(0.1)",
}
CONFIG = {"exporters": {"x": {"url": "http://127.0.0.1:1/"}}}
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def found(plant: str, loop: str, directory: Path) -> list[str]:
    watched = directory / "watched"
    environment = {**os.environ, **watching(watched), "EXPORTER_PROXY_LOOP": loop}
    # A byte code cache would be written to from the loop.
    command = [sys.executable, "-B", "-c", PROGRAM.format(plant=plant)]
    subprocess.run(command, cwd=directory, env=environment, check=True, timeout=60)
    holds = Holds(watched)
    found = holds.take()
    assert holds.loop, "nothing was watched"
    return found


@LOOPS
@pytest.mark.parametrize("case", HOLDS)
def test_what_holds_the_loop_is_seen_and_named(case: str, loop: str, tmp_path: Path) -> None:
    plant, words = HOLDS[case]
    hold = next(one for one in found(plant, loop, tmp_path) if words in one)
    assert "in planted" in hold or "in spend" in hold


@LOOPS
@pytest.mark.parametrize("case", HARMLESS)
def test_what_does_not_hold_the_loop_is_not_taken_for_it(case: str, loop: str, tmp_path: Path) -> None:
    assert found(HARMLESS[case], loop, tmp_path) == []


@LOOPS
def test_a_daemon_whose_loop_is_held_fails_its_test(loop: str, tmp_path: Path) -> None:
    """A check of the pipeline is made slow from outside."""
    (tmp_path / "sitecustomize.py").write_text(
        f"exec(compile(open({str(WATCH / 'sitecustomize.py')!r}).read(), 'watch', 'exec'))\n"
        "import time\n"
        "from exporter_proxy import app\n"
        "def slow_check(*args): time.sleep(0.001)\n"
        "app.check_method = slow_check\n"
    )
    path = f"{tmp_path}:{REPOSITORY}"
    with (
        pytest.raises(LoopHeld, match=r"made to wait: time.sleep 0\.001\n(?s:.*)in slow_check"),
        Daemon(
            CONFIG,
            environment={"PYTHONPATH": path, "EXPORTER_PROXY_LOOP": loop},
        ) as daemon,
    ):
        assert daemon.get("/x/metrics").status == 502


@LOOPS
def test_every_daemon_is_watched(loop: str) -> None:
    """The shared one and those of ``processes.serving`` are started the same way."""
    with Daemon(CONFIG, environment={"EXPORTER_PROXY_LOOP": loop}) as daemon:
        daemon.get("/-/healthy").expect_ok()
        wait_until(lambda: daemon.holds.read() != "", "it is watched")
        assert daemon.holds.loop == {"asyncio": "_UnixSelectorEventLoop", "uvloop": "WatchedLoop"}[loop]
