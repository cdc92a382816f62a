"""Several pages made one: what goes together and how, and what clashes, told with its places."""

from __future__ import annotations

import gc
import time

import pytest

from exporter_proxy.scrape.exposition import verifier_for
from exporter_proxy.scrape.exposition.merge import Clash, Merger
from tests.inprocess import least_seconds


def put_together(merger: Merger) -> bytes:
    for _ in merger.merge():
        pass
    return merger.page


def merged(*pages: str) -> str:
    merger = Merger()
    for number, page in enumerate(pages):
        for _ in merger.add("abc"[number] + ".prom", page.encode()):
            pass
    result = put_together(merger)
    verifier = verifier_for("text/plain", None, max_decoded_bytes=1 << 20)
    assert verifier is not None
    verifier.feed(result)
    verifier.finish()
    return result.decode()


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        (["a 1\n", "b 2\n"], "a 1\nb 2\n"),
        (["a 1", "b 2"], "a 1\nb 2\n"),
        (["", "b 2\n"], "b 2\n"),
        (['a{x="1"} 1\nb 1\n', 'a{x="2"} 2\n'], 'a{x="1"} 1\na{x="2"} 2\nb 1\n'),
        (
            ['# HELP a All.\n# TYPE a gauge\na{x="1"} 1\n', '# HELP a  All. \n# TYPE a gauge\na{x="2"} 2\n'],
            '# HELP a All.\n# TYPE a gauge\na{x="1"} 1\na{x="2"} 2\n',
        ),
        (
            ['a{x="1"} 1\n', '# TYPE a counter\na{x="2"} 2\n'],
            '# TYPE a counter\na{x="1"} 1\na{x="2"} 2\n',
        ),
        (
            ['# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_count 1\n', 'z 1\nh_sum{x="2"} 2\n'],
            '# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_count 1\nh_sum{x="2"} 2\nz 1\n',
        ),
        (["# a comment\n\n# EOF\na 1\n", "\tb 2 1000\n"], "a 1\n\tb 2 1000\n"),
        (['a{x="}\n# TYPE a gauge"} 1\n', "b 1\n"], 'a{x="}\n# TYPE a gauge"} 1\nb 1\n'),
        (['{"a.b", x="1"} 1\n', '{"a.b"} 1\n'], '{"a.b", x="1"} 1\n{"a.b"} 1\n'),
        (["a 1\n\x00anything", "b 1\n"], "a 1\nb 1\n"),
        (["a 1\n# \x00\nanything", "b 1\n"], "a 1\nb 1\n"),
        (["a 1\n#x\x00\nanything", "b 1\n"], "a 1\nb 1\n"),
        (["a 1\n# x\x00\nc 1\n", "b 1\n"], "a 1\nc 1\nb 1\n"),
        (["# TYPE a-gauge\n# HELP bÄ.\n", "b 1\n"], "# TYPE a gauge\n# HELP b Ä.\nb 1\n"),
        (["# HELP a-All.\n", "# HELP a All.\n"], "# HELP a All.\n"),
        (["# TYPE a gauge\n", "b 1\n"], "# TYPE a gauge\nb 1\n"),
    ],
)
def test_pages_that_go_together(pages: list[str], expected: str) -> None:
    assert merged(*pages) == expected


@pytest.mark.parametrize(
    ("pages", "problem", "excerpt"),
    [
        (["a 1\n", "\na 2\n"], "a.prom line 1 and b.prom line 2 have the same series", "a 2"),
        (["a 1\n", "b 1\n", "a 2\n"], "a.prom line 1 and c.prom line 1 have the same series", "a 2"),
        (["a 1\na 1\n", ""], "a.prom line 1 and a.prom line 2 have the same series", "a 1"),
        (
            ['a{x="1",y="2"} 1\n', 'a { y = "2", x="1", } 1\n'],
            "a.prom line 1 and b.prom line 1 have the same series",
            'a { y = "2", x="1", } 1',
        ),
        (['a{x=""} 1\n', "a 1\n"], "a.prom line 1 and b.prom line 1 have the same series", "a 1"),
        (
            ['{"a"} 1\n', '{"a",x=""} 1\n'],
            "a.prom line 1 and b.prom line 1 have the same series",
            '{"a",x=""} 1',
        ),
        (
            ["# TYPE a gauge\n", "b 1\n# TYPE a counter\n"],
            "a.prom line 1 and b.prom line 2 give one family different TYPE",
            "# TYPE a counter",
        ),
        (
            ["# HELP a One.\n", "# HELP a Two.\n"],
            "a.prom line 1 and b.prom line 1 give one family different HELP",
            "# HELP a Two.",
        ),
    ],
)
def test_pages_that_clash(pages: list[str], problem: str, excerpt: str) -> None:
    with pytest.raises(Clash) as caught:
        merged(*pages)
    assert (caught.value.problem, caught.value.excerpt) == (problem, excerpt)


def test_a_long_page_is_taken_in_in_steps() -> None:
    page = b"".join(b'a{x="%d"} 1\n' % number for number in range(10_000))
    merger = Merger()
    assert 10 <= sum(1 for _ in merger.add("a.prom", page)) <= 100
    assert put_together(merger) == page


@pytest.mark.parametrize(
    "line", [b"m%d 1\n", b"# HELP m%d Says nothing.\n", b'm{x="%d"} 1\n'], ids=["names", "helps", "series"]
)
def test_a_page_of_very_many_entries_is_put_together_in_steps(line: bytes) -> None:
    page = b"".join(line % number for number in range(100_000))

    def longest_step() -> float:
        merger = Merger()
        for _ in merger.add("a.prom", page):
            pass
        gc.collect()
        longest, before = 0.0, time.thread_time()
        for _ in merger.merge():
            longest, before = max(longest, time.thread_time() - before), time.thread_time()
        longest = max(longest, time.thread_time() - before)
        assert merger.page == page
        return longest

    # 4 ms on an idle machine, for the last copy of them all.
    assert least_seconds(longest_step, 0.02) < 0.02


def test_a_byte_that_no_reader_sees_makes_no_page_malformed() -> None:
    merger = Merger()
    for name, page in (("a", b"# HELP a\xffAll.\n"), ("b", b"b 1\n")):
        assert not list(merger.add(name, page))
    assert put_together(merger) == b"# HELP a All.\nb 1\n"
