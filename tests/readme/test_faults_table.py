"""README's table of who holds what has the rows, columns and numbers of cases that ``make faults`` prints."""

from __future__ import annotations

import re

import pytest

from tests.faults.cases import CASES
from tests.faults.peers import WAYS as PEERS_WAYS
from tests.faults.points import OURS, POINTS, PROGRAMS, WAYS
from tests.faults.report import HOLDS
from tests.readme.document import README, Table, tables


@pytest.fixture(scope="module")
def table() -> Table:
    (found,) = [one for one in tables() if [cell.split(" ")[0] for cell in one.header[1:]] == list(PROGRAMS)]
    return found


def cases(program: str, point: int) -> int:
    """How many of this point's cases are played at a program, over whichever way."""
    ways = WAYS if program == OURS else PEERS_WAYS[program]
    return sum(
        case.point == point and program not in case.not_for and any(way not in case.not_for for way in ways)
        for case in CASES
    )


def test_its_rows_are_the_points(table: Table) -> None:
    assert [row[0] for row in table.rows] == [f"{point}. {text}" for point, text in POINTS.items()]


def test_its_columns_are_programs_with_their_versions(table: Table) -> None:
    for cell in table.header[1:]:
        assert re.fullmatch(r"\w+ \d+\.\d+\.\d+(\.dev\d+)?", cell)


def test_its_cells_count_the_cases_that_there_are(table: Table) -> None:
    for point, row in zip(POINTS, table.rows, strict=True):
        assert row[1] == HOLDS, "ours has to hold each, in tests/blackbox/test_fault_matrix.py"
        for program, cell in zip(PROGRAMS, row[1:], strict=True):
            counted = re.fullmatch(r"(\d+) of (\d+)", cell)
            assert cell == HOLDS or counted, cell
            if counted:
                assert int(counted[1]) < int(counted[2]) == cases(program, point), (program, point)


def test_the_number_of_cases_and_cells_is_said() -> None:
    found = re.search(r"plays ([\d,]+) faults .*?, ([\d,]+) cells in all", " ".join(README.split()))
    assert found is not None
    cells = sum(way not in case.not_for for case in CASES for way in WAYS)
    assert [int(number.replace(",", "")) for number in found.groups()] == [len(CASES), cells]
