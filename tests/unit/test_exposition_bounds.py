"""Bounded memory and time, whatever the body: long lines, bombs, and pages made to be slow."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator

import pytest

from exporter_proxy.scrape.exposition import Malformed, TooLarge, verifier_for
from exporter_proxy.scrape.exposition.grammar import MAX_LABELS
from exporter_proxy.scrape.exposition.lines import ENTRY_LIMIT_BYTES, ODD_ENTRIES_LIMIT
from tests.inprocess import least_seconds
from tests.testdata.exposition.pages import OPENMETRICS, PROTOBUF, TEXT, zipped
from tests.testdata.exposition.protobuf import FOO, delimited, field, metric, varint

CHUNK_BYTES = 1 << 16
HUGE_BYTES = 50_000_000
PEAK_BYTES = 2 << 20
"""The entry that is waited for, once more while it is put together, and some slack."""


def judge(chunks: Iterable[bytes], content_type: str = TEXT, encoding: str | None = None) -> Malformed | None:
    """The fault of a body that comes in chunks."""
    verifier = verifier_for(content_type, encoding, max_decoded_bytes=1 << 40)
    assert verifier is not None
    try:
        for chunk in chunks:
            verifier.feed(chunk)
        verifier.finish()
    except Malformed as fault:
        return fault
    return None


def long_run(of: bytes, total_bytes: int = HUGE_BYTES) -> Iterator[bytes]:
    """The same bytes again and again, in chunks; all chunks are one object."""
    chunk = of * (CHUNK_BYTES // len(of))
    for _ in range(total_bytes // len(chunk)):
        yield chunk


def surrounded(before: bytes, of: bytes, after: bytes) -> Iterator[bytes]:
    yield before
    yield from long_run(of)
    yield after


HUGE_ENTRIES = {
    "comment": (b"# ", b"x", b"\n"),
    "help": (b"# HELP foo ", b"x ", b"\n"),
    "number": (b"foo 0.", b"0", b"1\n"),
    "name": (b"foo", b"foo", b" 1\n"),
    "blanks": (b"foo", b" ", b"1\n"),
}


@pytest.mark.parametrize("entry", HUGE_ENTRIES)
def test_a_line_of_50_megabytes_passes_and_the_next_is_judged(entry: str) -> None:
    before, of, after = HUGE_ENTRIES[entry]
    body = surrounded(b"a 1\n" + before, of, after + b"b 1\n<html>\n")
    tracemalloc.start()
    try:
        fault = judge(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fault is not None
    assert (fault.line, fault.excerpt) == (4, "<html>")
    assert peak < PEAK_BYTES


@pytest.mark.parametrize(
    ("before", "of", "after"),
    [
        (b'foo{a="', b"x", b'"} 1\n'),
        (b'foo{a="', b"x\n", b'"} 1\n'),
        (b'foo{a="', b"\\\\", b'"} 1\n'),
        (b"foo{", b'a="b",', b"} 1\n"),
        (b'# HELP "', b"x", b'" y\n'),
    ],
    ids=["value", "value of lines", "value of escapes", "labels", "quoted name"],
)
def test_an_entry_too_long_that_is_cut_inside_braces_or_quotes_passes_with_all_the_rest(
    before: bytes, of: bytes, after: bytes
) -> None:
    tracemalloc.start()
    try:
        assert judge(surrounded(before, of, after)) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES
    assert judge([b"<html>\n", before]) is not None


@pytest.mark.parametrize(
    ("before", "of"), [(b"", b'{"a": [1, 2, 3], "b": null}'), (b"<html>", b"<p>x</p>"), (b"foo{ ", b"x ")]
)
def test_a_long_line_that_begins_wrong_is_found_before_it_ends(before: bytes, of: bytes) -> None:
    verifier = verifier_for(TEXT, None, max_decoded_bytes=1)
    assert verifier is not None
    verifier.feed(before)
    with pytest.raises(Malformed) as caught:
        for chunk in long_run(of, 2 * ENTRY_LIMIT_BYTES):
            verifier.feed(chunk)
    assert caught.value.line == 1


def test_an_openmetrics_page_with_a_line_too_long_must_end_all_the_same() -> None:
    assert judge(surrounded(b"# HELP foo ", b"x", b"\n# EOF\n"), OPENMETRICS) is None
    fault = judge(surrounded(b"# HELP foo ", b"x", b"\nfoo 1\n"), OPENMETRICS)
    assert fault is not None
    assert fault.line == 2


def test_short_lines_in_tiny_chunks_are_not_kept() -> None:
    tracemalloc.start()
    try:
        assert judge([b"foo ", b"1\n"] * 100_000) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES


def test_a_long_protobuf_family_is_not_kept() -> None:
    one = field(4, metric(1.0, label="x" * 50))
    count = HUGE_BYTES // 5 // len(one)
    name = field(1, b"foo")
    length = varint(len(name) + count * len(one))
    per_chunk = CHUNK_BYTES // len(one)

    def body(last: bytes) -> Iterator[bytes]:
        yield length + name
        for _ in range(count // per_chunk):
            yield one * per_chunk
        yield one * (count % per_chunk)
        yield last

    tracemalloc.start()
    try:
        assert judge(body(delimited(FOO)), PROTOBUF) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES
    assert judge(body(delimited(FOO)[:-1]), PROTOBUF) is not None


def test_a_protobuf_string_too_long_is_not_kept_or_judged() -> None:
    length = 3 * ENTRY_LIMIT_BYTES
    head = field(1, b"foo") + field(4, metric())
    message_bytes = len(head) + 1 + len(varint(length)) + length
    start = varint(message_bytes) + head + b"\x12" + varint(length)
    assert judge([start, *long_run(b"\xff", length), delimited(FOO)], PROTOBUF) is None


def test_a_gzip_bomb_costs_no_more_memory_than_a_slice() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(chunk) for chunk in long_run(b"foo 1\n")) + packer.flush()
    assert len(packed) < HUGE_BYTES / 500
    tracemalloc.start()
    try:
        assert judge([packed], encoding="gzip") is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES


def test_a_gzip_bomb_is_judged_in_steps() -> None:
    packed = zipped(b"foo 1\n" * 2_000_000)
    verifier = verifier_for(TEXT, "gzip", max_decoded_bytes=1 << 40)
    assert verifier is not None
    longest = 0.0
    steps = 0
    before = time.thread_time()
    for _ in verifier.feed_in_steps(packed):
        steps += 1
        longest, before = max(longest, time.thread_time() - before), time.thread_time()
    verifier.finish()
    assert steps > 80
    # 2 ms on an idle machine.
    assert longest < 0.1


@pytest.mark.parametrize("encoding", [None, "gzip", "br"])
@pytest.mark.parametrize("content_type", [TEXT, PROTOBUF])
def test_steps_find_what_a_feed_finds(content_type: str, encoding: str | None) -> None:
    page = b"foo 1\n<html>\n" if content_type == TEXT else delimited(FOO) + b"\x05<html>"
    body = zipped(page) if encoding == "gzip" else page
    expected = judge([body], content_type, encoding)
    assert expected is not None
    verifier = verifier_for(content_type, encoding, max_decoded_bytes=1 << 20)
    assert verifier is not None
    with pytest.raises(Malformed) as caught:
        for _ in verifier.feed_in_steps(body):
            pass
    assert str(caught.value) == str(expected)


def test_a_gzip_body_may_not_decode_to_more_than_allowed() -> None:
    packed = zipped(b"foo 1\n" * 1000)
    for allowed in (5999, 6000):
        verifier = verifier_for(TEXT, "gzip", max_decoded_bytes=allowed)
        assert verifier is not None
        if allowed == 6000:
            verifier.feed(packed)
            verifier.finish()
        else:
            with pytest.raises(TooLarge, match="more than 5999 bytes"):
                verifier.feed(packed)


@pytest.mark.parametrize(("odd", "found"), [(ODD_ENTRIES_LIMIT - 1, True), (ODD_ENTRIES_LIMIT + 1, False)])
def test_a_page_of_nothing_but_oddities_is_not_judged_to_its_end(odd: int, found: bool) -> None:
    page = b'foo{a="\0"} 1\n' * odd + b"foo 1\n<html>\n"
    assert (judge([page]) is not None) == found
    assert (judge(page[at : at + 1000] for at in range(0, len(page), 1000)) is not None) == found


@pytest.mark.parametrize("content_type", [TEXT, OPENMETRICS])
@pytest.mark.parametrize(("labels", "found"), [(MAX_LABELS - 1, True), (MAX_LABELS, False)])
def test_an_entry_of_very_many_labels_is_not_judged_nor_is_what_follows(
    labels: int, found: bool, content_type: str
) -> None:
    page = b"foo{" + b",".join([b'a="b"'] * labels) + b"} x\n# EOF\n"
    assert (judge([page], content_type) is not None) == found
    assert judge([page.replace(b"x", b"1")], content_type) is None
    assert (judge([page.replace(b"x", b"1") + b"<html>\n"], content_type) is not None) == found


SIZE = 1 << 19
SLOW_PAGES = {
    "open quotes": b'foo{a="' * (SIZE // 7),
    "open quotes in lines": b'foo{a="b\n' * (SIZE // 9),
    "line breaks in quotes": b'foo{a="' + b"\n" * SIZE,
    "escapes": b'foo{a="' + b'\\"' * (SIZE // 2),
    "escapes, then wrong": b'foo{a="' + b"\\\\" * (SIZE // 2) + b'"} x\n',
    "escaped lines": b'foo{a="\\"\\"\\"\\"",b="\\"\\"\\"",} x y\n' * (SIZE // 40),
    "labels, then wrong": b"foo{" + b'a="b",' * (SIZE // 6) + b"} x\n",
    "quoted labels, then wrong": b"{" + b'"a"="b",' * (SIZE // 8) + b"} 1\n",
    "quoted names": b"{" + b'"a",' * (SIZE // 4) + b"} 1\n",
    "blanks": b" " * SIZE + b"x",
    "blanks in braces": b"foo{" + b" " * SIZE + b"x",
    "commas": b'foo{a="b"' + b"," * SIZE,
    "digits": b"foo " + b"1" * SIZE + b"x\n",
    "digits, then none": b"foo 1 " + b"1" * SIZE + b"x\n",
    "fraction": b"foo 0." + b"1" * SIZE + b"\n",
    "name": b"f" * SIZE + b"-\n",
    "hashes": b"#" * SIZE + b"\n",
    "comments with broken UTF-8": b"# \xff\n" * (SIZE // 4),
    "oddly spelled lines": b'\t foo\t{ a\t=\t"b" } +1E+0 \t1 \n' * (SIZE // 30),
    "lines with NULs": b'foo{a="\0"} 1\n' * (SIZE // 14),
    "empty lines": b"\n" * SIZE,
    "exemplars": b'foo_total 1 # {a="b",' * (SIZE // 21),
    "one long exemplar": b"foo_total 1 # {" + b'a="b",' * (SIZE // 6) + b"} x\n",
    "NULs": b"\0" * SIZE,
    "HELP with NULs": b"# H" + b"\0" * SIZE,
    "empty families": b"\0" * SIZE,
    "tiny families": b"\x03\x0a\x01a" * (SIZE // 4),
    "families of one empty metric": b"\x05\x0a\x01a\x22\0" * (SIZE // 6),
    "empty metrics": varint(SIZE) + b"\x22\0" * (SIZE // 2),
    "unknown fields": varint(SIZE) + b"\x30\x01" * (SIZE // 2),
    "long varints": varint(SIZE) + b"\x30" + b"\xff" * SIZE,
}


@pytest.mark.parametrize(
    "content_type", [TEXT, OPENMETRICS, PROTOBUF], ids=["text", "openmetrics", "protobuf"]
)
@pytest.mark.parametrize("page", SLOW_PAGES)
def test_no_page_of_half_a_megabyte_takes_long(page: str, content_type: str) -> None:
    body = SLOW_PAGES[page]
    chunks = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]
    started = time.process_time()
    judge(chunks, content_type)
    judge([body], content_type)
    # The worst take half a second; what grows with the square takes minutes.
    assert time.process_time() - started < 5


PART_BYTES = 1 << 18
"""What is read at once, at most, and held of a page that is judged in one piece."""


@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize(
    "content_type", [TEXT, OPENMETRICS, PROTOBUF], ids=["text", "openmetrics", "protobuf"]
)
@pytest.mark.parametrize("page", SLOW_PAGES)
def test_no_step_takes_long(page: str, content_type: str, encoding: str | None) -> None:
    body = SLOW_PAGES[page] if encoding is None else zipped(SLOW_PAGES[page])

    def longest_step() -> float:
        verifier = verifier_for(content_type, encoding, max_decoded_bytes=1 << 20)
        assert verifier is not None
        longest, before = 0.0, time.thread_time()
        with contextlib.suppress(Malformed):
            for start in range(0, len(body), PART_BYTES):
                for _ in verifier.feed_in_steps(body[start : start + PART_BYTES]):
                    longest, before = max(longest, time.thread_time() - before), time.thread_time()
                longest, before = max(longest, time.thread_time() - before), time.thread_time()
            verifier.finish()
        return max(longest, time.thread_time() - before)

    # 3 ms on an idle machine; all other scrapes wait for so long.
    assert least_seconds(longest_step, 0.02) < 0.02


def test_tiny_chunks_of_a_line_that_goes_on_are_not_joined_each_time() -> None:
    started = time.process_time()
    assert judge([b'foo{a="', *[b"\n"] * 200_000]) is not None
    assert judge([b"# ", *[b"x"] * 200_000]) is None
    assert time.process_time() - started < 5


def test_many_small_gzip_members_take_time_in_proportion() -> None:
    started = time.process_time()
    assert judge([zipped(b"") * 20_000], encoding="gzip") is None
    assert time.process_time() - started < 5
