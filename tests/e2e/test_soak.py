"""Two minutes of the soak: each kind of fault at least once, and every scrape accounted for.

``make soak`` is the same for an hour.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.daemon import REPOSITORY
from tests.soak.__main__ import CANNOT_RUN

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.soak]

KINDS = (
    *("exporter killed", "exporter stopped", "exporter restarted", "exporter broken", "command hangs"),
    *("config reloaded", "bad config reloaded", "certificate renewed", "certificate spoilt"),
    *("log rotated", "log disk full", "clock stepped", "crowd of idle connections", "out of descriptors"),
    *("daemon killed", "daemon restarted"),
)


@pytest.mark.timeout(900)
def test_two_minutes_of_everything() -> None:
    soak = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--minutes", "2", "--seed", "1"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=840,
        check=False,
        start_new_session=True,
    )
    if soak.returncode == CANNOT_RUN and os.environ.get("CI") != "true":
        pytest.skip(soak.stdout)
    assert soak.returncode == 0, soak.stdout
    assert "lost:       0\nviolations: 0\n" in soak.stdout
    for kind in KINDS:
        assert f" {kind} " in soak.stdout
