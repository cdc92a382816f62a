"""README.md's way to Prometheus: eight of Debian's exporters, an empty directory, three commands, all up.

The exporters are at the ports where everybody expects them, and so are the daemon and Prometheus: the host
has a network of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY, wait_until
from tests.e2e.debian_exporters import PACKAGED
from tests.own_network import alone, beside, skip_without_own_network
from tests.readme.document import Step, blocks, difference, sections, steps

pytestmark = pytest.mark.needs_prometheus

SECTION = "To Prometheus in three commands"
PORTS = {
    "node_exporter": 9100,
    "mysqld_exporter": 9104,
    "blackbox_exporter": 9115,
    "apache_exporter": 9117,
    "redis_exporter": 9121,
    "postgres_exporter": 9187,
    "process_exporter": 9256,
    "exporter_exporter": 9999,
}
"""Of Debian's exporters: where each listens if nobody says anything else."""
START_SECONDS = 40.0
STOP_SECONDS = 20.0
LONGEST_SECONDS = 120.0
"""On a machine that does much else at the same time; README.md says what it takes on one that does not."""
STEPS = [step for block in blocks() if block.section == SECTION for step in steps(block)]


class Shell:
    """A shell of the host, in an empty directory, until the end of the test."""

    def __init__(self, pid_of_host: int, directory: Path, programs: Path) -> None:
        self._screen = directory.with_name("screen")
        self._asked = 0
        with self._screen.open("wb") as screen:
            self._process = subprocess.Popen(
                beside(pid_of_host, "sh"),
                cwd=directory,
                env={
                    **os.environ,
                    "PATH": f"{programs}:{os.environ['PATH']}",
                    "PYTHONPATH": str(REPOSITORY),
                    "LC_ALL": "C.UTF-8",
                },
                stdin=subprocess.PIPE,
                stdout=screen,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, step: Step) -> str:
        """What a command prints until the prompt is back."""
        assert self._process.stdin is not None
        before = len(self._screen.read_text())
        self._asked += 1
        prompt = f"prompt {self._asked}\n"
        self._process.stdin.write(f"{step.command}\necho '{prompt[:-1]}'\n")
        self._process.stdin.flush()
        wait_until(
            lambda: self._screen.read_text().endswith(prompt), f"{step.command} came to an end", START_SECONDS
        )
        return self._screen.read_text()[before:].removesuffix(prompt)

    def end(self) -> None:
        """End it and all that it has started, which is in its process group."""
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.communicate(timeout=STOP_SECONDS)
        wait_until(lambda: not is_group(self._process.pid), "all of it ended", STOP_SECONDS)


def is_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    skip_without_own_network()
    packaged = [PACKAGED[name] for name in PORTS]
    missing = sorted({package for one in packaged for package in one.missing})
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"not installed: {', '.join(missing)}")
    addresses = [f"{name}=127.0.0.1:{port}" for name, port in PORTS.items()]
    programs = tmp_path / "programs"
    programs.mkdir()
    script = programs / "exporter_proxy"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m exporter_proxy "$@"\n')
    script.chmod(0o755)
    directory = tmp_path / "empty"
    directory.mkdir()
    host = subprocess.Popen(
        alone(sys.executable, "-m", "tests.e2e.debian_exporters", *addresses),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n", host.stdout.read()
        shell = Shell(host.pid, directory, programs)
        try:
            yield shell
        finally:
            shell.end()
    finally:
        host.communicate()  # its standard input ends, and so does it


@pytest.mark.timeout(180)
def test_three_commands_lead_from_eight_exporters_to_up_for_all(
    shell: Shell, record_property: Callable[[str, object], None]
) -> None:
    *commands, look = STEPS
    assert len(commands) == 3
    started = time.monotonic()
    for step in commands:
        assert difference(step.output, shell.run(step)) == "", step

    def are_all_up() -> bool:
        return difference(look.output, shell.run(look)) == ""

    wait_until(are_all_up, "all were up", START_SECONDS)
    seconds = time.monotonic() - started
    record_property("seconds_to_up", round(seconds, 1))
    print(f"{seconds:.1f} s from the first command to up == 1 for all")
    assert seconds < LONGEST_SECONDS
    said = re.search(r"Measured: (\d+) s from the first command", sections()[SECTION])
    assert said is not None, "README.md says what was measured"
    assert int(said[1]) < LONGEST_SECONDS / 2
