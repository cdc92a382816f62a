"""Opens a connection to an exporter: which address, how long until the next one is tried.

The address rule is applied to the very addresses that are connected to, after the name is
resolved: a name that starts to resolve elsewhere cannot lead a scrape there.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - by sockets, for every host; read from a disk by the first scrape otherwise
import errno
import functools
import socket
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeVar

from exporter_proxy.access import is_allowed, plain_address
from exporter_proxy.config.schema import Network, UpstreamUrl
from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.threads import NoThread, Threads
from exporter_proxy.upstreams.tls import HANDSHAKE_SECONDS, Tls

ATTEMPT_DELAY_SECONDS = 0.25
"""Connection Attempt Delay of RFC 8305 section 5: then the next address is tried as well."""

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)

P = TypeVar("P", bound=asyncio.Protocol)
_Address = tuple[int, tuple[str, int]]


class Dialer:
    """Connects to one exporter. ``tls`` is ``None`` for plain HTTP.

    ``allowed`` concerns addresses; a unix socket has none, and who may use it is its mode's say.
    """

    def __init__(self, url: UpstreamUrl, allowed: tuple[Network, ...] | None, tls: Tls | None) -> None:
        self._url = url
        self._allowed = allowed
        self._tls = tls
        self._literal = _literal_addresses(url)
        # Not the event loop's lookups: uvloop has two at a time for all exporters together, waits for them at
        # its end, and where a name server does not answer each takes ten seconds or more.
        self._threads = Threads(1, f"lookup of {url.host}")

    async def connect(self, make_protocol: Callable[[], P]) -> P:
        """A connected protocol, its TLS handshake done.

        Raises ScrapeError with reason ``connect``: refused, unreachable, not resolved, not
        allowed, no such socket, certificate not accepted.
        """
        if self._url.socket_path is not None:
            return await _connect_unix(self._url.socket_path, make_protocol)
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        try:
            addresses = self._allowed_addresses(self._literal or await self._resolve())
            connection = await _connect_first(loop, addresses)
        except OSError as error:
            raise ScrapeError(
                Reason.CONNECT, self._connect_advice(error, time.monotonic() - started)
            ) from None
        except NoThread as error:
            advice = f"cannot resolve {self._url.host}: {error}; raise exporter_proxy's TasksMax"
            raise ScrapeError(Reason.CONNECT, advice) from None
        try:
            # From here on the socket is the event loop's, on failure too: closed under its
            # transport, the descriptor could come back as another connection's.
            _, protocol = await loop.create_connection(
                make_protocol,
                sock=connection,
                ssl=self._tls.context if self._tls else None,
                server_hostname=self._tls.server_name if self._tls else None,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if self._tls else None,
            )
        except OSError as error:  # ssl.SSLError is one
            advice = self._tls.failure(self._url.backend, error) if self._tls else str(error)
            raise ScrapeError(Reason.CONNECT, advice) from None
        return protocol

    async def _resolve(self) -> list[_Address]:
        host, port = self._url.host, self._url.port
        found = await self._threads.run(
            functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        )
        return [(family, (str(sockaddr[0]), int(sockaddr[1]))) for family, _, _, _, sockaddr in found]

    def _allowed_addresses(self, addresses: list[_Address]) -> list[_Address]:
        kept = [address for address in addresses if is_allowed(plain_address(address[1][0]), self._allowed)]
        if not kept:
            elsewhere = ", ".join(sorted({address[1][0] for address in addresses}))
            raise ScrapeError(
                Reason.CONNECT,
                f"{self._url.host} is {elsewhere}, not in allow_upstreams; nothing was connected to",
            )
        return kept

    def _connect_advice(self, error: OSError, seconds: float) -> str:
        where, port = self._url.backend, self._url.port
        after = f"after {seconds * 1000:.0f} ms"
        if isinstance(error, ConnectionRefusedError):
            return f"connection refused by {where} {after}; is it running? (ss -ltn | grep {port})"
        if isinstance(error, socket.gaierror):
            host = self._url.host
            return f"cannot resolve {host}: {error.strerror}; is it right? (getent hosts {host})"
        if error.errno in _NO_DESCRIPTOR:
            return _no_descriptor_advice(where, error)
        return f"cannot connect to {where} {after}: {error.strerror or error}"


def _no_descriptor_advice(where: str, error: OSError) -> str:
    return f"cannot open a connection to {where}: {error.strerror}; raise exporter_proxy's LimitNOFILE"


async def _connect_unix(path: str, make_protocol: Callable[[], P]) -> P:
    connection: socket.socket | None = None
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Done at once or not at all (unix(7)); the event loops take the EAGAIN of a full queue for
        # a connection that is on its way.
        connection.connect(path)
    except OSError as error:
        if connection is not None:
            connection.close()
        raise ScrapeError(Reason.CONNECT, _unix_advice(path, error)) from None
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_unix_connection(make_protocol, sock=connection)
    return protocol


def _unix_advice(path: str, error: OSError) -> str:
    where = f"unix:{path}"
    if isinstance(error, FileNotFoundError):
        return f"there is no socket at {path}; is the exporter running, and url right?"
    if isinstance(error, PermissionError):
        return (
            f"no permission to connect to {where}; put exporter_proxy's user into the socket's group "
            f"(ls -l {path})"
        )
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused by {where}: nobody listens there; is the exporter running? (ss -lx)"
    if isinstance(error, BlockingIOError):
        return f"connection refused by {where}: its queue is full; is the exporter hung or overloaded?"
    if error.errno in _NO_DESCRIPTOR:
        return _no_descriptor_advice(where, error)
    return f"cannot connect to {where}: {error.strerror or error}"


def _literal_addresses(url: UpstreamUrl) -> list[_Address]:
    try:
        version = ip_address(url.host).version
    except ValueError:
        return []
    return [(socket.AF_INET6 if version == 6 else socket.AF_INET, (url.host, url.port))]


async def _connect_first(loop: asyncio.AbstractEventLoop, addresses: list[_Address]) -> socket.socket:
    """The first address that answers, tried in order with a head start for each (RFC 8305).

    Raises the OSError of the last address that failed.
    """
    if len(addresses) == 1:
        return await _connect_one(loop, addresses[0])
    waiting = list(addresses)
    attempts: set[asyncio.Task[socket.socket]] = set()
    failure = OSError(errno.EHOSTUNREACH, "no address to connect to")
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(loop.create_task(_connect_one(loop, waiting.pop(0))))
            delay = ATTEMPT_DELAY_SECONDS if waiting else None
            done, _ = await asyncio.wait(attempts, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                attempts.discard(attempt)
                error = attempt.exception()
                if error is None:
                    return attempt.result()
                if not isinstance(error, OSError):
                    raise error
                failure = error
        raise failure
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close_unwanted)


def _close_unwanted(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _connect_one(loop: asyncio.AbstractEventLoop, address: _Address) -> socket.socket:
    family, sockaddr = address
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await loop.sock_connect(connection, sockaddr)
    except BaseException:
        connection.close()
        raise
    return connection
