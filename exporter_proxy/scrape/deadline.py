"""How long a scrape may take in all, from what the route and the scraper say."""

from __future__ import annotations

from functools import lru_cache
from math import isfinite

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
