"""The last scrapes of an exporter, kept as bytes: for the pages, which are seldom looked at.

With a thousand exporters a tuple for each of their last scrapes is 40,000 objects that the
garbage collector walks and that are out of the CPU's caches when they are replaced: a tenth
of what a scrape costs. One piece of memory for each exporter, written in place, is neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan, nan
from struct import Struct
from typing import NamedTuple

from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Reason

RECENT_SCRAPES = 40
_PACKED = Struct("=dHBdddQQd")
_REASONS: tuple[Reason | None, ...] = (None, *Reason)
_NUMBERS = {reason: number for number, reason in enumerate(_REASONS)}


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
    sent_bytes: int
    timeout_seconds: float


class RecentScrapes:
    """The last ``RECENT_SCRAPES`` outcomes, oldest first."""

    __slots__ = ("_count", "_packed", "_texts")

    def __init__(self) -> None:
        self._count = 0
        """Of all that were ever added."""
        self._packed = bytearray()
        """Made with the first scrape: many an exporter of a large configuration never has one."""
        self._texts: dict[int, tuple[str, str]] = {}
        """Message and excerpt by place, where there are any."""

    def append(self, exchange: Exchange) -> None:
        """Keep the outcome of a finished scrape, in place of the oldest where all places are taken."""
        if not self._packed:
            self._packed = bytearray(RECENT_SCRAPES * _PACKED.size)
        place = self._count % RECENT_SCRAPES
        self._count += 1
        connect_seconds, first_byte_seconds = exchange.connect_seconds, exchange.first_byte_seconds
        _PACKED.pack_into(
            self._packed,
            place * _PACKED.size,
            exchange.ended_nsec / 1e9,
            exchange.status,
            _NUMBERS[exchange.reason],
            nan if connect_seconds is None else connect_seconds,
            nan if first_byte_seconds is None else first_byte_seconds,
            exchange.total_seconds,
            exchange.received_bytes,
            exchange.sent_bytes,
            exchange.timeout_seconds,
        )
        if exchange.message or exchange.excerpt:
            self._texts[place] = (exchange.message, exchange.excerpt)
        elif self._texts:
            self._texts.pop(place, None)

    def __len__(self) -> int:
        return min(self._count, RECENT_SCRAPES)

    def __iter__(self) -> Iterator[ScrapeOutcome]:
        return map(self._outcome, range(self._count - len(self), self._count))

    def __reversed__(self) -> Iterator[ScrapeOutcome]:
        return map(self._outcome, reversed(range(self._count - len(self), self._count)))

    @property
    def newest(self) -> ScrapeOutcome:
        """The last that was added. Raises IndexError where there is none."""
        if not self._count:
            raise IndexError("there was no scrape")
        return self._outcome(self._count - 1)

    def _outcome(self, number: int) -> ScrapeOutcome:
        place = number % RECENT_SCRAPES
        at, status, reason, connect, first_byte, total, received, sent, timeout = _PACKED.unpack_from(
            self._packed, place * _PACKED.size
        )
        message, excerpt = self._texts.get(place, ("", ""))
        return ScrapeOutcome(
            at,
            status,
            _REASONS[reason],
            message,
            excerpt,
            None if isnan(connect) else connect,
            None if isnan(first_byte) else first_byte,
            total,
            received,
            sent,
            timeout,
        )
