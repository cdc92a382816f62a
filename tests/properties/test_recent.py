"""The last scrapes come back as they went in, however many there were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.observe.recent import RECENT_SCRAPES, RecentScrapes, ScrapeOutcome
from exporter_proxy.reasons import Reason

SECONDS = st.floats(min_value=0, max_value=1e9)
BYTES = st.integers(min_value=0, max_value=2**64 - 1)
TEXTS = st.sampled_from(["", "it did not answer", "\N{SNOWMAN} " * 50])
NSEC = st.integers(min_value=0, max_value=2**62)
"""When a scrape ended. Seconds as a float come from these, and not always back to them."""
OUTCOMES = st.builds(
    ScrapeOutcome,
    st.just(0.0),
    st.integers(min_value=100, max_value=999),
    st.sampled_from([None, *Reason]),
    TEXTS,
    TEXTS,
    st.none() | SECONDS,
    st.none() | SECONDS,
    SECONDS,
    BYTES,
    BYTES,
    SECONDS,
)


def finished(ended_nsec: int, outcome: ScrapeOutcome) -> Exchange:
    exchange = Exchange("127.0.0.1", "GET", b"/x", b"", 0.0)
    exchange.ended_nsec = ended_nsec
    for name in ScrapeOutcome._fields[1:]:
        setattr(exchange, name, getattr(outcome, name))
    return exchange


@given(
    st.lists(st.tuples(NSEC, OUTCOMES), max_size=5),
    st.integers(min_value=0, max_value=2 * RECENT_SCRAPES + 1),
)
def test_the_last_scrapes_come_back_as_they_were(
    scrapes: list[tuple[int, ScrapeOutcome]], count: int
) -> None:
    added = [scrapes[number % len(scrapes)] for number in range(count)] if scrapes else []
    recent = RecentScrapes()
    for ended_nsec, outcome in added:
        recent.append(finished(ended_nsec, outcome))
    kept = [outcome._replace(at=ended_nsec / 1e9) for ended_nsec, outcome in added[-RECENT_SCRAPES:]]
    assert list(recent) == kept
    assert list(reversed(recent)) == kept[::-1]
    assert len(recent) == len(kept)
    if kept:
        assert recent.newest == kept[-1]
