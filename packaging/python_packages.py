"""Builds the wheel and the sdist, by setuptools as it is pinned."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reproducible import copy_tracked_files, normalise, source_date_epoch, write_tar_gz
from wheels import BUILD, install, pinned_wheels, pip_wheel

CALL_BACKEND = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def build(destination: Path) -> Path:
    """Put both into ``destination``; the path of the wheel."""
    with tempfile.TemporaryDirectory() as directory:
        source, tools = Path(directory) / "source", Path(directory) / "tools"
        install([str(path) for path in pinned_wheels(BUILD)], pip_wheel(), tools)
        copy_tracked_files(source)
        sdist = _backend(tools, "build_sdist", source, Path(directory) / "sdist")
        # The wheel is made from the sdist: whoever builds from that gets the same one.
        shutil.unpack_archive(sdist, source.with_name("unpacked"))
        unpacked = next(source.with_name("unpacked").iterdir())
        normalise(unpacked)
        wheel = _backend(tools, "build_wheel", unpacked, Path(directory) / "wheel")
        write_tar_gz(destination / sdist.name, _members(sdist))
        return Path(shutil.copyfile(wheel, destination / wheel.name))


def _members(archive: Path) -> Iterator[tuple[str, bytes, bool]]:
    """The regular files in a tar.gz, for ``write_tar_gz``."""
    with tarfile.open(archive) as opened:
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                yield member.name, content.read(), bool(member.mode & 0o100)


def _backend(tools: Path, hook: str, source: Path, destination: Path) -> Path:
    """Call a hook of setuptools (PEP 517); what it has built."""
    destination.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tools), "SOURCE_DATE_EPOCH": str(source_date_epoch())}
    command = [sys.executable, "-W", "ignore", "-c", CALL_BACKEND, hook, str(destination)]
    subprocess.run(command, cwd=source, env=environment, check=True, stdout=subprocess.DEVNULL)
    return next(destination.iterdir())
