"""How long a scrape may take: the header, the route and the limits."""

from __future__ import annotations

import asyncio
import selectors
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter_proxy.config.schema import DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS
from exporter_proxy.scrape.deadline import Deadline, Deadlines, parse_scrape_timeout, total_timeout_seconds

SECONDS = st.floats(min_value=0.001, max_value=1e6)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (b"10", 10.0),
        (b"1.5", 1.5),
        (b"0.25", 0.25),
        (b"60.000000", 60.0),
        (b" 5 ", 5.0),
        (b"1e1", 10.0),
        (b".5", 0.5),
    ],
)
def test_a_decimal_number(header: bytes, seconds: float) -> None:
    assert parse_scrape_timeout(header) == seconds


@pytest.mark.parametrize(
    "header",
    [
        *(
            None,
            b"",
            b" ",
            b"10s",
            b"ten",
            b"0",
            b"-1",
            b"-0.0",
            b"nan",
            b"NaN",
            b"inf",
            b"+Inf",
            b"infinity",
            b"1" + b" " * 64,
        ),
        *(
            b"1e400",
            b"1_0",
            b"0x10",
            b"1,5",
            b"10 10",
            b"1.5.",
            b"\xff",
            b"\xd9\xa1",
            b"--5",
            b"1" * 400,
            b"1" + b" " * 64,
        ),
    ],
)
def test_anything_else_is_ignored(header: bytes | None) -> None:
    assert parse_scrape_timeout(header) is None


def test_what_it_remembers_is_short() -> None:
    tracemalloc.start()
    try:
        for number in range(300):
            parse_scrape_timeout(b"%d" % number + b" " * 30_000)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=12))
def test_no_header_is_an_error(header: bytes) -> None:
    seconds = parse_scrape_timeout(header)
    assert seconds is None or 0 < seconds < float("inf")


@pytest.mark.parametrize(
    ("route", "offset", "header", "total"),
    [
        (None, 0.5, None, DEFAULT_TIMEOUT_SECONDS),
        (None, 0.5, 10.0, 9.5),
        (None, 0.5, 1.0, 0.5),
        (None, 0.5, 0.8, 0.4),  # never less than half of what the scraper waits
        (None, 20.0, 10.0, 5.0),
        (None, 0.0, 10.0, 10.0),
        (None, 0.5, 300.0, MAX_TIMEOUT_SECONDS),
        (5.0, 0.5, None, 5.0),
        (5.0, 0.5, 10.0, 5.0),  # a route's own timeout is taken as it is
        (5.0, 0.5, 3.0, 2.5),
        (5.0, 0.5, 5.2, 4.7),
        (30.0, 0.5, None, 30.0),
        (120.0, 0.5, 1000.0, MAX_TIMEOUT_SECONDS),
    ],
)
def test_total(route: float | None, offset: float, header: float | None, total: float) -> None:
    assert total_timeout_seconds(route, offset, header) == pytest.approx(total)


@given(route=st.none() | SECONDS, offset=st.just(0.0) | st.floats(0.001, 120), header=st.none() | SECONDS)
def test_bounds(route: float | None, offset: float, header: float | None) -> None:
    total = total_timeout_seconds(route, offset, header)
    assert 0 < total <= MAX_TIMEOUT_SECONDS
    assert route is None or total <= route
    assert header is None or total <= header
    if header is not None and route is None:
        assert total >= min(header / 2, MAX_TIMEOUT_SECONDS)
    if offset and header is not None:
        assert total < header, "the 504 would come too late"


# -- the end


def test_a_deadline_that_passes_is_a_timeout() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError), Deadline(loop.time() + 0.01, Deadlines(loop)):
            await asyncio.sleep(10)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # nothing is left of the cancellation

    asyncio.run(scenario())


def test_a_deadline_in_the_past_ends_the_first_wait() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError), Deadline(loop.time() - 1, Deadlines(loop)):
            await asyncio.sleep(10)

    asyncio.run(scenario())


def test_a_deadline_that_is_met_leaves_no_timer() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with Deadline(loop.time() + 0.02, Deadlines(loop)):
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)

    asyncio.run(scenario())


@pytest.mark.parametrize("passes_too", [False, True])
def test_a_cancellation_from_outside_stays_one(passes_too: bool) -> None:
    """Even where the deadline passes in the same turn of the loop."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        async def scrape() -> None:
            with Deadline(loop.time() + (0.0 if passes_too else 10.0), Deadlines(loop)):
                await asyncio.sleep(10)

        task = loop.create_task(scrape())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_an_error_inside_is_not_hidden() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(KeyError), Deadline(loop.time() + 10, Deadlines(loop)):
            raise KeyError

    asyncio.run(scenario())


class NoWaiting(selectors.DefaultSelector):
    """Adds up the seconds that it was to wait."""

    seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.seconds += timeout or 0.0
        return super().select(None if timeout is None else 0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while it works, and jumps where it would wait: it is never late for anything."""

    def __init__(self) -> None:
        self._waiting = NoWaiting()
        super().__init__(self._waiting)

    def time(self) -> float:
        return self._waiting.seconds


def test_deadlines_of_one_loop_expire_each_in_its_time() -> None:
    expired: list[tuple[str, float]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)

        async def scrape(name: str, seconds: float, takes_seconds: float = 10.0) -> None:
            try:
                with Deadline(loop.time() + seconds, deadlines):
                    await asyncio.sleep(takes_seconds)
            except TimeoutError:
                expired.append((name, loop.time()))

        await asyncio.gather(
            scrape("second", 0.06), scrape("met", 0.05, 0.01), scrape("first", 0.03), scrape("third", 0.09)
        )
        await scrape("later", 0.01)  # after the last timer has fired

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())
    assert [name for name, _ in expired] == ["first", "second", "third", "later"]
    assert [at for _, at in expired] == pytest.approx([0.03, 0.06, 0.09, 0.1])
