"""How many series and families a page is said to have."""

from __future__ import annotations

import pytest

from exporter_proxy.scrape.exposition import Summary, summarise
from tests.testdata.exposition.pages import OPENMETRICS, PROTOBUF, TEXT, stored
from tests.testdata.exposition.protobuf import BAR, FOO, delimited, family


@pytest.mark.parametrize(
    ("body", "series", "families"),
    [
        (b"", 0, 0),
        (b"# just a comment\n\n", 0, 0),
        (b"foo 1\n", 1, 1),
        (b'foo 1\nfoo{a="b"} 2\nbar 3', 3, 2),
        (b'  foo\t{ a = "b" } 1\n', 1, 1),
        (b"# TYPE foo gauge\n# TYPE foo gauge\n", 0, 1),
        (b"# HELP foo x\nfoo 1\n", 1, 1),
        # With a TYPE the parts of a histogram are one family, without they are three.
        (b'# TYPE h histogram\nh_bucket{le="1"} 1\nh_sum 1\nh_count 1\nh 1\n', 4, 1),
        (b'h_bucket{le="1"} 1\nh_sum 1\nh_count 1\n', 3, 3),
        (b"x_total 1\n# TYPE x counter\n", 1, 1),
        (b'foo{a="\nbar 1\n# TYPE baz gauge\n{\\"x"} 1\n', 1, 2),
        (b'{"a b",c="d"} 1\n{c="d","a b"} 1\n{"a"} 1\n', 3, 2),
        (b'# TYPE "a b" gauge\n{"a b"} 1\n', 1, 1),
        (stored("jmx_exporter.txt"), 16, 7),
        (stored("text_1.0.0.txt"), 6, 3),
    ],
)
def test_text(body: bytes, series: int, families: int) -> None:
    assert summarise(body, TEXT) == Summary(series, families)


def test_openmetrics() -> None:
    assert summarise(stored("openmetrics.txt"), OPENMETRICS) == Summary(series=23, families=8)


def test_protobuf_counts_metrics_and_the_families_that_have_any() -> None:
    body = delimited(FOO, BAR, family(b"empty", metrics=()))
    assert summarise(body, PROTOBUF) == Summary(series=4, families=2)


def test_of_a_malformed_page_what_can_be_made_out() -> None:
    assert summarise(b"foo 1\n<html>\nbar 1\n", TEXT).series >= 2
    assert summarise(delimited(FOO, BAR)[:-1], PROTOBUF) == Summary(series=4, families=1)
