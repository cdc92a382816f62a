"""Calls that may block, each in a thread of its own: reading files, starting commands, asking the resolver.

A file system that is gone (NFS) holds whoever reads from it, for minutes or for ever, and nothing
can end that. So nothing else waits for such a thread: the threads of one exporter are few, no other
exporter has to do with them, and none of them keeps the daemon from stopping, as those of
``concurrent.futures`` would.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


class NoThread(RuntimeError):
    """There can be no further thread; the message is the interpreter's."""


class Threads:
    """At most ``limit`` calls at once; further ones wait, for threads that are stuck as well."""

    def __init__(self, limit: int, name: str) -> None:
        self._free = asyncio.Semaphore(limit)
        self._name = name

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises. Cancelled, it goes on in its thread, and nobody hears of it.

        Raises NoThread.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        thread = _Thread(target=self._work, args=(call, loop, outcome), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._free.release()
            raise NoThread(str(error)) from None
        try:
            return await outcome
        finally:
            del outcome  # it holds what is raised, whose traceback holds this frame

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
        finally:
            del error, outcome  # as in run

    def _end(self, outcome: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
        self._free.release()
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast(T, result))


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``call`` returns or raises, in a thread that nothing else waits for. Raises NoThread."""
    name = getattr(call, "__name__", "call")
    return await Threads(1, name).run(functools.partial(call, *args, **kwargs))


class _Thread(threading.Thread):
    """One of these, as opposed to any other of the process."""


def are_any_left() -> bool:
    """Whether a call has not come back yet."""
    return any(isinstance(thread, _Thread) for thread in threading.enumerate())
