"""Asks an exporter over HTTP/1.1: an httpx transport with a keep-alive pool of its own.

httpx's stock transport walks its whole pool under a lock for every request (3 ms with 16
scrapes at once); this one pops a list. It follows no redirect, keeps no cookie, reads no
proxy from the environment and decodes nothing: the exporter's bytes are the scraper's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import cast

import httpx

from exporter_proxy.config.schema import Exporter, Network
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.upstreams.connect import Dialer
from exporter_proxy.upstreams.connection import UpstreamConnection
from exporter_proxy.upstreams.messages import ScrapeRequest, ScrapeResponse, raw_headers_of
from exporter_proxy.upstreams.tls import Tls

KEEP_IDLE_SECONDS = 150.0
"""Longer than the scrape intervals in use, so that a scrape finds its connection open."""


class HttpUpstream(httpx.AsyncBaseTransport):
    """The transport of one exporter: http, https or over a unix socket. ``tls`` is for https alone.

    Raises ScrapeError from ``handle_async_request`` and from reading the response's stream.
    """

    def __init__(
        self,
        exporter: Exporter,
        allow_upstreams: tuple[Network, ...] | None,
        tls: Tls | None,
    ) -> None:
        assert exporter.url is not None
        self.backend = exporter.url.backend
        self._max_response_bytes = exporter.max_response_bytes
        self._dialer = Dialer(exporter.url, allow_upstreams, tls)
        self._tls = tls
        self._idle: list[UpstreamConnection] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._is_retired = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Ask, and return once the response's headers are in; its stream is still on the wire.

        A kept connection that the exporter had closed meanwhile is replaced once by a fresh
        one, if it gave no byte of an answer. Nothing else is retried: Prometheus retries by
        scraping again.
        """
        target: bytes = request.extensions.get("target") or request.url.raw_path
        lines = [request.method.encode("ascii"), b" ", target, b" HTTP/1.1\r\n"]
        for name, value in raw_headers_of(request):
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        is_head_request = request.method == "HEAD"

        while self._idle:
            connection = self._idle.pop()
            if connection.closed:
                continue
            try:
                await connection.ask(head, is_head_request)
            except ScrapeError:
                connection.abort()
                if connection.has_answered:
                    raise
                break
            except BaseException:
                connection.abort()
                raise
            return self._response(connection, request)

        connection = await self._connect(request)
        try:
            await connection.ask(head, is_head_request)
        except BaseException:
            connection.abort()
            raise
        return self._response(connection, request)

    async def aclose(self) -> None:
        """Close idle connections now and those in use when they come back."""
        self._is_retired = True
        if self._expiry is not None:
            self._expiry.cancel()
        while self._idle:
            self._idle.pop().abort()

    def release(self, connection: UpstreamConnection) -> None:
        """Take back a connection whose response was read, or given up."""
        if self._is_retired or not connection.is_reusable:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(KEEP_IDLE_SECONDS, self._close_expired)

    async def _connect(self, request: httpx.Request) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        connection = await self._dialer.connect(lambda: UpstreamConnection(loop, self.backend, self._tls))
        if isinstance(request, ScrapeRequest):
            request.exchange.connect_seconds = time.monotonic() - started
        return connection

    def _response(self, connection: UpstreamConnection, request: httpx.Request) -> httpx.Response:
        length = connection.content_length
        if length is not None and length > self._max_response_bytes and request.method != "HEAD":
            connection.abort()
            raise _too_large(f"announced {length} bytes", self.backend, self._max_response_bytes)
        exchange = request.exchange if isinstance(request, ScrapeRequest) else None
        body = ResponseBody(self, connection, self._max_response_bytes, exchange)
        return ScrapeResponse(connection.status, connection.headers, body)

    def _close_expired(self) -> None:
        """The longest idle stand first; one timer serves them all and is set for the first."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        self._idle = [connection for connection in self._idle if not connection.closed]
        while self._idle and now - self._idle[0].idle_since >= KEEP_IDLE_SECONDS:
            self._idle.pop(0).abort()
        self._expiry = None
        if self._idle:
            self._expiry = loop.call_at(self._idle[0].idle_since + KEEP_IDLE_SECONDS, self._close_expired)


def _too_large(what: str, backend: str, max_bytes: int) -> ScrapeError:
    """A body over ``max_response_bytes``, announced or sent."""
    advice = f"over max_response_bytes ({max_bytes}); raise it or scrape less"
    return ScrapeError(Reason.TOO_LARGE, f"{backend} {what}, {advice}")


class ResponseBody(httpx.AsyncByteStream):
    """The body of one response; closing it gives the connection back."""

    def __init__(
        self,
        upstream: HttpUpstream,
        connection: UpstreamConnection,
        max_bytes: int,
        exchange: Exchange | None,
    ) -> None:
        self._upstream = upstream
        self._max_bytes = max_bytes
        self._exchange = exchange
        self._received_bytes = 0
        self._connection: UpstreamConnection | None = connection

    @property
    def is_exhausted(self) -> bool:
        """Whether all of the body has been given out and its end is known to be proper."""
        return self._connection is None or self._connection.is_exhausted

    def __aiter__(self) -> AsyncIterator[bytes]:
        # A class of its own costs a third of an async generator, which the loop has to register.
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._connection.next_chunk() if self._connection is not None else None
        if chunk is None:
            raise StopAsyncIteration
        self._received_bytes += len(chunk)
        if self._exchange is not None:
            self._exchange.received_bytes = self._received_bytes
        if self._received_bytes > self._max_bytes:
            raise _too_large(
                f"sent more than {self._max_bytes} bytes", self._upstream.backend, self._max_bytes
            )
        return cast(bytes, chunk)  # a view will do wherever bytes are only passed on

    async def aclose(self) -> None:
        """Give the connection back, to be used again where the body was read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._upstream.release(connection)
