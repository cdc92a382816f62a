"""Why nothing can listen there, and what to do about it: one line for whoever starts the daemon.

Called only where binding has failed, so it may take a moment: who holds a port is read from
/proc, as far as this user may see it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from pathlib import Path

from exporter_proxy.access import Address, plain_address
from exporter_proxy.config.schema import ListenAddress, UnixListen
from exporter_proxy.discover.sockets import PROC, Listener, Process, find_owners, read_listeners, read_process

LOOKING_SECONDS = 1.0
FIRST_UNPRIVILEGED_PORT = 1024
_UCRED = struct.Struct("3i")
"""pid, uid and gid, see unix(7)."""


def tcp_bind_problem(address: ListenAddress, error: OSError) -> str:
    """Why ``error`` came of binding ``address``; goes after "cannot listen on ...: "."""
    if isinstance(error, socket.gaierror):
        return (
            f"the name does not resolve ({error.strerror}); correct it, here or in DNS or /etc/hosts, or "
            "give an IP address"
        )
    if error.errno == errno.EADDRINUSE:
        holder = _port_holder(address)
        if holder is None:
            return f"address already in use; see who holds it: ss -ltnp 'sport = :{address.port}'"
        if holder.pid == os.getpid():
            return "address already in use by this daemon itself: another address of listen covers it"
        return f"address already in use by {_shown(holder)}; stop that, or listen on another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "no such address on this host; `ip address` shows those it has"
    if error.errno == errno.EAFNOSUPPORT:
        return "this host does not speak that kind of address; IPv6 may be switched off"
    if error.errno == errno.EACCES and address.port < FIRST_UNPRIVILEGED_PORT:
        return (
            f"permission denied for a port below {FIRST_UNPRIVILEGED_PORT}; use a higher one, or set "
            "AmbientCapabilities=CAP_NET_BIND_SERVICE in the service unit"
        )
    return error.strerror or str(error)


def unix_bind_problem(listen: UnixListen, error: OSError) -> str:
    """Why ``error`` came of making this unix socket; goes after "cannot listen on ...: "."""
    directory = Path(listen.path).parent
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return (
            f"there is no directory {directory}; create it, or have systemd do so with RuntimeDirectory= "
            "in the service unit"
        )
    if error.errno == errno.EACCES:
        return f"permission denied; the daemon's user must be able to write in {directory}"
    if error.errno == errno.EPERM and listen.group is not None:
        return (
            f"not permitted to give the socket to the group {listen.group}; make the daemon's user a member "
            "(SupplementaryGroups= in the service unit)"
        )
    return error.strerror or str(error)


def unix_socket_holder(connected: socket.socket) -> str:
    """Whoever listens at the other end of this unix socket, for people to read."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, _, _ = _UCRED.unpack(credentials)
    process = read_process(PROC / str(pid))
    return f"pid {pid}" if process is None else _shown(process)


def _shown(process: Process) -> str:
    return f"{process.name} (pid {process.pid})"


def _port_holder(address: ListenAddress) -> Process | None:
    """The process that listens where ``address`` would; ``None`` where that is not ours to know."""
    try:
        found = socket.getaddrinfo(address.host or "::", address.port, type=socket.SOCK_STREAM)
        wanted = plain_address(str(found[0][4][0]))
        inodes = [one.inode for one in read_listeners() if _is_in_the_way(one, wanted, address.port)]
        owners = find_owners(inodes, time.monotonic() + LOOKING_SECONDS)
    except OSError:
        return None
    # systemd keeps a socket that it passed on, and workers have their master's: of a service's
    # processes the eldest is meant.
    holders = {process for several in owners.values() for process in several}
    return min(holders, key=lambda process: (process.pid == 1, process.pid), default=None)


def _is_in_the_way(listener: Listener, wanted: Address, port: int) -> bool:
    is_same = listener.address == wanted or listener.address.is_unspecified or wanted.is_unspecified
    return listener.port == port and is_same
