"""``python -m tests.soak``: a soak of some minutes, and what it came to.

Exit status 0 where every scrape is accounted for and nothing leaked, 1 where not, 2 where it cannot be run
here. It needs a file system of its own for the access log, so it runs in a mount namespace: as root, or where
users may make one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.processes import raise_open_files_limit
from tests.soak.exporters import NotInstalled
from tests.soak.run import Result, soak

INSIDE = "EXPORTER_PROXY_SOAK_INSIDE"
"""Set where the namespace has been entered."""
SHOWN = 40
CANNOT_RUN = 2
NICENESS = -10
AUTOGROUP = Path("/proc/self/autogroup")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if INSIDE not in os.environ:
        return _enter_namespace(sys.argv[1:] if arguments is None else list(arguments))
    raise_open_files_limit()
    with contextlib.suppress(PermissionError):
        # Beside other tests: what is looked for are defects, not how long a busy machine lets one wait.
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        if os.getsid(0) == os.getpid() and AUTOGROUP.exists():  # between sessions it is this one that counts
            AUTOGROUP.write_text(str(NICENESS))
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    directory = Path(tempfile.mkdtemp(prefix="exporter_proxy-soak-")).resolve()
    _say(f"seed {seed}, {options.minutes:g} minutes, in {directory}")
    try:
        result = soak(directory, options.minutes, seed, _tell)
    except NotInstalled as missing:
        _say(str(missing))
        shutil.rmtree(directory)
        return CANNOT_RUN
    print(f"\n{summary(result, seed)}")
    if result.violations:
        print(f"all logs are in {directory}")
        return 1
    if not options.keep:
        shutil.rmtree(directory)
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__, allow_abbrev=False)
    result.add_argument(
        "--minutes", type=float, default=60.0, help="of faults; each kind comes once in any case"
    )
    result.add_argument("--seed", type=int, help="for the same faults in the same order; default: any")
    result.add_argument("--keep", action="store_true", help="keep the logs, also where all is well")
    return result


def summary(result: Result, seed: int) -> str:
    by_prometheus, checks = result.prometheus, result.checks
    failed, unlogged = by_prometheus.failed + checks.failed, by_prometheus.unlogged + checks.unlogged
    faults = ", ".join(f"{name} {times}" for name, times in sorted(result.faults.items()))
    rows = [
        f"minutes:    {result.seconds / 60:.1f}, seed {seed}",
        f"scrapes:    {by_prometheus.scrapes:,} by Prometheus, {checks.scrapes:,} by the checking scraper "
        f"({result.sums:,} checksums right)",
        f"faults:     {result.faults.total():,}: {faults}",
        f"hostile:    {result.hostile.total():,} attempts in {len(result.hostile)} ways",
        f"failed:     {failed:,} scrapes, each within a fault that may cost it",
        f"no line:    {unlogged:,} scrapes, each within a fault that may cost that; "
        f"{result.lines_lost:,} lines counted as lost",
        f"counters:   {result.readings:,} readings agree with the access log",
        f"processes:  {result.processes} of the daemon",
        f"memory:     {result.memory}",
        f"machine:    too busy for {result.busy_seconds:.1f} s",
        f"lost:       {result.lost}",
        f"violations: {len(result.violations)}",
    ]
    rows += [f"  {one}" for one in result.violations[:SHOWN]]
    return "\n".join(rows)


def _enter_namespace(arguments: list[str]) -> int:
    """Run it again in a mount namespace of its own, and if need be in a user namespace that allows that."""
    ways = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])
    for way in ways:
        if subprocess.run([*way, "true"], capture_output=True, check=False).returncode == 0:
            inside = [*way, sys.executable, "-m", "tests.soak", *arguments]
            os.execvpe(inside[0], inside, {**os.environ, INSIDE: "1"})
    _say("it needs a mount namespace: run it as root, or allow unprivileged user namespaces")
    return CANNOT_RUN


def _say(text: str) -> None:
    print(text, flush=True)


def _tell(progress: str) -> None:
    """For who watches; in a file it would be noise."""
    if sys.stdout.isatty():
        _say(progress)


if __name__ == "__main__":
    sys.exit(main())
