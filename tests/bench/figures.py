"""What was measured, what it is held against, and the table and the JSON that say so.

Nothing here measures anything: samples come in, medians, verdicts and text go out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

OURS = "exporter_proxy"
COLUMNS = ("what", "ours", "peers", "ratio", "budget", "verdict")
NUMERIC_COLUMNS = ("ours", "ratio")


class Verdict(StrEnum):
    """What became of a figure. ``INFORMATION`` has no budget; the last three count as missed."""

    MET = "met"
    INFORMATION = "-"
    MISSED = "MISSED"
    NOT_BUILT = "MISSED: not built yet"
    FAILED = "MISSED: not measured"


MISSES = frozenset({Verdict.MISSED, Verdict.NOT_BUILT, Verdict.FAILED})


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a figure may be: ``factor`` times the peer's figure ``plus`` a constant in its unit.

    Without a peer, ``plus`` alone.
    """

    peer: str | None = None
    factor: float = 1.0
    plus: float = 0.0

    def allowed(self, medians: Mapping[str, float]) -> float:
        """Raises KeyError where the peer was not measured."""
        return self.plus if self.peer is None else medians[self.peer] * self.factor + self.plus

    def describe(self, unit: str) -> str:
        if self.peer is None:
            return f"<= {self.plus:g} {unit}"
        times = f" x {self.factor:g}" if self.factor != 1.0 else ""
        plus = f" + {self.plus:g} {unit}" if self.plus else ""
        return f"<= {self.peer}{times}{plus}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. ``samples`` has, for each thing measured, one value a round."""

    section: str
    what: str
    unit: str
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    budget: Budget | None = None
    failure: str = ""
    """Why there is no trustworthy figure; the row is then missed whatever the samples say."""
    is_built: bool = True
    """False: the daemon does not know the key that this row needs."""

    @property
    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.samples.items() if values}

    @property
    def peers(self) -> dict[str, float]:
        return {name: value for name, value in self.medians.items() if name != OURS}

    @property
    def ratio(self) -> float | None:
        """Ours to the budget's peer; where there is no budget, to the first peer."""
        medians, peers = self.medians, self.peers
        name = self.budget.peer if self.budget is not None else next(iter(peers), None)
        if OURS not in medians or name is None or not peers.get(name):
            return None
        return medians[OURS] / peers[name]

    @property
    def verdict(self) -> Verdict:
        if not self.is_built:
            return Verdict.NOT_BUILT
        medians = self.medians
        if self.failure or OURS not in medians:
            return Verdict.FAILED
        if self.budget is None:
            return Verdict.INFORMATION
        if self.budget.peer is not None and self.budget.peer not in medians:
            return Verdict.FAILED
        return Verdict.MET if medians[OURS] <= self.budget.allowed(medians) else Verdict.MISSED

    def cells(self) -> dict[str, str]:
        """The row as text, one entry for each of ``COLUMNS``."""
        medians = self.medians
        return {
            "what": self.what,
            "ours": f"{shown(medians[OURS])} {self.unit}" if OURS in medians else "-",
            "peers": ", ".join(f"{name} {shown(value)}" for name, value in self.peers.items()) or "-",
            "ratio": f"{self.ratio:.2f}" if self.ratio is not None else "-",
            "budget": self.budget.describe(self.unit) if self.budget is not None else "information",
            "verdict": str(self.verdict),
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "what": self.what,
            "unit": self.unit,
            "medians": self.medians,
            "samples": {name: list(values) for name, values in self.samples.items()},
            "ratio": self.ratio,
            "budget": self.budget.describe(self.unit) if self.budget is not None else None,
            "verdict": str(self.verdict),
            "is_missed": self.verdict in MISSES,
            "failure": self.failure,
        }


def shown(value: float) -> str:
    """Three digits that mean something, and no more."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def missed(figures: Iterable[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure.verdict in MISSES]


def table(figures: Sequence[Figure]) -> str:
    """Plain aligned text: the columns, the rows by section, and below them what needs saying."""
    rows = [figure.cells() for figure in figures]
    width = {column: max(len(column), *(len(row[column]) for row in rows)) for column in COLUMNS}

    def line(cells: Mapping[str, str]) -> str:
        return "  ".join(
            cells[column].rjust(width[column])
            if column in NUMERIC_COLUMNS
            else cells[column].ljust(width[column])
            for column in COLUMNS
        ).rstrip()

    lines = [line({column: column for column in COLUMNS})]
    section = None
    for figure, row in zip(figures, rows, strict=True):
        if figure.section != section:
            section = figure.section
            lines += ["", f"[{section}]"]
        lines.append(line(row))
    remarks = [f"{figure.what}: {figure.failure}" for figure in figures if figure.failure]
    return "\n".join([*lines, *(["", *remarks] if remarks else [])])


def summary(figures: Sequence[Figure]) -> str:
    """The last line: how many of the budgets are met, and which are not."""
    with_budget = [figure for figure in figures if figure.verdict is not Verdict.INFORMATION]
    misses = missed(figures)
    met = f"{len(with_budget) - len(misses)} of {len(with_budget)} budgets met"
    names = "; ".join(f"{figure.section}: {figure.what}" for figure in misses)
    return f"{met}; MISSED: {names}" if misses else met
