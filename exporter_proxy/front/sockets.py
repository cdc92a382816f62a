"""Listening sockets: bound here, or passed on by systemd or by start_server.

Each entry of ``listen`` becomes one socket or, for ``systemd``, all those that were passed.
Accepting is ``listener.py``'s part; what to say where binding fails is in ``bind_errors.py``.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import re
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from exporter_proxy.config.schema import Listen, ListenAddress, StarterListen, SystemdListen, UnixListen
from exporter_proxy.systemd import passed_descriptors, why_nothing_was_passed

BACKLOG = 4096
"""Connections that the kernel keeps for us; net.core.somaxconn may allow fewer. Whoever finds the
queue full tries again after a second, then three: a long queue is emptied sooner than that."""
STARTER_VARIABLE = "SERVER_STARTER_PORT"
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_PROBE_SECONDS = 1.0


class ListenError(Exception):
    """An entry of ``listen`` cannot be had; the message is the one line that says why."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket that does not block."""

    socket: socket.socket
    is_passed: bool
    """Someone else holds it too, and goes on to do so."""
    file: tuple[int, int] | None = None
    """Device and inode of the socket file made here; ``None`` where there is none to remove."""

    @property
    def address(self) -> ListenAddress | UnixListen:
        """Where it listens in fact, the port that the kernel chose included."""
        name = self.socket.getsockname()
        if isinstance(name, tuple):
            return ListenAddress(name[0], name[1])
        path = os.fsdecode(name)
        return UnixListen(f"@{path[1:]}" if path.startswith("\0") else path, None, None)

    def close(self) -> None:
        """Listen no more. Of a passed socket the queue stays, for whoever holds it next."""
        if self.file is not None:
            path = Path(os.fsdecode(self.socket.getsockname()))
            with contextlib.suppress(OSError):
                # Someone may have put another in its place.
                if _identity(path) == self.file:
                    path.unlink()
        self.socket.close()


def bind_all(listens: Sequence[Listen], environ: Mapping[str, str] = os.environ) -> list[Bound]:
    """The sockets for all of ``listens``, or none of them. Raises ListenError."""
    bound: list[Bound] = []
    try:
        for listen in listens:
            try:
                bound += _bind(listen, listens, environ)
            except ListenError as error:
                raise ListenError(f"cannot listen on {listen}: {error}") from None
    except BaseException:
        for one in bound:
            one.close()
        raise
    return bound


def _bind(listen: Listen, listens: Sequence[Listen], environ: Mapping[str, str]) -> list[Bound]:
    if isinstance(listen, ListenAddress):
        return [_bind_tcp(listen, _is_shared_by_ipv4(listen, listens))]
    if isinstance(listen, UnixListen):
        return [_bind_unix(listen)]
    if isinstance(listen, SystemdListen):
        return _take_from_systemd(listen, environ)
    return [_take_from_starter(listen, environ)]


# TCP


def _is_shared_by_ipv4(listen: ListenAddress, listens: Sequence[Listen]) -> bool:
    """Whether this port is asked for with an IPv4 address too, so that "[::]" must leave that free."""
    return any(
        isinstance(one, ListenAddress) and one.port == listen.port != 0 and _is_ipv4(one.host)
        for one in listens
    )


def _is_ipv4(host: str) -> bool:
    try:
        IPv4Address(host)
    except ValueError:
        return False
    return True


def _bind_tcp(address: ListenAddress, only_ipv6: bool) -> Bound:
    """A socket on ``address``; "" as its host is every address, IPv6 where there is any."""
    try:
        if address.host:
            return _bind_host(address.host, address.port, only_ipv6)
        try:
            return _bind_host("::", address.port, only_ipv6=False)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
        return _bind_host("0.0.0.0", address.port, only_ipv6=False)
    except OSError as error:
        from exporter_proxy.front.bind_errors import tcp_bind_problem  # noqa: PLC0415 - rarely needed

        raise ListenError(tcp_bind_problem(address, error)) from None


def _bind_host(host: str, port: int, only_ipv6: bool) -> Bound:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, sockaddr = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "[::]:9099" means IPv4 too, as for the Go original; plain_address unmaps such peers.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        listening.bind(sockaddr)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return Bound(listening, is_passed=False)


# Unix sockets


def _bind_unix(listen: UnixListen) -> Bound:
    gid = _group_id(listen.group)
    path = Path(listen.path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    file = None
    try:
        _remove_stale(path)
        listening.bind(listen.path)
        file = _identity(path)
        # Nobody can connect before listen(), so there is no moment with the wrong mode or group.
        if gid is not None:
            os.chown(path, -1, gid)
        if listen.mode is not None:
            path.chmod(listen.mode)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except (OSError, ListenError) as error:
        Bound(listening, False, file).close()
        if isinstance(error, ListenError):
            raise
        from exporter_proxy.front.bind_errors import unix_bind_problem  # noqa: PLC0415 - rarely needed

        raise ListenError(unix_bind_problem(listen, error)) from None
    return Bound(listening, is_passed=False, file=file)


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ListenError(f'there is no group "{name}" on this host; create it or name another') from None


def _remove_stale(path: Path) -> None:
    """Make room where a process that was killed left its socket. Raises OSError and ListenError."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ListenError("what has that name is no socket; remove it, or change the path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except FileNotFoundError:
            pass  # its owner has just removed it
        except (BlockingIOError, TimeoutError):  # a full queue
            raise ListenError("another process is listening there; stop it, or change the path") from None
        else:
            from exporter_proxy.front.bind_errors import unix_socket_holder  # noqa: PLC0415 - rarely needed

            holder = unix_socket_holder(probe)
            raise ListenError(f"another process is listening there, {holder}; stop it, or change the path")


# Sockets passed on


def _take_from_systemd(listen: SystemdListen, environ: Mapping[str, str]) -> list[Bound]:
    passed = passed_descriptors(environ)
    if not passed:
        raise ListenError(why_nothing_was_passed(environ))
    wanted = [one for one in passed if listen.name in (None, one.name)]
    if not wanted:
        names = ", ".join(dict.fromkeys(one.name for one in passed))
        raise ListenError(
            f"systemd passed no socket of that name but {names}; correct it here, or FileDescriptorName= in "
            "the socket unit"
        )
    hint = "it takes ListenStream= and Accept=no in the socket unit"
    return [_take(one.fd, f"what systemd passed as {one.name}", hint) for one in wanted]


def unused_systemd_sockets(bound: Sequence[Bound]) -> list[str]:
    """Names of the sockets that systemd passed and nobody serves: whoever connects there waits for ever."""
    used = {one.socket.fileno() for one in bound}
    return [one.name for one in passed_descriptors() if one.fd not in used]


def _take_from_starter(listen: StarterListen, environ: Mapping[str, str]) -> Bound:
    specification = environ.get(STARTER_VARIABLE)
    if not specification:
        raise ListenError(
            f"{STARTER_VARIABLE} is not set; start exporter_proxy with start_server, or listen on the "
            "address itself"
        )
    available = _parse_starter_ports(specification)
    fd = available.get(listen.address)
    if fd is None:
        raise ListenError(f"start_server holds no such address, only {', '.join(available)}")
    return _take(fd, f"what start_server passed as {listen.address}", "it has to be a TCP or unix socket")


def _parse_starter_ports(specification: str) -> dict[str, int]:
    """Address to descriptor, from ``127.0.0.1:80=3;8080=4;/path=5``. Raises ListenError."""
    available: dict[str, int] = {}
    for part in specification.split(";"):
        address, _, fd = part.rpartition("=")
        if not address or not re.fullmatch("[0-9]{1,9}", fd):
            raise ListenError(
                f'{STARTER_VARIABLE} is malformed at "{part}"; start_server writes address=number'
            )
        # start_server calls every IPv4 address by the port alone, the Go original shows 0.0.0.0.
        available[f"0.0.0.0:{address}" if address.isdecimal() else address] = int(fd)
    return available


def _take(fd: int, what: str, hint: str) -> Bound:
    """The listening socket that ``fd`` is. Raises ListenError where it is something else."""
    try:
        # Not for the programs that the daemon starts: they would hold the port after its end.
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"{what} is no socket ({error.strerror}); {hint}") from None
    is_listening = (
        taken.family in _FAMILIES
        and taken.type == socket.SOCK_STREAM
        and taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )
    if not is_listening:
        taken.close()
        raise ListenError(f"{what} is not a listening stream socket; {hint}")
    taken.setblocking(False)
    return Bound(taken, is_passed=True)
