"""What is remembered of each exporter: counts for the metrics, recent scrapes for the pages.

Plain numbers, updated in the event loop and nowhere else, so that recording a scrape costs
a few attribute additions; ``metrics.py`` turns them into families when it is asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import NamedTuple

from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.observe.recent import RecentScrapes, ScrapeOutcome
from exporter_proxy.reasons import SCRAPE_ERROR_STATUS, Reason

DURATION_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HOUR_MINUTES = 60
_MINUTE_NSEC = 60 * 10**9

# The exporter's fault or the way to it. A scraper that left or reads too slowly, a proxy that
# stops or has no slot: these say nothing about whether the exporter is up.
_SAYS_NOTHING_OF_EXPORTER = frozenset(
    (Reason.CLIENT_GONE, Reason.CLIENT_SLOW, Reason.DRAINING, Reason.SATURATED, Reason.INTERNAL)
)


class HourCount(NamedTuple):
    """Scrapes of the last hour; ``succeeded`` are those that Prometheus counts as up."""

    scrapes: int
    succeeded: int


class StateChange(NamedTuple):
    """An exporter that failed, failed differently, or works again after ``reason``."""

    event: str
    reason: Reason


class ExporterRecord:
    """Everything counted and remembered of one exporter since the daemon started."""

    __slots__ = (
        "_minute",
        "_minute_failed",
        "_minute_succeeded",
        "_minutes",
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
        self.recent = RecentScrapes()
        self.last_failures: dict[Reason, ScrapeOutcome] = {}
        # The minute that is being counted (of Unix time), and those before it in which there was
        # a scrape: number, succeeded, failed.
        self._minute = 0
        self._minute_succeeded = 0
        self._minute_failed = 0
        self._minutes: deque[tuple[int, int, int]] = deque(maxlen=HOUR_MINUTES)

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
        self.recent.append(exchange)
        minute = exchange.ended_nsec // _MINUTE_NSEC
        if minute != self._minute:
            self._begin_minute(minute)
        if reason is None:  # a complete 200
            self.up = True
            self._minute_succeeded += 1
            self.last_success = exchange.ended_nsec / 1e9
            if self.failing_reason is None:
                return None
            change = StateChange("exporter recovered", self.failing_reason)
            self.failing_reason = None
            return change
        self._minute_failed += 1
        self.error_counts[reason] += 1
        self.last_failures[reason] = self.recent.newest
        if reason in _SAYS_NOTHING_OF_EXPORTER:
            return None
        self.up = False
        if reason is self.failing_reason:
            return None
        self.failing_reason = reason
        return StateChange("exporter failing", reason)

    def _begin_minute(self, minute: int) -> None:
        if self._minute_succeeded or self._minute_failed:
            self._minutes.append((self._minute, self._minute_succeeded, self._minute_failed))
        self._minute = minute
        self._minute_succeeded = self._minute_failed = 0

    def last_hour(self, now_nsec: int) -> HourCount:
        """How scrapes went in the minute of ``now_nsec`` (Unix time) and the 59 before it."""
        now = now_nsec // _MINUTE_NSEC
        counts = [
            (succeeded, failed)
            for minute, succeeded, failed in (
                *self._minutes,
                (self._minute, self._minute_succeeded, self._minute_failed),
            )
            # Later ones too are left out: the clock may have been set back.
            if now - HOUR_MINUTES < minute <= now
        ]
        succeeded = sum(count[0] for count in counts)
        return HourCount(succeeded + sum(count[1] for count in counts), succeeded)

    @property
    def latest_failure(self) -> ScrapeOutcome | None:
        """Why ``up`` is False: the last scrape that told anything of the exporter.

        ``None`` where ``up`` is something else.
        """
        if self.up is not False:
            return None
        for outcome in reversed(self.recent):
            if outcome.reason not in _SAYS_NOTHING_OF_EXPORTER:
                return outcome
        return self.last_failures[self.failing_reason] if self.failing_reason is not None else None
