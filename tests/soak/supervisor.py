"""Keeps the daemon running, as systemd does: holds its socket, and starts it again whenever it ends.

It runs under libfaketime, which gives it a wall clock of its own. ``CLOCK_MONOTONIC`` stays real: the kernel
never steps that one.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.daemon import wait_until
from tests.launcher import as_systemd
from tests.soak.certificates import HOST
from tests.soak.exporters import COMMANDS, NotInstalled, start

CLOCK_FILE = "clock"
LOG = "daemon.log"
STOP_SECONDS = 30.0
DYING_SECONDS = 2.0
LIBRARY = "*/faketime/libfaketimeMT.so.1"
NOW = "+0"


@dataclass
class Incarnation:
    """One process of the daemon, by its pid. Times are Unix times."""

    pid: int
    started: float
    ended: float = float("inf")
    status: int | None = None
    is_wanted: bool = False
    """Whether its end was brought about."""
    left: int = 0
    """How many processes that it had started outlived it."""


class Supervisor:
    """The daemon from ``running`` to the end of the block, in one process after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = socket.create_server((HOST, 0), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        self.incarnations: list[Incarnation] = []
        self._is_stopping = False
        self._process: subprocess.Popen[bytes]
        found = next(Path("/usr/lib").glob(LIBRARY), None)
        if found is None:
            raise NotInstalled("libfaketime is not installed; .ci/setup installs it")
        self._library = found
        self.set_clock(NOW)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, and keep it running."""
        self._start()
        keeper = threading.Thread(target=self._keep, name="supervisor")
        keeper.start()
        try:
            yield
        finally:
            self._is_stopping = True
            self._process.kill()
            keeper.join()
            self._socket.close()

    @property
    def current(self) -> Incarnation:
        return self.incarnations[-1]

    @property
    def pid(self) -> int:
        return self.current.pid

    def set_clock(self, offset: str) -> None:
        """What libfaketime adds to its wall clock, within a second: ``+0``, ``+3d``, ``-2d``."""
        beside = self._directory / "clock.new"
        beside.write_text(offset + "\n")
        beside.replace(self._directory / CLOCK_FILE)

    def signal(self, number: int) -> None:
        """To the process that runs now."""
        self._process.send_signal(number)

    def end(self, number: int) -> None:
        """End this process with a signal, and wait until the next one has been started."""
        before = self.current
        before.is_wanted = True
        self.signal(number)
        wait_until(lambda: self.current is not before, "the supervisor started another daemon", STOP_SECONDS)

    def stop(self, number: int) -> int:
        """End the last process; its status."""
        self._is_stopping = True
        self.current.is_wanted = True
        self.signal(number)
        wait_until(lambda: self.current.status is not None, "the daemon ended", STOP_SECONDS)
        assert self.current.status is not None
        return self.current.status

    def _start(self) -> None:
        options = as_systemd([self._socket])
        preloaded = {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._directory / CLOCK_FILE),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
            "NO_FAKE_STAT": "1",  # files keep their times: it is the clock that is wrong
        }
        command = [
            *options["launcher"],
            # For the daemon alone: what launches it, and what it starts, has the real time.
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in preloaded.items()),
            *(sys.executable, "-m", "exporter_proxy", "serve"),
            "--config.file=config.yml",
            "--web.config.file=web.yml",
        ]
        began = (
            time.time()
        )  # before it: what the daemon says first is its own, however late this thread goes on
        self._process = start(command, self._directory, LOG, pass_fds=options["pass_fds"])
        self.incarnations.append(Incarnation(self._process.pid, began))

    def _end_what_is_left(self, incarnation: Incarnation) -> None:
        """As systemd does it with what is left in a unit's control group."""
        for pid in self._left():
            incarnation.left += 1
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _wait_for_the_killed(self) -> None:
        """One that ended well has killed what it had started; on a busy machine that needs a while to die."""
        with contextlib.suppress(AssertionError):
            wait_until(
                lambda: not any(is_killed(pid) for pid in self._left()), "the killed are gone", DYING_SECONDS
            )

    def _left(self) -> list[int]:
        """Of the daemon's commands."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == self._directory / COMMANDS:
                    found.append(int(process.name))
        return found

    def _keep(self) -> None:
        while True:
            status = self._process.wait()
            now, incarnation = time.time(), self.current
            if status == 0:
                self._wait_for_the_killed()
            self._end_what_is_left(incarnation)
            incarnation.ended, incarnation.status = now, status
            for left in ("faketime_shm", "sem.faketime_sem"):  # killed, libfaketime cannot tidy up
                with contextlib.suppress(FileNotFoundError):
                    Path(f"/dev/shm/{left}_{incarnation.pid}").unlink()
            if self._is_stopping:
                return
            self._start()


def is_killed(pid: int) -> bool:
    """Whether it has been sent SIGKILL, and be it that it has not died of it yet."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    pending = re.findall(r"^(?:SigPnd|ShdPnd):\s+([0-9a-f]+)", status, re.MULTILINE)
    return any(int(signals, 16) >> (signal.SIGKILL - 1) & 1 for signals in pending)
