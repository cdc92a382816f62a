"""The fault matrix: every case of ``tests/faults``, over each way to an exporter that it is for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.case import Case
from tests.faults.cases import CASES, play
from tests.faults.points import WAYS
from tests.faults.target import Target
from tests.faults.ways import SETUPS
from tests.stalls import stalled_since

TIMES = 5
STALLED_SECONDS = 0.25
"""Half of what a scraper in a hurry leaves to the daemon."""

CELLS = [(way, case) for way in WAYS for case in CASES if way not in case.not_for]


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """One daemon for each way."""
    with SETUPS[request.param]() as running:
        yield running


@pytest.mark.parametrize(
    ("target", "case"),
    CELLS,
    indirect=["target"],
    ids=[f"{way}-{case}" for way, case in CELLS],
    scope="module",
)
def test_it_holds(target: Target, case: Case) -> None:
    violation = _played(case, target)
    assert violation == ""


def _played(case: Case, target: Target) -> str:
    """Anew where all stood still meanwhile: a scrape of one second does not outlive that."""
    for _ in range(TIMES):
        began = time.monotonic()
        violation = play(case, target)
        if not violation or stalled_since(began) < STALLED_SECONDS:
            break
    return violation
