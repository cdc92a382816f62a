"""One question to an exporter: its slot, its connection, its answer; all given back at the end."""

from __future__ import annotations

import time

import httpx

from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.scrape.routing import Route
from exporter_proxy.upstreams import ScrapeRequest


class Question:
    """``async with Question(route, request) as response``: the response's stream is still open.

    A plain class, since ``contextlib`` would cost a small scrape some 3 %. Raises ScrapeError.
    """

    __slots__ = ("_request", "_response", "_route")

    def __init__(self, route: Route, request: ScrapeRequest) -> None:
        self._route = route
        self._request = request
        self._response: httpx.Response

    async def __aenter__(self) -> httpx.Response:
        route, request = self._route, self._request
        if not route.slots.take():
            await route.slots.wait()
        request.exchange.has_slot = True
        request.tell_time_left()
        try:
            response = self._response = await route.transport.handle_async_request(request)
            if 300 <= response.status_code < 400 and response.status_code != 304:
                await response.aclose()
                raise _redirect(route, response.status_code)
        except BaseException:
            route.slots.give_back()
            raise
        request.exchange.first_byte_seconds = time.monotonic() - request.exchange.started
        if route.verify is None:
            return response
        return route.verify(response, route.exporter, request.method)

    async def __aexit__(self, *_: object) -> None:
        # Here and not with the exchange, whose scraper may have left before others had the answer.
        self._route.record.received_bytes += self._request.exchange.received_bytes
        try:
            await self._response.aclose()
        finally:
            self._route.slots.give_back()


def _redirect(route: Route, status: int) -> ScrapeError:
    """A Location such as http://127.0.0.1:9100/ would have Prometheus scrape its own host as this one."""
    return ScrapeError(
        Reason.REDIRECT, f"{route.backend} answered {status} (a redirect); set url to where it leads"
    )
