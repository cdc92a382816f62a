"""A limit for processes and threads, as a unit's TasksMax= is one: a cgroup with ``pids.max``."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import wait_until


class TasksLimit:
    """A cgroup with the pids controller."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def launcher(self) -> list[str]:
        """Goes before a command that is to live within the limit, with all that it starts."""
        return ["sh", "-c", f'echo $$ >{self.directory}/cgroup.procs; exec "$@"', "sh"]

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in (self.directory / "cgroup.procs").read_text().split()]

    @property
    def tasks(self) -> int:
        """Processes and threads that there are now, zombies included."""
        return int((self.directory / "pids.current").read_text())

    def was_reached(self) -> bool:
        """Whether a process or thread was ever refused."""
        events = dict(line.split() for line in (self.directory / "pids.events").read_text().splitlines())
        return int(events["max"]) > 0

    def end_all_but(self, pid: int) -> None:
        """As systemd does it with what is left of a unit."""
        for other in self.pids:
            if other != pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)


@contextlib.contextmanager
def tasks_limit(tasks: int) -> Iterator[TasksLimit]:
    """A new one; skips where cgroups cannot be made (root, and the pids controller of either version)."""
    parent = next(filter(_has_pids_controller, (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids"))), None)
    if parent is None or not os.access(parent, os.W_OK):
        pytest.skip("no cgroup with a limit for tasks can be made here")
    directory = parent / f"exporter_proxy-tasks-{uuid.uuid4().hex[:8]}"
    directory.mkdir()
    limit = TasksLimit(directory)
    try:
        (directory / "pids.max").write_text(f"{tasks}\n")
        yield limit
    finally:
        wait_until(lambda: _removed(limit), "the cgroup is empty", 10)


def _has_pids_controller(directory: Path) -> bool:
    subtree = directory / "cgroup.subtree_control"
    if subtree.exists():
        return "pids" in subtree.read_text().split()
    return directory.name == "pids" and directory.is_dir()


def _removed(limit: TasksLimit) -> bool:
    limit.end_all_but(0)
    try:
        limit.directory.rmdir()
    except OSError:
        return False
    return True
