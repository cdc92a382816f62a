"""The wheels that this project is delivered with: pinned, each with its hash, and kept once they are here.

``requirements.txt`` holds what the daemon needs, for every target; ``requirements-build.txt`` holds what
builds it. Both are made by lock.py.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from reproducible import REPOSITORY, sha256

HERE = Path(__file__).resolve().parent
RUNTIME = HERE / "requirements.txt"
BUILD = HERE / "requirements-build.txt"
KEPT = REPOSITORY / "build" / "wheels"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")


class WheelError(Exception):
    """Not every pinned wheel can be had; the message says which file of pins is concerned."""


@dataclass(frozen=True, slots=True)
class Target:
    """A Python and a machine that wheels are for."""

    python: str
    machine: str

    @property
    def pip_arguments(self) -> list[str]:
        """Makes pip take wheels for this target: for glibc 2.28, which any system with Python 3.11 has."""
        platforms = [f"manylinux_2_28_{self.machine}", f"manylinux2014_{self.machine}"]
        if self.machine == "x86_64":
            platforms += [f"manylinux2010_{self.machine}", f"manylinux1_{self.machine}"]
        return [
            *(f"--platform={platform}" for platform in platforms),
            f"--python-version={self.python}",
            "--implementation=cp",
            "--only-binary=:all:",
        ]


TARGETS = tuple(Target(python, machine) for python in PYTHONS for machine in MACHINES)


def hashes(requirements: Path) -> set[str]:
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})", requirements.read_text()))


def pinned_wheels(requirements: Path) -> list[Path]:
    """Exactly the files that ``requirements`` has hashes of, by name. Downloads what is missing.

    Raises:
        WheelError: one is not to be had, or is not what it was.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for target in TARGETS:
            if len(_kept(requirements)) < len(hashes(requirements)):
                download(["--require-hashes", "-r", str(requirements)], target, KEPT)
        found = _kept(requirements)
    if len(found) < len(hashes(requirements)):
        raise WheelError(f"{requirements}: {len(hashes(requirements)) - len(found)} wheels are missing")
    return found


def _kept(requirements: Path) -> list[Path]:
    wanted = hashes(requirements)
    return [path for path in sorted(KEPT.glob("*.whl")) if sha256(path) in wanted]


def download(what: list[str], target: Target, directory: Path) -> None:
    """``pip download`` without dependencies, for another machine.

    Raises:
        WheelError: pip failed; it has said why.
    """
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    command += [*target.pip_arguments, f"--dest={directory}", *what]
    if subprocess.run(command, check=False).returncode:
        raise WheelError(f"pip could not download for Python {target.python} on {target.machine}")


def install(what: list[str], pip_wheel: Path, directory: Path, target: Target | None = None) -> None:
    """Install wheels that are here into ``directory``, by the pinned pip and without any network."""
    command = [sys.executable, "-I", f"{pip_wheel}/pip", "--isolated", "install", "--quiet", "--no-index"]
    command += ["--disable-pip-version-check", "--root-user-action=ignore", "--no-compile", "--no-deps"]
    command += [*(target.pip_arguments if target else []), f"--target={directory}", *what]
    subprocess.run(command, check=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull})


def pip_wheel() -> Path:
    """pip itself, which can be run without having been installed."""
    return next(path for path in pinned_wheels(BUILD) if path.name.startswith("pip-"))
