"""The table: every case, in the order of the points."""

from __future__ import annotations

from tests.faults.case import Case
from tests.faults.cases_answer import ANSWER_CASES
from tests.faults.cases_request import REQUEST_CASES
from tests.faults.cases_time import TIME_CASES
from tests.faults.seen import Seen, Violated
from tests.faults.target import Target, playing

CASES: tuple[Case, ...] = (*REQUEST_CASES, *ANSWER_CASES, *TIME_CASES)


def why_not(case: Case, target: Target) -> str:
    """Why a case says nothing of this program, or of this way to an exporter; "": it does."""
    return case.not_for.get(target.way, "") or case.not_for.get(target.program, "")


def play(case: Case, target: Target) -> str:
    """Play a case: "" where the point is held, or what was seen instead."""
    seen = Seen(target)
    with playing(target, case.exporter(target.page), case.command, case.file):
        try:
            case.scene(seen, case.sends)
            case.judge(seen)
        except Violated as violated:
            return str(violated)
    return ""
