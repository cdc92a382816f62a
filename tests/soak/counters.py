"""The daemon's counters against its access log: both are written by one function, so they have to agree.

Each reading of ``/metrics`` has a line itself, and whatever was counted before it was rendered has its line
before that one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tests.soak.accesslog import Line
from tests.soak.ledger import clock
from tests.soak.site import CHECKER
from tests.soak.supervisor import Incarnation
from tests.soak.watch import Reading

Key = tuple[str, str]
"""Exporter and status, or "" and reason."""


def key_of(line: Line) -> Key | None:
    """What counted it; ``None`` for pages, which nothing counts."""
    if line.exporter:
        return line.exporter, str(line.status)
    return ("", line.reason) if line.reason else None


def counts_of(reading: Reading) -> Counter[Key]:
    """What a reading says, by the same keys."""
    found: Counter[Key] = Counter()
    for (_, labels), value in reading.counts.items():
        label = dict(labels)
        key = (label["exporter"], label["code"]) if "exporter" in label else ("", label["reason"])
        found[key] = int(value)
    return found


def by_incarnation(
    lines: Sequence[Line], incarnations: Sequence[Incarnation]
) -> Iterator[tuple[Incarnation, list[Line]]]:
    """The lines that each process wrote."""
    ends = [one.started for one in incarnations[1:]] + [float("inf")]
    for incarnation, end in zip(incarnations, ends, strict=True):
        yield incarnation, [line for line in lines if incarnation.started <= line.ended < end]


def disagreements(lines: Sequence[Line], readings: Sequence[Reading]) -> tuple[int, list[str]]:
    """How many readings of one process were compared with its lines, and where they do not agree.

    Lines that wait to be written while the page is made can be lost a moment later: see the next reading. It
    may have waited for the next process, which has lost nothing yet.
    """
    waiting = {reading.number: reading for reading in readings}
    lost_soon = {
        one.number: max(one.lost_lines, following.lost_lines) for one, following in pairwise(readings)
    }
    logged: Counter[Key] = Counter()
    recent: deque[Line] = deque(maxlen=1000)
    compared, found = 0, []
    for line in lines:
        reading = waiting.get(line.number or 0) if line.remote == CHECKER and not line.exporter else None
        if reading is not None:
            compared += 1
            # What ended while the page was made may be in it or not.
            racing = Counter(key for one in recent if one.ended >= line.began and (key := key_of(one)))
            lost_lines = lost_soon.get(reading.number, reading.lost_lines)
            found += _compare(reading, lost_lines, logged, racing)
        key = key_of(line)
        if key is not None:
            logged[key] += 1
        recent.append(line)
    return compared, found


def _compare(reading: Reading, lost_lines: int, logged: Counter[Key], racing: Counter[Key]) -> list[str]:
    counted, found = counts_of(reading), []
    for key in counted.keys() | logged.keys():
        least, most = logged[key] - racing[key], logged[key] + lost_lines
        if not least <= counted[key] <= most:
            found.append(
                f"{clock(reading.began)} reading {reading.number}: {key} is {counted[key]}, "
                f"the access log has {logged[key]}, {racing[key]} of them just now"
            )
    missing = sum(counted.values()) - sum(logged.values())
    if missing > lost_lines:
        found.append(
            f"{clock(reading.began)} reading {reading.number}: {missing} lines are missing, "
            f"{lost_lines} were counted as lost"
        )
    return found


def final_disagreement(
    lines: Sequence[Line], last: Reading, unlogged_pages: int, unlogged_others: int
) -> str | None:
    """When all is quiet the sum is exact: what the counters have and the log has not is what was lost.

    ``unlogged_pages`` is how many pages were answered, by this process, whose lines are missing;
    ``unlogged_others`` how many more there may be, which nobody waited for.
    """
    before = [line for line in lines if line.number != last.number or line.exporter]
    logged = sum(key_of(line) is not None for line in before)
    counted = counts_of(last).total()
    counted_lost = sum(line.is_counted_lost for line in before) if last.lost_lines else 0
    missing = counted - logged + unlogged_pages
    # A line whose break alone was lost may also just end where a page of the disk does.
    if missing <= last.lost_lines <= missing + counted_lost + unlogged_others:
        return None
    return (
        f"at the end {missing} lines are missing ({counted} counted, {logged} logged, "
        f"{unlogged_pages} pages), and {last.lost_lines} were counted as lost"
    )
