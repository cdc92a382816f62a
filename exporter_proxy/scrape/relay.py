"""Carries one answer from the exporter to the scraper, as it is and as it comes.

Status and body pass unchanged. A body that ends too early or grows too large cuts the
scraper's connection: a truncated page must never look complete. The status is held back until
the first of the body is there, so that an exporter that hangs behind its headers still gets a
proper error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import httpx

from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Reason
from exporter_proxy.scrape.headers import ERROR_HEADER, response_headers, without
from exporter_proxy.scrape.routing import Route
from exporter_proxy.upstreams.messages import raw_headers_of

Send = Callable[[dict[str, Any]], Awaitable[None]]

MAX_AGE_SECONDS = 2**31
"""What an Age says that is larger than can be told (RFC 9111 section 1.2.2)."""


async def relay(
    response: httpx.Response, route: Route, exchange: Exchange, send: Send, age_seconds: int | None = None
) -> None:
    """Send the exporter's answer on; ``exchange`` tells afterwards what was sent.

    ``age_seconds`` is how old the answer is where it is another scrape's (RFC 9111 section 5.1).

    Raises what reading the answer raises. Where ``exchange.status`` is set by then, the response
    has begun.
    """
    status = response.status_code
    headers = response_headers(raw_headers_of(response))
    if status == 204:  # RFC 9110 section 8.6
        headers = without(b"content-length", headers)
    if route.content_type is not None:
        headers = without(b"content-type", headers)
        headers.append((b"Content-Type", route.content_type))
    if status != 200:  # nothing else is a page to Prometheus
        hint = "" if status >= 400 else ", which is no success to Prometheus; is url that of its metrics?"
        exchange.reason = Reason.UPSTREAM_STATUS
        exchange.message = f"{route.backend} answered {status}{hint}"
        headers.append((ERROR_HEADER, Reason.UPSTREAM_STATUS.encode()))
    if age_seconds is not None:
        age_seconds += sum(_age_seconds(value) for name, value in headers if name.lower() == b"age")
        headers = [*without(b"age", headers), (b"Age", b"%d" % min(age_seconds, MAX_AGE_SECONDS))]
    start = {"type": "http.response.start", "status": status, "headers": headers}

    stream = cast(httpx.AsyncByteStream, response.stream)
    is_last = False
    async for chunk in stream:
        size = len(chunk)
        exchange.waiting_for_client = True
        if not exchange.status:
            exchange.status = status
            await send(start)
        # Knowing the last part as such lets it go out together with the end of the message.
        is_last = getattr(stream, "is_exhausted", False)
        await send({"type": "http.response.body", "body": chunk, "more_body": not is_last})
        exchange.waiting_for_client = False
        exchange.sent_bytes += size
    if not is_last:
        exchange.waiting_for_client = True
        if not exchange.status:
            exchange.status = status
            await send(start)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        exchange.waiting_for_client = False


def _age_seconds(value: bytes) -> int:
    """How old the exporter says its answer is; 0 where that is no number."""
    if not value.isdigit():
        return 0
    return int(value) if len(value) <= len(str(MAX_AGE_SECONDS)) else MAX_AGE_SECONDS
