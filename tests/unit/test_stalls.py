"""A process that was stopped knows for how long."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.daemon import REPOSITORY

STOPPED_SECONDS = 0.5
CHILD = """
import time
from tests.stalls import stalled_since
began = time.monotonic()
print("ready", flush=True)
input()
print(stalled_since(began), stalled_since(began + 3600), time.monotonic() - began)
"""


def test_a_process_knows_for_how_long_it_was_stopped() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        child.send_signal(signal.SIGCONT)
        time.sleep(STOPPED_SECONDS)
        said, _ = child.communicate("\n")
    stalled, later, took = (float(word) for word in said.split())
    assert STOPPED_SECONDS * 0.9 < stalled < took - STOPPED_SECONDS * 0.5, "while it went on it was not"
    assert later == 0.0
