"""What is shown of an untrusted body: printable, short, and about the fault."""

from __future__ import annotations

import pytest

from exporter_proxy.scrape.exposition.verdict import EXCERPT_MAX_CHARS, Malformed, excerpt_of


def test_the_text_of_a_fault_names_line_problem_and_excerpt() -> None:
    assert str(Malformed(3, "foo bar", "the value is not a number")) == (
        "line 3: the value is not a number: foo bar"
    )
    assert str(Malformed(None, "", "the gzip body is cut off")) == "the gzip body is cut off"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"foo bar\nnext 1\n", "foo bar"),
        (b"", ""),
        (b"\n", ""),
        ("größe 中".encode(), "größe 中"),
        (b"a\x1b[31mred\x07\x00\r\n", "a\\x1b[31mred\\x07\\x00\\r"),
        (b"broken \xff\xc3\n", "broken \\xff\\xc3"),
        ("turned \u202e round\u00ad \u2028".encode(), "turned \\u202e round\\xad \\u2028"),
        ("far \U000e0041".encode(), "far \\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(data: bytes, shown: str) -> None:
    assert excerpt_of(data, 0, 0) == shown


def test_a_long_line_is_cut() -> None:
    assert excerpt_of(b"x" * 5000, 0, 0) == "x" * (EXCERPT_MAX_CHARS - 3) + "..."
    assert excerpt_of(b"x" * EXCERPT_MAX_CHARS, 0, 0) == "x" * EXCERPT_MAX_CHARS
    assert excerpt_of(b"\x00" * 100, 0, 0) == ("\\x00" * 30)[: EXCERPT_MAX_CHARS - 3] + "..."


def test_a_fault_far_into_a_line_is_shown_with_what_stands_before_it() -> None:
    data = b"x" * 4000 + b"FAULT" + b"y" * 4000
    shown = excerpt_of(data, 0, 4000)
    assert shown.startswith("..." + "x" * 40 + "FAULTyyy")
    assert shown.endswith("...")
    assert len(shown) == EXCERPT_MAX_CHARS


def test_an_excerpt_does_not_begin_in_the_middle_of_a_character() -> None:
    data = "ü".encode() * 500
    for fault in (200, 201):
        assert excerpt_of(data, 0, fault).strip(".") == "ü" * excerpt_of(data, 0, fault).count("ü")


def test_a_fault_on_a_later_line_of_its_entry_is_shown_with_the_first() -> None:
    data = b'foo{a="b} 1\nbar{a="x"} 2\nbaz 3\n'
    assert excerpt_of(data, 0, 19) == 'foo{a="b} 1\\nbar{a="x"} 2'
