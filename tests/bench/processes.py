"""The processes of the benchmark, and what the kernel says about them: CPU time, resident memory.

Each is ended by the pid that was started, on any way out of its ``with`` block.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

START_SECONDS = 15.0
STOP_SECONDS = 3.0
LOOPBACK = "127.0.0.1"
SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where nginx and HAProxy are; not everybody's PATH has them."""

_libc = ctypes.CDLL(None)


class NotMeasured(Exception):
    """A figure could not be had, or would not have meant what its row says; the message says why."""


def executable(name: str) -> str | None:
    """The path of an installed program."""
    return shutil.which(name) or shutil.which(name, path=SYSTEM_PATHS)


def free_port() -> int:
    """A port that nobody listens on: the peers cannot be given port 0."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def raise_open_files_limit() -> None:
    """As far as it goes without privileges: a thousand hung scrapes need some thousand sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Program:
    """A process from ``with`` to the end of the block; what it writes is in ``log``.

    It is in a process group of its own: Ctrl-C reaches the benchmark alone, which then ends it.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._command = command
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Self:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._process.pid
        return self

    def __exit__(self, *error: object) -> None:
        """SIGTERM, once more for a daemon that still drains, then SIGKILL."""
        children = self.children()
        for _ in range(2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.terminate()
                self._process.wait(STOP_SECONDS)
                return
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def children(self) -> list[int]:
        try:
            pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in pids.split()]

    def wait_for_child(self) -> int:
        """The pid of the process that this one starts to do the work. Raises NotMeasured."""
        end = time.monotonic() + START_SECONDS
        while len(children := self.children()) != 1:
            self.check_running()
            if time.monotonic() > end:
                raise NotMeasured(f"{self.log.stem} has {len(children)} workers instead of one")
            time.sleep(0.01)
        return children[0]

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_until_listening(self, port: int) -> None:
        """Raises NotMeasured where it ends instead, or takes too long."""
        end = time.monotonic() + START_SECONDS
        while True:
            self.check_running()
            try:
                socket.create_connection((LOOPBACK, port), 1.0).close()
                return
            except OSError:
                if time.monotonic() > end:
                    raise NotMeasured(f"{self.log.stem} does not listen: {self.log_tail()}") from None
                time.sleep(0.01)

    def check_running(self) -> None:
        if self._process.poll() is not None:
            raise NotMeasured(f"{self.log.stem} ended with {self._process.returncode}: {self.log_tail()}")

    def log_tail(self) -> str:
        return " / ".join(self.log.read_text(errors="replace").splitlines()[-3:])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, its threads that have ended included, in nanoseconds' grain.

    /proc/PID/stat has the same in hundredths of a second.
    """
    clock = ctypes.c_int()
    if error := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise NotMeasured(f"no CPU clock of process {pid}: {os.strerror(error)}")
    return time.clock_gettime(clock.value)


def rss_bytes(pid: int) -> int:
    return _memory_bytes(pid, "VmRSS")


def peak_rss_bytes(pid: int) -> int:
    """The largest resident size since ``reset_peak_rss``."""
    return _memory_bytes(pid, "VmHWM")


def reset_peak_rss(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _memory_bytes(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise NotMeasured(f"/proc/{pid}/status has no {name}")
    return int(found[1]) * 1024
