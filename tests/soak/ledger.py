"""What was done to the site and when, and what each fault may cost: the excuses, written down beforehand."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

EVERYTHING = "*"
"""In place of an exporter's name: all scrapes."""


@dataclass(frozen=True)
class Cost:
    """What may be missing while a fault lasts, until all is seen to be well again."""

    scrapes_of: str = ""
    """Whose scrapes may fail: an exporter's, ``EVERYTHING``, or "" for nobody's."""
    is_unseen: bool = False
    """Whether these may fail without the daemon having seen them."""
    lines: bool = False
    """Whether lines of the access log may be lost."""
    sent: bool = False
    """Whether what the daemon takes for sent may not have left it."""


NOTHING = Cost()


@dataclass
class Window:
    """One fault. Times are Unix times, ``ended`` infinite while it lasts."""

    number: int
    fault: str
    subject: str
    cost: Cost
    began: float
    healed: float = float("inf")
    ended: float = float("inf")

    @property
    def title(self) -> str:
        return f"{self.fault} ({self.subject})" if self.subject else self.fault

    def covers(self, began: float, ended: float, exporter: str) -> bool:
        """Whether it may have made a scrape of ``exporter`` between these times fail."""
        return self.cost.scrapes_of in (exporter, EVERYTHING) and self.overlaps(began, ended)

    def overlaps(self, began: float, ended: float) -> bool:
        return self.began <= ended and began <= self.ended


@dataclass
class Ledger:
    """All windows of a run, each also a line in a file as it comes and goes. Used by several threads."""

    log: Path
    windows: list[Window] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, fault: str, subject: str, cost: Cost, began: float | None = None) -> Window:
        with self._lock:
            window = Window(len(self.windows) + 1, fault, subject, cost, began or time.time())
            self.windows.append(window)
        self.write(f"#{window.number} {window.title}: begins")
        return window

    def heal(self, window: Window) -> None:
        window.healed = time.time()
        self.write(f"#{window.number} {window.title}: healed after {window.healed - window.began:.1f} s")

    def close(self, window: Window) -> None:
        window.ended = time.time()
        window.healed = min(window.healed, window.ended)
        self.write(f"#{window.number} {window.title}: well after {window.ended - window.healed:.1f} s more")

    def blame(self, violation: str) -> None:
        with self._lock:
            self.violations.append(violation)
        self.write(f"VIOLATION {violation}")

    def is_open(self, exporter: str) -> bool:
        """Whether some fault may be costing scrapes of ``exporter`` now."""
        now = time.time()
        with self._lock:
            return any(window.covers(now, now, exporter) for window in self.windows)

    def counts(self) -> Counter[str]:
        with self._lock:
            return Counter(window.fault for window in self.windows)

    def write(self, text: str) -> None:
        with self._lock, self.log.open("a") as file:
            file.write(f"{clock(time.time())} {text}\n")

    @contextmanager
    def blaming(self, what: str) -> Iterator[None]:
        """An assertion that fails within is a violation, and the run goes on."""
        try:
            yield
        except AssertionError as error:
            self.blame(f"{what}: {error}")


def clock(moment: float) -> str:
    """A Unix time as the logs have it."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
