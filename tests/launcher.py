"""Start a program as systemd and start_server do: with sockets that it did not open itself."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.daemon import Daemon

_AS_SYSTEMD = """
import fcntl, os, sys
count = int(sys.argv[1])
# Out of the way first: what is put at 3 may be the one that goes to 4.
kept = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2 : 2 + count]]
for place, fd in enumerate(kept, 3):
    os.dup2(fd, place)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(count)
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


def as_systemd(sockets: Sequence[socket.socket]) -> dict[str, Any]:
    """Options for ``Daemon``: these sockets, from descriptor 3 on."""
    fds = [one.fileno() for one in sockets]
    launcher = [sys.executable, "-c", _AS_SYSTEMD, str(len(fds)), *map(str, fds)]
    return {"launcher": launcher, "pass_fds": fds}


def activated(
    config: Mapping[str, Any], *sockets: socket.socket, names: str | None = None, **environment: str
) -> Daemon:
    """A daemon with sockets of systemd. ``names`` is LISTEN_FDNAMES."""
    named = {} if names is None else {"LISTEN_FDNAMES": names}
    return Daemon(config, environment={**named, **environment}, **as_systemd(sockets))


def started_by_start_server(config: Mapping[str, Any], held: Mapping[str, socket.socket]) -> Daemon:
    """A daemon with sockets of start_server: each under the name that it has there."""
    ports = ";".join(f"{name}={one.fileno()}" for name, one in held.items())
    fds = [one.fileno() for one in held.values()]
    return Daemon(config, environment={"SERVER_STARTER_PORT": ports}, pass_fds=fds)
