"""What the two line-based formats have in common: the shape of a grammar, and tokens.

A grammar comes in several strengths. Its patterns match any number of whole entries at the
speed of compiled C, the narrower the faster; ``step`` reads the one entry they stopped at,
token by token as Prometheus's lexer does, and is the judge. Whatever a pattern matches,
``step`` must accept.

How patterns are written here, and why:

- Runs of bytes are possessive (``*+``) and what follows a run can never begin with a byte of
  it, so there is one way to match anything, and time is linear in the input, whatever it is.
- Groups are repeated greedily, never possessively: Python before 3.11.5 leaves the position
  wrong where the last round of a possessive group fails (Debian 12 has 3.11.2). Each entry
  is an atomic group instead. ``(?:...|)`` is an optional group.
- A repeated group costs memory for each round, so its rounds are bounded.
"""

from __future__ import annotations

import re
from typing import ClassVar, NoReturn, Protocol

LF, BLANK, QUOTE, HASH, LEFT_BRACE, RIGHT_BRACE = b'\n "#{}'
COMMA, EQUALS, BACKSLASH, NUL = b",=\\\0"

NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
LABEL_NAME = rb"[a-zA-Z_][a-zA-Z0-9_]*+"
# At most 200 digits before the point and two in the exponent cannot overflow a float.
FRACTION = rb"(?:\.[0-9]*+|)(?:[eE][+-]?+[0-9]{1,2}+|)"
SMALL_DECIMAL = rb"[+-]?+(?:[0-9]{1,200}+|(?=\.[0-9]))" + FRACTION
SMALL_FLOAT = rb"(?:" + SMALL_DECIMAL + rb"|(?i:nan|[+-]?+inf(?:inity|)))"
# Positive sets: the regular expression engine tests them in one step per byte.
_UNQUOTED = rb"[\x01-\x09\x0b-!#-\[\]-\xff]*+"
QUOTED = rb'"' + _UNQUOTED + rb'(?:"|(?:\\[\x01-\x09\x0b-\xff]' + _UNQUOTED + rb'){1,1000}")'
TEXT_TO_LF = rb"[\x01-\x09\x0b-\xff]*+"


def keyword(word: bytes, blank: bytes) -> bytes:
    """A pattern for ``word`` and ``blank`` with NULs strewn in, which the lexer drops here."""
    return rb"\x00*+".join((*(bytes((letter,)) for letter in word), blank)) + rb"\x00*+"


name_pattern = re.compile(NAME)
label_name_pattern = re.compile(LABEL_NAME)

_float_pattern = re.compile(
    rb"[+-]?+(?:[0-9]++(?:\.[0-9]*+|)|\.[0-9]++)(?:[eE][+-]?+[0-9]++|)|(?i:nan|[+-]?+inf(?:inity|))"
)
_cut_escape = re.compile(rb"\\\x00*+")
_RANGE_CHECK_MAX_BYTES = 4096
_FAMILIAR = {
    b"<": "HTML or XML",
    b"\r": "a carriage return",
    b"\xef\xbb\xbf": "a byte order mark",
    b"\x1f\x8b": "gzip without a Content-Encoding that says so",
}
_INFINITE = (float("inf"), float("-inf"))

MAX_LABELS = 2000
"""The patterns take a thousand. With so many, an entry and all behind it pass unjudged."""


class Rejected(Exception):
    """``step`` found a fault at position ``at``."""

    def __init__(self, at: int, problem: str) -> None:
        super().__init__(problem)
        self.at = at
        self.problem = problem


class Incomplete(Exception):
    """``step`` came to the end of its data in the middle of an entry.

    ``ends_at_line_break``: the next line break ends the entry, whatever stands before it;
    not so inside braces and quotes, where a line break may be data.
    """

    def __init__(self, *, ends_at_line_break: bool = True) -> None:
        super().__init__()
        self.ends_at_line_break = ends_at_line_break


class TooManyLabels(Exception):
    """``step`` does not read the entry to its end: at 2 us a label it would hold up the event loop."""


class EndOfPage(Exception):
    """The entry that ``step`` read is the last one; it ends at ``at``."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at


class Grammar(Protocol):
    """A line-based exposition format."""

    plain: ClassVar[re.Pattern[bytes]]
    """``canonical`` for data in which there is no backslash and no NUL."""
    canonical: ClassVar[re.Pattern[bytes]]
    """Whole entries spelled as client libraries spell them."""
    general: ClassVar[re.Pattern[bytes]]
    """Whole entries in nearly every permitted form."""
    needs_end: ClassVar[bool]
    """The page must close with its end mark, and nothing may follow that; otherwise there
    need be none, and what follows one does not matter."""

    def step(self, data: bytes, at: int, end: int) -> int:
        """Read the entry of ``data`` that begins at ``at``; return where the next one begins.

        Nothing at or after ``end`` is looked at; before it there is a line break, or more
        than any keyword. Raises ``Rejected``, ``Incomplete``, ``TooManyLabels`` or ``EndOfPage``.
        """


def many(entry: bytes) -> re.Pattern[bytes]:
    """As many of ``entry`` as there are, up to a thousand."""
    return re.compile(rb"(?:(?>" + entry + rb")){0,1000}")


def match_end(pattern: re.Pattern[bytes], data: bytes, at: int, end: int) -> int:
    """The position after all that ``pattern`` matches from ``at`` on, round after round."""
    while found := pattern.match(data, at, end):
        if found.end() == at:
            break
        at = found.end()
    return at


def after_quoted(body: re.Pattern[bytes], data: bytes, at: int, end: int, what: str) -> int:
    """The position after the closing quote of the string that opens at ``at``.

    ``body`` matches as much as may stand between the quotes.
    """
    at = match_end(body, data, at + 1, end)
    if at == end or _cut_escape.fullmatch(data, at, end):
        raise Incomplete(ends_at_line_break=False)
    if data[at] != QUOTE:
        raise Rejected(at, f"the quotes of {what} are not closed before the line break or NUL")
    return at + 1


def reject_start(data: bytes, at: int, expected: str) -> NoReturn:
    """Reject what is no beginning of an entry, with a word on what it may be instead."""
    for prefix, meaning in _FAMILIAR.items():
        if data.startswith(prefix, at):
            raise Rejected(at, f"expected {expected}, not {meaning}")
    raise Rejected(at, f"expected {expected}")


def check_utf8(data: bytes, start: int, stop: int, what: str) -> None:
    """Raise ``Rejected`` unless ``data[start:stop]`` is UTF-8."""
    try:
        str(memoryview(data)[start:stop], "utf-8")
    except UnicodeDecodeError as error:
        raise Rejected(start + error.start, f"{what} is not valid UTF-8") from None


def read_float(data: bytes, start: int, stop: int, what: str) -> float:
    """The number in ``data[start:stop]`` as Go's ``ParseFloat`` reads it, or ``Rejected``.

    Prometheus forbids hexadecimal numbers and underscores, and Go has an error for what
    overflows; what underflows is 0. Of a number longer than 4 KiB the range is not checked.
    """
    if not _float_pattern.fullmatch(data, start, stop):
        _reject_number(data, start, stop, what)
    if stop - start > _RANGE_CHECK_MAX_BYTES:
        return 0.0
    number = float(data[start:stop])
    if number in _INFINITE and not data[start:stop].strip(b"+-")[:1].isalpha():
        raise Rejected(start, f"{what} is beyond the range of a 64-bit float")
    return number


def _reject_number(data: bytes, start: int, stop: int, what: str) -> NoReturn:
    token = data[start : min(stop, start + 64)]
    if token.endswith(b"\r"):
        raise Rejected(start, "the line ends in a carriage return")
    if token.strip(b"+-")[:2].lower() == b"0x":
        raise Rejected(start, f"{what} is a hexadecimal number, which Prometheus does not accept")
    raise Rejected(start, f"{what} is not a number")
