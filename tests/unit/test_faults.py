"""The fault matrix as data, how findings become tables, and that judgements can say no."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fakes.exporter import FakeExporter, head, send, stall
from tests.faults.__main__ import parser
from tests.faults.case import Case
from tests.faults.cases import CASES, play
from tests.faults.points import OURS, POINTS, PROGRAMS, WAYS
from tests.faults.report import Finding, Report, finding
from tests.faults.seen import Seen, Violated
from tests.faults.target import HttpSource, Target

FINDINGS = (
    Finding("nginx", "plain", 1, "POST", ""),
    Finding("nginx", "TLS", 1, "POST", "200"),
    Finding("nginx", "plain", 1, "PUT", ""),
    Finding(OURS, "plain", 1, "POST", ""),
    Finding(OURS, "file", 1, "POST", ""),
)
REPORT = Report({OURS: "1.0.0", "nginx": "1.22.1"}, FINDINGS)


def test_every_point_has_cases_and_none_has_two_of_a_name() -> None:
    assert {case.point for case in CASES} == set(POINTS) == set(range(1, 25))
    assert [name for name, count in Counter(map(str, CASES)).items() if count > 1] == []


def test_where_a_case_is_not_for_there_is_a_reason() -> None:
    known = {*WAYS, *PROGRAMS}
    for case in CASES:
        assert set(case.not_for) <= known
        assert all(case.not_for.values())
        assert set(WAYS) - set(case.not_for), f"{case} is played nowhere"


def test_a_case_is_held_that_is_held_over_every_way() -> None:
    assert REPORT.cell("nginx", 1) == "1 of 2"
    assert REPORT.cell(OURS, 1) == "holds"
    assert REPORT.cell(OURS, 2) == "-"


def test_tables_have_a_row_for_each_point_and_a_column_for_each_program() -> None:
    lines = REPORT.markdown().splitlines()
    assert lines[0] == "| | exporter_proxy 1.0.0 | nginx 1.22.1 | HAProxy | exporter_exporter |"
    assert lines[1] == "|---|---|---|---|---|"
    assert lines[2] == f"| 1. {POINTS[1]} | holds | 1 of 2 | - | - |"
    assert len(lines) == 2 + len(POINTS) == len(REPORT.table().splitlines()) + 1


def test_what_is_not_held_is_said_with_its_ways() -> None:
    assert REPORT.violations() == ["nginx, 1 POST: 200 (TLS)"]
    assert REPORT.ways("nginx") == "nginx: plain 2 of 2, TLS 0 of 1"
    assert REPORT.is_ours_whole
    assert not Report({}, [Finding(OURS, "plain", 1, "POST", "200")]).is_ours_whole


def test_a_finding_says_which_case_it_is_of() -> None:
    case = CASES[0]
    assert finding("nginx", "plain", case, "200").case == case.name
    assert REPORT.as_json()["versions"] == REPORT.versions


def test_a_program_that_is_not_compared_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--only", "squid"])
    assert "invalid choice" in capsys.readouterr().err


@pytest.fixture(scope="module")
def liar() -> Iterator[Target]:
    """A program that says 200 before it has heard anything, never asks the exporter and stays."""
    answer = head(200, [("Content-Length", "2")]) + b"1\n"
    with FakeExporter() as exporter, FakeExporter(greeting=[send(answer), stall()]) as program:
        source = HttpSource(exporter)
        yield Target(OURS, "plain", source, (program.host, program.port), announced_seconds=0)


@pytest.mark.parametrize("case", [case for case in CASES if case.point != 20], ids=str)
def test_a_case_can_fail(case: Case, liar: Target) -> None:
    assert play(case, liar)


def test_a_scraper_that_leaves_can_be_forgotten(liar: Target) -> None:
    """Which the program above cannot show: it never asks."""
    (judge,) = {case.judge for case in CASES if case.point == 20}
    with pytest.raises(Violated, match="still works"):
        judge(Seen(liar))
