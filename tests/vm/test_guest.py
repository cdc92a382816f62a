"""A guest whose starter is no more is known by a file alone, and what is in it may no longer be so."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.vm.guest import Guest, began_at


def test_only_the_process_that_was_started_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        try:
            began = began_at(process.pid)
            # Another one had its number once.
            _left_behind(tmp_path, process.pid, began - 1).stop()
            assert process.poll() is None
            _left_behind(tmp_path, process.pid, began).stop()
            assert process.wait(10) == -9
        finally:
            process.kill()


def _left_behind(state: Path, supervisor_pid: int, supervisor_began: int) -> Guest:
    """As a later process finds it."""
    guest = Guest(
        "vm1", "", str(state), "", 24, f"test-{state.name}", False, supervisor_pid, supervisor_began
    )
    guest.save()
    return Guest.load(state)
