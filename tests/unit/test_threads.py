"""Calls that may block: how many threads they take, and what becomes of those that are stuck."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from exporter_proxy.upstreams.threads import Threads
from tests.inprocess import LOOPS, run, until


@pytest.fixture
def named() -> Callable[[str], list[threading.Thread]]:
    """The threads of that name, but for those that other tests have left."""
    others = set(threading.enumerate())
    return lambda name: [one for one in threading.enumerate() if one not in others and one.name == name]


@pytest.mark.parametrize("loop", LOOPS)
def test_results_and_errors_come_back(loop: str) -> None:
    async def scenario() -> None:
        threads = Threads(1, "some")
        assert await threads.run(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        assert await threads.run(lambda: 6) == 6

    run(scenario, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_stuck_threads_are_few_and_in_nobody_elses_way(
    loop: str, named: Callable[[str], list[threading.Thread]]
) -> None:
    async def scenario() -> None:
        free = threading.Event()
        threads, others = Threads(2, "stuck"), Threads(1, "others")
        waiting = [asyncio.ensure_future(threads.run(free.wait)) for _ in range(10)]
        await until(lambda: len(named("stuck")) == 2, "two threads are stuck")
        for one in waiting:
            one.cancel()
        late = asyncio.ensure_future(threads.run(lambda: 5))
        assert await others.run(lambda: 6) == 6
        assert len(named("stuck")) == 2
        assert all(thread.daemon for thread in named("stuck")), "they would keep the daemon from stopping"
        assert not late.done()
        free.set()
        assert await late == 5
        await until(lambda: not named("stuck"), "the threads are gone")

    run(scenario, loop)
