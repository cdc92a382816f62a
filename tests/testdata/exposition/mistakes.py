"""Mistakes that exporters, scripts and proxies make in a good page, and random ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from tests.testdata.exposition.pages import OPENMETRICS_PAGES, TEXT_PAGES, stored

Change = Callable[[bytes], bytes]

_SAMPLE = rb"(?m)^[a-z][^\n]*\n"
_LABELLED = rb"(?m)^[a-z][^\n{]*\{[^\n]*\n"
_ERROR_PAGE = b"<html><body>502 Bad Gateway</body></html>\n"


def in_middle(change: Change, of: bytes = _SAMPLE) -> Change:
    """Change the sample line in the middle of a page."""

    def changed(page: bytes) -> bytes:
        samples = list(re.finditer(of, page))
        sample = samples[len(samples) // 2]
        return page[: sample.start()] + change(sample[0]) + page[sample.end() :]

    return changed


def in_labels(old: bytes, new: bytes) -> Change:
    """Replace the first of something in a line with labels."""
    return in_middle(lambda line: line.replace(old, new, 1), _LABELLED)


def value_replaced(by: bytes) -> Change:
    """Replace what stands after the last blank of a sample line."""
    return in_middle(lambda line: line.rsplit(b" ", 1)[0] + b" " + by + b"\n")


def without_last(what: bytes) -> Change:
    """Drop the last of something from a line with labels."""
    return in_middle(lambda line: b"".join(line.rpartition(what)[::2]), _LABELLED)


MISTAKES: dict[str, Change] = {
    "html in the middle": in_middle(lambda line: line + _ERROR_PAGE),
    "html at the end": lambda page: page + _ERROR_PAGE,
    "json in the middle": in_middle(lambda line: line + b'{"error": "timeout", "code": 5}\n'),
    "log line in the middle": in_middle(lambda line: line + b"panic: runtime error: index out of range\n"),
    "two lines run together": in_middle(lambda line: line[:-1]),
    "the end of a line is lost": in_middle(lambda line: line[: len(line) // 2]),
    "the start of a line is lost": in_middle(lambda line: b"}" + line[len(line) // 2 :]),
    "cut at a third": lambda page: page[: len(page) // 3],
    "cut at two thirds": lambda page: page[: 2 * len(page) // 3],
    "no last line break": lambda page: page.rstrip(b"\n"),
    "twice over": lambda page: page + page,
    "lines in reverse": lambda page: b"".join(reversed(page.splitlines(keepends=True))),
    "end mark": lambda page: page + b"# EOF\n",
    "no value": in_middle(lambda line: line.rsplit(b" ", 1)[0] + b"\n"),
    "decimal comma": value_replaced(b"1,5"),
    "hexadecimal": value_replaced(b"0x1p4"),
    "underscores": value_replaced(b"1_000"),
    "a word for a value": value_replaced(b"None"),
    "out of range": value_replaced(b"1e999"),
    "fractional timestamp": value_replaced(b"1 12.5"),
    "negative timestamp": value_replaced(b"1 -5"),
    "trailing blanks": in_middle(lambda line: line[:-1] + b"  \t\n"),
    "tabs for blanks": in_middle(lambda line: line.replace(b" ", b"\t")),
    "carriage returns": lambda page: page.replace(b"\n", b"\r\n"),
    "one carriage return": in_middle(lambda line: line[:-1] + b"\r\n"),
    "blank lines": in_middle(lambda line: b"\n \n" + line),
    "a dash in a name": in_middle(lambda line: line.replace(b"_", b"-", 1)),
    "an unknown type": lambda page: page.replace(b" gauge\n", b" gage\n", 1),
    "a quote is lost": in_labels(b'"', b""),
    "the last quote is lost": without_last(b'"'),
    "single quotes": in_middle(lambda line: line.replace(b'"', b"'"), _LABELLED),
    "the opening brace is lost": in_labels(b"{", b" "),
    "the closing brace is lost": without_last(b"}"),
    "an equals sign is lost": in_labels(b"=", b" "),
    "a trailing comma": in_labels(b"}", b",}"),
    "a comma too many": in_labels(b"}", b",,}"),
    "a stray escape": in_labels(b'="', b'="\\'),
    "not UTF-8": in_labels(b'="', b'="\xff'),
    "UTF-8": in_labels(b'="', b'="\xc3\xbc'),
    "a line break in a label": in_labels(b'="', b'="\n'),
    "a NUL in a label": in_labels(b'="', b'="\0'),
    "a NUL at the start of a line": in_middle(lambda line: b"\0" + line),
}

FRAGMENTS = [bytes((byte,)) for byte in b" \t\n\r{}\",=\\#_:aE019.+-NI\0\xff\xc3/'"]
FRAGMENTS += [b"# ", b"HELP ", b"TYPE ", b"UNIT ", b"# EOF\n", b'{a="b"}', b'""', b"\\\\", b'\\"', b"NaN"]
FRAGMENTS += [b"1e999", b" 1", b"\n\n", b"\\\n", b' # {a="b"} 1', b"} ", b",,", b"\xc3\xbc", b"foo 1\n"]
FRAGMENTS += [b"# TYPE a counter\n"]

LINES = sorted(
    {
        line + b"\n"
        for name in ("jmx_exporter.txt", "openmetrics.txt", "text_1.0.0.txt")
        for line in stored(name).splitlines()
    }
    | {page.body for page in (*TEXT_PAGES, *OPENMETRICS_PAGES) if len(page.body) < 100}
)
"""Good ones, and some that are bad in one way."""


def generated(chance: random.Random) -> bytes:
    """A few lines with a few random mistakes."""
    page = b"".join(chance.choice(LINES) for _ in range(chance.randint(1, 3)))
    for _ in range(chance.choice((0, 1, 1, 2))):
        start = chance.randint(0, len(page))
        stop = min(len(page), start + chance.choice((0, 1, 1, 2, 6)))
        page = page[:start] + chance.choice(FRAGMENTS) + page[stop:]
    return page
