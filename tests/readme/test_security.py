"""SECURITY.md: every threat has a test, every test exists, and it can be read in ten minutes."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.daemon import REPOSITORY

TEXT = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
THREATS = TEXT[TEXT.index("## Threats") : TEXT.index("## Out of scope")]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in THREATS.splitlines()
    if line.startswith("| ") and not line.startswith("| Threat |")
]
TESTS = sorted(set(re.findall(r"`([a-z0-9_]+/test_[a-z0-9_]+\.py::test_[a-z0-9_]+)`", TEXT)))
READ_WORDS = 2000
"""Ten minutes at 200 words a minute."""


@cache
def functions_in(path: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / "tests" / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("name", TESTS)
def test_a_test_that_is_named_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert function in functions_in(path)


def test_every_threat_has_a_defence_and_a_test() -> None:
    assert len(ROWS) > 30
    for threat, defence, tests in ROWS:
        assert threat
        assert defence
        named = re.findall(r"`([^`]+)`", tests)
        assert named, f"nothing tests {threat!r}"
        assert set(named) <= set(TESTS), f"what is named for {threat!r} is no test"


def test_it_can_be_read_in_ten_minutes() -> None:
    prose = re.sub(r"`[a-z]+/test_[^`]+`", "", TEXT)
    assert len(prose.split()) < READ_WORDS


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
