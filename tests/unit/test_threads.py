"""Calls that may block: how many threads they take, and what becomes of those that are stuck."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from exporter_proxy.threads import NoThread, Threads, in_thread
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
def test_what_an_error_passed_by_goes_with_it(loop: str) -> None:
    """A refused configuration is a hundred thousand objects, which a collection would have to walk."""

    class Seen:
        pass

    seen: list[weakref.ref[Seen]] = []

    def failing() -> None:
        passed_by = Seen()
        seen.append(weakref.ref(passed_by))
        raise KeyError

    async def scenario() -> None:
        gc.disable()
        try:
            for call in (in_thread(failing), Threads(1, "some").run(failing)):
                with contextlib.suppress(KeyError):
                    await call
            await until(lambda: [one() for one in seen] == [None, None], "it is gone")
        finally:
            gc.enable()

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


@pytest.mark.parametrize("loop", LOOPS)
def test_a_thread_that_cannot_be_had_leaves_room_for_the_next(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        threads = Threads(1, "some")
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_thread)
            for _ in range(2):
                with pytest.raises(NoThread, match="can't start new thread"):
                    await threads.run(lambda: 5)
            with pytest.raises(NoThread):
                await in_thread(int)
        assert await threads.run(lambda: 5) == 5
        assert await in_thread(int, "11", base=2) == 3

    run(scenario, loop)
