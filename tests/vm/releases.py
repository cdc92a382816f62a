"""Releases to install on guests: this tree as it is, and once more as a later version."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from exporter_proxy import __version__

REPOSITORY = Path(__file__).parents[2]
LATER_VERSION = "99.0.0"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


@dataclass(frozen=True, slots=True)
class Release:
    """One version, in the two forms that need no network."""

    version: str
    directory: Path

    @property
    def wheelhouse(self) -> Path:
        return self.directory / f"exporter_proxy-{self.version}-wheelhouse.tar.gz"

    def deb(self, suite: str) -> Path:
        number = {"bookworm": 12, "trixie": 13}[suite]
        (found,) = self.directory.glob(f"*+deb{number}_{ARCHITECTURE}.deb")
        return found


def release(version: str, directory: Path, suites: tuple[str, ...] = ()) -> Release:
    """Built by ``packaging/dist.py`` into ``directory``, once, whichever of several processes asks first.

    Args:
        version: this tree's own, or another to build it as.
        directory: where to put the wheelhouse.
        suites: releases of Debian to build packages for; those go into directories of their own.
    """
    kind = "-".join(["deb", *suites]) if suites else "wheelhouse"
    destination = directory / f"{version}-{kind}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not destination.exists():
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                built = Path(scratch) / "built"
                _build(version, suites, Path(scratch) / "source", built)
                built.rename(destination)
    return Release(version, destination)


def _build(version: str, suites: tuple[str, ...], source: Path, destination: Path) -> None:
    _copy_repository(source)
    if version != __version__:
        init = source / "exporter_proxy" / "__init__.py"
        changed, count = re.subn(r"(?m)^__version__ = .*$", f'__version__ = "{version}"', init.read_text())
        assert count == 1, "exporter_proxy/__init__.py has no version"
        init.write_text(changed)
    kinds = [f"--deb={suite}/{ARCHITECTURE}" for suite in suites] + ["--no-wheelhouse"]
    subprocess.run(
        [sys.executable, "packaging/dist.py", f"--out={destination}", *(kinds if suites else ["--deb=none"])],
        cwd=source,
        check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1750000000"},
    )


def _copy_repository(destination: Path) -> None:
    """The tracked files, in a repository of their own: that is what packages are built from."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    for name in listed.rstrip("\0").split("\0"):
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target, follow_symlinks=False)
    # Downloaded wheels are shared.
    wheels = REPOSITORY / "build" / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    (destination / "build").mkdir()
    (destination / "build" / "wheels").symlink_to(wheels)
    for command in (["git", "init", "--quiet"], ["git", "add", "--all"]):
        subprocess.run(command, cwd=destination, check=True)
