"""What holds of every page: one verdict, however it arrives and whichever pattern reads it."""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.scrape.exposition import Malformed, TooLarge, verifier_for
from exporter_proxy.scrape.exposition.grammar import Grammar
from exporter_proxy.scrape.exposition.lines import LineVerifier
from exporter_proxy.scrape.exposition.openmetrics import OpenMetricsGrammar
from exporter_proxy.scrape.exposition.text import TextGrammar
from tests.testdata.exposition.headers import ENCODED_PAGES
from tests.testdata.exposition.mistakes import FRAGMENTS, LINES
from tests.testdata.exposition.pages import (
    GOOD_OPENMETRICS,
    OPENMETRICS,
    PROTOBUF,
    TEXT,
    stored,
    zipped,
)
from tests.testdata.exposition.protobuf import PROTOBUF_PAGES

MAX_DECODED_BYTES = 1 << 20
Verdict = tuple[int | None, str, str] | None


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    """Some lines that are good or bad in one way, with a few more mistakes."""
    page = b"".join(draw(st.lists(st.sampled_from(LINES), max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(page)))
        stop = draw(st.integers(start, min(start + 6, len(page))))
        page = page[:start] + draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=2)) + page[stop:]
    return page + draw(st.sampled_from([b"", b"# EOF\n", b"# EOF"]))


def pieces(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The body cut at these positions."""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:stop] for start, stop in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(0, 1 << 16), max_size=8)


def verdict(chunks: Iterable[bytes], content_type: str | None, encoding: str | None = None) -> Verdict:
    """What is said of a body; nothing but ``Malformed`` may be raised."""
    verifier = verifier_for(content_type, encoding, max_decoded_bytes=MAX_DECODED_BYTES)
    assert verifier is not None
    try:
        for chunk in chunks:
            verifier.feed(chunk)
        verifier.finish()
    except Malformed as fault:
        return fault.line, fault.excerpt, fault.problem
    return None


@settings(deadline=None, max_examples=400)
@given(page=pages(), cuts=CUTS, content_type=st.sampled_from([TEXT, OPENMETRICS]))
def test_chunks_do_not_change_the_verdict(page: bytes, cuts: list[int], content_type: str) -> None:
    whole = verdict([page], content_type)
    assert verdict(pieces(page, cuts), content_type) == whole
    assert verdict([page[at : at + 1] for at in range(len(page))], content_type) == whole


@settings(deadline=None, max_examples=150)
@given(data=st.data(), cuts=CUTS)
def test_chunks_do_not_change_the_verdict_on_protobuf(data: st.DataObject, cuts: list[int]) -> None:
    page = data.draw(st.sampled_from([page.body for page in PROTOBUF_PAGES if len(page.body) < 1000]))
    at = data.draw(st.integers(0, len(page)))
    page = page[:at] + data.draw(st.binary(max_size=3)) + page[data.draw(st.integers(at, len(page))) :]
    whole = verdict([page], PROTOBUF)
    assert verdict(pieces(page, cuts), PROTOBUF) == whole
    assert verdict([page[at : at + 1] for at in range(len(page))], PROTOBUF) == whole


@settings(deadline=None, max_examples=200)
@given(page=pages(), members=CUTS, cuts=CUTS, level=st.integers(0, 9))
def test_gzip_does_not_change_the_verdict(
    page: bytes, members: list[int], cuts: list[int], level: int
) -> None:
    packed = b"".join(zipped(piece, level) for piece in pieces(page, members))
    assert verdict(pieces(packed, cuts), TEXT, "gzip") == verdict([page], TEXT)


class TextStepByStep(TextGrammar):
    """The judge alone: no pattern matches anything."""

    plain = canonical = general = re.compile(b"")


class TextInGeneral(TextGrammar):
    """Without the patterns that know the usual spelling only."""

    plain = canonical = TextGrammar.general


class TextWithEscapes(TextGrammar):
    """Without the pattern for data that has no backslash."""

    plain = TextGrammar.canonical


class OpenMetricsStepByStep(OpenMetricsGrammar):
    """The judge alone: no pattern matches anything."""

    plain = canonical = general = re.compile(b"")


class OpenMetricsInGeneral(OpenMetricsGrammar):
    """Without the patterns that know the usual spelling only."""

    plain = canonical = OpenMetricsGrammar.general


def verdict_by(grammar: Grammar, page: bytes) -> Verdict:
    verifier = LineVerifier(grammar)
    try:
        verifier.feed(page)
        verifier.finish()
    except Malformed as fault:
        return fault.line, fault.excerpt, fault.problem
    return None


@pytest.mark.parametrize(
    ("grammar", "others"),
    [
        (TextGrammar, [TextStepByStep, TextInGeneral, TextWithEscapes]),
        (OpenMetricsGrammar, [OpenMetricsStepByStep, OpenMetricsInGeneral]),
    ],
    ids=["text", "openmetrics"],
)
@settings(deadline=None, max_examples=400)
@given(page=pages())
def test_patterns_match_nothing_that_the_judge_rejects(
    grammar: type[Grammar], others: list[type[Grammar]], page: bytes
) -> None:
    expected = verdict_by(grammar(), page)
    assert [verdict_by(other(), page) for other in others] == [expected] * len(others)


@settings(deadline=None, max_examples=200)
@given(
    body=st.binary(max_size=300) | pages(),
    content_type=st.none() | st.text(max_size=30) | st.sampled_from([TEXT, OPENMETRICS, PROTOBUF]),
    encoding=st.none() | st.text(max_size=10) | st.sampled_from(["gzip", "identity", "br"]),
)
def test_whatever_comes_a_fault_is_malformed_and_fit_to_be_shown(
    body: bytes, content_type: str | None, encoding: str | None
) -> None:
    verifier = verifier_for(content_type, encoding, max_decoded_bytes=100)
    if verifier is None:
        return
    try:
        verifier.feed(body)
        verifier.finish()
    except Malformed as fault:
        assert len(fault.excerpt) <= 120
        assert str(fault).isprintable()
        assert len(str(fault)) < 400
    except TooLarge:
        assert encoding == "gzip"


@settings(deadline=None, max_examples=150)
@given(
    body=st.sampled_from([page.body for page in ENCODED_PAGES if page.content_encoding]),
    junk=st.binary(max_size=4),
    at=st.integers(0, 1 << 16),
    cuts=CUTS,
)
def test_chunks_do_not_change_whether_broken_gzip_is_found(
    body: bytes, junk: bytes, at: int, cuts: list[int]
) -> None:
    at %= len(body) + 1
    body = body[:at] + junk + body[at:]
    whole = verdict([body], TEXT, "gzip")
    # Of a broken body a part may be decoded, which may be wrong as well: either may be told.
    assert (verdict(pieces(body, cuts), TEXT, "gzip") is None) == (whole is None)
    try:
        is_gzip = bool(body) and gzip.decompress(body) is not None
    except (zlib.error, EOFError, gzip.BadGzipFile):
        is_gzip = False
    if whole is None:
        assert is_gzip


@settings(deadline=None)
@given(at=st.integers(0, len(stored("openmetrics.txt")) - 7))
def test_an_openmetrics_page_that_is_cut_short_is_found(at: int) -> None:
    if at:
        assert verdict([stored("openmetrics.txt")[:at]], OPENMETRICS) is not None


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([line for line in LINES if verdict([line], TEXT) is None and b"\0" not in line]))
)
def test_good_lines_are_good_in_any_order(lines: list[bytes]) -> None:
    assert verdict([b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines)], TEXT) is None


@settings(deadline=None)
@given(
    st.sampled_from([page.body for page in GOOD_OPENMETRICS if page.body.endswith(b"# EOF\n")]),
    st.binary(min_size=1, max_size=5).filter(lambda tail: tail.strip(b"\0") != b""),
)
def test_nothing_may_follow_the_end_of_openmetrics(page: bytes, tail: bytes) -> None:
    found = verdict([page, tail], OPENMETRICS)
    assert found is not None
    assert found[2] == "something follows # EOF"
