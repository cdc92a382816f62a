"""A scraper's connection: reads requests strictly, and never waits for one without a limit.

A subclass of uvicorn's httptools protocol. Its parser set-up, connection registry and flow
control are uvicorn's; requests, deadlines and refusals are handled here, since uvicorn has
no deadline or size limit for headers, accepts a missing or doubled Host, and lets a handler
run on when its client has left. What is used of uvicorn is pinned by
tests/unit/test_uvicorn_pins.py.

Deadlines cost nothing per request: one timer a connection looks, when it fires, whether the
deadline has moved on meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from exporter_proxy.access import Address
from exporter_proxy.config.schema import Network
from exporter_proxy.front import target
from exporter_proxy.front.answers import closing_response
from exporter_proxy.front.cycle import Cycle, parts_writer
from exporter_proxy.front.state import FrontLimits, FrontState
from exporter_proxy.front.tls import certificate_problem
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Denied, Reason

MAX_PIPELINED = 100
"""Requests sent ahead of their answers; Prometheus sends none."""
MAX_PIPELINED_BYTES = 64 * 1024
"""What their headers may take in memory, roughly; or ``max_header_bytes``, if that is more."""
LINGER_SECONDS = 5.0

_END_OF_HEAD = b"\r\n\r\n"
_ASGI_VERSION = {"version": "3.0", "spec_version": "2.3"}


class ScraperProtocol(HttpToolsProtocol):
    """One accepted connection."""

    cycle: Cycle | None  # type: ignore[assignment]  # ours in place of uvicorn's
    pipeline: deque[Cycle]  # type: ignore[assignment]

    def __init__(
        self,
        state: FrontState,
        address: Address | None,
        accepted_at: float,
        admitted_by: tuple[Network, ...] | None = None,
    ) -> None:
        super().__init__(state.uvicorn_config, state.uvicorn_state, {}, state.loop)
        self.state = state
        self.idle_since: float | None = accepted_at
        """Since when no complete request is being answered; ``None`` while one is."""
        self.address = address
        """As accepted, since the kernel no longer knows it once the peer has reset the connection.

        ``None`` for a unix socket.
        """
        self.admitted_by = admitted_by
        """The ``allow_clients`` that this peer's address passed."""
        self.remote = "unix" if address is None else str(address)
        self._deadline = accepted_at + state.limits.read_header_timeout_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._write: Callable[[list[bytes]], None]
        self._has_asked = False
        self._is_in_head = False
        self._ignores_input = False
        """Nothing that still comes is a request."""
        self._unfinished_head = bytearray()
        """What has come since the end of the last complete head."""
        self._unread_since: float | None = None
        """Since when the scraper has not read enough for more of an answer to be written."""
        self._refusal: Denied | None = None
        self._refuses_head = False
        self._last_host = b""
        self._limits_at_check: FrontLimits | None = None
        """Those that the scraper's certificate was checked against."""

    @property
    def has_unsent(self) -> bool:
        """Whether the end of an answer still waits for a scraper that reads slowly."""
        return self.transport.get_write_buffer_size() > 0

    @property
    def is_idle(self) -> bool:
        """Whether this connection can be closed without taking an answer from anyone."""
        return self.idle_since is not None

    def is_newcomer(self, since: float) -> bool:
        """Whether it was accepted after ``since`` (``time.monotonic()``) and has yet to ask."""
        return not self._has_asked and self.idle_since is not None and self.idle_since > since

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop, after the TLS handshake where there is one."""
        super().connection_made(transport)
        self._write = parts_writer(transport, self.loop)
        self._arm_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop: a scrape that nobody waits for any more is cancelled."""
        self.connections.discard(self)
        self.state.admitted.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        cycle = self.cycle
        if cycle is not None and not cycle.is_complete and cycle.task is not None:
            cycle.exchange.client_gone = True
            cycle.cancel()
        self.cycle = None  # it holds this protocol: freed now, not when the collector comes round
        self.pipeline.clear()
        self.flow.resume_writing()
        self.parser = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._ignores_input:
            return
        self._unfinished_head += data
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # CONNECT, or an Upgrade that is not taken (RFC 9110 section 7.8): answered, then closed.
            self._ignores_input = True
            if self.cycle is not None:
                (self.pipeline[0] if self.pipeline else self.cycle).keep_alive = False
        except httptools.HttpParserError as error:
            if not self._ignores_input:  # in a body that nobody reads nothing is malformed
                self._refuse(target.malformed(error, self._unfinished_head, self._has_asked))
        if self._ignores_input:
            self._unfinished_head.clear()
        elif len(self._unfinished_head) > self.state.limits.max_header_bytes or (
            self._is_in_head and len(self.headers) > target.MAX_HEADER_LINES
        ):
            self._refuse(target.head_too_large(self.state.limits.max_header_bytes))
        elif self._is_idle_in_head():
            self._limit_deadline(time.monotonic() + self.state.limits.read_header_timeout_seconds)

    def pause_writing(self) -> None:
        """Called by the event loop: an answer waits for the scraper to read."""
        super().pause_writing()
        if not self.is_idle:
            self._unread_since = time.monotonic()
            self._check_unread(self._unread_since)

    def resume_writing(self) -> None:
        """Called by the event loop: the scraper has read."""
        super().resume_writing()
        self._unread_since = None

    # httptools callbacks

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self.url = b""
        self.headers = []
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line, names in lower case as ASGI has them."""
        # No trailers, which would join the headers of a request that has begun (RFC 9110 section 6.5.1).
        if self._is_in_head and len(self.headers) <= target.MAX_HEADER_LINES:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A request is complete: nobody waits for its body."""
        self._is_in_head = False
        version = self.parser.get_http_version()
        raw_head = self._take_raw_head(version)
        if self._refusal is not None or self._ignores_input:
            return
        limits = self.state.limits
        now = time.monotonic()
        method = self.parser.get_method().decode("ascii")
        path, _, query = self.url.partition(b"?")
        if not path.startswith(b"/"):
            path = target.without_user(path)
        exchange = Exchange(self.remote, method, path, query, now)
        headers = self.headers
        try:
            host, has_body, head_bytes = target.read_header_lines(
                exchange, self.url, headers, limits.max_header_bytes
            )
        except Denied as denied:
            self._refuse(denied, exchange)
            return
        problem = None if version == "1.1" else target.version_problem(version, self.url, raw_head)
        if problem is None and (host is None or host != self._last_host):
            problem = target.host_problem(host, version)
            self._last_host = host or b""
        if problem is None and limits is not self._limits_at_check:
            # At the first request, and again after a reload. Not sooner: Go's client takes an answer
            # that comes before its request for garbage.
            problem = certificate_problem(
                self.transport, self.address, limits.wants_certificates, limits.client_allowed_sans
            )
            self._limits_at_check = limits if problem is None else None
        if problem is None and (not path.startswith(b"/") or b"#" in self.url):
            problem = target.target_problem(exchange, self.url, host)
        if problem is not None:
            self._refuse(problem, exchange)
            return
        keep_alive = version == "1.1" and not has_body and self.parser.should_keep_alive()
        if not keep_alive:
            self._ignores_input = True  # RFC 9112 section 9.6: what comes after the last request is not read
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI_VERSION,
            "http_version": version,
            "method": method,
            "scheme": self.scheme,
            "path": exchange.path.decode("latin-1"),
            "raw_path": exchange.path,
            "query_string": exchange.query,
            "root_path": "",
            "headers": headers,
            "client": self.client,
            "server": self.server,
            # Not ASGI's own: the record of this request, and who the peer is to the access rules.
            "exchange": exchange,
            "address": self.address,
            "admitted_by": self.admitted_by,
        }
        log, added = self.state.log, limits.added_headers
        cycle = Cycle(
            scope, exchange, self.transport, self._write, self.flow, keep_alive, self._finish, log, added
        )
        cycle.head_bytes = head_bytes + target.HEADER_LINE_BYTES * len(headers)
        self._begin(cycle)

    def on_body(self, body: bytes) -> None:
        """Request bodies are dropped as they come."""

    def on_message_complete(self) -> None:
        """Nothing waits for the end of a request's body."""

    def _take_raw_head(self, version: str) -> bytes:
        """The head that is complete; what came behind it stays. Nobody looks at that of HTTP/1.1."""
        received = self._unfinished_head
        if version == "1.1" and received.find(_END_OF_HEAD) == len(received) - len(_END_OF_HEAD):
            received.clear()
            return b""
        if received.startswith((b"\r", b"\n")):  # blank lines ahead of a request (RFC 9112 section 2.2)
            received = self._unfinished_head = received.lstrip(b"\r\n")
        head = bytes(received[: received.find(_END_OF_HEAD)])  # not found: HTTP/0.9, which is refused
        del received[: len(head) + len(_END_OF_HEAD)]
        return head

    # One request after the other

    def _may_queue(self, cycle: Cycle) -> bool:
        ahead_bytes = cycle.head_bytes + sum(queued.head_bytes for queued in self.pipeline)
        allowed_bytes = max(MAX_PIPELINED_BYTES, self.state.limits.max_header_bytes)
        return len(self.pipeline) < MAX_PIPELINED and ahead_bytes <= allowed_bytes

    def _begin(self, cycle: Cycle) -> None:
        if self.idle_since is None:
            if self._may_queue(cycle):
                self.pipeline.appendleft(cycle)
            else:
                self._refuse(Denied(Reason.BAD_REQUEST, "too many requests ahead of their answers"))
            return
        self.idle_since = None
        self.state.admitted.set_busy(self)
        self._has_asked = True
        self.cycle = cycle
        if self.state.is_draining:
            cycle.keep_alive = False
        cycle.task = task = self.loop.create_task(cycle.run(self.state.app))
        self.tasks.add(task)

    def _finish(self, cycle: Cycle) -> None:
        """An answer is complete, or cut."""
        if cycle.task is not None:
            self.tasks.discard(cycle.task)
        if self.transport.is_closing():
            return
        now = self.idle_since = time.monotonic()
        self.state.admitted.set_idle(self)
        if not cycle.keep_alive:
            self._close_gently()
        elif self.pipeline:
            self._begin(self.pipeline.pop())
        elif self._refusal is not None:
            self._send_refusal(self._refusal)
        else:
            limits = self.state.limits
            self._deadline = now + limits.keep_alive_timeout_seconds
            if self._is_idle_in_head():
                self._deadline = now + limits.read_header_timeout_seconds
            self._limit_deadline(self._deadline)

    def shutdown(self) -> None:
        """Answer what is being answered with ``Connection: close``; close when idle."""
        if self.is_idle:
            self.transport.close()
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    # Deadlines

    def _is_idle_in_head(self) -> bool:
        """Whether part of a request, be it blank lines, is in and nothing is being answered."""
        return (self._is_in_head or len(self._unfinished_head) > 0) and self.is_idle

    def _limit_deadline(self, at: float) -> None:
        """See to it that the deadline is ``at`` or sooner and that the timer does not miss it."""
        self._deadline = min(at, self._deadline)
        if self._timer is None or self._timer_at > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._arm_timer()

    def _arm_timer(self) -> None:
        self._timer_at = self._deadline
        self._timer = self.loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if not self.is_idle:
            if self._unread_since is not None:
                self._check_unread(self._unread_since)
            return
        if time.monotonic() < self._deadline:
            self._arm_timer()
        elif self._is_idle_in_head():
            limit = f"{self.state.limits.read_header_timeout_seconds:g} s (read_header_timeout)"
            self._refuse(Denied(Reason.HEADER_TIMEOUT, f"request headers not complete within {limit}"))
        else:
            if not self._has_asked:
                self._record(Denied(Reason.HEADER_TIMEOUT, "no request came"), None)
            self.transport.abort()

    def _check_unread(self, since: float) -> None:
        """Cut off who asks and never reads; a scrape's own deadline comes first, a page has none."""
        limit_seconds = self.state.limits.keep_alive_timeout_seconds
        if self.cycle is None:
            return
        exchange = self.cycle.exchange
        self._deadline = since + max(limit_seconds, exchange.timeout_seconds)
        if time.monotonic() < self._deadline:
            self._limit_deadline(self._deadline)
            return
        exchange.reason = Reason.CLIENT_SLOW
        exchange.message = f"the client read nothing for {limit_seconds:g} s (keep_alive_timeout)"
        self.transport.abort()

    # Refusals

    def _refuse(self, denied: Denied, exchange: Exchange | None = None) -> None:
        """Refuse what came and read nothing more; answers under way go out first."""
        self._ignores_input = True
        if self._refusal is not None:
            return
        self._refusal = denied
        method = exchange.method if exchange is not None else target.method_of(self._unfinished_head)
        self._refuses_head = method == "HEAD"
        self._record(denied, exchange)
        if self.is_idle:
            self._send_refusal(denied)

    def _send_refusal(self, denied: Denied) -> None:
        added = self.state.limits.added_headers
        self.transport.write(closing_response(denied, self._refuses_head, added))
        self._close_gently()

    def _record(self, denied: Denied, exchange: Exchange | None) -> None:
        now = time.monotonic()
        self.state.record_denial(denied, exchange or Exchange(self.remote, "", b"", b"", now))

    def _close_gently(self) -> None:
        """Close without losing the answer, and without waiting for ever for someone to read it.

        Closing while unread input lies in the socket makes the kernel send a reset, which can
        overtake the answer (RFC 9112 section 9.6): say that nothing more comes, take what the
        scraper still sends, and go when it does or after LINGER_SECONDS. Who has yet to read the
        end of the answer has as long as where the connection stays.
        """
        transport = self.transport
        if transport.is_closing():
            return
        if self._ignores_input and transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
            if not self.has_unsent:
                return
        self._has_asked = True
        self._deadline = time.monotonic() + self.state.limits.keep_alive_timeout_seconds
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, self._end_lingering)

    def _end_lingering(self) -> None:
        if self.has_unsent and time.monotonic() < self._deadline:
            self._timer = self.loop.call_later(LINGER_SECONDS, self._end_lingering)
        else:
            self.transport.abort()
