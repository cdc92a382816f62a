"""What was found, as values: which cases each program holds, and the tables that say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from tests.faults.case import Case
from tests.faults.points import OURS, POINTS, PROGRAMS

HOLDS, NOT_MEASURED = "holds", "-"


@dataclass(frozen=True, slots=True)
class Finding:
    """One cell of the matrix: a case played at a program, over one way."""

    program: str
    way: str
    point: int
    case: str
    violation: str
    """What was seen instead; "" where the point is held."""


def finding(program: str, way: str, case: Case, violation: str) -> Finding:
    return Finding(program, way, case.point, case.name, violation)


@dataclass(frozen=True)
class Report:
    versions: dict[str, str]
    """Of the programs that were played with."""
    findings: Sequence[Finding]

    def cell(self, program: str, point: int) -> str:
        """How many of a point's cases a program holds; a case is held that is held over every way."""
        of_point = [one for one in self.findings if (one.program, one.point) == (program, point)]
        cases = {one.case for one in of_point}
        held = cases - {one.case for one in of_point if one.violation}
        if not cases:
            return NOT_MEASURED
        return HOLDS if held == cases else f"{len(held)} of {len(cases)}"

    def rows(self) -> Iterator[list[str]]:
        """Of the table, its header first."""
        yield ["", *(f"{name} {self.versions.get(name, '')}".strip() for name in PROGRAMS)]
        for point, text in POINTS.items():
            yield [f"{point}. {text}", *(self.cell(program, point) for program in PROGRAMS)]

    def table(self) -> str:
        rows = list(self.rows())
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def markdown(self) -> str:
        header, *rows = ("| " + " | ".join(row) + " |" for row in self.rows())
        return "\n".join((header.replace("|  |", "| |"), "|---" * (1 + len(PROGRAMS)) + "|", *rows))

    def ways(self, program: str) -> str:
        """How many of the cases that are for it are held over each way."""
        counts: dict[str, tuple[int, int]] = {}
        for one in self.findings:
            if one.program == program:
                held, all_cases = counts.get(one.way, (0, 0))
                counts[one.way] = held + (not one.violation), all_cases + 1
        shown = (f"{way} {held} of {all_cases}" for way, (held, all_cases) in counts.items())
        return f"{program}: {', '.join(shown) or 'not installed'}"

    def violations(self) -> list[str]:
        """One line for each case that a program does not hold: what was seen, and over which ways."""
        seen: dict[tuple[str, int, str], list[Finding]] = {}
        for one in self.findings:
            if one.violation:
                seen.setdefault((one.program, one.point, one.case), []).append(one)
        return [
            f"{program}, {point} {case}: {found[0].violation} ({', '.join(one.way for one in found)})"
            for (program, point, case), found in seen.items()
        ]

    @property
    def is_ours_whole(self) -> bool:
        return not any(one.violation for one in self.findings if one.program == OURS)

    def as_json(self) -> dict[str, object]:
        return {"versions": self.versions, "findings": [asdict(one) for one in self.findings]}
