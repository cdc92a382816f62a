"""Starts daemons in a tenth of the time: each is forked from a process that has imported the program.

A run of all tests starts some thousand daemons, which took half of its CPU time. Only what differs in
nothing else is started here: who brings another environment, descriptors of its own or a launcher, or has
given up rights or entered a namespace meanwhile, gets a fresh interpreter from ``subprocess``.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).parent.parent.parent
MAX_REQUEST_BYTES = 200_000
INHERITED = ("Umask", "Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Cpus_allowed")
"""Of /proc/PID/status."""
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


class Forked:
    """A process that was forked there, with what tests use of ``subprocess.Popen[str]``."""

    def __init__(
        self, arguments: Sequence[str], channel: socket.socket, stdout: IO[str], stderr: IO[str]
    ) -> None:
        self.args = arguments
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._channel = channel
        self._asking = threading.Lock()
        data, (self._pidfd,), _, _ = socket.recv_fds(channel, 64, 1)
        self.pid = int(data)

    def poll(self) -> int | None:
        with self._asking:
            if self.returncode is None:
                with suppress(BlockingIOError):
                    said = self._channel.recv(64, socket.MSG_DONTWAIT)
                    assert said, "the process that forks daemons has ended"
                    self.returncode = int(said)
                    self._channel.close()
                    os.close(self._pidfd)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            said = select.poll()  # not select.select(), which takes no descriptor beyond 1023
            said.register(self._channel, select.POLLIN)
            if not said.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.poll()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        with self._asking:
            if self.returncode is None:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Forked | None:
    """``command`` with these added to the environment; ``None`` if that takes a fresh interpreter.

    Its standard input is empty, the other two are pipes.
    """
    if command[:3] != [sys.executable, "-m", "exporter_proxy"] or _circumstances() != _at_first:
        return None
    return _server(os.getpid()).start(command, directory, {**os.environ, **environment})


class _Client:
    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())],
                cwd=REPOSITORY,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )

    def start(self, command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Forked:
        request = {"arguments": command[3:], "directory": str(directory), "environment": dict(environment)}
        pipes = [os.pipe(), os.pipe()]
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            passed = [*(write for _, write in pipes), theirs.fileno()]
            socket.send_fds(self._requests, [json.dumps(request).encode()], passed)
        for _, write in pipes:
            os.close(write)
        return Forked(command, channel, *(os.fdopen(read, encoding="utf-8") for read, _ in pipes))


@functools.cache
def _server(of_process: int) -> _Client:
    return _Client()


def _circumstances() -> list[str]:
    """What a child has of the thread that starts it, besides what it is told."""
    here = Path("/proc/thread-self")
    status = dict(
        line.split(":\t", 1) for line in (here / "status").read_text().splitlines() if ":\t" in line
    )
    return [
        *(status[name] for name in INHERITED),
        *(str((here / "ns" / name).readlink()) for name in NAMESPACES),
        (here / "cgroup").read_text(),
        (here / "limits").read_text(),
    ]


_at_first = _circumstances()
