"""Two Prometheus servers, one node_exporter: what the exporter and the daemon spend together."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import partial

from tests.bench.figures import OURS, Budget, Figure
from tests.bench.load import Scraper
from tests.bench.processes import NotMeasured, cpu_seconds
from tests.bench.run import Run
from tests.bench.site import node_exporter

WHAT = "two scrapers, a real node_exporter, each pair"
DIRECT = "direct"
SHARE = {"share_for": "100ms"}
INTERVAL_SECONDS = 0.25
"""Scrape intervals are shortened so that a round is: the answer is long out of date at the next one."""
OFFSET_SECONDS = 0.05
"""How long the second server scrapes after the first, as within ``share_for`` as seconds are within 5 s."""
PAIRS_A_SECOND = round(1 / INTERVAL_SECONDS)
MAX_ROUNDS = 3
EXPORTER_SCRAPES = re.compile(rb'^promhttp_metric_handler_requests_total\{code="200"\} (\d+)', re.MULTILINE)


def pair(run: Run) -> list[Figure]:
    """CPU of exporter and daemon for two scrapes, beside that of the exporter scraped directly."""
    budget = Budget(DIRECT, 0.65)
    if not run.site.knows(SHARE):
        return [Figure("pair", WHAT, "us", budget=budget, is_built=False)]
    with node_exporter(run.site.directory) as (exporter, exporter_port):
        exporters = {"node": {"url": f"http://127.0.0.1:{exporter_port}/metrics", **SHARE}}
        with run.site.daemon(run.site.config(exporters=exporters)) as ours:
            pairs = PAIRS_A_SECOND * run.seconds * 2
            shared, unshared = [exporter.pid, ours.pid], [exporter.pid]
            measures = {
                OURS: partial(_cpu_per_pair, shared, ours.port, ours.path("node"), pairs, exporter_port, 1),
                DIRECT: partial(_cpu_per_pair, unshared, exporter_port, "/metrics", pairs, exporter_port, 2),
            }
            warm_up = partial(_scrape_pairs, ours.port, ours.path("node"), 2)
            return [
                run.take(
                    "pair", WHAT, "us", measures, budget, prepare=warm_up, rounds=min(run.rounds, MAX_ROUNDS)
                )
            ]


def _cpu_per_pair(
    pids: Sequence[int], port: int, path: str, pairs: int, exporter_port: int, scrapes_a_pair: int
) -> float:
    """Microseconds for each pair. Raises NotMeasured where an answer has served more than its pair."""
    scrapes_before = _scrapes_of_exporter(exporter_port)
    before = sum(map(cpu_seconds, pids))
    _scrape_pairs(port, path, pairs)
    spent = sum(map(cpu_seconds, pids)) - before
    # The scrape that asks for the number counts itself only the next time.
    scrapes = _scrapes_of_exporter(exporter_port) - scrapes_before - 1
    if scrapes < pairs * scrapes_a_pair:
        raise NotMeasured(f"{pairs} pairs led to {scrapes} scrapes of the exporter: later pairs shared, too")
    return spent / pairs * 1e6


def _scrape_pairs(port: int, path: str, pairs: int) -> None:
    with Scraper(port) as first, Scraper(port) as second:
        # An interval after whatever was scraped last, so that its answer serves nobody any more.
        started = time.monotonic() + INTERVAL_SECONDS
        for number in range(pairs):
            for scraper, offset in ((first, 0.0), (second, OFFSET_SECONDS)):
                due = started + number * INTERVAL_SECONDS + offset
                time.sleep(max(0.0, due - time.monotonic()))
                scraper.scrape(path)


def _scrapes_of_exporter(port: int) -> int:
    with Scraper(port, {"Accept-Encoding": "identity"}) as scraper:
        found = EXPORTER_SCRAPES.search(scraper.scrape("/metrics"))
    if found is None:
        raise NotMeasured("node_exporter does not count its scrapes")
    return int(found[1])
