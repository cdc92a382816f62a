"""The process that daemons are forked from: it has imported the program and has done nothing else.

Each request on its socket has three descriptors (standard output, standard error, and where to tell of the
process) and, as JSON, what it is started with. Whatever a process has from its parent but these is this
one's, so nothing is done here that a fresh interpreter would not have done.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvloop  # noqa: F401 - so that it is there

import exporter_proxy.daemon
from exporter_proxy.cli import main
from tests.forkserver import MAX_REQUEST_BYTES
from tests.loopwatch import sitecustomize

Start = Callable[[], int]


class Server:
    """Forks until its client is gone."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._channels: dict[int, socket.socket] = {}
        """By process, where its end is waited for."""
        self._woken, self._wakes = socket.socketpair()

    def serve(self) -> Start | None:
        """In each child what it is to do; in this process nothing, once there are no more requests."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self._requests, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(512)
                self._tell_of_ended()
            if self._requests in ready:
                data, descriptors, _, _ = socket.recv_fds(self._requests, MAX_REQUEST_BYTES, 3)
                if not data:
                    return None
                start = self._fork(json.loads(data), descriptors)
                if start is not None:
                    return start

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> Start | None:
        output, errors, channel = descriptors
        pid = os.fork()
        if pid == 0:
            for one in (self._requests, self._woken, self._wakes, *self._channels.values()):
                one.detach()  # closed below; its number will be another's by the time that it is collected
            _become(request, output, errors)
            return main
        os.close(output)
        os.close(errors)
        self._channels[pid] = socket.socket(fileno=channel)
        pidfd = os.pidfd_open(pid)
        socket.send_fds(self._channels[pid], [str(pid).encode()], [pidfd])
        os.close(pidfd)
        return None

    def _tell_of_ended(self) -> None:
        while self._channels:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._channels.pop(pid) as channel, suppress(BrokenPipeError):
                channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(request: dict[str, Any], output: int, errors: int) -> None:
    """What an interpreter finds that is started with this."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    random.seed()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv = [exporter_proxy.__file__, *request["arguments"]]
    if "LOOPWATCH" in os.environ:
        sitecustomize.main()


if __name__ == "__main__":
    start = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    sys.exit(start() if start is not None else 0)
