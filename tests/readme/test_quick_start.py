"""README.md's two commands, the first of them in a copy of this repository that has nothing installed.

``make run`` takes port 9099 and looks at all that listens on the host, so it has a network namespace of its
own, where nothing does. Where the system does not permit that it runs beside everything else; what it then
finds is not known beforehand, and less can be said of its screen.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY, wait_until
from tests.own_network import alone, beside, can_have_own_network
from tests.readme.document import Step, blocks, code_words, difference, sections, steps

STEPS = [step for block in blocks() if block.section == "Quick start" for step in steps(block)]
SETUP_SECONDS = 540
START_SECONDS = 30.0
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", ".hypothesis")
LAST_LINE = "Ctrl-C stops it."


def environment() -> dict[str, str]:
    """Without what a ``make`` that runs these tests hands down to the ones they start."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return {**inherited, "PYTHON": sys.executable, "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Terminal:
    """``make run``, as it runs in ``directory``; ``is_alone``: nothing else is on its network."""

    process: subprocess.Popen[bytes]
    directory: Path
    is_alone: bool

    @property
    def screen(self) -> str:
        return (self.directory / "screen").read_text()

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def is_serving(self) -> bool:
        assert self.process.poll() is None, f"it ended:\n{self.screen}{self.log}"
        return LAST_LINE in self.screen and "msg=listening" in self.log

    def beside(self, command: str) -> str:
        """What a command prints in another terminal of the same host."""
        words = ["sh", "-c", command]
        result = subprocess.run(
            beside(self.process.pid, *words) if self.is_alone else words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert result.returncode == 0, f"{command}: status {result.returncode}\n{result.stdout}"
        return result.stdout


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Terminal]:
    """``make run`` in a copy of the repository, serving."""
    copy = tmp_path / "clone"
    shutil.copytree(REPOSITORY, copy, ignore=NOT_COPIED)
    # The first line of its recipe, which needs the network that a namespace of its own has not.
    setup = subprocess.run(
        [".ci/setup", "run"],
        cwd=copy,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SETUP_SECONDS,
        check=False,
    )
    assert setup.returncode == 0, setup.stdout
    is_alone = can_have_own_network()
    with (tmp_path / "screen").open("wb") as screen, (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            alone("make", "run") if is_alone else ["make", "run"],
            cwd=copy,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=screen,
            stderr=log,
            start_new_session=True,
        )
    terminal = Terminal(process, tmp_path, is_alone)
    try:
        wait_until(terminal.is_serving, "make run served and said so", START_SECONDS)
        yield terminal
    finally:
        # The demo exporter ends by itself when the daemon does, killed or not.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(copy)  # 50 MB, and pytest keeps such directories


def step_of(command: str) -> Step:
    return next(step for step in STEPS if step.command == command)


def test_the_quick_start_has_its_two_commands_and_a_look_at_the_first() -> None:
    others = [step.command for step in STEPS if step.command not in ("make run", "make test")]
    assert len(STEPS) - len(others) == 2
    unknown = [command for command in others if not command.startswith("curl -s http://127.0.0.1:9099/")]
    assert others
    assert not unknown, "no test knows what to do with these"


@pytest.mark.timeout(SETUP_SECONDS + 60)
def test_make_run_serves_a_fresh_host(make_run: Terminal) -> None:
    *screen, log_line = step_of("make run").output
    if make_run.is_alone:
        assert difference(screen, make_run.screen) == ""
        assert difference([log_line], make_run.log) == ""
    printed = re.findall(r"^  (curl \S+)", make_run.screen, re.MULTILINE)
    assert len(printed) == 2
    shown = [step for step in STEPS if step.command.startswith("curl")] if make_run.is_alone else []
    for step in shown:
        assert difference(step.output, make_run.beside(step.command)) == ""
    # Elsewhere the first line may lead to an exporter that another test has running, and has broken.
    for command in printed if make_run.is_alone else printed[1:]:
        assert make_run.beside(f"{command} -sSf")
    os.killpg(make_run.process.pid, signal.SIGINT)  # Ctrl-C
    # make itself ends by the signal; that it is quiet about it is seen in the log.
    assert make_run.process.wait(START_SECONDS) in (0, -signal.SIGINT)
    assert make_run.log.splitlines()[-1].endswith("msg=stopped")
    wait_until(lambda: not is_running(make_run.directory), "all of it ended", START_SECONDS)


def is_running(directory: Path) -> bool:
    """Whether anything of the copy below ``directory`` still runs, the demo exporter included."""
    needle = os.fsencode(directory)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and needle in (entry / "cmdline").read_bytes():
                return True
        except OSError:
            continue  # it has ended meanwhile
    return False


def recipe(target: str) -> list[str]:
    """What ``make`` would run."""
    result = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=True,
    )
    return result.stdout.splitlines()


def test_without_make_the_first_command_is_what_its_recipe_says() -> None:
    assert " && ".join(recipe("run")) in code_words(sections()["Quick start"])


def test_the_second_command_is_what_runs_these_tests() -> None:
    step_of("make test")
    continuous_integration = (REPOSITORY / ".ci/run").read_text()
    assert re.search(r"^make( --\S+)*( \w+)* test\b", continuous_integration, re.MULTILINE)
    commands = recipe("test")
    assert commands[0] == ".ci/setup"
    assert "-m pytest" in commands[1]
    assert not re.search(r"\s(-k|-m \S+|tests/\S+)", commands[1].partition("-m pytest")[2]), (
        "it leaves some out"
    )
