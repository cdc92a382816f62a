"""Writes the files of pins anew: the newest versions that pyproject.toml allows, each wheel with its hash.

Run by ``make lock``, with the oldest Python supported: of the dependencies with a condition on the version of
Python, that is the one with the most.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from reproducible import REPOSITORY, sha256
from wheels import BUILD, PYTHONS, RUNTIME, TARGETS, download

HEAD = "# Made by `make lock`, from {}; not to be edited.\n"
CONTINUED = "\\\n    "


def main() -> None:
    if "{}.{}".format(*sys.version_info) != PYTHONS[0]:
        sys.exit(f"lock.py: run this with Python {PYTHONS[0]}, the oldest one that is supported")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    for destination, wanted, source in (
        (RUNTIME, project["project"]["dependencies"], "the dependencies in pyproject.toml"),
        (BUILD, ["pip", *project["build-system"]["requires"]], "pip and the build-system in pyproject.toml"),
    ):
        destination.write_text(HEAD.format(source) + "".join(_locked(_resolved(wanted))))


def _resolved(wanted: list[str]) -> list[str]:
    """``wanted`` and all that it needs, each as name==version."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    command += ["--ignore-installed", "--only-binary=:all:", "--report=-", *wanted]
    report = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found = (one["metadata"] for one in json.loads(report)["install"])
    return sorted(f"{one['name'].lower().replace('_', '-')}=={one['version']}" for one in found)


def _locked(pins: list[str]) -> list[str]:
    """The pins with the hashes of their wheels for every target."""
    with tempfile.TemporaryDirectory() as directory:
        for target in TARGETS:
            download(pins, target, Path(directory))
        hashes: dict[str, list[str]] = {pin: [] for pin in pins}
        for wheel in sorted(Path(directory).iterdir()):
            name, version = wheel.name.split("-")[:2]
            hashes[f"{name.lower().replace('_', '-')}=={version}"].append(sha256(wheel))
    return [f"{pin}{''.join(f' {CONTINUED}--hash=sha256:{one}' for one in hashes[pin])}\n" for pin in pins]


if __name__ == "__main__":
    main()
