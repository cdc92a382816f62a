#!/usr/bin/env python3
"""Installs exporter_proxy from the directory that this file is in, with nothing but Python and no network.

    ./install [DIR]            into DIR/releases/VERSION/venv; DIR is /opt/exporter_proxy unless it is given
    python3.12 install [DIR]   for another Python than python3

DIR/current is then a link to this release: DIR/current/venv/bin/exporter_proxy. Releases that were installed
before stay; to go back, set the link.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 11)
FINISHED = ".installed"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="install", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path, default=Path("/opt/exporter_proxy"))
    parser.add_argument(
        "--keep-current", action="store_true", help="leave DIR/current at the release that it links to"
    )
    options = parser.parse_args()
    directory = options.directory.absolute()
    if sys.version_info < OLDEST_PYTHON:
        version = "{}.{}".format(*OLDEST_PYTHON)
        return fail(
            f"Python {version} or newer is needed, this is {sys.version.split()[0]}: python{version} install"
        )
    damaged = damaged_files()
    if damaged:
        return fail(f"not what was packed: {', '.join(damaged)}; unpack the archive again")
    release = directory / "releases" / (HERE / "VERSION").read_text().strip()
    try:
        if not (release / FINISHED).exists():
            install(release)
        if not options.keep_current:
            set_current(directory / "current", Path("releases") / release.name)
    except (OSError, subprocess.CalledProcessError) as error:
        return fail(f"{release}: {error}")
    print(f"{release if options.keep_current else directory / 'current'}/venv/bin/exporter_proxy")
    return 0


def fail(reason: str) -> int:
    print(f"install: {reason}", file=sys.stderr)
    return 1


def damaged_files() -> list[str]:
    """Files of SHA256SUMS that are missing or not what they were, and wheels that it does not name."""
    lines = (HERE / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    names = sums.keys() | {f"wheels/{path.name}" for path in (HERE / "wheels").iterdir()}
    return sorted(name for name in names if not is_intact(HERE / name, sums.get(name)))


def is_intact(path: Path, digest: str | None) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def install(release: Path) -> None:
    """A virtual environment with the wheels in it. One that was not finished is made anew."""
    shutil.rmtree(release, ignore_errors=True)
    os.umask(0o022)
    venv = release / "venv"
    subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", venv], check=True)
    # pip need not be there: it runs from its own wheel, isolated from the settings of this host.
    pip = next((HERE / "wheels").glob("pip-*.whl")) / "pip"
    command: list[str | Path] = [
        venv / "bin" / "python",
        "-I",
        pip,
        "--isolated",
        "install",
        "--quiet",
        "--no-index",
    ]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--require-hashes"]
    command += ["--find-links", HERE / "wheels", "--requirement", HERE / "requirements.txt"]
    subprocess.run(command, check=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull})
    subprocess.run([venv / "bin" / "exporter_proxy", "--version"], check=True, stdout=subprocess.DEVNULL)
    (release / FINISHED).touch()


def set_current(link: Path, target: Path) -> None:
    """Set the link in one step: there is no moment without one."""
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.symlink_to(target)
    new.replace(link)


if __name__ == "__main__":
    sys.exit(main())
