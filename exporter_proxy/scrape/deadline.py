"""How long a scrape may take in all, from what the route and the scraper say; and its end."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from math import isfinite
from types import TracebackType

from exporter_proxy.config.schema import DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS


@lru_cache(maxsize=256)
def parse_scrape_timeout(header: bytes | None) -> float | None:
    """Seconds in ``X-Prometheus-Scrape-Timeout-Seconds``, a decimal float (``10``, ``1.5``).

    ``None`` where the header is absent, is no decimal number, is not finite or is not above
    zero: blackbox_exporter answers 500 to those, here they are ignored.
    """
    if header is None or b"_" in header:  # float() takes 1_0, Go's ParseFloat in base 10 does not
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
        candidates.append(max(scrape_timeout_seconds - offset_seconds, scrape_timeout_seconds / 2))
    if len(candidates) == 1:
        return DEFAULT_TIMEOUT_SECONDS
    return min(candidates)


class Deadline:
    """``with Deadline(when, loop):`` cancels what the task does at ``when`` and raises TimeoutError.

    ``when`` is on the clock of ``loop``, the running one, which asyncio would find with a system
    call. As ``asyncio.timeout_at``, its nesting and outer cancellations included, without what
    makes that cost a small scrape 3 %: a deadline that can be moved or missing.
    """

    __slots__ = ("_cancellations", "_handle", "_is_over", "_loop", "_task", "_when")

    def __init__(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        self._when = when
        self._loop = loop
        self._is_over = False
        self._handle: asyncio.TimerHandle
        self._task: asyncio.Task[object]
        self._cancellations = 0

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        self._cancellations = task.cancelling()
        self._handle = self._loop.call_at(self._when, self._expire)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        # As many requests to cancel as on entry: the one that is under way is this deadline's own.
        is_own = self._is_over and self._task.uncancel() <= self._cancellations
        if is_own and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        self._is_over = True
        self._task.cancel()
