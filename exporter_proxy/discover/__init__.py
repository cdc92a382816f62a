"""Find the exporters that listen on this host, ask each for its page and name it.

``sockets.py`` reads /proc, ``candidates.py`` decides whom to ask, ``recognise.py`` knows an
exporter's page when it sees one, ``found.py`` writes down what was found; this module does the
asking. Only plain HTTP is spoken: an exporter behind TLS or a password is not found. How the
daemon scrapes what was found is not this package's business, so it does not use the scrape's own
transport and its rules.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from exporter_proxy import __version__
from exporter_proxy.discover.candidates import Candidate, find_candidates
from exporter_proxy.discover.found import DISCOVERED_LISTEN, FoundExporter, config_text
from exporter_proxy.discover.recognise import (
    OWN_BUILD_INFO,
    exporter_name,
    known_ports,
    parse_families,
    unique_names,
)
from exporter_proxy.discover.sockets import find_owners, read_listeners
from exporter_proxy.threads import in_thread

__all__ = ["DISCOVERED_LISTEN", "Discovery", "FoundExporter", "config_text", "discover_exporters"]

MAX_PAGE_BYTES = 256 * 1024
"""Enough to recognise any exporter; what lies beyond is not read."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What one look at this host has found."""

    found: list[FoundExporter]
    """In the order of their ports."""
    silent: list[str]
    """A line for each socket that may be an exporter's and has not answered in time."""


async def discover_exporters(
    deadline_seconds: float = 2.5,
    ask_all: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> Discovery:
    """Find this host's exporters.

    It takes at most ``deadline_seconds``, up to half of them for finding out whose the sockets
    are. Nothing is raised for an exporter that has not answered by then.

    ``ask_all``: asks every socket that listens, also those that may mind. ``tell`` is called
    with how many sockets are done with and how many there are, before the first and after each.
    """
    started = time.monotonic()
    candidates = await in_thread(_read_candidates, started + deadline_seconds / 2, ask_all)
    done = 0
    silent: list[Candidate] = []

    async def ask(candidate: Candidate) -> _Page | None:
        nonlocal done
        try:
            page = await _ask(transport, candidate, started + deadline_seconds)
        except TimeoutError:
            page = None
            silent.append(candidate)
        done += 1
        if tell is not None:
            tell(done, len(candidates))
        return page

    if tell is not None:
        tell(0, len(candidates))
    # No request uses TLS; a context without certificates spares loading those of the web.
    transport = httpx.AsyncHTTPTransport(
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), limits=httpx.Limits(max_connections=None)
    )
    async with transport:
        answers = await asyncio.gather(*map(ask, candidates))
    pages = [answer for answer in answers if answer is not None and OWN_BUILD_INFO not in answer.families]
    names = unique_names(
        [
            (exporter_name(page.families, page.process_name, page.candidate.port), page.candidate.port)
            for page in pages
        ]
    )
    found = [
        FoundExporter(
            name=name,
            url=page.url,
            port=page.candidate.port,
            pid=page.candidate.owner.pid if page.candidate.owner else None,
            process_name=page.process_name,
        )
        for name, page in zip(names, pages, strict=True)
    ]
    silent.sort(key=lambda one: (one.port, one.urls))
    return Discovery(found, [_silence(one, deadline_seconds) for one in silent])


def _silence(candidate: Candidate, deadline_seconds: float) -> str:
    whose = f" ({candidate.owner.name})" if candidate.owner else ""
    return f"{candidate.urls[0]}{whose} did not answer within {deadline_seconds:g} s"


def _read_candidates(give_up_at: float, ask_all: bool) -> list[Candidate]:
    listeners = read_listeners()
    owners = find_owners({listener.inode for listener in listeners}, give_up_at) if listeners else {}
    return find_candidates(listeners, owners, known_ports(), os.getpid(), ask_all)


@dataclass(frozen=True, slots=True)
class _Page:
    candidate: Candidate
    url: str
    families: frozenset[str]

    @property
    def process_name(self) -> str | None:
        return self.candidate.owner.name if self.candidate.owner else None


async def _ask(transport: httpx.AsyncHTTPTransport, candidate: Candidate, give_up_at: float) -> _Page | None:
    """Ask a candidate for its page; ``None`` where it is no exporter. Raises TimeoutError."""
    remaining_seconds = max(0.0, give_up_at - time.monotonic())
    try:
        async with asyncio.timeout(remaining_seconds):
            for url in candidate.urls:
                try:
                    text = await _read_page(transport, url, remaining_seconds)
                except httpx.ConnectError:
                    continue
                families = parse_families(text) if text is not None else None
                return _Page(candidate, url, families) if families is not None else None
    except httpx.TransportError:
        pass  # it does not speak HTTP
    return None


async def _read_page(transport: httpx.AsyncHTTPTransport, url: str, timeout_seconds: float) -> str | None:
    """Return a 200's body up to MAX_PAGE_BYTES, cut at the end of a line; ``None`` for another status.

    The transport is used without a client: no redirects, no proxies of the environment, and no
    cookies, which would go from one port of this host to the next.
    """
    request = httpx.Request(
        "GET",
        url,
        headers={
            "User-Agent": f"exporter_proxy/{__version__}",
            "Accept": "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "Accept-Encoding": "identity",
            "X-Prometheus-Scrape-Timeout-Seconds": f"{timeout_seconds:.3f}",
            "Connection": "close",
        },
    )
    response = await transport.handle_async_request(request)
    try:
        if response.status_code != httpx.codes.OK:
            return None
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_PAGE_BYTES:
                del body[body.rfind(b"\n", 0, MAX_PAGE_BYTES) + 1 :]
                break
    finally:
        await response.aclose()
    return body.decode("utf-8", errors="replace")
