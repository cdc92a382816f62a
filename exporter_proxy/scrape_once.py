"""``scrape NAME``: one scrape as Prometheus would make it, through the daemon's own pipeline.

Nothing listens and nothing else runs; status, deadline and advice are exactly what a scraper
of the daemon would get, because the same code gives them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from exporter_proxy import __version__
from exporter_proxy.app import App
from exporter_proxy.config import Config
from exporter_proxy.front.cycle import ResponseAborted
from exporter_proxy.observe.daemonlog import DaemonLog
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.observe.logwriter import LogWriter
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.reasons import Reason, printable
from exporter_proxy.scrape.exposition import Malformed, Summary, TooLarge, summarise, verifier_for
from exporter_proxy.scrape.exposition.gunzip import GzipVerifier
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.upstreams import make_upstream

# What Prometheus 2.42 sends with the default scrape_timeout of 10 s.
SCRAPE_HEADERS = [
    (b"user-agent", b"exporter_proxy/" + __version__.encode()),
    (
        b"accept",
        b"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
        b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    ),
    (b"accept-encoding", b"gzip"),
    (b"x-prometheus-scrape-timeout-seconds", b"10"),
]


@dataclass(slots=True)
class ScrapeResult:
    """One scrape: what the pipeline recorded, and the answer itself."""

    exchange: Exchange
    url: str
    max_decoded_bytes: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    problem: str | None = None
    """Why Prometheus would not take in the complete answer; ``None``: it would, or there is none."""

    @property
    def is_successful(self) -> bool:
        """Whether Prometheus would have had a complete 200, and taken it in."""
        return self.exchange.reason is None and self.problem is None

    @property
    def is_the_exporters(self) -> bool:
        """Whether the exporter's own answer came through, and not one that explains why not."""
        return self.exchange.reason in (None, Reason.UPSTREAM_STATUS)

    async def send(self, message: dict[str, Any]) -> None:
        """Take the answer as ASGI sends it."""
        if message["type"] == "http.response.start":
            self.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]
            }
        else:
            self.body += message.get("body", b"")


async def scrape_once(config: Config, name: str) -> ScrapeResult:
    """Scrape the exporter called ``name``; KeyError where there is none."""
    routes = build_routes(config, make_upstream)
    route = {route.exporter.name: route for route in routes.routes}[name]
    log = DaemonLog(LogWriter("/dev/stderr"), level="error")
    proxy = Proxy(Running(config, routes, access_log=None), log, is_lifecycle_enabled=False)
    app = App(proxy)
    exchange = Exchange("-", "GET", route.path, b"", time.monotonic())
    result = ScrapeResult(exchange, str(route.exporter.source), route.exporter.max_response_bytes)
    scope = {
        "exchange": exchange,
        "address": None,
        "admitted_by": None,
        "headers": SCRAPE_HEADERS,
        "path": route.path.decode(),
    }
    try:
        await app(scope, _receive, result.send)
    except ResponseAborted:
        pass  # the exchange says why
    finally:
        await route.transport.aclose()
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # To the pipeline that is a daemon which stops, and it has answered. Here it is Ctrl-C.
        raise asyncio.CancelledError
    if exchange.reason is None:
        result.problem = _problem(result)
    return result


def _problem(result: ScrapeResult) -> str | None:
    """What is wrong with the answer, whether or not the exporter has ``verify``."""
    content_type = result.headers.get("content-type")
    verifier = verifier_for(
        content_type, result.headers.get("content-encoding"), max_decoded_bytes=result.max_decoded_bytes
    )
    if verifier is None:
        return None
    try:
        verifier.feed(memoryview(result.body))
        verifier.finish()
    except Malformed as fault:
        return str(fault)
    except TooLarge:
        pass  # to us; Prometheus has a limit of its own, or none
    return None


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def report(result: ScrapeResult) -> str:
    """What a person reads: the verdict first, the figures after it."""
    exchange = result.exchange
    content_type = result.headers.get("content-type", "")
    rows = [
        ("exporter", f"{exchange.exporter} at {result.url}"),
        ("status", str(exchange.status)),
        ("reason", exchange.reason or ("none, it succeeded" if result.problem is None else "none")),
        ("deadline", f"{exchange.timeout_seconds:g} s"),
        ("connect", _milliseconds(exchange.connect_seconds)),
        ("first byte", _milliseconds(exchange.first_byte_seconds)),
        ("total", _milliseconds(exchange.total_seconds)),
    ]
    if exchange.first_byte_seconds is not None:
        decoded = _decoded(result) if result.is_the_exporters else None
        size = "" if decoded is None else f", {len(decoded)} decoded"
        rows.append(("bytes", f"{exchange.received_bytes} on the wire{size}"))
        if result.is_the_exporters:
            rows.append(("content type", printable(content_type) or "none"))
        if decoded is not None and result.is_successful:
            summary: Summary = summarise(decoded, content_type)
            rows.append(("series", f"{summary.series} in {summary.families} families"))
    lines = [f"{label + ':':14}{value}" for label, value in rows]
    if exchange.message:
        excerpt = f": {exchange.excerpt}" if exchange.excerpt else ""
        lines.append(f"{exchange.exporter}: {exchange.message}{excerpt}")
    if result.problem is not None:
        lines.append(f"problem: {result.problem}")
    return "\n".join(lines) + "\n"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _decoded(result: ScrapeResult) -> bytes | None:
    """The body without its content coding; ``None`` where Prometheus could not decode it or would not."""
    encoding = result.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return bytes(result.body)
    if encoding != "gzip":
        return None
    page = _Page()
    decoder = GzipVerifier(page, result.max_decoded_bytes)
    try:
        decoder.feed(memoryview(result.body))
        decoder.finish()
    except (Malformed, TooLarge):
        return None
    return bytes(page.content)


class _Page:
    """Keeps what a verifier would be fed."""

    def __init__(self) -> None:
        self.content = bytearray()

    def feed(self, chunk: bytes | memoryview) -> None:
        self.content += chunk

    def feed_in_steps(self, chunk: bytes | memoryview) -> Iterable[None]:
        self.feed(chunk)
        return ()

    def finish(self) -> None:
        """Whatever it is."""
