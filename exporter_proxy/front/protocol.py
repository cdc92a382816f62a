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
import re
import time
from collections import deque
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from exporter_proxy.access import Address, plain_address
from exporter_proxy.config.schema import Network
from exporter_proxy.front.answers import closing_response
from exporter_proxy.front.cycle import Cycle
from exporter_proxy.front.state import FrontLimits, FrontState
from exporter_proxy.front.tls import name_problem
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Denied, Reason

MAX_PIPELINED = 100
"""Requests sent ahead of their answers; Prometheus sends none."""
LINGER_SECONDS = 5.0

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*\Z")
_REQUEST_START = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} ")
_ABSOLUTE_FORM = re.compile(rb"(https?)://([^/?#]*)(.*)\Z", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
_ASGI_VERSION = {"version": "3.0", "spec_version": "2.3"}


class ScraperProtocol(HttpToolsProtocol):
    """One accepted connection."""

    cycle: Cycle | None  # type: ignore[assignment]  # ours in place of uvicorn's
    pipeline: deque[Cycle]  # type: ignore[assignment]

    def __init__(
        self, state: FrontState, accepted_at: float, admitted_by: tuple[Network, ...] | None = None
    ) -> None:
        super().__init__(state.uvicorn_config, state.uvicorn_state, {}, state.loop)
        self.state = state
        self.idle_since: float | None = accepted_at
        """Since when no complete request is being answered; ``None`` while one is."""
        self.address: Address | None = None
        """``None`` for a unix socket."""
        self.admitted_by = admitted_by
        """The ``allow_clients`` that this peer's address passed."""
        self.remote = "unix"
        self._deadline = accepted_at + state.limits.read_header_timeout_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._has_asked = False
        self._is_in_head = False
        self._ignores_input = False
        self._unfinished_head = bytearray()
        """What has come since the last complete head."""
        self._refusal: Denied | None = None
        self._last_host = b""
        self._limits_at_check: FrontLimits | None = None
        """Those that the scraper's certificate was checked against."""

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
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.address = plain_address(peer[0])
            self.remote = str(self.address)
        self._arm_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop: a scrape that nobody waits for any more is cancelled."""
        self.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        cycle = self.cycle
        if cycle is not None and not cycle.is_complete and cycle.task is not None:
            cycle.exchange.client_gone = True
            cycle.task.cancel()
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
            if not self._ignores_input:  # a body that is not read may be as wrong as it likes
                self._refuse(self._malformed(error))
        if len(self._unfinished_head) > self.state.limits.max_header_bytes:
            self._refuse(self._head_too_large())
        elif self._is_idle_in_head():
            self._limit_deadline(time.monotonic() + self.state.limits.read_header_timeout_seconds)

    # httptools callbacks

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self.url = b""
        self.headers = []
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line, names in lower case as ASGI has them."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A request is complete: nobody waits for its body."""
        self._is_in_head = False
        raw_head = bytes(self._unfinished_head)
        self._unfinished_head.clear()
        if self._refusal is not None or self._ignores_input:
            return
        limits = self.state.limits
        now = time.monotonic()
        method = self.parser.get_method().decode("ascii")
        path, _, query = self.url.partition(b"?")
        exchange = Exchange(self.remote, method, path, query, now)
        headers = self.headers
        version = self.parser.get_http_version()
        host: bytes | None = None
        has_body = False
        head_bytes = len(self.url)
        for name, value in headers:
            head_bytes += len(name) + len(value) + 4
            if name == b"host":
                if host is not None:
                    self._refuse(Denied(Reason.BAD_REQUEST, "two Host headers; send one"), exchange)
                    return
                host = value
            elif name == b"user-agent":
                exchange.user_agent = value
            elif name == b"content-length":
                has_body = has_body or value.strip() != b"0"
            elif name == b"transfer-encoding":
                has_body = True
                if value.strip().lower() != b"chunked":  # RFC 9112 section 6.1
                    self._refuse(
                        Denied(Reason.BAD_REQUEST, "a Transfer-Encoding other than chunked"), exchange
                    )
                    return
        if head_bytes > limits.max_header_bytes:
            self._refuse(self._head_too_large(), exchange)
            return
        problem = self._version_or_host_problem(host, version)
        if problem is None and limits is not self._limits_at_check:
            # At the first request, and again after a reload. Not sooner: Go's client takes an answer
            # that comes before its request for garbage.
            problem = name_problem(self.transport, self.address, limits.client_allowed_sans)
            self._limits_at_check = limits if problem is None else None
        if version != "1.1" and self.url + b" RTSP/" in raw_head:
            problem = Denied(
                Reason.BAD_REQUEST, "RTSP is not spoken; use HTTP/1.1"
            )  # llhttp takes it for HTTP
        if problem is None and (not path.startswith(b"/") or b"#" in self.url):
            problem = self._target_problem(exchange, host)
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
        self._begin(
            Cycle(
                scope,
                exchange,
                self.transport,
                self.flow,
                keep_alive,
                self._finish,
                self.state.log,
                limits.added_headers,
            )
        )

    def on_body(self, body: bytes) -> None:
        """Request bodies are dropped as they come."""

    def on_message_complete(self) -> None:
        """Nothing waits for the end of a request's body."""

    # One request after the other

    def _begin(self, cycle: Cycle) -> None:
        if self.idle_since is None:
            if len(self.pipeline) >= MAX_PIPELINED:
                self._refuse(
                    Denied(Reason.BAD_REQUEST, f"more than {MAX_PIPELINED} requests ahead of their answers")
                )
                return
            self.pipeline.appendleft(cycle)
            return
        self.idle_since = None
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
        if not self.is_idle or self.transport.is_closing():
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

    # Refusals

    def _version_or_host_problem(self, host: bytes | None, version: str) -> Denied | None:
        if version not in ("1.1", "1.0"):
            return Denied(Reason.BAD_REQUEST, f"HTTP/{version} is not spoken; use HTTP/1.1")
        if host is None:
            if version == "1.1":
                return Denied(Reason.BAD_REQUEST, "no Host header; HTTP/1.1 requires one")
        elif host != self._last_host:
            if not _HOST.match(host.strip(b" \t")):
                return Denied(Reason.BAD_REQUEST, "the Host header is not a host")
            self._last_host = host
        return None

    def _target_problem(self, exchange: Exchange, host: bytes | None) -> Denied | None:
        """Judge a request-target that is no plain path (RFC 9112 section 3.2).

        The absolute form is taken where it names the host that the Host header names.
        """
        if b"#" in self.url:
            return Denied(Reason.BAD_REQUEST, "a fragment (#) does not belong in a request")
        absolute = _ABSOLUTE_FORM.match(self.url)
        if absolute is None:
            if exchange.method in ("CONNECT", "OPTIONS"):
                return Denied(Reason.METHOD, f"{exchange.method} is not served; use GET or HEAD")
            return Denied(Reason.BAD_REQUEST, "the request target is not a path")
        scheme, authority, rest = absolute.groups()
        port = _DEFAULT_PORTS[scheme.lower()]
        if authority.lower().removesuffix(port) != (host or b"").strip(b" \t").lower().removesuffix(port):
            return Denied(Reason.BAD_REQUEST, "the request target names another host than the Host header")
        path, _, exchange.query = rest.partition(b"?")
        exchange.path = path or b"/"
        return None

    def _malformed(self, error: httptools.HttpParserError) -> Denied:
        start = bytes(self._unfinished_head[:64])
        if isinstance(error, httptools.HttpParserInvalidMethodError) and _REQUEST_START.match(start):
            return Denied(Reason.METHOD, "that method is not served; use GET or HEAD")
        if start[:2] == b"\x16\x03" and not self._has_asked:
            return Denied(Reason.BAD_REQUEST, "this port speaks plain HTTP; use http:// instead of https://")
        return Denied(Reason.BAD_REQUEST, f"malformed request: {error}")

    def _head_too_large(self) -> Denied:
        limit = self.state.limits.max_header_bytes
        return Denied(
            Reason.BAD_REQUEST, f"request headers over max_header_bytes ({limit} bytes)", status=431
        )

    def _refuse(self, denied: Denied, exchange: Exchange | None = None) -> None:
        """Refuse what came and read nothing more; answers under way go out first."""
        self._ignores_input = True
        if self._refusal is not None:
            return
        self._refusal = denied
        self._record(denied, exchange)
        if self.is_idle:
            self._send_refusal(denied)

    def _send_refusal(self, denied: Denied) -> None:
        self.transport.write(closing_response(denied, self.state.limits.added_headers))
        self._close_gently()

    def _record(self, denied: Denied, exchange: Exchange | None) -> None:
        now = time.monotonic()
        self.state.record_denial(denied, exchange or Exchange(self.remote, "", b"", b"", now))

    def _close_gently(self) -> None:
        """Close without losing the answer, and without waiting for ever for someone to read it.

        Closing while unread input lies in the socket makes the kernel send a reset, which can
        overtake the answer (RFC 9112 section 9.6): say that nothing more comes, take what the
        scraper still sends, and go when it does or after LINGER_SECONDS.
        """
        transport = self.transport
        if transport.is_closing():
            return
        if self._ignores_input and transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
            if not transport.get_write_buffer_size():
                return
        self._has_asked = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, transport.abort)
