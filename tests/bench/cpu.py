"""What a scrape costs: CPU time beside the peers, verification, and the latency that is added."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tests.bench.figures import Budget, Figure
from tests.bench.load import cpu_per_scrape, run_wrk
from tests.bench.peers import EXPORTER_EXPORTER, NGINX, PEERS, exporter_exporter, installed
from tests.bench.run import Run
from tests.bench.site import CHUNKED, Proxy

MICROSECONDS = "us"
INFORMATION_ROUNDS = 3
VERIFY = {"verify": True}


@dataclass(frozen=True, slots=True)
class Scrapes:
    """A row: this page over so many connections."""

    what: str
    body: str
    connections: int
    budget: Budget | None = None


CPU_ROWS = (
    Scrapes("19 B, 16 connections", "tiny", 16, Budget(NGINX, 4.0)),
    Scrapes("57 KB, 1 connection", "page", 1, Budget(NGINX, 1.6)),
    Scrapes("57 KB, 16 connections", "page", 16, Budget(NGINX, 1.6)),
    Scrapes("1.5 MB, 1 connection", "big", 1, Budget(NGINX, 1.5)),
    Scrapes("57 KB gzipped, 16 connections", "page_gzip", 16),
    Scrapes("1.5 MB gzipped, 1 connection", "big_gzip", 1),
    Scrapes("57 KB in 2 KiB chunks, 16 connections", CHUNKED, 16),
)
VERIFY_ROWS = (
    Scrapes("57 KB verified, 16 connections", "page", 16, Budget(EXPORTER_EXPORTER, 0.25)),
    Scrapes("1.5 MB verified, 1 connection", "big", 1, Budget(EXPORTER_EXPORTER, 0.2)),
    Scrapes("57 KB gzipped, verified, 16 connections", "page_gzip", 16),
    Scrapes("1.5 MB gzipped, verified, 1 connection", "big_gzip", 1),
)


def cpu(run: Run) -> list[Figure]:
    """CPU per scrape with everything on but verification."""
    peers = [NGINX] if run.is_quick else installed()
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(run.site.daemon(run.site.config()))
        proxies = [ours, *(stack.enter_context(PEERS[name](run.site)) for name in peers)]
        return [_cpu_figure(run, "cpu", row, proxies) for row in _wanted(run, CPU_ROWS)]


def verify(run: Run) -> list[Figure]:
    """CPU per scrape with verification on both sides."""
    if not run.site.knows(VERIFY):
        return [
            Figure("verify", row.what, MICROSECONDS, budget=row.budget, is_built=False)
            for row in VERIFY_ROWS
            if row.budget is not None
        ]
    with (
        run.site.daemon(run.site.config(VERIFY)) as ours,
        exporter_exporter(run.site, verify=True) as peer,
    ):
        return [_cpu_figure(run, "verify", row, [ours, peer]) for row in _wanted(run, VERIFY_ROWS)]


def latency(run: Run) -> list[Figure]:
    """The median time of a scrape over one keep-alive connection."""
    peers = [NGINX] if run.is_quick else installed()
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(run.site.daemon(run.site.config()))
        proxies = [ours, *(stack.enter_context(PEERS[name](run.site)) for name in peers)]
        figure = run.take(
            "latency",
            "57 KB, 1 connection, p50",
            "ms",
            {proxy.name: partial(_p50_ms, run, proxy) for proxy in proxies},
            Budget(NGINX, plus=0.2),
            prepare=partial(_check_all, run, proxies, "page"),
            isolated=proxies,
        )
    return [figure]


def _wanted(run: Run, rows: Sequence[Scrapes]) -> list[Scrapes]:
    """All rows, or only those with a budget where time is short."""
    return [row for row in rows if row.budget is not None or not run.is_quick]


def _cpu_figure(run: Run, section: str, row: Scrapes, proxies: Sequence[Proxy]) -> Figure:
    body_bytes = len(run.site.bodies[row.body])
    return run.take(
        section,
        row.what,
        MICROSECONDS,
        {
            proxy.name: partial(
                cpu_per_scrape,
                proxy.pid,
                proxy.port,
                proxy.path(row.body),
                row.connections,
                run.seconds,
                body_bytes,
            )
            for proxy in proxies
        },
        row.budget,
        prepare=partial(_check_all, run, proxies, row.body),
        rounds=min(run.rounds, INFORMATION_ROUNDS) if row.budget is None else None,
        isolated=proxies,
    )


def _check_all(run: Run, proxies: Sequence[Proxy], body: str) -> None:
    for proxy in proxies:
        run.site.check(proxy, body)


def _p50_ms(run: Run, proxy: Proxy) -> float:
    body_bytes = len(run.site.bodies["page"])
    return run_wrk(proxy.port, proxy.path("page"), 1, run.seconds, body_bytes).p50_ms
