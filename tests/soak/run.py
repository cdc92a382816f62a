"""One soak from its beginning to its end: set up, break, become quiet, reckon."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.daemon import wait_until
from tests.e2e.processes import START_SECONDS
from tests.soak import quiet, starvation
from tests.soak.accesslog import Line, read_lines
from tests.soak.checker import Checker
from tests.soak.client import Client
from tests.soak.counters import by_incarnation, disagreements, final_disagreement
from tests.soak.daemon_faults import daemon_faults
from tests.soak.exporter_faults import exporter_faults
from tests.soak.faults import Lane
from tests.soak.ledger import clock
from tests.soak.memory import Memory
from tests.soak.prometheus import Prometheus, Scrape, prometheus
from tests.soak.reckoning import Excuses, Verdicts, reckon_checks, reckon_prometheus
from tests.soak.site import CHECKER, OWN, Site, site
from tests.soak.supervisor import LOG
from tests.soak.watch import Watch

PROGRESS_SECONDS = 5.0
HOSTILE_LOG = "hostile.log"
EPOCH_SECONDS = 3600.0
CONTEXT_LINES = 8
EXPLAINED = 10
SHOWN_OF_A_KIND = 3
"""Counters that disagree once go on to do so."""


@dataclass
class Result:
    """What one soak came to."""

    seconds: float = 0.0
    prometheus: Verdicts = field(default_factory=Verdicts)
    checks: Verdicts = field(default_factory=Verdicts)
    sums: int = 0
    readings: int = 0
    hostile: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    processes: int = 0
    """How many the daemon was, one after the other."""
    lines_lost: int = 0
    memory: Memory | None = None
    busy_seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.prometheus.lost + self.checks.lost


def soak(directory: Path, minutes: float, seed: int, tell: Callable[[str], None]) -> Result:
    """Raises NotInstalled, and AssertionError where the site does not even start."""
    began = time.time()
    result = Result()
    with site(directory, seed) as ready:
        client = Client(ready)
        watch, checker = Watch(ready, client), Checker(ready, client, seed)
        # Whenever there are scrapes: the first and the last of them are judged as all others are.
        with starvation.watching(ready.ledger), prometheus(ready) as server:
            before = _warm_up(ready, server, watch)
            with _hostile(ready, seed, result):
                _break(ready, server, watch, checker, minutes, seed, tell)
            stopped_at = time.time()
            server.stop_scraping()
            result.violations += quiet.leaks(ready, watch, before)
            result.seconds = time.time() - began
            scrapes = server.scrapes(result.seconds)
        result.violations += quiet.end(ready)
    result.violations += quiet.left_processes(directory)
    lines = read_lines(ready.kept_logs, began - EPOCH_SECONDS)
    _reckon(ready, result, scrapes, lines, checker, watch, stopped_at)
    _reckon_counters(ready, result, lines, watch)
    first, others = result.violations[:EXPLAINED], result.violations[EXPLAINED:]
    result.violations = [explained(one, directory / LOG) for one in first] + others
    return result


def explained(violation: str, log: Path) -> str:
    """With the lines of the daemon's log about that time, where it begins with one."""
    try:
        moment = datetime.fromisoformat(violation.partition(" ")[0])
    except ValueError:
        return violation
    near = [clock(moment.timestamp() + second)[:19] for second in range(-1, 3)]
    with log.open(errors="replace") as lines:
        found = [line.strip() for line in lines if line.removeprefix("ts=").startswith(tuple(near))]
    return "\n      ".join([violation, *found[:CONTEXT_LINES]])


def _warm_up(ready: Site, server: Prometheus, watch: Watch) -> quiet.Holdings:
    """Until Prometheus finds everything up; then what the daemon has open, having reloaded once."""
    wait_until(lambda: watch.read() is not None, "the daemon answers", START_SECONDS)
    ready.daemon.signal(signal.SIGHUP)  # from then on it has the thread that reads configurations

    def is_all_up() -> bool:
        time.sleep(0.2)
        up = server.up()
        return all(up.get(name, (0.0, False))[1] for name in [*ready.names, OWN])

    wait_until(is_all_up, "everything is up", 2 * START_SECONDS)
    return quiet.Holdings.of(ready.daemon.pid)


def _break(
    ready: Site,
    server: Prometheus,
    watch: Watch,
    checker: Checker,
    minutes: float,
    seed: int,
    tell: Callable[[str], None],
) -> None:
    """Until the time is over and each fault has come."""
    began = time.monotonic()
    lanes = [
        Lane(name, ready, server, faults, seed + number, began + minutes * 60)
        for number, (name, faults) in enumerate(
            [("exporters", exporter_faults(ready)), ("daemon", daemon_faults(ready, watch, checker))]
        )
    ]
    with ExitStack() as stack:
        threads: list[Watch | Checker | Lane] = [watch, checker, *lanes]
        for one in threads:
            stack.callback(one.stop)
            one.start()
        while any(lane.is_running for lane in lanes):
            time.sleep(min(PROGRESS_SECONDS, 60 * minutes / 10))
            tell(_progress(ready, watch, checker, time.monotonic() - began))
        for lane in lanes:
            if lane.defect is not None:
                raise lane.defect


def _progress(ready: Site, watch: Watch, checker: Checker, seconds: float) -> str:
    windows = ready.ledger.windows
    resident = watch.looks[-1].resident_bytes / 2**20 if watch.looks else 0
    latest = next((one.title for one in reversed(windows) if one.fault != starvation.FAULT), "nothing yet")
    return (
        f"{seconds / 60:.1f} min, {len(checker.checks)} checks, {len(windows)} faults, "
        f"{len(ready.ledger.violations)} violations, {resident:.0f} MiB resident; {latest}"
    )


@contextmanager
def _hostile(ready: Site, seed: int, result: Result) -> Iterator[None]:
    """The hostile clients; at the end, what they have done is in ``result``."""
    paths = [f"/{name}/metrics" for name in ready.names]
    command = [sys.executable, "-m", "tests.soak.hostile", str(ready.daemon.port), str(seed), *paths]
    with (ready.directory / HOSTILE_LOG).open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        yield
        said, _ = process.communicate(timeout=30)
        result.hostile = Counter({name: int(times) for name, times in map(str.split, said.splitlines())})
    finally:
        process.kill()
        process.wait()


def _reckon(
    ready: Site,
    result: Result,
    scrapes: list[Scrape],
    lines: list[Line],
    checker: Checker,
    watch: Watch,
    stopped_at: float,
) -> None:
    windows = ready.ledger.windows
    excuses = Excuses(windows)
    result.prometheus, unlogged_own = reckon_prometheus(scrapes, lines, excuses, stopped_at)
    result.checks = reckon_checks(checker.checks, lines, excuses)
    result.sums = checker.sums
    result.processes = len(ready.daemon.incarnations)
    result.faults = ready.ledger.counts()
    del result.faults[starvation.FAULT]
    result.busy_seconds = sum(one.healed - one.began for one in windows if one.fault == starvation.FAULT)
    result.memory = Memory.of(watch.looks)
    found = [*ready.ledger.violations, *result.prometheus.violations, *result.checks.violations]
    found += quiet.complaints(ready.directory / LOG)
    found += [
        f"the daemon ended by itself with status {one.status}"
        for one in ready.daemon.incarnations
        if not one.is_wanted
    ]
    found += result.memory.problems
    final = _final(ready, lines, watch, unlogged_own)
    result.violations += found + ([final] if final else [])


def _final(ready: Site, lines: list[Line], watch: Watch, unlogged_own: list[Scrape]) -> str | None:
    """Whether at the end, for the last process, what is missing is exactly what was counted as lost."""
    since = ready.daemon.incarnations[-1].started
    logged = {line.number for line in lines if line.remote == CHECKER and not line.exporter}
    answered = [one for one in watch.readings if one.began >= since]
    own = [scrape for scrape in unlogged_own if scrape.began >= since]
    pages = sum(one.number not in logged for one in answered) + sum(scrape.is_up for scrape in own)
    others = len(watch.unanswered - logged) + sum(not scrape.is_up for scrape in own)
    last_lines = [line for line in lines if line.ended >= since]
    return final_disagreement(last_lines, watch.readings[-1], pages, others)


def _reckon_counters(ready: Site, result: Result, lines: list[Line], watch: Watch) -> None:
    for incarnation, own in by_incarnation(lines, ready.daemon.incarnations):
        readings = [
            one
            for one in watch.readings
            if incarnation.started <= one.began and one.began < incarnation.ended
        ]
        compared, found = disagreements(own, readings)
        result.readings += compared
        result.violations += found[:SHOWN_OF_A_KIND]
        result.lines_lost += max((one.lost_lines for one in readings), default=0)
