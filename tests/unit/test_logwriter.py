"""Log lines reach their file or are counted as lost, and whoever logs never waits for it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter_proxy.observe import logwriter
from exporter_proxy.observe.logwriter import BYTES_PER_LINE, MAX_BACKLOG_BYTES, LogWriter
from tests.daemon import REPOSITORY, wait_until
from tests.inprocess import open_descriptors, opened_since, run, until


def numbered(count: int, start: int = 0) -> list[str]:
    """Lines of 100 bytes that tell where they belong."""
    return [f"{number:08d} {'x' * 90}\n" for number in range(start, start + count)]


class Log:
    """A writer, what it said of its troubles, and its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.troubles: list[str] = []
        self.writer = LogWriter(str(path), self.troubles.append)
        self.writer.open()

    @property
    def text(self) -> str:
        return self.path.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: self.path.exists() and self.text == text, f"the file holds {text!r}")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "access.log")
    yield made
    made.writer.close()


def test_lines_reach_the_file_in_order(log: Log) -> None:
    lines = numbered(1000)
    for line in lines:
        log.writer.write(line)
    log.wait_for("".join(lines))
    assert (log.writer.lost_lines, log.troubles) == (0, [])


def test_the_file_is_appended_to_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    path.chmod(0o600)
    log = Log(path)
    log.writer.write("after\n")
    log.writer.close()
    assert path.read_text() == "before\nafter\n"
    fresh = Log(tmp_path / "fresh")
    fresh.writer.close()
    assert stat.S_IMODE(fresh.path.stat().st_mode) & 0o027 == 0


def test_characters_that_cannot_be_encoded_do_not_cost_the_line(log: Log) -> None:
    log.writer.write("caf\u00e9 \ud800\n")
    log.wait_for("caf\u00e9 \\ud800\n")


def test_a_path_that_cannot_be_opened_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogWriter(str(tmp_path / "absent" / "log")).open()


def test_write_soon_leaves_the_writing_to_a_thread(log: Log) -> None:
    lines = numbered(100)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        for line in lines:
            log.writer.write_soon(str, line, loop)
        assert log.text == ""
        await asyncio.sleep(0.2)
        for line in lines:
            log.writer.write_soon(str, line, loop)

    run(scenario)
    log.writer.close()  # what the loop had no time for is not forgotten
    assert log.text == "".join(lines * 2)


def test_close_closes_the_file_and_ends_the_thread(tmp_path: Path) -> None:
    before, threads = open_descriptors(), set(threading.enumerate())
    log = Log(tmp_path / "log")
    log.writer.write("line\n")
    log.writer.close()
    assert log.text == "line\n"
    assert not opened_since(before)
    assert set(threading.enumerate()) <= threads
    unused = Log(tmp_path / "unused")
    unused.writer.close()
    assert not opened_since(before)


# logrotate, and whatever else happens to a file


def test_reopen_follows_the_path(log: Log) -> None:
    log.writer.write("old\n")
    log.wait_for("old\n")
    rotated = log.path.with_suffix(".1")
    log.path.rename(rotated)
    log.writer.reopen()
    wait_until(lambda: str(rotated) not in open_descriptors().values(), "the old file is let go of")
    log.writer.write("new\n")
    log.wait_for("new\n")
    assert rotated.read_text() == "old\n"
    assert list(open_descriptors().values()).count(str(log.path)) == 1


def test_a_file_that_was_moved_is_noticed_without_being_told(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logwriter, "CHECK_INTERVAL_SECONDS", 0.0)
    log.writer.write("old\n")
    log.wait_for("old\n")
    log.path.rename(log.path.with_suffix(".1"))
    log.writer.write("new\n")
    log.wait_for("new\n")


def test_a_file_that_was_truncated_is_gone_on_with_from_its_start(log: Log) -> None:
    """logrotate's copytruncate: no gap of NULs."""
    log.writer.write("old\n")
    log.wait_for("old\n")
    os.truncate(log.path, 0)
    log.writer.write("new\n")
    log.wait_for("new\n")


def test_a_directory_that_vanished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes meanwhile is lost and counted, said once, and over when the directory is back."""
    monkeypatch.setattr(logwriter, "CHECK_INTERVAL_SECONDS", 0.0)
    (tmp_path / "logs").mkdir()
    log = Log(tmp_path / "logs" / "log")
    log.writer.write("first\n")
    log.wait_for("first\n")
    shutil.rmtree(log.path.parent)
    for line in numbered(3):
        log.writer.write(line)
    wait_until(lambda: log.writer.lost_lines == 3, "all three are lost")
    assert log.troubles == [f"cannot write {log.path}: No such file or directory; log lines are being lost"]
    log.path.parent.mkdir()
    log.writer.write("second\n")
    log.wait_for("second\n")
    wait_until(lambda: log.troubles[1:] == [f"writing {log.path} works again"], "that is said")
    log.writer.close()
    assert log.writer.lost_lines == 3


# Disks and pipes that take no more


def test_a_full_disk_loses_lines_and_says_so_once() -> None:
    log = Log(Path("/dev/full"))
    for line in numbered(50):
        log.writer.write(line)
    log.writer.close()
    assert log.writer.lost_lines == 50
    assert log.troubles == [f"cannot write /dev/full: {os.strerror(errno.ENOSPC)}; log lines are being lost"]


FILLING = """
import json, resource, sys, time
from exporter_proxy.observe.logwriter import LogWriter

path, limit, is_reopened = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "reopened"
troubles = []
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
writer = LogWriter(path, troubles.append)
writer.open()

def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, (troubles, writer.lost_lines)
        time.sleep(0.005)

writer._enqueue([f"{number:08d} {'x' * 90}\\n" for number in range(100)])
wait_for(lambda: troubles)
lost = writer.lost_lines
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
if is_reopened:
    writer.reopen()
writer.write("after\\n")
wait_for(lambda: len(troubles) == 2)
writer.close()
print(json.dumps({"lost": lost, "lost_at_end": writer.lost_lines, "troubles": len(troubles)}))
"""


@pytest.mark.parametrize("how", ["kept open", "reopened"])
@pytest.mark.parametrize("limit_bytes", [1, 99, 100, 101, 1050, 9999])
def test_a_disk_that_fills_up_in_mid_line(tmp_path: Path, limit_bytes: int, how: str) -> None:
    """Half a line stays; it is counted as lost, and the next line does not go on in it."""
    path = tmp_path / "log"
    finished = subprocess.run(
        [sys.executable, "-c", FILLING, str(path), str(limit_bytes), how],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    complete, rest = divmod(limit_bytes, 100)
    lost = 100 - complete
    assert json.loads(finished.stdout) == {"lost": lost, "lost_at_end": lost, "troubles": 2}
    half = [numbered(100)[complete][:rest] + "\n"] if rest else []
    assert path.read_text() == "".join([*numbered(complete), *half, "after\n"])


class BlockedPipe:
    """A named pipe with a writer that is stuck since nobody reads."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self.reader, fcntl.F_SETPIPE_SZ, 4096)
        self.writer = LogWriter(str(path))
        self.writer.open()
        self.received = b""

    def read(self) -> bytes:
        fcntl.fcntl(self.reader, fcntl.F_SETPIPE_SZ, 1 << 20)  # a few KiB at a time would take half a minute
        while True:
            try:
                part = os.read(self.reader, 1 << 20)
            except BlockingIOError:
                return self.received
            if not part:
                return self.received
            self.received += part


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[BlockedPipe]:
    made = BlockedPipe(tmp_path / "pipe")
    yield made
    os.close(made.reader)
    made.writer.close()


def test_a_pipe_that_nobody_reads_never_holds_up_whoever_logs(pipe: BlockedPipe) -> None:
    """At most the backlog waits; the rest is lost, counted to the line; the beginning is what is kept."""
    fitting = MAX_BACKLOG_BYTES // (100 + BYTES_PER_LINE)
    total = fitting + 5_000
    longest = 0.0
    for line in numbered(total):
        started = time.thread_time()
        pipe.writer.write(line)
        longest = max(longest, time.thread_time() - started)
    assert longest < 0.1
    lost = pipe.writer.lost_lines
    assert 5_000 - 4096 // 100 - 1 <= lost <= 5_000
    wait_until(lambda: pipe.read().count(b"\n") == total - lost, "all others come", 20)
    assert pipe.received == "".join(numbered(total - lost)).encode()
    assert pipe.writer.lost_lines == lost
    pipe.writer.write("after\n")
    wait_until(lambda: pipe.read().endswith(b"\nafter\n"), "it goes on")


def test_long_lines_take_no_more_room_than_short_ones(pipe: BlockedPipe) -> None:
    """Paths and queries come from outside, tens of kilobytes each."""
    line = "x" * 50_000 + "\n"
    for _ in range(1000):
        pipe.writer.write(line)
    fitting = MAX_BACKLOG_BYTES // len(line)
    assert 1000 - fitting - 1 <= pipe.writer.lost_lines <= 1000 - fitting + 1
    wait_until(lambda: pipe.read().count(b"\n") == 1000 - pipe.writer.lost_lines, "all others come", 20)


def test_of_lines_handed_over_together_the_first_are_kept(pipe: BlockedPipe) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        for number in range(300):
            pipe.writer.write_soon(str, f"{number} {'x' * 50_000}\n", loop)
        await until(lambda: pipe.writer.lost_lines > 0, "some are lost")

    run(scenario)
    kept = 300 - pipe.writer.lost_lines
    assert 160 < kept < 170
    wait_until(lambda: pipe.read().count(b"\n") == kept, "all others come", 20)
    assert [int(line.split()[0]) for line in pipe.received.splitlines()] == [*range(kept)]


def test_where_no_thread_can_be_started_lines_are_lost_and_the_next_tries_again(tmp_path: Path) -> None:
    program = """
import pathlib, resource, sys
from exporter_proxy.observe.logwriter import LogWriter
writer = LogWriter(sys.argv[1])
writer.open()
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), hard))  # a thread's stack takes more
writer.write("lost\\n")
assert writer.lost_lines == 1, writer.lost_lines
writer.close()
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
writer.open()
writer.write("kept\\n")
writer.close(timeout_seconds=20)
assert writer.lost_lines == 1, writer.lost_lines
"""
    path = tmp_path / "log"
    subprocess.run([sys.executable, "-c", program, str(path)], cwd=REPOSITORY, check=True)
    assert path.read_text() == "kept\n"


def test_closing_does_not_wait_for_a_pipe_that_nobody_reads(pipe: BlockedPipe) -> None:
    for line in numbered(200):
        pipe.writer.write(line)
    started = time.monotonic()
    pipe.writer.close(timeout_seconds=0.1)
    assert time.monotonic() - started < 2
    pipe.writer.close(timeout_seconds=0.1)
    wait_until(lambda: pipe.read().count(b"\n") == 200, "what hung goes on in its own file")


def test_many_threads(log: Log) -> None:
    """The loop logs, and so do the threads of other logs that say they are in trouble."""
    threads, each = 4, 4_000
    assert threads * each * (10 + BYTES_PER_LINE) < MAX_BACKLOG_BYTES
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def write(own: int) -> None:
        for number in range(each):
            log.writer.write(f"{own} {number}\n")

    try:
        writing = [threading.Thread(target=write, args=(own,)) for own in range(threads)]
        for thread in writing:
            thread.start()
        for thread in writing:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    log.writer.close(timeout_seconds=20)
    lines = log.text.splitlines()
    assert log.writer.lost_lines == 0
    assert len(lines) == threads * each
    assert Counter(lines).most_common(1)[0][1] == 1
    for own in range(threads):
        assert [line for line in lines if line[0] == str(own)] == [f"{own} {n}" for n in range(each)]
    assert log.writer._queued_bytes == log.writer._finished_bytes, "the backlog's size is no longer known"


def test_standard_output_that_is_a_socket() -> None:
    """As under systemd: /dev/stdout cannot be opened there, so the descriptor is used as it is."""
    ours, theirs = socket.socketpair()
    script = (
        "from exporter_proxy.observe.logwriter import LogWriter\n"
        "writer = LogWriter('/dev/stdout')\n"
        "writer.open()\n"
        "writer.write('to the journal\\n')\n"
        "writer.reopen()\n"
        "writer.write('after a reload\\n')\n"
        "writer.close()\n"
    )
    with ours, theirs:
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=theirs.fileno(),
            timeout=60,
            check=True,
        )
        theirs.close()
        received = b""
        while part := ours.recv(4096):
            received += part
    assert received == b"to the journal\nafter a reload\n"
