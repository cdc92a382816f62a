"""Request and response of a scrape, as httpx's transports take and give them, made cheaply.

httpx parses and copies URL and headers anew for each message (12 us, a tenth of a small
scrape); these two keep what they are given and build httpx's form of it only when asked.
"""

from __future__ import annotations

import time
from typing import Any, cast

import httpx

from exporter_proxy.observe.exchange import Exchange

TEXT_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
"""Of pages that come from no server."""

_NO_BODY = httpx.ByteStream(b"")


class ScrapeRequest(httpx.Request):
    """A GET or HEAD without a body whose parts the route already holds.

    ``target`` is the origin-form to send in place of the URL's path, byte for byte, as httpx's
    own ``target`` extension has it. ``deadline`` is given where the scraper sent a timeout
    header, which then goes on with what is left.
    """

    def __init__(
        self,
        method: str,
        url: httpx.URL,
        target: bytes,
        raw_headers: list[tuple[bytes, bytes]],
        exchange: Exchange,
        deadline: float | None = None,
    ) -> None:
        # super().__init__ is the cost; these are all the attributes that it sets.
        self.method = method
        self.url = url
        self.extensions: dict[str, Any] = {"target": target}
        self.stream = _NO_BODY
        self.raw_headers = raw_headers
        self.exchange = exchange
        self._deadline = deadline

    def tell_time_left(self) -> None:
        """Add how long the exporter may take, where the scraper said so: once it is to be asked."""
        if self._deadline is not None:
            left_seconds = self._deadline - time.monotonic()
            self.raw_headers.append((b"X-Prometheus-Scrape-Timeout-Seconds", b"%.3f" % left_seconds))

    @property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # an attribute in httpx.Request
        """The headers as httpx's own transports read them."""
        return httpx.Headers(self.raw_headers)


class ScrapeResponse(httpx.Response):
    """A response whose body is still on the wire."""

    def __init__(
        self, status_code: int, raw_headers: list[tuple[bytes, bytes]], stream: httpx.AsyncByteStream
    ) -> None:
        # As above: all that httpx.Response sets for a stream.
        self.status_code = status_code
        self.raw_headers = raw_headers
        self.stream = stream
        self.extensions: dict[str, Any] = {}
        self.history: list[httpx.Response] = []
        self.next_request: httpx.Request | None = None
        self.is_closed = False
        self.is_stream_consumed = False
        self.default_encoding = "utf-8"
        self._request: httpx.Request | None = None
        self._num_bytes_downloaded = 0

    async def aclose(self) -> None:
        """Give the connection back."""
        self.is_closed = True
        await cast(httpx.AsyncByteStream, self.stream).aclose()

    @property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # an attribute in httpx.Response
        """The headers as httpx has them: names in any case, values decoded."""
        return httpx.Headers(self.raw_headers)


_OWN = (ScrapeRequest, ScrapeResponse)


def raw_headers_of(message: httpx.Request | httpx.Response) -> list[tuple[bytes, bytes]]:
    """The header lines of any message, as they were on the wire."""
    if isinstance(message, _OWN):
        return message.raw_headers
    return message.headers.raw
