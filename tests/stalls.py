"""When nothing ran here: what a bound on time has to allow for beside what it is about.

A machine that is shared stops all of a test run for a second or two now and then. A thread that only naps
knows when, as it wakes late; it needs the interpreter to itself for that, as whoever reads a clock does.
"""

from __future__ import annotations

import os
import threading
import time

NAP_SECONDS = 0.01
LATE_SECONDS = 0.03
"""Sooner than that it is but another thread's turn."""
MAX_KEPT = 1000

_late: dict[float, float] = {}
"""When the naps were to end that ended late, and when they did."""
_due = time.monotonic()
"""When the nap that goes on is to end."""


def stalled_since(since: float) -> float:
    """For how many seconds nothing ran here since then, which is on the clock of ``time.monotonic``."""
    due = _due  # before the others: by the time they are copied it may be one of them
    now = time.monotonic()
    late = dict(_late)
    if now - due > LATE_SECONDS:
        late.setdefault(due, now)
    return sum(max(0.0, woke - max(was_due, since)) for was_due, woke in late.items())


def is_set_within(event: threading.Event, seconds: float) -> bool:
    """Whether it is set by then, what stalls all of this not counted."""
    began = time.monotonic()
    return event.wait(seconds) or event.wait(stalled_since(began))


def _nap() -> None:
    global _due  # noqa: PLW0603  # one per process, as is the thread
    while True:
        _due = time.monotonic() + NAP_SECONDS
        time.sleep(NAP_SECONDS)
        woke = time.monotonic()
        if woke - _due > LATE_SECONDS:
            _late[_due] = woke
            while len(_late) > MAX_KEPT:
                del _late[next(iter(_late))]


def _start() -> None:
    threading.Thread(target=_nap, name="stalls", daemon=True).start()


_start()
os.register_at_fork(after_in_child=_start)
