"""Opens a connection to an exporter: which address, how long until the next one is tried.

The address rule is applied to the very addresses that are connected to, after the name is
resolved: a name that starts to resolve elsewhere cannot lead a scrape there.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeVar

from exporter_proxy.access import is_allowed, plain_address
from exporter_proxy.config.schema import Network, UpstreamUrl
from exporter_proxy.reasons import Reason, ScrapeError

ATTEMPT_DELAY_SECONDS = 0.25
"""Connection Attempt Delay of RFC 8305 section 5: then the next address is tried as well."""

P = TypeVar("P", bound=asyncio.Protocol)
_Address = tuple[int, tuple[str, int]]


class Dialer:
    """Connects to one exporter. ``ssl_context`` is ``None`` for plain HTTP."""

    def __init__(
        self, url: UpstreamUrl, allowed: tuple[Network, ...] | None, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._url = url
        self._allowed = allowed
        self._ssl_context = ssl_context
        self._literal = _literal_addresses(url)

    async def connect(self, make_protocol: Callable[[], P]) -> P:
        """A connected protocol, its TLS handshake done.

        Raises ScrapeError with reason ``connect``: refused, unreachable, not resolved, not
        allowed, certificate not accepted.
        """
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        try:
            addresses = self._allowed_addresses(self._literal or await self._resolve(loop))
            connection = await _connect_first(loop, addresses)
        except OSError as error:
            raise ScrapeError(
                Reason.CONNECT, self._connect_advice(error, time.monotonic() - started)
            ) from None
        try:
            # From here on the socket is the event loop's, on failure too: closed under its
            # transport, the descriptor could come back as another connection's.
            _, protocol = await loop.create_connection(
                make_protocol,
                sock=connection,
                ssl=self._ssl_context,
                server_hostname=self._url.host if self._ssl_context else None,
            )
        except OSError as error:  # ssl.SSLError is one
            raise ScrapeError(Reason.CONNECT, self._tls_advice(error)) from None
        return protocol

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> list[_Address]:
        found = await loop.getaddrinfo(self._url.host, self._url.port, type=socket.SOCK_STREAM)
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
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return (
                f"cannot open a connection to {where}: {error.strerror}; raise exporter_proxy's LimitNOFILE"
            )
        return f"cannot connect to {where} {after}: {error.strerror or error}"

    def _tls_advice(self, error: OSError) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            problem = error.verify_message.rstrip(".")
            where = self._url.backend
            return f"the certificate of {where} is not accepted: {problem}; or set insecure_skip_verify"
        problem = (
            (error.reason if isinstance(error, ssl.SSLError) else None) or error.strerror or "connection lost"
        )
        return f"TLS handshake with {self._url.backend} failed: {problem}; does it speak https?"


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
