"""Which CPU what is measured runs on.

Left to the scheduler, a proxy's cost for the same 57 KB page differs by half from one second to the
next, as it shares a core with the load or does not. On a core to itself it does not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def apart(measured: Collection[int], others: Collection[int]) -> Iterator[None]:
    """While the block lasts, the measured processes have the last CPU, and these others and we the rest.

    Processes that are started meanwhile are with us. Where there is one CPU only, nothing changes.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if not measured or len(cpus) < 2:
        yield
        return
    others = [*others, os.getpid()]
    try:
        confine(measured, cpus[-1:])
        confine(others, cpus[:-1])
        yield
    finally:
        confine([*measured, *others], cpus)


def confine(pids: Iterable[int], cpus: Collection[int]) -> None:
    """Threads that these processes start later stay with those that start them."""
    for pid in pids:
        # A process that has ended is somebody else's discovery to make.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), cpus)
