"""Page by page: what is let through, what is found, on which line, and what is said of it.

The tables are shared with ``tests/e2e/test_exposition_oracle.py``, where Prometheus judges them.
"""

from __future__ import annotations

import pytest

from exporter_proxy.scrape.exposition import Malformed, verifier_for
from tests.testdata.exposition.headers import CONTENT_TYPE_PAGES, ENCODED_PAGES, UNJUDGED
from tests.testdata.exposition.pages import OPENMETRICS, OPENMETRICS_PAGES, TEXT, TEXT_PAGES, Page, Taken
from tests.testdata.exposition.protobuf import PROTOBUF_PAGES

MAX_DECODED_BYTES = 1 << 20


def fault_of(page: Page) -> Malformed | None:
    """What the verifier has against a page that is fed in one piece."""
    verifier = verifier_for(page.content_type, page.content_encoding, max_decoded_bytes=MAX_DECODED_BYTES)
    assert verifier is not None
    try:
        verifier.feed(page.body)
        verifier.finish()
    except Malformed as fault:
        return fault
    return None


def assert_judged(page: Page) -> None:
    fault = fault_of(page)
    if page.taken is not Taken.BY_NONE:
        assert fault is None
        return
    assert fault is not None
    assert page.problem in fault.problem
    assert fault.line == page.line


@pytest.mark.parametrize("page", TEXT_PAGES, ids=str)
def test_text(page: Page) -> None:
    assert_judged(page)


@pytest.mark.parametrize("page", OPENMETRICS_PAGES, ids=str)
def test_openmetrics(page: Page) -> None:
    assert_judged(page)


@pytest.mark.parametrize("page", PROTOBUF_PAGES, ids=str)
def test_protobuf(page: Page) -> None:
    assert_judged(page)


@pytest.mark.parametrize("page", ENCODED_PAGES, ids=lambda page: f"{page.content_encoding}-{page}")
def test_content_encoding(page: Page) -> None:
    assert_judged(page)


@pytest.mark.parametrize("page", CONTENT_TYPE_PAGES, ids=lambda page: f"{page.content_type}-{page}")
def test_the_content_type_decides_which_format_applies(page: Page) -> None:
    assert (fault_of(page) is not None) == (page.taken is Taken.BY_NONE)


@pytest.mark.parametrize("content_type", UNJUDGED)
def test_a_content_type_that_versions_read_differently_is_not_judged(content_type: str) -> None:
    assert verifier_for(content_type, None, max_decoded_bytes=1) is None


@pytest.mark.parametrize("content_type", [TEXT, OPENMETRICS])
@pytest.mark.parametrize("fault_on", [1, 2, 700, 9_999, 10_000])
@pytest.mark.parametrize("chunk_bytes", [1_000, 1 << 20])
def test_the_line_number_is_right_far_into_a_long_page(
    content_type: str, fault_on: int, chunk_bytes: int
) -> None:
    lines = [b'series_of_a_long_page{number="%d"} 1' % number for number in range(10_000)]
    lines[fault_on - 1] = b"<html>"
    page = b"\n".join(lines) + b"\n# EOF\n"
    verifier = verifier_for(content_type, None, max_decoded_bytes=MAX_DECODED_BYTES)
    assert verifier is not None
    with pytest.raises(Malformed) as caught:
        for start in range(0, len(page), chunk_bytes):
            verifier.feed(memoryview(page)[start : start + chunk_bytes])
    assert (caught.value.line, caught.value.excerpt) == (fault_on, "<html>")


def test_a_fault_is_raised_as_soon_as_its_line_is_complete() -> None:
    verifier = verifier_for(TEXT, None, max_decoded_bytes=MAX_DECODED_BYTES)
    assert verifier is not None
    verifier.feed(b"foo 1\nfoo ")
    verifier.feed(b"bar")
    with pytest.raises(Malformed, match=r"^line 2: the value is not a number: foo bar$"):
        verifier.feed(b"\nmore")
