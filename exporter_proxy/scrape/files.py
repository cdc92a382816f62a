"""Judges what was read from files, and makes one page of several.

Each file is judged by itself, so that a mistake is told with its file and line. One file passes as
it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from exporter_proxy.config.schema import Exporter
from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.scrape.exposition import Malformed, verifier_for
from exporter_proxy.scrape.exposition.merge import MAX_BYTES, Clash, Merger
from exporter_proxy.upstreams.file import FileContents, ReadFile

_STEP_BYTES = 1 << 18


def merged(response: httpx.Response, exporter: Exporter, method: str) -> httpx.Response:
    """``response`` of a FileUpstream with a stream that is one page.

    Reading it raises ScrapeError: ``malformed``, ``file_conflict`` or, where so much cannot be
    merged, ``too_large``. ``method`` does not matter: a HEAD's answer has no files in it.
    """
    assert isinstance(response.stream, FileContents)
    response.stream = MergedBody(response.stream.files, exporter)
    return response


class MergedBody(httpx.AsyncByteStream):
    """The page; nothing of it is given out before all of it is known to be good."""

    def __init__(self, files: list[ReadFile], exporter: Exporter) -> None:
        self._files = files
        self._backend = exporter.source.backend
        self._content_type = exporter.content_type or "text/plain"
        self._max_bytes = exporter.max_response_bytes
        self.is_exhausted = False
        """Whether the part given out last was the last one."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for file in self._files:
            await self._judge(file)
        page = await self._merge() if len(self._files) > 1 else b"".join(file.content for file in self._files)
        if page:
            self.is_exhausted = True
            yield page

    async def _judge(self, file: ReadFile) -> None:
        verifier = verifier_for(self._content_type, None, max_decoded_bytes=self._max_bytes)
        if verifier is None:
            return
        try:
            for at in range(0, len(file.content), _STEP_BYTES):
                for _ in verifier.feed_in_steps(file.content[at : at + _STEP_BYTES]):
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
            verifier.finish()
        except Malformed as fault:
            where = "" if fault.line is None else f" line {fault.line}"
            problem = f"{file.path}{where} is nothing that Prometheus can parse: {fault.problem}"
            raise ScrapeError(Reason.MALFORMED, problem, fault.excerpt) from None

    async def _merge(self) -> bytes:
        size = sum(len(file.content) for file in self._files)
        if size > MAX_BYTES:
            raise ScrapeError(
                Reason.TOO_LARGE,
                f"{self._backend} has {size} bytes in {len(self._files)} files, and no more than {MAX_BYTES} "
                "can be merged; make large files exporters of their own",
            )
        merger = Merger()
        try:
            for file in self._files:
                for _ in merger.add(file.path, file.content):
                    await asyncio.sleep(0)
        except Clash as clash:
            advice = f"{clash.problem}; keep it in one of them"
            raise ScrapeError(Reason.FILE_CONFLICT, advice, clash.excerpt) from None
        for _ in merger.merge():
            await asyncio.sleep(0)
        return merger.page
