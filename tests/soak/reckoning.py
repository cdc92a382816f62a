"""The sum of it all: every scrape that was made against every line of the access log.

A scrape and its line have to agree on how it went. One that failed needs a fault that may have cost it, one
without a line a fault that may have cost the line, and a line without a scrape has no excuse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.soak.accesslog import Line
from tests.soak.alignment import TOLERANCE_SECONDS, align
from tests.soak.checker import Check
from tests.soak.exporters import CHECKSUM
from tests.soak.ledger import Window, clock
from tests.soak.pages import SAMPLES
from tests.soak.prometheus import Scrape
from tests.soak.site import CHECKER, OWN

UNWRITTEN_SECONDS = 1.0
"""How long after its end a scrape's line may still be lost."""
PROMETHEUS = "Prometheus/"


@dataclass
class Verdicts:
    """What the reckoning found. A scrape that nothing explains is lost, and a violation."""

    scrapes: int = 0
    lines: int = 0
    failed: int = 0
    """Scrapes that failed, each of them with an excuse."""
    unlogged: int = 0
    """Scrapes whose line is missing, each of them with an excuse."""
    lost: int = 0
    violations: list[str] = field(default_factory=list)

    def lose(self, violation: str) -> None:
        self.lost += 1
        self.violations.append(violation)


class Excuses:
    """The faults of a run, asked what they may have cost."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = windows

    def for_failure(self, began: float, ended: float, exporter: str) -> bool:
        return any(one.covers(began, ended, exporter) for one in self._windows)

    def for_being_unseen(self, began: float, ended: float) -> bool:
        """Whether the daemon may never have come to it."""
        return any(one.cost.is_unseen and one.overlaps(began, ended) for one in self._windows)

    def for_no_line(self, began: float, ended: float) -> bool:
        """Whether the line may be lost."""
        return any(one.cost.lines and one.overlaps(began, ended + UNWRITTEN_SECONDS) for one in self._windows)

    def for_unsent(self, began: float, ended: float) -> bool:
        """Whether it may be cut although the daemon was done: its last bytes were still with the process."""
        return any(one.cost.sent and one.overlaps(began, ended) for one in self._windows)


def reckon_prometheus(
    scrapes: Sequence[Scrape], lines: Sequence[Line], excuses: Excuses, stopped_at: float
) -> tuple[Verdicts, list[Scrape]]:
    """Prometheus's scrapes against their lines; and those of the daemon's own metrics that have no line.

    ``stopped_at`` is when it was told to scrape no more: what was under way then, it does not count.
    """
    verdicts = Verdicts()
    unlogged_own: list[Scrape] = []
    of_job: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.agent.startswith(PROMETHEUS):
            # By path: who leaves while his password is being checked has not come to an exporter yet.
            of_job[line.path.removesuffix("/metrics").removeprefix("/") or OWN].append(line)
    for job in sorted(of_job.keys() | {scrape.job for scrape in scrapes}):
        own = [scrape for scrape in scrapes if scrape.job == job]
        pairs, orphans = align(own, sorted(of_job[job], key=lambda line: line.began))
        verdicts.lines += len(of_job[job])
        for scrape, found in pairs:
            if scrape.ended >= stopped_at:
                continue
            verdicts.scrapes += 1
            _judge(scrape, found, excuses, verdicts)
            if found is None and job == OWN:
                unlogged_own.append(scrape)
        for orphan in orphans:
            if orphan.ended < stopped_at - TOLERANCE_SECONDS:
                verdicts.lose(f"{clock(orphan.began)} {job}: a line that is nobody's scrape: {orphan}")
        verdicts.violations += _lacking_samples(own)
    return verdicts, unlogged_own


def _judge(scrape: Scrape, line: Line | None, excuses: Excuses, verdicts: Verdicts) -> None:
    began, ended = scrape.began, scrape.ended
    said = f"{clock(began)} {scrape.job}: up {int(scrape.is_up)} {scrape.error}"
    if line is None:
        verdicts.unlogged += 1
        is_excused = excuses.for_no_line(began, ended) or (
            not scrape.is_up and excuses.for_being_unseen(began, ended)
        )
        if not is_excused:
            verdicts.lose(f"{said}, and no line of the access log")
            return
    elif scrape.is_up and not line.is_up:
        verdicts.violations.append(f"{said}, while the access log has {line}")
    if not scrape.is_up:
        verdicts.failed += 1
        if not excuses.for_failure(began, ended, scrape.job):
            verdicts.lose(f"{said}, outside of any fault; the access log has {line}")
        if "connection refused" in scrape.error:
            verdicts.violations.append(f"{said}: the socket is there all along")


def _lacking_samples(scrapes: Sequence[Scrape]) -> list[str]:
    """Pages that Prometheus took in although a part was missing."""
    up = [scrape for scrape in scrapes if scrape.is_up]
    if not up:
        return [f"{scrapes[0].job} was never up"] if scrapes else []
    job = up[0].job
    usual = median(scrape.samples for scrape in up)
    is_whole: Callable[[int], bool] = (
        (lambda samples: samples == SAMPLES) if job == CHECKSUM else (lambda samples: samples > usual / 2)
    )
    return [
        f"{clock(scrape.began)} {job}: up 1 with {scrape.samples} samples, usual are {usual:g}"
        for scrape in up
        if not is_whole(scrape.samples)
    ]


def reckon_checks(checks: Sequence[Check], lines: Sequence[Line], excuses: Excuses) -> Verdicts:
    """The checking scraper's scrapes against their lines, by number."""
    verdicts = Verdicts(scrapes=len(checks))
    by_number: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        if line.remote == CHECKER and line.number is not None and line.exporter:
            by_number[line.number].append(line)
    for check in checks:
        own = by_number.pop(check.number, [])
        verdicts.lines += len(own)
        said = (
            f"{clock(check.began)} check {check.number} of {check.exporter}: status {check.status}, "
            f"{'whole' if check.is_complete else 'cut'} {check.trouble}"
        )
        if len(own) > 1:
            verdicts.lose(f"{said}, and {len(own)} lines")
        _judge_check(check, own[0] if own else None, said, excuses, verdicts)
    for line, *_ in by_number.values():
        verdicts.lose(f"{clock(line.began)} a line that is no check: {line}")
    return verdicts


def _judge_check(check: Check, line: Line | None, said: str, excuses: Excuses, verdicts: Verdicts) -> None:
    began, ended = check.began, check.ended
    if line is None:
        verdicts.unlogged += 1
        is_unseen = check.status == 0 and excuses.for_being_unseen(began, ended)
        if not is_unseen and not excuses.for_no_line(began, ended):
            verdicts.lose(f"{said}, and no line of the access log")
            return
    elif check.is_up != line.is_up or (check.is_complete and check.status != line.status):
        is_unsent = line.is_up and not check.is_complete and excuses.for_unsent(began, ended)
        if not is_unsent:
            verdicts.violations.append(f"{said}, while the access log has {line}")
    if not check.is_up:
        verdicts.failed += 1
        if not excuses.for_failure(began, ended, check.exporter):
            verdicts.lose(f"{said}, outside of any fault; the access log has {line}")
