"""``share_for``: one answer of the exporter for several scrapes, as of a pair of Prometheus servers.

A scrape joins the one that is in flight for the same key or takes the answer that finished at
most ``share_for`` ago. The exporter is asked in a task of its own, which lasts as long as
anybody waits for it: whoever came first may leave without taking the answer from the others,
and each waits no longer than its own deadline. Past the deadline of the first nobody joins. Failures
are shared while in flight only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import NamedTuple

import httpx

from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.scrape.headers import Headers
from exporter_proxy.upstreams.messages import ScrapeResponse, raw_headers_of

Question = AbstractAsyncContextManager[httpx.Response]
"""Asks the exporter where it is entered, gives connection and slot back where it is left."""

BYTES_PER_KEPT_ANSWER = 4096
"""What keeping an answer costs beside what it says and what was asked, about."""

_NOT_IN_KEY = frozenset((b"user-agent", b"traceparent", b"tracestate"))


class ShareKey(NamedTuple):
    """All that could change the answer: two scrapes with the same key may share one."""

    method: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def size_bytes(self) -> int:
        """What it takes to remember it: queries and headers come from outside."""
        return len(self.query) + _size_bytes(self.headers)


def share_key(method: str, query: bytes, forwarded: Headers) -> ShareKey:
    """The key of a scrape with this query and these headers, as they are forwarded."""
    headers = tuple(sorted(pair for pair in forwarded if pair[0] not in _NOT_IN_KEY))
    return ShareKey(method, query, headers)


def _size_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)


class SharedAnswer:
    """An answer for one scrape: closing it gives back what is still open of the exporter's side."""

    def __init__(self, shares: Shares, flight: _Flight, age_seconds: int | None) -> None:
        self._shares = shares
        self._flight = flight
        self.age_seconds = age_seconds
        """How old the answer is; ``None`` for the scrape that had it asked for."""
        source = flight.response
        body = _HeldBody(flight.parts, flight.rest)
        self.response = ScrapeResponse(source.status_code, raw_headers_of(source), body)

    async def aclose(self) -> None:
        """Have no more of it; the exporter's connection and slot go back where the body was not held."""
        self._shares.leave(self._flight)
        await self._flight.exporter_side.aclose()


class Shares:
    """The answers of one exporter that are in flight or kept.

    What is kept for all keys together stays within ``max_bytes``, and so does what scrapes wait for or
    have yet to send: what a scrape asks for, and how slowly the answer is read, comes from outside. An
    answer that is too large for that is not shared.
    """

    def __init__(self, share_for_seconds: float, max_bytes: int) -> None:
        self._share_for_seconds = share_for_seconds
        self._max_bytes = max_bytes
        self._flights: dict[ShareKey, _Flight] = {}
        self._kept_bytes = 0
        self._in_use_bytes = 0

    async def get(self, key: ShareKey, question: Question, exchange: Exchange) -> SharedAnswer | None:
        """An answer for ``key``, by asking ``question`` where there is none to share.

        ``None``: the body proved too large to be shared, and the scrape that asked has it; ask
        alone. Raises what the question and reading its answer raise.
        """
        flight = self._flights.get(key)
        if flight is not None and (flight.is_overdue or not self._has_room_for(flight)):
            self._forget(key, flight)
            flight = None
        is_first = flight is None
        if flight is None:
            flight = self._flights[key] = _Flight(exchange)
            flight.task = asyncio.get_running_loop().create_task(self._fly(key, flight, question))
        self._join(flight)
        try:
            await asyncio.shield(flight.task)
        except BaseException:
            self.leave(flight)
            exchange.has_slot = flight.first.has_slot
            await self._give_up_if_unwanted(key, flight)
            raise
        exchange.has_slot = True
        if flight.rest is None:
            age_seconds = None if is_first else int(time.monotonic() - flight.finished_at)
            return SharedAnswer(self, flight, age_seconds)
        if flight.is_taken:
            self.leave(flight)
            return None
        flight.is_taken = True
        return SharedAnswer(self, flight, None)

    def _has_room_for(self, flight: _Flight) -> bool:
        return flight.is_in_use or self._in_use_bytes + flight.held_bytes <= self._max_bytes

    def _join(self, flight: _Flight) -> None:
        if not flight.is_in_use:
            flight.is_in_use = True
            self._in_use_bytes += flight.held_bytes
        flight.users += 1

    def leave(self, flight: _Flight) -> None:
        """One scrape less waits for it or has yet to send it."""
        flight.users -= 1
        self._end_use(flight)

    def _end_use(self, flight: _Flight) -> None:
        if flight.has_ended and not flight.users and flight.is_in_use:
            flight.is_in_use = False
            self._in_use_bytes -= flight.held_bytes

    async def _fly(self, key: ShareKey, flight: _Flight, question: Question) -> None:
        """Ask, and read the answer as far as it can be shared."""
        is_kept = False
        try:
            async with AsyncExitStack() as exporter_side:
                response = flight.response = await exporter_side.enter_async_context(question)
                assert isinstance(response.stream, httpx.AsyncByteStream)
                body = aiter(response.stream)
                async for chunk in body:
                    flight.parts.append(chunk)
                    flight.held_bytes += len(chunk)
                    self._in_use_bytes += len(chunk)
                    if self._in_use_bytes > self._max_bytes:
                        flight.rest = body
                        flight.exporter_side = exporter_side.pop_all()
                        return
            is_kept = response.status_code == 200
        finally:
            flight.finished_at = time.monotonic()
            flight.has_ended = True
            self._end_use(flight)
            if is_kept and self._flights.get(key) is flight:
                self._keep(key, flight)
            else:
                self._forget(key, flight)

    async def _give_up_if_unwanted(self, key: ShareKey, flight: _Flight) -> None:
        if flight.users:
            return
        if not flight.task.done():
            flight.task.cancel()
            self._forget(key, flight)
        elif not flight.is_taken:
            flight.is_taken = True
            await flight.exporter_side.aclose()

    def _keep(self, key: ShareKey, flight: _Flight) -> None:
        flight.parts = [b"".join(flight.parts)]
        flight.is_kept = True
        response_bytes = flight.held_bytes + _size_bytes(raw_headers_of(flight.response))
        flight.kept_bytes = response_bytes + key.size_bytes + BYTES_PER_KEPT_ANSWER
        self._kept_bytes += flight.kept_bytes
        for other_key, other in list(self._flights.items()):
            if self._kept_bytes <= self._max_bytes:
                break
            if other.is_kept and other is not flight:
                self._forget(other_key, other)
        loop = asyncio.get_running_loop()
        flight.expiry = loop.call_later(self._share_for_seconds, self._forget, key, flight)

    def _forget(self, key: ShareKey, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
            if flight.is_kept:
                self._kept_bytes -= flight.kept_bytes
            if flight.expiry is not None:
                flight.expiry.cancel()  # the timer would hold the body until then


class _Flight:
    """One time that the exporter is asked, for whoever waits."""

    def __init__(self, first: Exchange) -> None:
        self.first = first
        self._due_at = first.started + first.timeout_seconds
        self.task: asyncio.Task[None]
        self.response: httpx.Response
        self.users = 0
        """Scrapes that wait for it or have yet to send it."""
        self.is_in_use = False
        self.has_ended = False
        self.parts: list[bytes] = []
        self.held_bytes = 0
        self.kept_bytes = 0
        self.expiry: asyncio.TimerHandle | None = None
        self.rest: AsyncIterator[bytes] | None = None
        """What is still on the wire of a body that is too large to be shared."""
        self.exporter_side = AsyncExitStack()
        """Connection and slot, as long as ``rest`` is read; empty otherwise."""
        self.is_taken = False
        self.is_kept = False
        self.finished_at = 0.0

    @property
    def is_overdue(self) -> bool:
        """Whether the scrape that began it has given it up: nobody else joins then.

        Otherwise scrapes that overlap would wait for one that hangs for ever, each for the rest of it, long
        after the exporter could answer a new one.
        """
        return not self.task.done() and time.monotonic() >= self._due_at


class _HeldBody(httpx.AsyncByteStream):
    """A body in memory, and where it grew too large for that, the rest of it."""

    def __init__(self, parts: list[bytes], rest: AsyncIterator[bytes] | None) -> None:
        self._parts = parts
        self._rest = rest
        self.is_exhausted = False
        """Whether the part given out last was the last one."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = list(self._parts)
        if self._rest is not None:
            self._parts.clear()  # nobody else gets them, and they need not be held any longer
        while parts:
            part = parts.pop(0)
            self.is_exhausted = self._rest is None and not parts
            yield part
        if self._rest is not None:
            async for chunk in self._rest:
                yield chunk
