"""A thousand scrapes of an exporter that never answers: what they hold, and who else notices."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

from tests.bench.figures import OURS, Budget, Figure
from tests.bench.load import SCRAPE_SECONDS, raw_request, run_wrk
from tests.bench.processes import LOOPBACK, NotMeasured, rss_bytes
from tests.bench.progress import say
from tests.bench.run import Run
from tests.bench.site import Proxy, Site

SCRAPES = 1000
HANGING_TIMEOUT_SECONDS = 110
BEFORE = "before"
GATHER_SECONDS = 15.0
MAX_ROUNDS = 3


def hung(run: Run) -> list[Figure]:
    """Rounds of before and during; memory is taken in the first, when none of it has been used before."""
    site = run.site
    memory: list[float] = []
    during: list[float] = []
    before: list[float] = []
    what = f"{SCRAPES:,} hung scrapes"
    say(f"hung: {what}")
    failure = ""
    exporters = {
        "hung": {"url": site.hanging_url, "max_concurrent": 2 * SCRAPES, "timeout": "2m"},
        "page": {"url": site.url("page")},
    }
    try:
        with site.daemon(site.config(exporters=exporters, max_connections=4 * SCRAPES)) as ours:
            site.check(ours, "page")
            for _ in range(min(run.rounds, MAX_ROUNDS)):
                before.append(_p99_ms(run, ours))
                resident = rss_bytes(ours.pid)
                with hanging_scrapes(site, ours):
                    memory.append((rss_bytes(ours.pid) - resident) / 1024 / SCRAPES)
                    during.append(_p99_ms(run, ours))
    except NotMeasured as trouble:
        failure = str(trouble)
    p99 = {OURS: during, BEFORE: before}
    return [
        Figure("hung", f"{what}, memory of each", "KiB", {OURS: memory[:1]}, Budget(plus=24), failure),
        Figure("hung", f"{what}, p99 of another exporter", "ms", p99, Budget(BEFORE, 1.5, plus=1.0), failure),
    ]


@contextlib.contextmanager
def hanging_scrapes(site: Site, ours: Proxy) -> Iterator[None]:
    """All of them at the exporter when the block begins, and none of them when it is over."""
    with contextlib.ExitStack() as connections:
        for _ in range(SCRAPES):
            connection = socket.create_connection((LOOPBACK, ours.port), SCRAPE_SECONDS)
            connections.enter_context(connection)
            connection.sendall(raw_request(ours.path("hung"), timeout_seconds=HANGING_TIMEOUT_SECONDS))
        _wait_until_held(site, SCRAPES)
        yield
        if (left := site.held()) != SCRAPES:
            raise NotMeasured(f"only {left} of {SCRAPES} scrapes went on hanging")
    _wait_until_held(site, 0)


def _wait_until_held(site: Site, count: int) -> None:
    end = time.monotonic() + GATHER_SECONDS
    while (held := site.held()) != count:
        if time.monotonic() > end:
            raise NotMeasured(f"{held} scrapes hang instead of {count}")
        time.sleep(0.02)


def _p99_ms(run: Run, ours: Proxy) -> float:
    return run_wrk(ours.port, ours.path("page"), 1, run.seconds, len(run.site.bodies["page"])).p99_ms
