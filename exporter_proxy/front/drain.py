"""Stopping: nobody is let in any more, what is under way is finished, and what hangs is cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from exporter_proxy.front.listener import Listener
from exporter_proxy.front.state import FrontState

FLUSH_SECONDS = 1.0
NEWCOMER_SECONDS = 1.0
"""Who was accepted this shortly before a stop is still let ask: nobody else has that connection."""


async def drain(
    front: FrontState, listeners: Sequence[Listener], timeout_seconds: float, stop_now: asyncio.Event
) -> None:
    """Finish what is under way, for at most ``timeout_seconds`` or until ``stop_now``, then cut it.

    The listeners have stopped already.
    """
    deadline = time.monotonic() + timeout_seconds
    for connection in front.connections:
        if connection.cycle is not None:
            connection.cycle.keep_alive = False
    await _wait_for_newcomers(front, deadline, stop_now)
    await _wait_for_answers(front, deadline, stop_now)
    front.admitted.give_up_handshakes()
    for listener in listeners:
        listener.give_up()
    for connection in list(front.connections):
        if connection.cycle is not None:
            connection.cycle.cancel()
    for task in front.detached:
        task.cancel()
    tasks = front.uvicorn_state.tasks
    if tasks:
        await asyncio.wait(set(tasks), timeout=FLUSH_SECONDS)
    for connection in list(front.connections):
        connection.shutdown()
    await _wait_for_readers(front, deadline, stop_now)
    for connection in list(front.connections):
        connection.transport.abort()


async def _wait_for_newcomers(front: FrontState, deadline: float, stop_now: asyncio.Event) -> None:
    """Until all have asked who were accepted a moment ago, their handshake included.

    Where a socket is passed on, nobody then notices a restart: who is in its queue waits for the
    next process, and who is out of it is answered here.
    """
    while (now := time.monotonic()) < deadline and not stop_now.is_set():
        if not front.admitted.has_newcomers(since=now - NEWCOMER_SECONDS):
            return
        await asyncio.sleep(0.01)


async def _wait_for_answers(front: FrontState, deadline: float, stop_now: asyncio.Event) -> None:
    """Until nothing is being answered, the time is over, or a second signal comes."""
    tasks = front.uvicorn_state.tasks
    second_signal = asyncio.ensure_future(stop_now.wait())
    try:
        while tasks and not second_signal.done() and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait({*tasks, second_signal}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    finally:
        second_signal.cancel()


async def _wait_for_readers(front: FrontState, deadline: float, stop_now: asyncio.Event) -> None:
    """Until all connections are closed, or for a moment; who has yet to read an answer's end has longer."""
    flushed_by = time.monotonic() + FLUSH_SECONDS
    while (now := time.monotonic()) < max(flushed_by, deadline) and not stop_now.is_set():
        # Closing connections tell nobody when they are gone.
        if not any(now < flushed_by or connection.has_unsent for connection in front.connections):
            return
        await asyncio.sleep(0.01)
