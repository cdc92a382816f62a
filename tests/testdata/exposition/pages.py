"""Pages and what Prometheus makes of them: the tables that the unit tests and the oracle share.

The oracle test shows every row to a real Prometheus 2, so that the tables say what is so.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

DIRECTORY = Path(__file__).parent


class Taken(Enum):
    """Which Prometheus takes a page in."""

    BY_2 = auto()
    """Version 2 does; version 3 does or it does not matter."""
    BY_3_ONLY = auto()
    """A version 3 does: names in quotes, and what else is new there."""
    IF_RELABELLED = auto()
    """Parsed by all, refused afterwards for its labels, which relabelling could mend."""
    UNJUDGED = auto()
    """By none; the verifier does not look that deep."""
    BY_NONE = auto()
    """No version parses it, and the verifier must find it."""


@dataclass(frozen=True)
class Page:
    """One response body with the headers that matter, and what becomes of it."""

    body: bytes
    content_type: str | None = TEXT
    content_encoding: str | None = None
    taken: Taken = Taken.BY_2
    line: int | None = None
    """Where a page that nobody takes is wrong."""
    problem: str = ""
    """A part of what the verifier says of it."""

    def __str__(self) -> str:
        return repr(self.body[:60])[1:]


def bad(body: bytes, line: int | None, problem: str, content_type: str | None = TEXT) -> Page:
    """A page that no Prometheus parses."""
    return Page(body, content_type, taken=Taken.BY_NONE, line=line, problem=problem)


def taken(by: Taken, content_type: str, *bodies: bytes) -> list[Page]:
    """Pages of one kind and fate."""
    return [Page(body, content_type, taken=by) for body in bodies]


def zipped(body: bytes, level: int = 9) -> bytes:
    """A gzip body, the same at any time of the day."""
    return gzip.compress(body, level, mtime=0)


def stored(name: str) -> bytes:
    """A page from a file beside this module."""
    return (DIRECTORY / name).read_bytes()


GOOD_TEXT = taken(
    Taken.BY_2,
    TEXT,
    stored("jmx_exporter.txt"),
    stored("jmx_odd.txt"),
    b"",
    b"\n",
    b"   \n\t\n",
    b"foo 1",
    b"foo 1\n",
    b"foo  1  123 \n",
    b"foo\t1\t123\n",
    b"foo 1 00000000000000000000000123\n",
    b"foo 1 9223372036854775807\n",
    b"foo +1 \n",
    b"foo .5\n",
    b"foo 5.\n",
    b"foo 1e5\n",
    b"foo 1E+05\n",
    b"foo 1e-400\n",
    b"foo 1.7976931348623158e308\n",
    b"foo 1" + b"0" * 250 + b"\n",
    b"foo 0." + b"0" * 400 + b"1\n",
    b"foo NaN\nfoo nan\n",
    b"foo Inf\nfoo +iNf\nfoo -infinity\n",
    b"foo-1\n",
    b'foo{a="b"}1 2\n',
    b'foo {a="b"} 1\n',
    b'foo{a="b",} 1\n',
    b"foo{} 1\n",
    b"foo{ } 1\n",
    b'foo{a="b", c="d"} 1\n',
    b'foo{a="b" c="d"} 1\n',
    b'foo{a="b"c="d"} 1\n',
    b'foo\t{ a = "b" ,\tc= "d" , }\t1\n',
    b'foo{a="b\nc"} 1\n',
    b'foo{a="\n\n",b="\n"} 1\nbar 2\n',
    b'foo{a="b\\qc"} 1\n',
    b'foo{a="\\\\",b="\\"",c="\\n"} 1\n',
    'foo{a="größe",b="中"} 1\n'.encode(),
    b'foo{a="1"} 1\nfoo{a="1"} 2\n',
    b'foo{a="' + b"x" * 70000 + b'"} 1\n',
    b':foo::bar 1\n_x 1\n__x{__y=""} 1\n',
    b"# HELP\n# TYPE\n",
    b"# HELP foo\n# HELP foo \n# HELP foo   \n",
    b"# HELP foo-bar baz\n",
    b"# HELP foo\xffbar\n",
    "# HELP foo größe\n".encode(),
    b"#HELP 1foo\n#TYPE x bad\n#TYPE foo \xff\n",
    b"# TYPEfoo bad\n# HELPfoo\n",
    b"#\n#\xff\n# \xff\n##\n",
    b"# UNIT foo bar\n",
    b"# EOF\nfoo 1\n",
    b"# TYPE foo counter",
    b"# TYPE foo\tcounter\n",
    b"# TYPE foo-counter\n",
    b"#\t TYPE \t foo counter\n  # TYPE foo gauge\n",
    b"# TYPE foo untyped\n# TYPE foo histogram\n# TYPE foo summary\nfoo 1\n# TYPE foo gauge\n",
    b'foo 1\nbar 2\nfoo{a="1"} 1\n# TYPE foo counter\n',
    # A NUL at the start of a line, or in a comment without a blank, ends the page.
    b"foo 1\n\0garbage !!\n",
    b" \0garbage !!\n",
    b"#x\0y\n!!!",
    b"# \0\n!!!",
    b"# x\0y\n",
    b"# HE\0LP\0 \0foo x\n",
    b'foo{a="x\0y"} 1\n',
    b'foo{a="x"\0} 1\n',
    b'foo{a= \0"x\\\0"y"} 1\n',
    b"# HELP foo x\0bar\n",
)

LENIENT_TEXT = [
    *taken(
        Taken.BY_3_ONLY,
        TEXT,
        stored("text_1.0.0.txt"),
        b" foo 1\n",
        b"\tfoo\t1\t\n",
        b'{"foo"} 1\n',
        b'{"foo",a="b"} 1\n',
        b'{a="b","foo",} 1\n',
        b'foo{"a"="b"} 1\n',
        b'# HELP "foo" x\n',
        b'# TYPE "foo bar" gauge\n',
    ),
    *taken(Taken.IF_RELABELLED, TEXT, b'foo{a="1",a="2"} 1\n', b'foo{__name__="bar"} 1\n'),
    *taken(Taken.UNJUDGED, TEXT, "# HELP fooü\n".encode(), b'{"\xff"} 1\n'),
]

NO_START = "expected a metric name"
NO_NUMBER = "the value is not a number"
NO_LABEL = "expected a label name"
NO_EQUALS = "expected ="
NO_QUOTE = "a label value must stand in double quotes"
NO_TYPE = "expected one of counter"
TAIL = "unexpected text after"
OPEN_END = "the body ends inside quotes or braces"

BAD_TEXT = [
    bad(b"<html><body>It works</body></html>\n", 1, "not HTML"),
    bad(b"foo 1\n<!doctype html>\n<p>502</p>\n", 2, "not HTML"),
    bad(b'{"status": "ok"}\n', 1, NO_EQUALS),
    bad(b'{"a", "b"}\n', 1, NO_EQUALS),
    bad(b"[1]\n", 1, NO_START),
    bad(b"null\n", 1, "expected a value"),
    bad(b"ok\n", 1, "expected a value"),
    bad(b"\x1f\x8b\x08\x00\x00\x00\x00\x00", 1, "gzip without a Content-Encoding"),
    bad(b"\xef\xbb\xbffoo 1\n", 1, "byte order mark"),
    bad(b"\r\n", 1, "carriage return"),
    bad(b"foo 1\r\n", 1, "carriage return"),
    bad(b"# HELP foo x\r\n# TYPE foo gauge\r\n", 2, NO_TYPE),
    bad(b"a 1\nb 2\nfoo 1 -123\n", 3, TAIL),
    bad(b"foo 1 12.5\n", 1, TAIL),
    bad(b"foo 1 9223372036854775808\n", 1, "beyond the range of a 64-bit integer"),
    bad(b"foo 1 " + b"9" * 5000 + b"\n", 1, "beyond the range of a 64-bit integer"),
    bad(b"foo 1 2 3\n", 1, TAIL),
    bad(b"foo 1 1#\n", 1, TAIL),
    bad(b"foo 1 # comment\n", 1, TAIL),
    bad(b'foo 1 # {a="b"} 1\n', 1, TAIL),
    bad(b"foo 1bar 2\n", 1, NO_NUMBER),
    bad(b'foo{a="b"} 1 bar{a="b"} 2\n', 1, TAIL),
    bad(b"\n\n# x\nfoo\nbar 1\n", 4, "expected a value"),
    bad(b"foo\n1\n", 1, "expected a value"),
    bad(b'foo{a="c"}\n', 1, "expected a value"),
    bad(b"foo bar\n", 1, NO_NUMBER),
    bad(b"foo-bar 1\n", 1, NO_NUMBER),
    bad(b"foo 1,5\n", 1, NO_NUMBER),
    bad(b"foo 1_0\n", 1, NO_NUMBER),
    bad(b"foo +nan\n", 1, NO_NUMBER),
    bad(b"foo infin\n", 1, NO_NUMBER),
    bad(b"foo .\n", 1, NO_NUMBER),
    bad(b"foo 1e\n", 1, NO_NUMBER),
    bad(b"foo 0x1p3\n", 1, "hexadecimal"),
    bad(b"foo -0x10\n", 1, "hexadecimal"),
    bad(b"foo 0b1\n", 1, NO_NUMBER),
    bad(b"foo \xc2\xa01\n", 1, NO_NUMBER),
    bad(b"foo\xa0 1\n", 1, NO_NUMBER),
    bad(b"foo 1e400\n", 1, "beyond the range of a 64-bit float"),
    bad(b"foo -1.797693134862315809e308\n", 1, "beyond the range of a 64-bit float"),
    bad(b"foo 1" + b"0" * 400 + b"\n", 1, "beyond the range of a 64-bit float"),
    bad(b"1foo 1\n", 1, NO_START),
    bad(b"foo 1{\n", 1, TAIL),
    bad(b'foo{a="b"}{c="d"} 1\n', 1, "expected a value"),
    bad(b"foo{,} 1\n", 1, NO_LABEL),
    bad(b'foo{a="b",,} 1\n', 1, NO_LABEL),
    bad(b'foo{a="b",c} 1\n', 1, NO_EQUALS),
    bad(b'foo{1a="c"} 1\n', 1, NO_LABEL),
    bad(b'foo{a:b="c"} 1\n', 1, NO_EQUALS),
    bad(b"foo{a='c'} 1\n", 1, NO_QUOTE),
    bad(b"foo{a=c} 1\n", 1, NO_QUOTE),
    bad(b'foo{="c"} 1\n', 1, NO_LABEL),
    bad(b'foo{a="c" 1\n', 1, NO_LABEL),
    bad(b'foo{a="b"\n} 1\n', 1, NO_LABEL),
    bad(b'a 1\nfoo{a="b} 1\nfoo{a="b"} 2\n', 2, NO_EQUALS),
    bad(b'foo{a="b\\\nc"} 1\n', 1, "quotes of a label value are not closed"),
    bad(b'a 1\nfoo{a="b\\"} 1\nb 2\n', 2, OPEN_END),
    bad(b'foo{a="b\nc"} 1\nfoo{a="b', 3, OPEN_END),
    bad(b'foo 1\nfoo{a="\xff"} 1\n', 2, "a label value is not valid UTF-8"),
    bad(b'#\xff\nfoo{a="\xc3"} 1\n', 2, "a label value is not valid UTF-8"),
    bad(b'foo{a="x\ny"} 1\nfoo{a="\n\xff"} 1\n', 3, "a label value is not valid UTF-8"),
    bad(b'{a="b"} 1\n', 1, "there is no metric name"),
    bad(b'foo{"bar"} 1\n', 1, NO_EQUALS),
    bad(b"# HELP \n", 1, "expected a metric name after HELP"),
    bad(b"# HELP 1foo bar\n", 1, "expected a metric name after HELP"),
    bad(b"# HELP foo \xff\n", 1, "a help text is not valid UTF-8"),
    bad(b"# HELP foo\0bar\n", 1, "unexpected NUL"),
    bad(b"# TYPE \n", 1, "expected a metric name after TYPE"),
    bad(b"# TYPE foo", 1, NO_TYPE),
    bad(b"# TYPE foo \n", 1, NO_TYPE),
    bad(b"# TYPE foo counter \n", 1, NO_TYPE),
    bad(b"# TYPE foo  counter\n", 1, NO_TYPE),
    bad(b"# TYPE foo Counter\n", 1, NO_TYPE),
    bad(b"# TYPE foo info\n", 1, NO_TYPE),
    bad(b"# TYPE foo unknown\n", 1, NO_TYPE),
    bad(b"foo\0 1\n", 1, "expected a value"),
    bad(b"foo 1\0\n", 1, TAIL),
    bad(b'foo{a=\0"x"} 1\n', 1, NO_QUOTE),
]

GOOD_OPENMETRICS = taken(
    Taken.BY_2,
    OPENMETRICS,
    stored("openmetrics.txt"),
    stored("jmx_openmetrics.txt"),
    b"# EOF",
    b"# EOF\n",
    b"# EOF\n\0\0",
    b"# E\0OF\0\n",
    b"foo 1\n# EOF",
    b"foo 1 12.5\n# EOF\n",
    b"foo 1 -12.5e3\n# EOF\n",
    b"foo{} 1\n# EOF\n",
    b'foo{a="b\\qc"} 1\n# EOF\n',
    b'foo{a="\0"\0} 1\n# EOF\n',
    b"# HELP foo \n# HELP foo a\0b\n# EOF\n",
    b"# HE\0LP \0foo x\n# EOF\n",
    b"# HELP foo x\n\0\0foo 1\n# HELP foo x\n\0# EOF\n",
    b"# UNIT foo \n# UNIT _seconds seconds\n# EOF\n",
    b"# TYPE a counter\n# TYPE a gauge\na 1\n# EOF\n",
    b'# TYPE a counter\na_total 1\n# TYPE b gauge\nb 1\na_total{x="y"} 1\n# EOF\n',
    b"foo_total 1 # {} NaN\n# EOF\n",
    b'foo_total 1 # {a="' + b"x" * 300 + b'",a="b"} 1\n# EOF\n',
)

LENIENT_OPENMETRICS = taken(Taken.UNJUDGED, OPENMETRICS, b"\0# EOF\n", b"foo 1\n\0# EOF\n") + taken(
    Taken.BY_3_ONLY,
    OPENMETRICS,
    b"",
    b'foo{a="b",} 1\n# EOF\n',
    b'foo 1 # {a="b"} 1\n# EOF\n',
    b'foo_total 1 # {a="b",} 1\n# EOF\n',
    b'foo_total 1 # {"a"="b"} 1\n# EOF\n',
    b'{"foo",a="b"} 1\n# EOF\n',
    b'{a="b","foo"} 1\n# EOF\n',
    b"{foo} 1\n# EOF\n",
    b'foo{"a\nb"="b"} 1\n# EOF\n',
    b'# HELP "foo bar" x\n# TYPE "foo bar" info\n# UNIT "foo_s" s\n# EOF\n',
)

NO_END = "does not end with # EOF"
AFTER_END = "something follows # EOF"
NO_COMMENT = "OpenMetrics knows no other comment"

BAD_OPENMETRICS = [
    bad(body, line, problem, OPENMETRICS)
    for body, line, problem in (
        (b"# EOF\n\n", 2, AFTER_END),
        (b"# EOF\nfoo 1\n", 2, AFTER_END),
        (b"# EOF \n", 1, AFTER_END),
        (b"# EOFx", 1, AFTER_END),
        (b"# EOF\r\n", 1, AFTER_END),
        (b"# EOF\n\0x", 2, AFTER_END),
        (b"#EOF\n", 1, NO_COMMENT),
        (b"# EO", 1, NO_COMMENT),
        (b"# comment\n# EOF\n", 1, NO_COMMENT),
        (b"#\n# EOF\n", 1, NO_COMMENT),
        (b"# \n# EOF\n", 1, NO_COMMENT),
        (b"#  HELP foo bar\n# EOF\n", 1, NO_COMMENT),
        (b"foo 1", 1, NO_END),
        (b"foo 1\nbar 1\n", 2, NO_END),
        (b"# HELP foo bar", 1, NO_END),
        (stored("jmx_exporter.txt"), 13, NO_TYPE),
        (b"\n# EOF\n", 1, "no blank line"),
        (b"foo 1\n\n# EOF\n", 2, "no blank line"),
        (b" foo 1\n# EOF\n", 1, NO_START),
        (b"<html>\n# EOF\n", 1, "not HTML"),
        (b"foo  1\n# EOF\n", 1, "expected a value"),
        (b"foo\t1\n# EOF\n", 1, "expected one blank and a value"),
        (b"foo\n# EOF\n", 1, "expected one blank and a value"),
        (b'foo{a="b"}1\n# EOF\n', 1, "expected one blank and a value"),
        (b'foo {a="b"} 1\n# EOF\n', 1, "a value is not a number"),
        (b"foo bar\n# EOF\n", 1, "a value is not a number"),
        (b"foo 0x1p3\n# EOF\n", 1, "hexadecimal"),
        (b"foo 1_0\n# EOF\n", 1, "a value is not a number"),
        (b"foo 1e400\n# EOF\n", 1, "beyond the range"),
        (b"foo 1 \n# EOF\n", 1, "expected a timestamp"),
        (b"foo 1 1 \n# EOF\n", 1, TAIL),
        (b"foo 1 1 1\n# EOF\n", 1, TAIL),
        (b"foo 1 NaN\n# EOF\n", 1, "must be finite"),
        (b"foo 1 +Inf\n# EOF\n", 1, "must be finite"),
        (b"foo 1 1\r\n# EOF\n", 1, "carriage return"),
        (b"foo 1 # EOF\n", 1, "a timestamp is not a number"),
        (b"foo 1bar 1\n# EOF\n", 1, "a value is not a number"),
        (b'foo{a="b", c="d"} 1\n# EOF\n', 1, NO_LABEL),
        (b'foo{a="b" c="d"} 1\n# EOF\n', 1, "expected a comma or a closing brace"),
        (b'foo{a="b"c="d"} 1\n# EOF\n', 1, "expected a comma or a closing brace"),
        (b'foo{a="b",,} 1\n# EOF\n', 1, NO_LABEL),
        (b"foo{,} 1\n# EOF\n", 1, NO_LABEL),
        (b'foo{a="b\nc"} 1\n# EOF\n', 1, "quotes of a label value are not closed"),
        (b'foo{a="b\n# EOF\n', 1, "quotes of a label value are not closed"),
        (b'foo{a="\xff"} 1\n# EOF\n', 1, "not valid UTF-8"),
        (b'{a="b"} 1\n# EOF\n', 1, "there is no metric name"),
        (b"foo 1\0\n# EOF\n", 1, TAIL),
        (b'foo_total 1 # {a="b"}\n# EOF\n', 1, "the value of an exemplar"),
        (b'foo_total 1 # {a="b"}1\n# EOF\n', 1, "the value of an exemplar"),
        (b'foo_total 1 # {a="b"} 1 NaN\n# EOF\n', 1, "must be finite"),
        (b'foo_total 1 # {a="b"} 1 2 3\n# EOF\n', 1, TAIL),
        (b'foo_total 1 # {a="b"} 1 # {a="b"} 1\n# EOF\n', 1, "timestamp of an exemplar is not a number"),
        (b'foo_total 1 # {a="b"c="d"} 1\n# EOF\n', 1, "expected a comma or a closing brace"),
        (b"foo_total 1 # {a} 1\n# EOF\n", 1, NO_EQUALS),
        (b'foo_total 1 # {a="b\xff"} 1\n# EOF\n', 1, "not valid UTF-8"),
        (b'foo_total 1 # {a="b\0"} 1\n# EOF\n', 1, "quotes of a label value are not closed"),
        (b'foo_total 1 #{a="b"} 1\n# EOF\n', 1, "a timestamp is not a number"),
        (b"# HELP foo\n# EOF\n", 1, "expected one blank and a text in HELP"),
        (b"# HELP  foo bar\n# EOF\n", 1, "expected a metric name after HELP"),
        (b"# HELP foo \xff\n# EOF\n", 1, "a help text is not valid UTF-8"),
        (b"# TYPE foo untyped\n# EOF\n", 1, NO_TYPE),
        (b"# TYPE foo\n# EOF\n", 1, "expected one blank and a text in TYPE"),
        (b"# TYPE foo counter \n# EOF\n", 1, NO_TYPE),
        (b"# UNIT foo\n# EOF\n", 1, "expected one blank and a text in UNIT"),
        (b"# UNIT foo_seconds second\n# EOF\n", 1, "the unit is not the last part"),
        (b"# UNIT seconds seconds\n# EOF\n", 1, "the unit is not the last part"),
        (b"# UNIT fooseconds seconds\n# EOF\n", 1, "the unit is not the last part"),
    )
]

TEXT_PAGES = [*GOOD_TEXT, *LENIENT_TEXT, *BAD_TEXT]
OPENMETRICS_PAGES = [*GOOD_OPENMETRICS, *LENIENT_OPENMETRICS, *BAD_OPENMETRICS]
