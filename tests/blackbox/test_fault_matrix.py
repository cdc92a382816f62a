"""The fault matrix: every case of ``tests/faults``, over each way to an exporter that it is for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.case import Case
from tests.faults.cases import CASES, play
from tests.faults.points import WAYS
from tests.faults.target import Target
from tests.faults.ways import SETUPS

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
    assert play(case, target) == ""
