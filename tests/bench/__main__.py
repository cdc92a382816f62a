"""``python -m tests.bench``: run the sections, print the table, write the JSON.

Exit status 0 where every budget is met, 1 where one is missed or could not be measured, 2 for a usage
error, 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from tests.bench.cpu import cpu, latency, verify
from tests.bench.figures import Figure, missed, summary, table
from tests.bench.hung import hung
from tests.bench.machine import describe_machine
from tests.bench.memory import memory
from tests.bench.pair import pair
from tests.bench.processes import NotMeasured, raise_open_files_limit
from tests.bench.progress import say
from tests.bench.routes import routes
from tests.bench.run import Run
from tests.bench.site import site
from tests.bench.start import start
from tests.bench.tls import tls

SECTIONS: dict[str, Callable[[Run], list[Figure]]] = {
    "cpu": cpu,
    "verify": verify,
    "latency": latency,
    "tls": tls,
    "pair": pair,
    "memory": memory,
    "routes": routes,
    "hung": hung,
    "start": start,
}
ROUNDS, ROUNDS_QUICK = 5, 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    raise_open_files_limit()
    machine, started = describe_machine(), time.monotonic()
    try:
        figures = measure(options)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    took_seconds = round(time.monotonic() - started)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    rounds = f"{options.rounds} rounds of {options.seconds} s"
    print(f"medians of {rounds}, taken in turn; {took_seconds} s in all")
    print(f"\n{table(figures)}\n\n{summary(figures)}")
    report = {
        "machine": machine,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "quick": options.quick,
        "took_seconds": took_seconds,
        "figures": [figure.as_json() for figure in figures],
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if missed(figures) else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, allow_abbrev=False)
    result.add_argument("--only", action="append", choices=SECTIONS, help="this section; may be repeated")
    result.add_argument("--rounds", type=_at_least_1, help=f"default: {ROUNDS}, with --quick {ROUNDS_QUICK}")
    result.add_argument("--seconds", type=_at_least_1, default=1, help="of load in each round, default: 1")
    result.add_argument(
        "--quick", action="store_true", help="budgets only, fewer rounds and peers, 20,000 scrapes"
    )
    result.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE")
    return result


def measure(options: argparse.Namespace) -> list[Figure]:
    """The figures of all sections asked for; a section that cannot even be set up is one missed row."""
    options.rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="exporter_proxy-bench-") as directory:
        try:
            with site(Path(directory)) as ready:
                run = Run(ready, options.rounds, options.seconds, options.quick)
                for name in options.only or SECTIONS:
                    figures += measure_section(run, name)
        except NotMeasured as trouble:
            figures.append(Figure("setting up", "the exporters", "", failure=str(trouble)))
    return figures


def measure_section(run: Run, name: str) -> list[Figure]:
    try:
        return SECTIONS[name](run)
    except NotMeasured as trouble:
        return [Figure(name, "the whole section", "", failure=str(trouble))]


def _at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Give up, once: a second Ctrl-C would leave processes behind."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda number, frame: None)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
