"""How long a scrape may take in all, from what the route and the scraper say; and its end."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from math import inf, isfinite
from types import TracebackType

from exporter_proxy.config.schema import DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS

MAX_TIMEOUT_CHARACTERS = 64
"""No number that a scraper prints is longer. What is parsed is kept, and comes from outside."""


def parse_scrape_timeout(header: bytes | None) -> float | None:
    """Seconds in ``X-Prometheus-Scrape-Timeout-Seconds``, a decimal float (``10``, ``1.5``).

    ``None`` where the header is absent, is no decimal number, is not finite or is not above
    zero: blackbox_exporter answers 500 to those, here they are ignored.
    """
    return None if header is None or len(header) > MAX_TIMEOUT_CHARACTERS else _parse_seconds(header)


@lru_cache(maxsize=256)
def _parse_seconds(header: bytes) -> float | None:
    if b"_" in header:  # float() takes 1_0, Go's ParseFloat in base 10 does not
        return None
    try:
        seconds = float(header)
    except ValueError:
        return None
    return seconds if isfinite(seconds) and seconds > 0 else None


@lru_cache(maxsize=1024)
def total_timeout_seconds(
    route_timeout_seconds: float | None, offset_seconds: float, scrape_timeout_seconds: float | None
) -> float:
    """The total deadline of one scrape: connect, headers and the whole body.

    The scraper's own deadline less the offset, so that a 504 arrives before it gives up, but
    never less than half of it; a route's smaller timeout is taken as it is; 2 minutes at most;
    10 s where neither says anything.
    """
    candidates = [MAX_TIMEOUT_SECONDS]
    if route_timeout_seconds is not None:
        candidates.append(route_timeout_seconds)
    if scrape_timeout_seconds is not None:
        half = scrape_timeout_seconds / 2 or scrape_timeout_seconds  # half of the least float there is is 0
        candidates.append(max(scrape_timeout_seconds - offset_seconds, half))
    if len(candidates) == 1:
        return DEFAULT_TIMEOUT_SECONDS
    return min(candidates)


class Deadlines:
    """The deadlines that are running on one event loop, with one timer for all of them.

    Nearly every scrape ends long before its deadline; a timer for each would cost a small one 3 %.
    """

    __slots__ = ("_running", "_timer", "_timer_at", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._running: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf

    def add(self, deadline: Deadline) -> None:
        """See to it that it expires."""
        self._running.add(deadline)
        if deadline.when < self._timer_at:
            self._set_timer(deadline.when)

    def remove(self, deadline: Deadline) -> None:
        """It was met, or has expired."""
        self._running.discard(deadline)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self.loop.call_at(when, self._expire)

    def _expire(self) -> None:
        """Called at what was the first deadline when the timer was set; it may have been met since."""
        self._timer, self._timer_at = None, inf
        now = self.loop.time()
        for deadline in [each for each in self._running if each.when <= now]:
            self._running.discard(deadline)
            deadline.expire()
        if self._running:
            self._set_timer(min(each.when for each in self._running))


class Deadline:
    """``with Deadline(when, deadlines):`` cancels what the task does at ``when``; raises TimeoutError.

    ``when`` is on the loop's clock. As ``asyncio.timeout_at``, its nesting and outer cancellations
    included, without what makes that cost a small scrape 5 %: a timer of its own, a deadline that
    can be moved or missing, and a system call to find the running loop.
    """

    __slots__ = ("_cancellations", "_deadlines", "_is_over", "_task", "when")

    def __init__(self, when: float, deadlines: Deadlines) -> None:
        self.when = when
        self._deadlines = deadlines
        self._is_over = False
        self._task: asyncio.Task[object]
        self._cancellations = 0

    def __enter__(self) -> None:
        task = asyncio.current_task(self._deadlines.loop)
        assert task is not None
        self._task = task
        self._cancellations = task.cancelling()
        self._deadlines.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.remove(self)
        # As many requests to cancel as on entry: the one that is under way is this deadline's own.
        is_own = self._is_over and self._task.uncancel() <= self._cancellations
        if is_own and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel what the task does."""
        self._is_over = True
        self._task.cancel()
