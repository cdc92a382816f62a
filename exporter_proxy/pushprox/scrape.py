"""One scrape through PushProx: the request put through the pipeline, its answer put together.

The answer is held in memory until it is complete, and so is it in the proxy: it is bounded, and
what fails half-way becomes a status where on a connection it would be a cut.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from exporter_proxy.app import PUSHPROX, App
from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.front.answers import denial_headers, error_body
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.proxy import Proxy
from exporter_proxy.pushprox.judge import Place, aim, check_size
from exporter_proxy.pushprox.messages import PushedRequest
from exporter_proxy.reasons import Denied, Reason, ScrapeError
from exporter_proxy.scrape.headers import Headers

MAX_BODY_BYTES = 32 * 1024 * 1024
"""Of one answer; an exporter's ``max_response_bytes`` may be lower."""
MAX_HELD_BYTES = 64 * 1024 * 1024
"""Of all answers together, pages of ours included, until they are pushed; but for what is below."""
_ALWAYS_HELD_BYTES = 64 * 1024
"""Of each answer: errors and small pages find room whatever else is held. There are ``max_connections``."""


class Held:
    """The bodies in memory, of all answers that are not yet pushed."""

    def __init__(self) -> None:
        self.n_bytes = 0


class Answer:
    """An answer as the application sends it. What it holds is given back by ``release``."""

    def __init__(self, exchange: Exchange, held: Held) -> None:
        self.exchange = exchange
        self.status = 0
        self.headers: Headers = []
        self._parts: list[bytes] = []
        self._n_bytes = 0
        self._held = held

    @property
    def body(self) -> Sequence[bytes]:
        """All of it, in parts."""
        return self._parts

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI. A second start replaces what came before. Raises ScrapeError where there is no room."""
        if message["type"] == "http.response.start":
            self.release()
            self.status, self.headers = message["status"], message["headers"]
            return
        part: bytes = message.get("body", b"")
        self._check_room(self._n_bytes + len(part), len(part))
        self._parts.append(part)
        self._n_bytes += len(part)
        self._held.n_bytes += len(part)

    def release(self) -> None:
        """Hold nothing any more."""
        self._held.n_bytes -= self._n_bytes
        self._n_bytes = 0
        self._parts = []

    def _check_room(self, size: int, more: int) -> None:
        if size <= _ALWAYS_HELD_BYTES:
            return
        if size > MAX_BODY_BYTES:
            raise ScrapeError(
                Reason.TOO_LARGE,
                f"the body is larger than what is pushed through PushProx ({MAX_BODY_BYTES} bytes); "
                "scrape less, or in parts",
            )
        if self._held.n_bytes + more > MAX_HELD_BYTES:
            raise ScrapeError(
                Reason.TOO_LARGE,
                f"the bodies waiting to be pushed through PushProx are larger than {MAX_HELD_BYTES} bytes "
                "together; scrape less at once",
            )


async def answer(request: PushedRequest, place: Place, section: PushProx, proxy: Proxy, held: Held) -> Answer:
    """Put one request through the pipeline, and record what it became."""
    path = request.target.partition(b"?")[0]
    exchange = Exchange("pushprox", request.method, path, b"", time.monotonic())
    exchange.is_held = True
    exchange.user_agent = request.get(b"user-agent") or b""
    given = Answer(exchange, held)
    try:
        _check(exchange, request, place, section, proxy)
    except Denied as denied:
        proxy.front.record_denial(denied, exchange)
        body = error_body(denied.message)
        start = {"status": denied.status, "headers": denial_headers(denied, len(body))}
        await given.send({"type": "http.response.start", **start})
        await given.send({"type": "http.response.body", "body": body})
        return given
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": exchange.path.decode("latin-1"),
        "raw_path": exchange.path,
        "query_string": exchange.query,
        "headers": request.headers,
        "exchange": exchange,
        "address": None,
        "admitted_by": None,
        PUSHPROX: section,
    }
    await App(proxy)(scope, _no_body, given.send)
    return given


def _check(exchange: Exchange, request: PushedRequest, place: Place, section: PushProx, proxy: Proxy) -> None:
    """What the front checks of a request on a connection. Raises Denied."""
    running = proxy.running
    limit = running.config.max_connections
    if len(proxy.front.detached) > limit:
        raise Denied(Reason.CONNECTION_LIMIT, f"{limit} scrapes through PushProx at once (max_connections)")
    check_size(request, running.config)
    aim(exchange, request, place, section, running.routes)


async def _no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}
