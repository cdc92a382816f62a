"""Tests whose daemon's loop was slow: which are run again, how often, and with what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY

SLOW = "LoopSlow('the event loop was held for 21 ms of CPU time by x\\nf:2, in g\\nf:1, in y')"
BEGIN = """
import pytest
from pathlib import Path
from tests.held import LoopHeld, LoopSlow

def count(name):
    path = Path(name)
    path.write_text((path.read_text() if path.exists() else "") + "x")
    return len(path.read_text())

@pytest.fixture(scope="module")
def lasting():
    yield count("set up")
    count("torn down")

def test_before(lasting): pass
"""
CASES = {
    "once": (f"def test_it(lasting):\n if count('runs') == 1: raise {SLOW}", 2, True),
    "twice": (f"def test_it(lasting):\n if count('runs') < 3: raise {SLOW}", 3, True),
    "always": (f"def test_it(lasting):\n count('runs'); raise {SLOW}", 3, False),
    "by a system call": ("def test_it(lasting):\n count('runs'); raise LoopHeld('x')", 1, False),
    "otherwise": ("def test_it(lasting):\n count('runs'); assert 0", 1, False),
    "and fails": (
        f"@pytest.fixture\ndef two():\n yield\n raise {SLOW}\ndef test_it(two):\n count('runs'); assert 0",
        1,
        False,
    ),
    "where it ends": (
        f"@pytest.fixture\ndef end():\n yield\n if count('runs') == 1: raise {SLOW}\ndef test_it(end): pass",
        2,
        True,
    ),
    "not at all": ("def test_it(lasting):\n count('runs')", 1, True),
}


@pytest.mark.parametrize("case", CASES)
def test_who_was_slow_and_nothing_else_has_two_more_chances(case: str, tmp_path: Path) -> None:
    test, runs, passes = CASES[case]
    (tmp_path / "test_planted.py").write_text(f"{BEGIN}\n{test}\n\ndef test_after(lasting): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.second_look", "-c", "/dev/null", "--rootdir", "."],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == (0 if passes else 1), done.stdout + done.stderr
    assert f"{3 if passes else 2} passed" in done.stdout
    assert len((tmp_path / "runs").read_text()) == runs
    assert (tmp_path / "set up").read_text() == (tmp_path / "torn down").read_text() == "x" * runs
    told = (
        "test_planted.py::test_it: not again: the event loop was held for 21 ms of CPU time by x, f:1, in y"
    )
    assert done.stdout.count(told) == (runs - 1 if passes else 0)
