"""Who has been let in and has not left, and who of them makes room when there is none.

Nothing here takes longer for a crowd: accept() asks it of each of thousands who come at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter_proxy.front.protocol import ScraperProtocol


class Admitted:
    """Connections, and handshakes of those who are about to be one.

    ``connections`` is the set of those that are made, which others keep.
    """

    def __init__(self, connections: set[ScraperProtocol]) -> None:
        self._connections = connections
        self._all: set[ScraperProtocol] = set()
        # The longest idle first: whoever becomes idle goes to the end.
        self._idle: OrderedDict[ScraperProtocol, None] = OrderedDict()
        self._tasks: dict[ScraperProtocol, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, one: ScraperProtocol, task: asyncio.Task[None]) -> None:
        """``task`` makes its connection, and ends without one where the handshake fails."""
        self._all.add(one)
        self._idle[one] = None
        self._tasks[one] = task
        task.add_done_callback(lambda _: self._settle(one))

    def set_busy(self, one: ScraperProtocol) -> None:
        """It is being answered: it is not to be closed."""
        self._idle.pop(one, None)

    def set_idle(self, one: ScraperProtocol) -> None:
        """From now on nobody loses an answer with it."""
        self._idle[one] = None

    def leave(self, one: ScraperProtocol) -> None:
        """It is gone, or as good as gone."""
        self._all.discard(one)
        self._idle.pop(one, None)

    def has_newcomers(self, since: float) -> bool:
        """Whether someone accepted after ``since`` (``time.monotonic()``) has yet to ask."""
        return any(one.is_newcomer(since) for one in self._all)

    def close_longest_idle(self, before: float) -> bool:
        """Make room by closing whoever has idled longest; ``False`` if nobody has since ``before``."""
        oldest = next(iter(self._idle), None)
        if oldest is None or oldest.idle_since is None or oldest.idle_since >= before:
            return False
        self.leave(oldest)
        if oldest in self._connections:
            self._connections.discard(oldest)
            oldest.transport.abort()
        elif oldest in self._tasks:
            self._tasks[oldest].cancel()
        return True

    def give_up_handshakes(self) -> None:
        """Who is connected already goes on, be it that the task has yet to end."""
        for one, task in self._tasks.items():
            if one not in self._connections:
                task.cancel()

    def _settle(self, one: ScraperProtocol) -> None:
        self._tasks.pop(one, None)
        if one not in self._connections:
            self.leave(one)
