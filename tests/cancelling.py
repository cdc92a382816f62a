"""Cancels a coroutine at each of its suspensions in turn, and sees that nothing is left of it.

A scenario is run again and again with the cancellation one suspension later, until it is so late that
the coroutine completes.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes.origin import Origin, hang
from tests.inprocess import opened_since, until

GONE_SECONDS = 1.0
"""How soon a scraper's leaving must have ended everything."""


@dataclass
class Cancellation:
    """When to cancel: at the given suspension, counted from 1.

    ``with_result``: not while the scrape waits, but at the moment when what it waits for is there, so
    that the result is on its way to a task that will not take it.
    """

    at: int
    with_result: bool = False
    turns: int = 0
    """How many turns of the loop later than that."""
    happened: bool = False

    @types.coroutine
    def drive(self, scrape: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run ``scrape`` as its task would, and cancel the task at that suspension."""
        task = asyncio.current_task()
        assert task is not None
        suspensions = 0
        step: Callable[[], Any] = lambda: scrape.send(None)  # noqa: E731
        while True:
            try:
                waited_for = step()
            except StopIteration as end:
                return end.value
            suspensions += 1
            if suspensions == self.at:
                self.happened = True
                if self.with_result and waited_for is not None:
                    waited_for.add_done_callback(lambda _: task.cancel())
                else:
                    cancel_after(self.turns, task)
            try:
                result = yield waited_for
            except BaseException as error:
                step = lambda failure=error: scrape.throw(failure)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda value=result: scrape.send(value)  # type: ignore[misc]  # noqa: E731


def cancel_after(turns: int, task: asyncio.Task[Any]) -> None:
    """Cancel the task when the loop has turned so often; one that has ended by then is left alone."""
    loop = asyncio.get_running_loop()
    if turns:
        loop.call_soon(cancel_after, turns - 1, task)
    else:
        loop.call_soon(task.cancel)


async def until_closed(before: dict[str, str], log: str) -> None:
    """Every descriptor opened since is closed but the log's, which is another test's business."""

    def further() -> dict[str, str]:
        return {number: to for number, to in opened_since(before).items() if to != log}

    with contextlib.suppress(AssertionError):
        await until(lambda: not further(), "all is closed", GONE_SECONDS)
    assert not further()


async def count_steps(
    scenario: Callable[[Cancellation], Coroutine[Any, Any, None]], with_result: bool = False
) -> int:
    """Cancel one suspension later each time, until it is too late; says how many there are."""
    async with Origin(hang):
        pass  # a loop's first server has uvloop open a spare descriptor for good
    for at in range(1, 1000):
        cancellation = Cancellation(at, with_result)
        await scenario(cancellation)
        if not cancellation.happened:
            return at - 1
    raise AssertionError("it never completes")


TIMINGS = pytest.mark.parametrize("with_result", [False, True], ids=["while it waits", "with the result"])
