"""``python -m tests.faults``: play every case at the daemon and its peers, and print who holds what.

Exit status 0 where the daemon holds every case, 1 where it does not, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from exporter_proxy import __version__
from tests.bench.processes import NotMeasured
from tests.faults import peers, ways
from tests.faults.cases import CASES, play, why_not
from tests.faults.points import OURS, PROGRAMS
from tests.faults.report import Finding, Report, finding
from tests.faults.target import Target

AT_ONCE = 3
"""Most of the time is spent waiting for what drips."""
INTERRUPTED = 130
Setup = Callable[[], AbstractContextManager[Target]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        report = measure(options.only or PROGRAMS)
    except KeyboardInterrupt:
        return INTERRUPTED
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    if options.markdown:
        print(report.markdown())
    else:
        print(report.table(), "", *map(report.ways, report.versions), "", *report.violations(), sep="\n")
    return 0 if report.is_ours_whole else 1


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__, allow_abbrev=False)
    result.add_argument("--only", action="append", choices=PROGRAMS, help="this program; may be repeated")
    result.add_argument("--markdown", action="store_true", help="print the table as it is in README.md")
    result.add_argument("--json", type=Path, metavar="FILE", help="write every finding there")
    return result


def measure(programs: Sequence[str]) -> Report:
    """Play all cases at these programs; one that is not installed is left out."""
    versions, setups = {}, list[Setup]()
    for name in programs:
        try:
            versions[name] = __version__ if name == OURS else peers.version(name)
        except NotMeasured as trouble:
            print(trouble, file=sys.stderr)
            continue
        setups += (
            ways.SETUPS.values()
            if name == OURS
            else [partial(peers.serving, name, way) for way in peers.WAYS[name]]
        )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        findings = [one for found in pool.map(play_all, setups) for one in found]
    return Report(versions, findings)


def play_all(setup: Setup) -> list[Finding]:
    with setup() as target:
        print(f"{target.program} {target.way} ...", file=sys.stderr, flush=True)
        return [
            finding(target.program, target.way, case, play(case, target))
            for case in CASES
            if not why_not(case, target)
        ]


if __name__ == "__main__":
    sys.exit(main())
