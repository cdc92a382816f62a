"""``verify: true``: a body passes only as far as it is an exposition that Prometheus takes in.

The bytes pass as they came; the verifier reads along. What fits into HOLD_BYTES is judged
whole before anything of it goes on, so that the scraper gets a 502 that says what is wrong;
of a longer body the last part is held back until the end has been judged too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from exporter_proxy.config.schema import Exporter
from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.scrape.exposition import Malformed, TooLarge, Verifier, verifier_for
from exporter_proxy.upstreams.messages import raw_headers_of
from exporter_proxy.upstreams.redacted import redacted

HOLD_BYTES = 256 * 1024


def verified(response: httpx.Response, exporter: Exporter, method: str) -> httpx.Response:
    """``response`` with a stream that raises ScrapeError ``malformed`` or ``too_large``.

    As it is where there is nothing to judge: no 200, a HEAD, an unknown format.
    """
    if response.status_code != 200 or method == "HEAD":
        return response
    content_type, encoding = exporter.content_type, None
    for name, value in raw_headers_of(response):
        lower_name = name.lower()
        if lower_name == b"content-type":
            content_type = content_type or value.decode("latin-1")
        elif lower_name == b"content-encoding":
            encoding = encoding or value.decode("latin-1")
    verifier = verifier_for(content_type, encoding, max_decoded_bytes=exporter.max_response_bytes)
    if verifier is not None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = VerifiedBody(response.stream, verifier, exporter)
    return response


class VerifiedBody(httpx.AsyncByteStream):
    """A body that is judged while it passes by."""

    def __init__(self, body: httpx.AsyncByteStream, verifier: Verifier, exporter: Exporter) -> None:
        self._body = body
        self._verifier = verifier
        self._backend = exporter.source.backend
        self._command = exporter.command
        self.is_exhausted = False
        """Whether the part given out last was the last one of a body that is good."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._body)
        try:
            first = await _first_of(parts)
            if sum(map(len, first)) <= HOLD_BYTES:
                # In one piece: one look at a page costs half of what looks at its parts do.
                held = b"".join(first)
                await self._judge(held)
            else:
                held = b""
                while first:
                    await self._judge(first[0])
                    if held:
                        yield held
                    held = first.pop(0)
                async for part in parts:
                    await self._judge(part)
                    yield held
                    held = part
            self._verifier.finish()
        except Malformed as fault:
            raise self._malformed(fault) from None
        except TooLarge as fault:
            raise ScrapeError(Reason.TOO_LARGE, f"{self._backend}: {fault} (max_response_bytes)") from None
        if held:
            self.is_exhausted = True
            yield held

    async def _judge(self, part: bytes) -> None:
        for _ in self._verifier.feed_in_steps(part):
            await asyncio.sleep(0)  # a small gzip body may decode to a very long page

    async def aclose(self) -> None:
        """Give the connection back."""
        await self._body.aclose()

    def _malformed(self, fault: Malformed) -> ScrapeError:
        where = "" if fault.line is None else f" line {fault.line}:"
        return ScrapeError(
            Reason.MALFORMED,
            f"{self._backend} sent what Prometheus cannot parse:{where} {fault.problem}",
            fault.excerpt if self._command is None else redacted(fault.excerpt, self._command),
        )


async def _first_of(parts: AsyncIterator[bytes]) -> list[bytes]:
    """The whole of a body that can be held, or a little more of a longer one."""
    first: list[bytes] = []
    size = 0
    async for part in parts:
        first.append(part)
        size += len(part)
        if size > HOLD_BYTES:
            break
    return first
