"""Connections that are let in only as far as it takes to tell them why not.

They stand outside the connection limit, so there is a small limit of their own; beyond it a
connection is closed without a word.
"""

from __future__ import annotations

import asyncio
from typing import cast

from exporter_proxy.front.answers import closing_response
from exporter_proxy.front.state import FrontState
from exporter_proxy.front.target import method_of
from exporter_proxy.reasons import Denied

MAX_REFUSALS_AT_ONCE = 64
WAIT_SECONDS = 2.0


class RefusingProtocol(asyncio.Protocol):
    """Waits for the first bytes of a request, answers with the refusal, and closes.

    An answer sent before the request would reach Go's HTTP client as an "unsolicited
    response" instead of the status it is.
    """

    def __init__(self, state: FrontState, denied: Denied) -> None:
        self._state = state
        self._denied = denied
        self._has_answered = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self._state.refusals_open += 1
        self._timer = self._state.loop.call_later(WAIT_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._has_answered or self._transport is None:
            return
        self._has_answered = True
        added = self._state.limits.added_headers
        self._transport.write(closing_response(self._denied, method_of(data) == "HEAD", added))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self._state.refusals_open -= 1
        if self._timer is not None:
            self._timer.cancel()
