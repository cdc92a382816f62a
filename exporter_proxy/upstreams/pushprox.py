"""One PushProx proxy over HTTP/1.1: polls it for requests and pushes answers.

What is in a request, and when to poll again, is for ``pushprox/`` to say. Here a message goes
out once and is never repeated: a push that came through twice would be another scrape's trouble.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from exporter_proxy import __version__
from exporter_proxy.config.schema import UpstreamUrl
from exporter_proxy.reasons import ScrapeError
from exporter_proxy.upstreams.connect import Dialer
from exporter_proxy.upstreams.connection import UpstreamConnection
from exporter_proxy.upstreams.tls import Tls

CONNECT_SECONDS = 10.0
MAX_ANSWER_BYTES = 64 * 1024
"""A raw request, or the line that says why there is none."""
ANSWER_SECONDS = 30.0
"""From the head of an answer to its end."""
KEEP_IDLE_SECONDS = 15.0
"""A router that forgets a connection tells nobody, and what is pushed there is lost: no old one is used."""
MAX_IDLE = 8
WRITE_BYTES = 256 * 1024
"""Of an answer at once: to encrypt more would hold up scrapes."""

PROBE_IDLE_SECONDS = 30
PROBE_INTERVAL_SECONDS = 5
PROBES = 3
FORGOTTEN_SECONDS = PROBE_IDLE_SECONDS + PROBES * PROBE_INTERVAL_SECONDS
"""After so long without a sign of the other end a connection is given up."""

# The proxy holds a poll for as long as there is no scrape, so that silence means nothing: the kernel
# asks whether the other end is still there, and with that keeps the entry in a NAT router alive.
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_IDLE_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_INTERVAL_SECONDS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES),
    # The same for what was sent and is not acknowledged, which would be sent again for 15 minutes.
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, FORGOTTEN_SECONDS * 1000),
)


class LinkError(Exception):
    """The proxy could not be asked or did not answer; the message says what happened and what to try."""


class Answer(NamedTuple):
    """What the proxy said."""

    status: int
    body: bytes


class _Connection(UpstreamConnection):
    _is_writing_paused = False

    async def post(self, head: bytes, body: Iterable[bytes]) -> None:
        """As ``ask``; ``body`` goes out as fast as it is taken, and no further once there is an answer."""
        self._begin(head, is_head_request=False)
        for part in body:
            for at in range(0, len(part), WRITE_BYTES):
                while self._is_writing_paused and not self._is_answered:
                    await self._wait()
                if self._is_answered:
                    self._is_reusable = False  # it has not had all that was announced
                    break
                self._transport.write(memoryview(part)[at : at + WRITE_BYTES])
        await self._until_head()

    @property
    def _is_answered(self) -> bool:
        return self._is_head_complete or self._error is not None

    def pause_writing(self) -> None:
        """Called by the event loop: more waits to be sent than it likes."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._is_writing_paused = False
        self._wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        for level, option, value in _KEEP_ALIVE:
            connection.setsockopt(level, option, value)


class ProxyLink:
    """The connections with one proxy. ``authorization`` is the header's value; ``tls`` is for https alone."""

    def __init__(self, url: UpstreamUrl, authorization: bytes | None, tls: Tls | None) -> None:
        self._url = url
        self._tls = tls
        self._dialer = Dialer(url, None, tls)
        self._headers = b"".join(
            (
                b"Host: " + url.authority.encode("ascii") + b"\r\n",
                b"User-Agent: exporter_proxy/" + __version__.encode("ascii") + b"\r\n",
                b"" if authorization is None else b"Authorization: " + authorization + b"\r\n",
            )
        )
        self._prefix = url.target.rstrip("/").encode("ascii")
        self._idle: list[_Connection] = []
        self._is_closed = False

    async def poll(self, fqdn: str, when_sent: Callable[[], None]) -> Answer:
        """Wait, without a limit, for a request to ``fqdn``. Raises LinkError.

        ``when_sent`` is called once the proxy has been asked.
        """
        return await self._post(b"/poll", [fqdn.encode()], when_sent)

    async def push(self, response: Sequence[bytes]) -> Answer:
        """Deliver a raw response, in parts. Raises LinkError. How long it takes is the caller's to limit."""
        return await self._post(b"/push", response)

    def close(self) -> None:
        """Close idle connections now and those in use when they come back."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().abort()

    async def _post(
        self, path: bytes, body: Sequence[bytes], when_sent: Callable[[], None] | None = None
    ) -> Answer:
        head = (
            b"POST %b%b HTTP/1.1\r\n%bContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
            % (self._prefix, path, self._headers, sum(map(len, body)))
        )
        try:
            connection = self._take_idle() or await self._connect()
            try:
                if when_sent is not None:
                    when_sent()
                await connection.post(head, body)
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = Answer(connection.status, await self._read_body(connection))
            except BaseException:
                connection.abort()
                raise
        except TimeoutError:
            raise LinkError(f"{self._url.backend} did not finish its answer") from None
        except ScrapeError as error:
            raise LinkError(_in_terms_of_a_proxy(error.message)) from None
        self._release(connection)
        return answer

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        backend = self._url.backend
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._dialer.connect(lambda: _Connection(loop, backend, self._tls))
        except TimeoutError:
            raise LinkError(
                f"no connection to {backend} within {CONNECT_SECONDS:g} s; "
                "does a firewall let this host out to there?"
            ) from None

    async def _read_body(self, connection: _Connection) -> bytes:
        body = bytearray()
        while (chunk := await connection.next_chunk()) is not None:
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise LinkError(f"{self._url.backend} answered with more than {MAX_ANSWER_BYTES} bytes")
        return bytes(body)

    def _take_idle(self) -> _Connection | None:
        oldest = time.monotonic() - KEEP_IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since > oldest and not connection.closed:
                return connection
            connection.abort()
        return None

    def _release(self, connection: _Connection) -> None:
        if self._is_closed or not connection.is_reusable or len(self._idle) >= MAX_IDLE:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)


def _in_terms_of_a_proxy(message: str) -> str:
    """The upstreams' messages advise on exporters; what they say of TLS is true of a proxy, too."""
    what, _, advice = message.partition("; ")
    if "tls." in advice or "clocks" in advice:
        return message.replace("the exporter's own log", "its own log")
    return f"{what}; is a PushProx proxy running there, and proxy_url right?"
