"""Which line of the access log is which scrape of Prometheus's: nothing in them says so but order and time.

The scrapes of one target come one after the other, and so do their lines. What is looked for is the most
favourable way to match them that keeps the order; whether what is left over has an excuse is not asked here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from tests.soak.accesslog import Line
from tests.soak.prometheus import Scrape

TOLERANCE_SECONDS = 0.05
"""By how much the line of a scrape may seem to begin before it: Prometheus rounds its times."""
LATEST_SECONDS = 10.0
"""How long after a scrape's beginning the daemon may come to its request: it waited in a queue."""

# What a scrape and a line cost that do not go together, in arbitrary units.
_DOWN_BUT_SERVED = 1.0
_SCRAPE_ALONE = 3.0
_LINE_ALONE = 6.0
_UP_BUT_NOT_SERVED = 10.0
_PER_SECOND = 0.2
"""Of distance: one line more is not to move all lines before it to the scrape before theirs."""
_NEVER = float("inf")

Pairs = list[tuple[Scrape, Line | None]]


def align(scrapes: Sequence[Scrape], lines: Sequence[Line]) -> tuple[Pairs, list[Line]]:
    """Each scrape with its line, and the lines left over. Both are given in the order of their beginning.

    The usual algorithm for the distance of two sequences, within a band: only lines near a scrape are tried.
    """
    begins = [line.began for line in lines]
    # best[i][j - low[i]]: the cost of the first i scrapes and the first j lines, and the last step to there.
    low, best = [0], [[(_LINE_ALONE * j, "line") for j in range(_high(begins, scrapes, 0) + 1)]]
    for i, scrape in enumerate(scrapes, 1):
        end = _high(begins, scrapes, i)
        start = min(bisect_left(begins, scrape.began - LATEST_SECONDS), low[-1] + len(best[-1]) - 1)
        row: list[tuple[float, str]] = []
        for j in range(start, end + 1):
            steps = [(_at(best[i - 1], low[i - 1], j) + _SCRAPE_ALONE, "scrape")]
            if j > start:
                steps.append((row[-1][0] + _LINE_ALONE, "line"))
            if j:
                steps.append((_at(best[i - 1], low[i - 1], j - 1) + _cost(scrape, lines[j - 1]), "both"))
            row.append(min(steps))
        low.append(start)
        best.append(row)
    return _path_back(scrapes, lines, low, best)


def _path_back(
    scrapes: Sequence[Scrape], lines: Sequence[Line], low: list[int], best: list[list[tuple[float, str]]]
) -> tuple[Pairs, list[Line]]:
    pairs: Pairs = []
    left = list(lines[low[-1] + len(best[-1]) - 1 :])
    i, j = len(scrapes), len(lines) - len(left)
    while i or j:
        step = best[i][j - low[i]][1]
        if step == "line":
            j -= 1
            left.append(lines[j])
            continue
        i -= 1
        if step == "both":
            j -= 1
        pairs.append((scrapes[i], lines[j] if step == "both" else None))
    return pairs[::-1], sorted(left, key=lambda line: line.began)


def _high(begins: list[float], scrapes: Sequence[Scrape], i: int) -> int:
    """How many lines may belong to the first ``i`` scrapes."""
    return bisect_left(begins, scrapes[max(i, 1) - 1].began + LATEST_SECONDS) if scrapes else 0


def _at(row: list[tuple[float, str]], low: int, j: int) -> float:
    return row[j - low][0] if low <= j < low + len(row) else _NEVER


def _cost(scrape: Scrape, line: Line) -> float:
    """Of taking this line for the scrape's."""
    distance = line.began - scrape.began
    if not -TOLERANCE_SECONDS <= distance < LATEST_SECONDS:
        return _NEVER
    unlike = _UP_BUT_NOT_SERVED if scrape.is_up else _DOWN_BUT_SERVED
    return _PER_SECOND * abs(distance) + (unlike if scrape.is_up != line.is_up else 0.0)
