"""Building what `make dist` builds, and looking at it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY

PACKAGING = REPOSITORY / "packaging"
BUILD_SECONDS = 300.0


def build(repository: Path, out: Path, *packages: str, umask: int = 0o022, epoch: str = "1000000000") -> None:
    """``packages`` as in bookworm/amd64, which alone is built if none is given."""
    subprocess.run(
        [
            *(sys.executable, str(repository / "packaging" / "dist.py"), f"--out={out}"),
            *(f"--deb={package}" for package in packages or ("bookworm/amd64",)),
        ],
        umask=umask,
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch, "PYTHONDONTWRITEBYTECODE": ""},
        check=True,
        timeout=BUILD_SECONDS,
    )


def needs(program: str) -> str:
    """The path of a program; without it the test is skipped, or fails if ``CI`` is "true"."""
    path = shutil.which(program)
    if path is None:
        assert os.environ.get("CI") != "true", f"{program} is not installed"
        pytest.skip(f"{program} is not installed")
    return path


def only(directory: Path, pattern: str) -> Path:
    """The one file of that name."""
    (found,) = directory.glob(pattern)
    return found


def tracked(*directories: str) -> list[str]:
    """Names of the files that git knows in these directories."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *directories], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    return listed.stdout.rstrip("\0").split("\0")
