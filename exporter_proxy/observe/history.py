"""What is remembered of each exporter: counts for the metrics, recent scrapes for the pages.

Plain numbers, updated in the event loop and nowhere else, so that recording a scrape costs
a few attribute additions; ``metrics.py`` turns them into families when it is asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import NamedTuple

from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import SCRAPE_ERROR_STATUS, Reason

DURATION_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RECENT_SCRAPES = 40

# The exporter's fault or the way to it. A scraper that left or reads too slowly, a proxy that
# stops or has no slot: these say nothing about whether the exporter is up.
_SAYS_NOTHING_OF_EXPORTER = frozenset(
    (Reason.CLIENT_GONE, Reason.CLIENT_SLOW, Reason.DRAINING, Reason.SATURATED, Reason.INTERNAL)
)


class ScrapeOutcome(NamedTuple):
    """One finished scrape as the pages show it. Times in seconds; ``at`` is Unix time."""

    at: float
    status: int
    reason: Reason | None
    message: str
    excerpt: str
    connect_seconds: float | None
    first_byte_seconds: float | None
    total_seconds: float
    received_bytes: int


class StateChange(NamedTuple):
    """An exporter that failed, failed differently, or works again after ``reason``."""

    event: str
    reason: Reason


class ExporterRecord:
    """Everything counted and remembered of one exporter since the daemon started."""

    __slots__ = (
        "bucket_counts",
        "duration_sum_seconds",
        "error_counts",
        "failing_reason",
        "in_flight",
        "last_failures",
        "last_success",
        "name",
        "received_bytes",
        "recent",
        "scrapes_by_code",
        "shared_scrapes",
        "up",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.in_flight = 0
        self.scrapes_by_code: dict[int, int] = {200: 0}
        self.error_counts: dict[Reason, int] = dict.fromkeys(SCRAPE_ERROR_STATUS, 0)
        self.bucket_counts = [0] * (len(DURATION_BUCKETS_SECONDS) + 1)
        self.duration_sum_seconds = 0.0
        self.received_bytes = 0
        """Body bytes from the exporter; added where they are read."""
        self.shared_scrapes = 0
        """Scrapes answered with what another scrape had asked for."""
        self.up: bool | None = None
        """From the last scrape that told anything of the exporter; ``None`` before the first."""
        self.last_success = 0.0
        """Unix time; 0 where there was none."""
        self.failing_reason: Reason | None = None
        self.recent: deque[ScrapeOutcome] = deque(maxlen=RECENT_SCRAPES)
        self.last_failures: dict[Reason, ScrapeOutcome] = {}

    def add(self, exchange: Exchange) -> StateChange | None:
        """Count one finished scrape; what changed by it and is worth a log line, if anything.

        That is when an exporter starts to fail, when the reason changes and when it recovers,
        not each scrape.
        """
        status = exchange.status
        total = exchange.total_seconds
        self.scrapes_by_code[status] = self.scrapes_by_code.get(status, 0) + 1
        self.bucket_counts[bisect_left(DURATION_BUCKETS_SECONDS, total)] += 1
        self.duration_sum_seconds += total
        reason = exchange.reason
        now = exchange.ended_nsec / 1e9
        outcome = ScrapeOutcome(
            now,
            status,
            reason,
            exchange.message,
            exchange.excerpt,
            exchange.connect_seconds,
            exchange.first_byte_seconds,
            total,
            exchange.received_bytes,
        )
        self.recent.append(outcome)
        if reason is None:
            self.up = status == 200  # nothing else is a successful scrape to Prometheus
            if not self.up:
                return None
            self.last_success = now
            if self.failing_reason is None:
                return None
            change = StateChange("exporter recovered", self.failing_reason)
            self.failing_reason = None
            return change
        self.error_counts[reason] += 1
        self.last_failures[reason] = outcome
        if reason in _SAYS_NOTHING_OF_EXPORTER:
            return None
        self.up = False
        if reason is self.failing_reason:
            return None
        self.failing_reason = reason
        return StateChange("exporter failing", reason)
