"""``make dist``: wheel, sdist, wheelhouse and Debian packages of this commit.

Each kind can be left out by naming the others; all but the wheel and the sdist contain the wheel.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import deb
import python_packages
import wheelhouse
from reproducible import REPOSITORY
from wheels import WheelError

PLATFORMS = {
    f"{release.name}/{architecture}": (release, architecture)
    for release in deb.RELEASES
    for architecture in deb.ARCHITECTURES
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dist.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "dist", help="default: dist/")
    parser.add_argument("--no-wheelhouse", action="store_true")
    parser.add_argument(
        "--deb",
        action="append",
        choices=[*PLATFORMS, "none"],
        help="packages for these only; default: all",
    )
    options = parser.parse_args()
    os.umask(0o022)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        wheel = python_packages.build(options.out)
        version = wheel.name.split("-")[1]
        if not options.no_wheelhouse:
            wheelhouse.build(wheel, version, options.out)
        for name in options.deb or PLATFORMS:
            if name != "none":
                deb.build(wheel, version, *PLATFORMS[name], options.out)
    except WheelError as error:
        print(f"dist.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
