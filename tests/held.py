"""Whether a daemon's event loop was held: ``tests/loopwatch`` put into its process, and what it found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
WATCH = Path(__file__).parent / "loopwatch"
BY_CPU_TIME = "the event loop was held for "


class LoopHeld(AssertionError):
    """A daemon's event loop was held; every scrape waited. The message says by what, and where."""


class LoopSlow(LoopHeld):
    """By nothing but CPU time, which on a shared machine may be another's: worth a second look."""


def watching(file: Path) -> Mapping[str, str]:
    """Environment of a daemon that is to be watched; ``file`` is where that is written to."""
    file.touch()
    return {"PYTHONPATH": f"{WATCH}:{REPOSITORY}", "LOOPWATCH": str(file)}


class Holds:
    """What was written to ``file``. What has been taken is not told again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._n_read = 0
        self._untaken: list[str] = []
        self.loop = ""
        """The class that is watched; empty as long as none is."""

    def read(self) -> str:
        """All that is there so far, for the last time just before the file goes; gives ``loop``."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._n_read)
                lines = [line for line in file if line.endswith(b"\n")]
        except (FileNotFoundError, PermissionError):
            # Gone with the daemon; or a test has given up its rights for a while, and the next one reads it.
            return self.loop
        self._n_read += sum(map(len, lines))
        for entry in map(json.loads, lines):
            if "watching" in entry:
                self.loop = entry["watching"]
            else:
                self._untaken.append("".join([f"the event loop was {entry['what']}\n", *entry["stack"]]))
        return self.loop

    def take(self) -> list[str]:
        """Each hold and where it was."""
        self.read()
        taken, self._untaken = self._untaken, []
        return taken

    def check(self) -> None:
        """Raises LoopHeld, or LoopSlow."""
        found = self.take()
        if found:
            is_slow = all(one.startswith(BY_CPU_TIME) for one in found)
            raise (LoopSlow if is_slow else LoopHeld)("\n".join(found))
