r"""The text format, 0.0.4 and 1.0.0, as the lexers of Prometheus 2 and 3 together accept it.

That is wider than the format's description. Blanks may stand around every token, or be
missing; commas between labels may be missing; a label value may hold line breaks; a metric
may have several types, in any place; what follows a NUL at the start of a line is ignored.
And narrower: a timestamp has no sign, types are five lower-case words with one blank before
and none after them, and CR LF is no line break. Observed with Prometheus 2.42; names in
quotes are version 3's.
"""

from __future__ import annotations

import re
from typing import ClassVar

from exporter_proxy.scrape.exposition.grammar import (
    COMMA,
    EQUALS,
    FRACTION,
    HASH,
    LABEL_NAME,
    LEFT_BRACE,
    LF,
    MAX_LABELS,
    NAME,
    NUL,
    QUOTE,
    QUOTED,
    RIGHT_BRACE,
    SMALL_FLOAT,
    TEXT_TO_LF,
    EndOfPage,
    Incomplete,
    Rejected,
    TooManyLabels,
    after_quoted,
    check_utf8,
    keyword,
    label_name_pattern,
    many,
    name_pattern,
    read_float,
    reject_start,
)

TYPES = frozenset((b"counter", b"gauge", b"histogram", b"summary", b"untyped"))

_MAX_TIMESTAMP = b"9223372036854775807"
_TYPES = rb"(?:" + rb"|".join(sorted(TYPES)) + rb")"
_B = rb"[ \t]*+"


def _canonical(quoted: bytes, text: bytes) -> re.Pattern[bytes]:
    """One blank where one is needed, at most one after a comma, none elsewhere."""
    label = LABEL_NAME + rb"=" + quoted
    labels = rb"\{" + label + rb"(?:, ?+" + label + rb"){0,1000},?+\} "
    timestamp = rb"(?: [0-9]{1,18}+|)\n"
    value = (
        rb"(?:[0-9]{1,200}+(?:\n|" + FRACTION + timestamp + rb")"
        rb"|(?:-[0-9]{1,200}+" + FRACTION + rb"|NaN|[+-]?+Inf)" + timestamp + rb")"
    )
    sample = NAME + rb"(?: |" + labels + rb"|\{\} )" + value
    # Past its first byte the name in a HELP line runs into the text as far as the lexer cares.
    help_line = rb"# HELP [a-zA-Z_:]" + text + rb"\n"
    type_line = rb"# TYPE " + NAME + rb" " + _TYPES + rb"\n"
    # The three lines that most families begin with in one round: a tenth faster than one by one.
    return many(help_line + type_line + sample + rb"|" + sample + rb"|" + help_line + rb"|" + type_line)


def _general() -> re.Pattern[bytes]:
    """All but NULs, line breaks in quotes, and numbers of great length."""
    label = rb"(?:" + LABEL_NAME + rb"|" + QUOTED + rb")" + _B + rb"=" + _B + QUOTED + _B
    more = rb"(?:" + label + rb",?+" + _B + rb"){0,1000}"
    labels = rb"\{" + _B + more + rb"\}" + _B
    named = rb"\{" + _B + more + QUOTED + _B + rb"(?:," + _B + more + rb"|)\}" + _B
    timestamp = rb"(?:[ \t]++(?:[0-9]{1,18}+" + _B + rb"|)|)"
    sample = rb"(?:" + NAME + _B + rb"(?:" + labels + rb"|)|" + named + rb")" + SMALL_FLOAT + timestamp
    help_line = rb"HELP[ \t]++(?:[a-zA-Z_:]|" + QUOTED + rb")" + TEXT_TO_LF
    type_line = rb"TYPE[ \t]++(?:" + NAME + rb"|" + QUOTED + rb")[ \t]" + _TYPES
    other = rb"(?!(?:HELP|TYPE)[ \t])" + TEXT_TO_LF
    after_blank = rb"(?:" + help_line + rb"|" + type_line + rb"|" + other + rb")"
    comment = rb"#(?:[ \t]++" + after_blank + rb"|(?![ \t])" + TEXT_TO_LF + rb")"
    return many(_B + rb"(?:" + sample + rb"|" + comment + rb"|)\n")


_blanks = re.compile(_B)
_blanks_and_nuls = re.compile(rb"[ \t][ \t\x00]*+")
_nuls = re.compile(rb"\x00*+")
_help = re.compile(keyword(b"HELP", rb"[ \t][ \t\x00]*+"))
_type = re.compile(keyword(b"TYPE", rb"[ \t][ \t\x00]*+"))
_value_token = re.compile(rb"[^{ \t\n\x00]++")
_digits = re.compile(rb"[0-9]++")
_name_body = many(rb'[^"\\\x00]++|\\[^\n\x00]')
# Prometheus's lexer drops NULs from a label value before it looks at what they stand between.
_value_body = many(rb'[^"\\]++|\\\x00*+[^\n\x00]')


def _skip(pattern: re.Pattern[bytes], data: bytes, at: int, end: int) -> int:
    found = pattern.match(data, at, end)
    return found.end() if found else at


class TextGrammar:
    """The text format."""

    # Without a backslash a quoted value is all up to the next quote: "all but one byte" is
    # the engine's fastest loop, half as fast again as the set that minds escapes and NULs.
    plain: ClassVar[re.Pattern[bytes]] = _canonical(rb'"[^"]*+"', rb"[^\n]*+")
    canonical: ClassVar[re.Pattern[bytes]] = _canonical(QUOTED, TEXT_TO_LF)
    general: ClassVar[re.Pattern[bytes]] = _general()
    needs_end: ClassVar[bool] = False

    def step(self, data: bytes, at: int, end: int) -> int:
        """See ``Grammar.step``."""
        at = _skip(_blanks, data, at, end)
        if at == end:
            raise Incomplete
        first = data[at]
        if first == LF:
            return at + 1
        if first == NUL:
            raise EndOfPage(at)
        if first == HASH:
            return _comment(data, at + 1, end)
        if first == LEFT_BRACE:
            return _value(data, _labels(data, at + 1, end, named=False), end)
        name = name_pattern.match(data, at, end)
        if name is None:
            reject_start(data, at, "a metric name, a comment or a blank line")
        at = _skip(_blanks, data, name.end(), end)
        if at < end and data[at] == LEFT_BRACE:
            at = _labels(data, at + 1, end, named=True)
        return _value(data, at, end)


def _labels(data: bytes, at: int, end: int, *, named: bool) -> int:
    """The position after the brace that closes the labels; ``named``: the metric has its name."""
    for _ in range(MAX_LABELS):
        at = _skip(_blanks, data, at, end)
        if at == end:
            raise Incomplete(ends_at_line_break=False)
        first = data[at]
        if first == RIGHT_BRACE:
            if not named:
                raise Rejected(at, "there is no metric name, neither before nor inside the braces")
            return at + 1
        if first == QUOTE:
            at = after_quoted(_name_body, data, at, end, "a name")
        else:
            label_name = label_name_pattern.match(data, at, end)
            if label_name is None:
                raise Rejected(at, "expected a label name or a closing brace")
            at = label_name.end()
        at = _skip(_blanks, data, at, end)
        if at == end:
            raise Incomplete(ends_at_line_break=False)
        if first == QUOTE and not named and data[at] in (COMMA, RIGHT_BRACE):
            named = True
            at += data[at] == COMMA
            continue
        if data[at] != EQUALS:
            raise Rejected(at, "expected = after a label name")
        at = _label_value(data, at + 1, end)
    raise TooManyLabels


def _label_value(data: bytes, at: int, end: int) -> int:
    """From after the ``=`` to after the value and the comma that may follow it."""
    at = _skip(_blanks_and_nuls, data, at, end)
    if at == end:
        raise Incomplete(ends_at_line_break=False)
    if data[at] != QUOTE:
        raise Rejected(at, "a label value must stand in double quotes")
    start = at
    at = after_quoted(_value_body, data, at, end, "a label value")
    check_utf8(data, start, at, "a label value")
    at = _skip(_nuls, data, at, end)
    at = _skip(_blanks, data, at, end)
    return at + (at < end and data[at] == COMMA)


def _value(data: bytes, at: int, end: int) -> int:
    """From after the name and labels to the next line."""
    at = _skip(_blanks, data, at, end)
    token = _value_token.match(data, at, end)
    if at == end or (token and token.end() == end):
        raise Incomplete
    if token is None:
        raise Rejected(at, "expected a value")
    read_float(data, at, token.end(), "the value")
    at = _skip(_blanks, data, token.end(), end)
    timestamp = _digits.match(data, at, end)
    if timestamp:
        digits = timestamp[0].lstrip(b"0")
        if len(digits) > 19 or (len(digits) == 19 and digits > _MAX_TIMESTAMP):
            raise Rejected(at, "the timestamp is beyond the range of a 64-bit integer")
        at = _skip(_blanks, data, timestamp.end(), end)
    if at == end:
        raise Incomplete
    if data[at] != LF:
        after = "the timestamp" if timestamp else "the value (a timestamp is whole milliseconds)"
        raise Rejected(at, f"unexpected text after {after}")
    return at + 1


def _comment(data: bytes, at: int, end: int) -> int:
    """From after the ``#`` to the next line."""
    start = at
    at = _skip(_blanks, data, at, end)
    line_feed = data.find(b"\n", at, end)
    nul = data.find(b"\0", start, line_feed if line_feed >= 0 else end)
    if nul >= 0 and at in (start, nul):
        # The lexer minds a NUL until it has read "# ", and takes it for the end of the page.
        raise EndOfPage(nul)
    if at > start:
        if found := _help.match(data, at, end):
            return _metadata("HELP", data, found.end(), end)
        if found := _type.match(data, at, end):
            return _metadata("TYPE", data, found.end(), end)
    if line_feed < 0:
        raise Incomplete
    return line_feed + 1


def _metadata(word: str, data: bytes, at: int, end: int) -> int:
    """From the name in a HELP or TYPE line to the next line."""
    if at < end and data[at] == QUOTE:
        at = after_quoted(_name_body, data, at, end, "a name")
    else:
        name = name_pattern.match(data, at, end)
        if name is None and at < end:
            raise Rejected(at, f"expected a metric name after {word}")
        at = name.end() if name else end
    line_feed = data.find(b"\n", at, end)
    if line_feed < 0:
        raise Incomplete
    if data[at] == NUL:
        raise Rejected(at, "unexpected NUL after a metric name")
    # The lexer drops the first byte of the text unseen; it need not be a blank.
    text = min(at + 1, line_feed)
    if word == "TYPE":
        if data[text:line_feed] not in TYPES:
            raise Rejected(at, "expected one of counter, gauge, histogram, summary, untyped, after one blank")
        return line_feed + 1
    try:
        check_utf8(data, text, line_feed, "a help text")
    except Rejected:
        check_utf8(data, at, line_feed, "a help text")
    return line_feed + 1
