"""How many scrapes of one exporter may be under way at once; the others wait in turn.

An ``asyncio.Semaphore`` that costs a scrape which need not wait a third as much: 1 us.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """``if not slots.take(): await slots.wait()``, and once the slot is had, ``give_back()``."""

    __slots__ = ("_free", "_waiting")

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        """How many more may be taken at once."""
        return self._free

    def take(self) -> bool:
        """Whether there was a free slot, which is now the caller's."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def wait(self) -> None:
        """Have a slot once it is this caller's turn."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the moment in which it left
                self.give_back()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def give_back(self) -> None:
        """The slot is free again, or whose turn it is."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled, and not yet run to leave the queue
                turn.set_result(None)
                return
        self._free += 1
