"""The pipeline: every request passes these checks, in this order, top to bottom.

address -> rate limit -> credentials -> route -> method -> parameters -> deadline -> share -> slot
-> exporter -> relay -> record. The connection's own limits (header size and time, how many connections) stand
before it, in ``front/``. This order is the security argument; nothing else answers a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from exporter_proxy.access import is_allowed
from exporter_proxy.front.answers import denial_headers, error_body, error_headers
from exporter_proxy.front.auth import Guard
from exporter_proxy.front.cycle import ResponseAborted, ScraperGone
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.pages import find_page, needs_credentials
from exporter_proxy.pages.visible import PUSHPROX, may_scrape, visible_routes
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.reasons import Denied, Reason, ScrapeError
from exporter_proxy.scrape.ask import Question
from exporter_proxy.scrape.deadline import Deadline, parse_scrape_timeout, total_timeout_seconds
from exporter_proxy.scrape.headers import SCRAPE_TIMEOUT_HEADER, Headers, request_headers
from exporter_proxy.scrape.relay import relay
from exporter_proxy.scrape.routing import Route
from exporter_proxy.scrape.share import share_key
from exporter_proxy.upstreams import ScrapeRequest

__all__ = ["PUSHPROX", "App"]

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

MAX_SHOWN_BYTES = 100
"""Of a name that is no exporter's; there may be 32 KiB of it."""


class App:
    """A bare ASGI callable: no framework stands between the connection and the exporter."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and record what it became, whatever happened."""
        exchange: Exchange = scope["exchange"]
        running = self._proxy.running  # read once: a reload meanwhile concerns the next request
        route: Route | None = None
        try:
            check_address(scope, running)
            if running.guard is not None:
                running.guard.check_rate()
                if PUSHPROX not in scope:  # a proxy was asked by us: it has nothing to show
                    await check_credentials(running.guard, scope, running)
            route, query = running.routes.find(exchange.path), exchange.query
            if route is None and exchange.path == running.routes.module_path:
                route, query = find_module(scope, running)
            if route is None:
                await self._page(scope, receive, send, running)
            else:
                check_route_address(scope, route)
                check_method(exchange.method)
                check_params(query, route)
                await self._scrape(scope, route, query, exchange, send)
        except Denied as denied:
            route = None
            await _send_denial(denied, exchange, send)
        except ScrapeError as error:  # of a page: what it was to be held in has no room
            await _send_error(error, exchange, send)
        except (ScraperGone, asyncio.CancelledError):
            await _interrupted(exchange, send)
        except ResponseAborted:
            raise
        except Exception as error:
            self._proxy.log.defect(error, path=exchange.path.decode("latin-1"))
            await _send_error(
                ScrapeError(Reason.INTERNAL, "a defect in exporter_proxy; see its log"), exchange, send
            )
        finally:
            self._proxy.record(exchange, route)

    async def _page(self, scope: Scope, receive: Receive, send: Send, running: Running) -> None:
        exchange: Exchange = scope["exchange"]
        page = find_page(scope["path"], running.config.route_prefix)
        if page is None or (PUSHPROX in scope and not page.is_for_pushprox):
            raise Denied(Reason.NOT_FOUND, _paths_text(scope, running))
        check_method(exchange.method, page.methods)
        await page.answer(self._proxy, running, scope, receive, _counting(send, exchange))

    async def _scrape(self, scope: Scope, route: Route, query: bytes, exchange: Exchange, send: Send) -> None:
        """Ask the exporter, with ``query``, and relay its answer, all within one deadline."""
        exporter = route.exporter
        record = route.record
        exchange.exporter = exporter.name
        exchange.backend = route.backend
        received: list[tuple[bytes, bytes]] = scope["headers"]
        wanted = parse_scrape_timeout(_header(received, SCRAPE_TIMEOUT_HEADER))
        timeout = total_timeout_seconds(exporter.timeout_seconds, exporter.timeout_offset_seconds, wanted)
        exchange.timeout_seconds = timeout
        deadline = exchange.started + timeout
        record.in_flight += 1
        try:
            with Deadline(deadline, self._proxy.deadlines):
                request = _upstream_request(route, query, exchange, received, deadline if wanted else None)
                if route.shares is None:
                    await _scrape_alone(request, route, exchange, send)
                else:
                    await _scrape_shared(request, route, query, exchange, send)
        except TimeoutError:
            await _send_error(_deadline_error(route, exchange, wanted), exchange, send)
        except ScrapeError as error:
            await _send_error(error, exchange, send)
        finally:
            record.in_flight -= 1


async def _scrape_alone(request: ScrapeRequest, route: Route, exchange: Exchange, send: Send) -> None:
    async with Question(route, request) as response:
        await relay(response, route, exchange, send)


async def _scrape_shared(
    request: ScrapeRequest, route: Route, query: bytes, exchange: Exchange, send: Send
) -> None:
    """Take part in another scrape's answer, or ask for one that others may take part in."""
    assert route.shares is not None
    key = share_key(exchange.method, query, request.raw_headers[len(route.configured_headers) :])
    answer = await route.shares.get(key, Question(route, request), exchange)
    if answer is None:
        await _scrape_alone(request, route, exchange, send)
        return
    is_shared = answer.age_seconds is not None
    if is_shared:
        exchange.first_byte_seconds = time.monotonic() - exchange.started
    try:
        await relay(answer.response, route, exchange, send, answer.age_seconds)
    finally:
        await answer.aclose()
        if is_shared:
            route.record.shared_scrapes += 1


def _upstream_request(
    route: Route, query: bytes, exchange: Exchange, received: Headers, deadline: float | None
) -> ScrapeRequest:
    headers = route.configured_headers + request_headers(received, route.allowed_headers)
    return ScrapeRequest(exchange.method, route.url, route.target(query), headers, exchange, deadline)


def check_address(scope: Scope, running: Running) -> None:
    """The global list, once more where it is not the one at accept: a reload may have narrowed it."""
    address, allowed = scope["address"], running.config.allow_clients
    if scope["admitted_by"] is not allowed and not is_allowed(address, allowed):
        raise Denied(Reason.FORBIDDEN, f"{address} may not scrape here (allow_clients)")


async def check_credentials(guard: Guard, scope: Scope, running: Running) -> None:
    """Everywhere but at the probes' paths; before routing, so that strangers learn of no path."""
    if needs_credentials(scope["path"], running.config.route_prefix):
        hashing = guard.check_credentials(scope["headers"])
        if hashing is not None:
            await hashing


def find_module(scope: Scope, running: Running) -> tuple[Route, bytes]:
    """``module_route``: the exporter that the query names, and the query that is for it."""
    route, module, query = running.routes.find_module(scope["exchange"].query)
    if route is not None:
        return route, query
    modules = _listed([one.exporter.name for one in visible_routes(scope, running)])
    known = f"there is: {modules}" if modules else "there is none that you may scrape"
    if module is None:
        raise Denied(Reason.BAD_REQUEST, f"no exporter is named; add module=NAME to the query; {known}")
    name = module[:MAX_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    raise Denied(Reason.NOT_FOUND, f"no exporter is called {name!a}; {known}")


def check_route_address(scope: Scope, route: Route) -> None:
    """The exporter's own list narrows the global one; through PushProx, where there are no addresses,
    that is ``allow_exporters``.
    """
    if may_scrape(scope, route):
        return
    name = route.exporter.name
    if PUSHPROX in scope:
        raise Denied(Reason.FORBIDDEN, f"{name} may not be scraped through PushProx (allow_exporters)")
    raise Denied(Reason.FORBIDDEN, f"{scope['address']} may not scrape {name} (its allow_clients)")


def check_method(method: str, allowed: tuple[str, ...] = ("GET", "HEAD")) -> None:
    """Only what was asked for safely is passed on: exporters have endpoints that act."""
    if method not in allowed:
        allow = ", ".join(allowed)
        raise Denied(Reason.METHOD, f"{method} is not served here; use {' or '.join(allowed)}", allow=allow)


def check_params(query: bytes, route: Route) -> None:
    """Parameters reach the exporter only where its configuration lets them."""
    name = route.refused_param(query)
    if name is not None:
        allowed = ", ".join(sorted(route.exporter.allow_params or ())) or "none"
        raise Denied(
            Reason.PARAM,
            f"{route.exporter.name}: parameter {name!a} is not allowed; allow_params: {allowed}",
        )


def _paths_text(scope: Scope, running: Running) -> str:
    """The 404's line: the paths that exist, for this client."""
    shown = _listed([route.path.decode() for route in visible_routes(scope, running)])
    if not shown:
        return "no such path, and no exporter that you may scrape"
    module_path = running.routes.module_path
    modules = f"; and {module_path.decode()}?module=NAME" if module_path is not None else ""
    return f"no such path; there is: {shown}{modules}"


def _listed(words: list[str]) -> str:
    return " ".join(words[:20]) + (f" ... ({len(words)} in all, see /)" if len(words) > 20 else "")


def _deadline_error(route: Route, exchange: Exchange, wanted: float | None) -> ScrapeError:
    limit = f"{exchange.timeout_seconds:g} s"
    origin = f"the scraper waits {wanted:g} s" if wanted is not None else "no scrape timeout header"
    if route.exporter.timeout_seconds is not None:
        origin += f", timeout is {route.exporter.timeout_seconds:g} s"
    if not exchange.has_slot:
        return ScrapeError(
            Reason.SATURATED,
            f"no slot within {limit}: {route.exporter.max_concurrent} scrapes are under way (max_concurrent)",
        )
    if exchange.waiting_for_client:
        return ScrapeError(
            Reason.CLIENT_SLOW,
            f"the scraper read {exchange.sent_bytes} bytes and no more within {limit} ({origin})",
        )
    has_headers = exchange.first_byte_seconds is not None
    what = f"stopped after {exchange.received_bytes} body bytes" if has_headers else "did not answer"
    return ScrapeError(
        Reason.TIMEOUT, f"{route.backend} {what} within {limit} ({origin}); is it hung or overloaded?"
    )


async def _send_denial(denied: Denied, exchange: Exchange, send: Send) -> None:
    exchange.reason = denied.reason
    exchange.message = denied.message
    body = error_body(denied.message)
    await _send_all(denied.status, denial_headers(denied, len(body)), body, exchange, send)


async def _send_error(error: ScrapeError, exchange: Exchange, send: Send) -> None:
    """Answer a failed scrape, or cut the connection where the answer had begun."""
    exchange.reason = error.reason
    exchange.message = error.message
    exchange.excerpt = error.excerpt
    if exchange.status and not exchange.is_held:
        raise ResponseAborted
    excerpt = f": {error.excerpt}" if error.excerpt else ""
    name = f"{exchange.exporter}: " if exchange.exporter else ""
    body = error_body(f"{name}{error.message}{excerpt}")
    await _send_all(error.status, error_headers(error.reason, len(body)), body, exchange, send)


async def _send_all(status: int, headers: Headers, body: bytes, exchange: Exchange, send: Send) -> None:
    exchange.status = status
    exchange.sent_bytes = len(body) if exchange.method != "HEAD" else 0
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _interrupted(exchange: Exchange, send: Send) -> None:
    """The task was cancelled: the scraper left, or the daemon stops and waits no longer."""
    if exchange.client_gone:
        if exchange.reason is not Reason.CLIENT_SLOW:  # for that it was the front that closed
            exchange.reason = Reason.CLIENT_GONE
            exchange.message = "the scraper closed its connection before the answer was complete"
            exchange.status = 499  # nginx's number; whatever had been sent, nobody read it
        return
    await _send_error(
        ScrapeError(Reason.DRAINING, "exporter_proxy is stopping and shutdown_timeout is over; try again"),
        exchange,
        send,
    )


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    for key, value in headers:  # a generator would cost more than the search
        if key == name:
            return value
    return None


def _counting(send: Send, exchange: Exchange) -> Send:
    """``send`` for a page, noting status and bytes in the exchange."""

    async def counting(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
        elif exchange.method != "HEAD":
            exchange.sent_bytes += len(message.get("body", b""))
        await send(message)

    return counting
