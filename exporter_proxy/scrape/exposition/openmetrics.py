"""OpenMetrics text, 0.0.1 and 1.0.0, as the lexers of Prometheus 2 and 3 together accept it.

Unlike the text format it permits no blank but the ones it asks for, no blank lines, no
comments, and the page ends with ``# EOF``. Prometheus does not mind families in pieces,
a counter without ``_total``, or labels of any length in an exemplar; neither does this.
Version 3's: names in quotes, a comma after the last label, exemplars on any sample.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import ClassVar

from exporter_proxy.scrape.exposition.grammar import (
    BLANK,
    COMMA,
    EQUALS,
    FRACTION,
    HASH,
    LABEL_NAME,
    LEFT_BRACE,
    LF,
    MAX_LABELS,
    NAME,
    QUOTE,
    QUOTED,
    RIGHT_BRACE,
    SMALL_DECIMAL,
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

TYPES = frozenset(
    (b"counter", b"gauge", b"gaugehistogram", b"histogram", b"info", b"stateset", b"summary", b"unknown")
)

_EXEMPLAR = b" # {"


_TYPES = rb"(?:" + rb"|".join(sorted(TYPES)) + rb")"


def _canonical(text: bytes) -> re.Pattern[bytes]:
    label = LABEL_NAME + rb"=" + QUOTED
    labels = label + rb"(?:," + label + rb"){0,1000}\} "
    number = rb"(?:-?+[0-9]{1,200}+" + FRACTION + rb"|NaN|[+-]?+Inf)"
    timestamp = rb"(?: [0-9]{1,200}+" + FRACTION + rb"|)"
    exemplar = rb"(?: # \{(?:" + labels + rb"|\} )" + number + timestamp + rb"|)\n"
    value = rb"(?:[0-9]{1,200}+(?:\n|" + FRACTION + timestamp + exemplar + rb")"
    value += rb"|" + number + timestamp + exemplar + rb")"
    sample = NAME + rb"(?: |\{" + labels + rb"|\{\} )" + value
    metadata = rb"# (?:HELP " + NAME + rb" " + text + rb"\n|TYPE " + NAME + rb" " + _TYPES + rb"\n)"
    return many(sample + rb"|" + metadata)


def _general() -> re.Pattern[bytes]:
    """All but units, NULs, line breaks in quotes, and numbers of great length."""
    label = rb"(?:" + LABEL_NAME + rb"|" + QUOTED + rb")=" + QUOTED
    labels = rb"\{(?:" + label + rb"(?:," + label + rb"){0,1000},?+|)\}"
    named = rb"\{" + QUOTED + rb"(?:," + label + rb"){0,1000},?+\}"
    timestamp = rb"(?: " + SMALL_DECIMAL + rb"|)"
    exemplar = rb"(?: # " + labels + rb" " + SMALL_FLOAT + timestamp + rb"|)"
    series = rb"(?:" + NAME + rb"(?: |" + labels + rb" )|" + named + rb" )"
    sample = series + SMALL_FLOAT + timestamp + exemplar + rb"\n"
    name = rb"(?:" + NAME + rb"|" + QUOTED + rb") "
    metadata = rb"# (?:HELP " + name + TEXT_TO_LF + rb"\n|TYPE " + name + _TYPES + rb"\n)"
    return many(sample + rb"|" + metadata)


_keywords = {word: re.compile(rb"# " + keyword(word.encode(), rb" ")) for word in ("HELP", "TYPE", "UNIT")}
_end_mark = re.compile(rb"# " + keyword(b"EOF", rb""))
_number_token = re.compile(rb"[^ \n\x00]++")
_nuls = re.compile(rb"\x00*+")
_name_body = many(rb'[^"\\\x00]++|\\[^\n\x00]')
# Prometheus's lexer drops NULs from a label value before it looks at what they stand between.
_value_body = many(rb'[^"\\\n]++|\\\x00*+[^\n\x00]')
_exemplar_value_body = many(rb'[^"\\\n\x00]++|\\[^\n\x00]')


class OpenMetricsGrammar:
    """OpenMetrics text."""

    canonical: ClassVar[re.Pattern[bytes]] = _canonical(TEXT_TO_LF)
    plain: ClassVar[re.Pattern[bytes]] = _canonical(rb"[^\n]*+")
    general: ClassVar[re.Pattern[bytes]] = _general()
    needs_end: ClassVar[bool] = True

    def step(self, data: bytes, at: int, end: int) -> int:
        """See ``Grammar.step``."""
        # The lexer drops NULs after a HELP line. After other lines they are an error, let through.
        at = _skip_nuls(data, at, end)
        if at == end:
            raise Incomplete
        first = data[at]
        if first == HASH:
            return _metadata(data, at, end)
        if first == LEFT_BRACE:
            at = _labels(_value_body, data, at + 1, end, named=False)
        else:
            name = name_pattern.match(data, at, end)
            if name is None:
                if first == LF:
                    raise Rejected(at, "OpenMetrics permits no blank line")
                reject_start(data, at, "a metric name or # HELP, # TYPE, # UNIT or # EOF")
            at = name.end()
            if at < end and data[at] == LEFT_BRACE:
                at = _labels(_value_body, data, at + 1, end, named=True)
        at, _ = _number(data, at, end, "a value")
        return _after_value(data, at, end)


def _number(data: bytes, at: int, end: int, what: str) -> tuple[int, float]:
    """From a blank over the number that must follow it: the position after it, and the number."""
    if at < end and data[at] != BLANK:
        raise Rejected(at, f"expected one blank and {what}")
    token = _number_token.match(data, at + 1, end)
    if at + 1 >= end or (token and token.end() == end):
        raise Incomplete
    if token is None:
        raise Rejected(at + 1, f"expected {what} after one blank")
    return token.end(), read_float(data, at + 1, token.end(), what)


def _after_value(data: bytes, at: int, end: int) -> int:
    """From after the value over timestamp and exemplar to the next line."""
    if data[at] == BLANK and not _exemplar_ahead(data, at, end):
        start = at
        at, seconds = _number(data, at, end, "a timestamp")
        if not isfinite(seconds):
            raise Rejected(start, "a timestamp must be finite")
    if data[at] == BLANK and _exemplar_ahead(data, at, end):
        at = _labels(_exemplar_value_body, data, at + len(_EXEMPLAR), end, named=True)
        at, _ = _number(data, at, end, "the value of an exemplar")
        if data[at] == BLANK:
            start = at
            at, seconds = _number(data, at, end, "the timestamp of an exemplar")
            if not isfinite(seconds):
                raise Rejected(start, "the timestamp of an exemplar must be finite")
    if data[at] != LF:
        raise Rejected(at, "unexpected text after a sample")
    return at + 1


def _exemplar_ahead(data: bytes, at: int, end: int) -> bool:
    if data.startswith(_EXEMPLAR, at, end):
        return True
    if end - at < len(_EXEMPLAR) and _EXEMPLAR.startswith(data[at:end]):
        raise Incomplete
    return False


def _labels(value_body: re.Pattern[bytes], data: bytes, at: int, end: int, *, named: bool) -> int:
    """The position after the brace that closes the labels; ``named``: the metric has its name."""
    for _ in range(MAX_LABELS):
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
        if at == end:
            raise Incomplete(ends_at_line_break=False)
        if not named and data[at] in (COMMA, RIGHT_BRACE):
            # Prometheus 3 takes a name in the braces with and without quotes.
            named = True
        elif data[at] == EQUALS:
            at = _label_value(value_body, data, at + 1, end)
        else:
            raise Rejected(at, "expected = after a label name")
        if at == end:
            raise Incomplete(ends_at_line_break=False)
        if data[at] == COMMA:
            at += 1
        elif data[at] != RIGHT_BRACE:
            raise Rejected(at, "expected a comma or a closing brace after a label")
    raise TooManyLabels


def _label_value(value_body: re.Pattern[bytes], data: bytes, at: int, end: int) -> int:
    """From after the ``=`` to after the closing quote."""
    if at == end:
        raise Incomplete(ends_at_line_break=False)
    if data[at] != QUOTE:
        raise Rejected(at, "a label value must stand in double quotes")
    start = at
    at = after_quoted(value_body, data, at, end, "a label value")
    check_utf8(data, start, at, "a label value")
    return _skip_nuls(data, at, end)


def _skip_nuls(data: bytes, at: int, end: int) -> int:
    nuls = _nuls.match(data, at, end)
    return nuls.end() if nuls else at


def _metadata(data: bytes, at: int, end: int) -> int:
    """From the ``#`` of ``# HELP``, ``# TYPE``, ``# UNIT`` or ``# EOF`` to the next line."""
    end_mark = _end_mark.match(data, at, end)
    if end_mark and end_mark.end() < end:
        if data[end_mark.end()] != LF:
            raise Rejected(at, "something follows # EOF")
        raise EndOfPage(end_mark.end() + 1)
    for word, pattern in _keywords.items():
        found = pattern.match(data, at, end)
        if found:
            return _described(word, data, found.end(), end)
    raise Rejected(at, "expected # HELP, # TYPE, # UNIT or # EOF: OpenMetrics knows no other comment")


def _described(word: str, data: bytes, at: int, end: int) -> int:
    """From the name in a HELP, TYPE or UNIT line to the next line."""
    start = at
    if at < end and data[at] == QUOTE:
        at = after_quoted(_name_body, data, at, end, "a name")
        name = data[start + 1 : at - 1]
    else:
        found = name_pattern.match(data, at, end)
        if found is None and at < end:
            raise Rejected(at, f"expected a metric name after {word}")
        at = found.end() if found else end
        name = data[start:at]
    if at < end and data[at] != BLANK:
        raise Rejected(at, f"expected one blank and a text in {word}")
    line_feed = data.find(b"\n", at, end)
    if line_feed < 0:
        raise Incomplete
    _check_text(word, name, data, at + 1, line_feed)
    return line_feed + 1


def _check_text(word: str, name: bytes, data: bytes, at: int, line_feed: int) -> None:
    """The text of a HELP, TYPE or UNIT line."""
    if word == "HELP":
        check_utf8(data, at, line_feed, "a help text")
    elif word == "TYPE":
        if data[at:line_feed] not in TYPES:
            known = ", ".join(sorted(kind.decode() for kind in TYPES))
            raise Rejected(at, f"expected one of {known}")
    elif at < line_feed:
        unit = data[at:line_feed]
        if not name.endswith(b"_" + unit):
            raise Rejected(at, "the unit is not the last part of the metric's name")
