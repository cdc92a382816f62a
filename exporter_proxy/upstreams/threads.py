"""Calls that may block, each in a thread of its own: reading files, starting commands.

A file system that is gone (NFS) holds whoever reads from it, for minutes or for ever, and nothing
can end that. So the threads of one exporter are few, no other exporter waits for them, and none
of them keeps the daemon from stopping, as those of ``concurrent.futures`` would.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


class Threads:
    """At most ``limit`` calls at once; further ones wait, for threads that are stuck as well."""

    def __init__(self, limit: int, name: str) -> None:
        self._free = asyncio.Semaphore(limit)
        self._name = name

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises. Cancelled, it goes on in its thread, and nobody hears of it.

        Raises RuntimeError where there can be no further thread.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        thread = threading.Thread(target=self._work, args=(call, loop, outcome), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._free.release()
            raise
        return await outcome

    def _work(
        self, call: Callable[[], T], loop: asyncio.AbstractEventLoop, outcome: asyncio.Future[T]
    ) -> None:
        error: BaseException | None = None
        result: T | None = None
        try:
            result = call()
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(self._end, outcome, result, error)
        except RuntimeError:
            pass  # the loop is closed: the daemon stopped meanwhile

    def _end(self, outcome: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
        self._free.release()
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast(T, result))
