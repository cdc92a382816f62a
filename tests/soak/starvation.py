"""Tells when the machine has no time for the site: its processes were ready to run, and waited for a CPU.

The kernel counts that for each thread. Where the whole machine stood still it counts nothing, for who slept
was not ready to run: then this thread itself comes late. Who has to wait like that may miss a deadline of one
second, and it is nobody's fault here; what is under way then may fail, and is accounted for all the same.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.soak.ledger import EVERYTHING, Cost, Ledger, Window
from tests.soak.worker import Worker

FAULT = "machine busy"
STEP_SECONDS = 0.25
WAITED_SHARE = 0.25
"""Of a step; all threads of a process taken together. Scraper, daemon and exporter wait one after another."""
LATE_STEPS = 3
"""How long a step may take, in steps, until nobody ran."""
MARGIN_SECONDS = 1.0
"""A scrape takes a second at most, so that one which was held up is over by then."""


class Starvation(Worker):
    """Looks at all descendants of this process."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__("starvation", ledger)
        self._window: Window | None = None

    def _run(self) -> None:
        then, before = time.time(), waited_seconds()
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(STEP_SECONDS)
            now, after = time.time(), waited_seconds()
            waits: defaultdict[int, float] = defaultdict(float)
            for (pid, thread), seconds in after.items():
                waits[pid] += seconds - before.get((pid, thread), 0.0)
            if was_busy(now - then, waits.values()):
                self._tell(then, now)
            then, before = now, after

    def _tell(self, began: float, ended: float) -> None:
        """One window for as long as it goes on."""
        if self._window is None or self._window.ended < began:
            cost = Cost(scrapes_of=EVERYTHING, is_unseen=True, sent=True)
            self._window = self._ledger.open(FAULT, "", cost, began - STEP_SECONDS)
        self._window.healed = ended
        self._window.ended = ended + MARGIN_SECONDS


@contextmanager
def watching(ledger: Ledger) -> Iterator[None]:
    """Until the end of the block."""
    starvation = Starvation(ledger)
    starvation.start()
    try:
        yield
    finally:
        starvation.stop()


def was_busy(step_seconds: float, waited: Iterable[float]) -> bool:
    """Whether a step that took so long was one in which some process could not run."""
    is_late = step_seconds > LATE_STEPS * STEP_SECONDS
    return is_late or max(waited, default=0.0) > WAITED_SHARE * step_seconds


def waited_seconds() -> dict[tuple[int, int], float]:
    """By process and thread: how long it has been ready to run without running, since it was started."""
    found = {}
    for pid in descendants(os.getpid()):
        for thread in _listed(Path(f"/proc/{pid}/task")):
            try:
                _, waited_nsec, _ = (thread / "schedstat").read_text().split()
            except (OSError, ValueError):  # it has ended; or the kernel does not count
                continue
            found[pid, int(thread.name)] = int(waited_nsec) / 1e9
    return found


def descendants(pid: int) -> Iterator[int]:
    for thread in _listed(Path(f"/proc/{pid}/task")):
        try:
            children = (thread / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
