"""Verification of the line-based formats as a body streams by, in constant memory.

A block is the whole lines of what has arrived. The grammar's patterns run over it; only the
entry where they stop is read token by token. What is left after the last whole entry waits
for more. Entries longer than ``ENTRY_LIMIT_BYTES``, or of more than ``MAX_LABELS``, are let through
unjudged.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Generator, Iterator
from typing import NoReturn

from exporter_proxy.scrape.exposition.grammar import (
    BACKSLASH,
    NUL,
    EndOfPage,
    Grammar,
    Incomplete,
    Rejected,
    TooManyLabels,
)
from exporter_proxy.scrape.exposition.verdict import Malformed, excerpt_of

ENTRY_LIMIT_BYTES = 1 << 18
"""An entry (mostly: a line) that is longer is not held back for judging: it passes. Prometheus
knows no such limit, so it must not be an error. If the entry is cut off inside braces or
quotes, where a line break may be data, it cannot be told where the next one begins: then
all the rest passes."""

ODD_ENTRIES_LIMIT = 10_000
"""After so many entries that only ``Grammar.step`` can read, at some 10 us each, all the rest
passes. No exporter writes a page of such entries, but one could be made to hold up the
event loop."""

ROUNDS_A_STEP = 16
"""A step of ``feed_in_steps`` matches so often, up to a thousand entries each time: 1 to 6 ms. Usual lines
are so long that this is all that is read at once: who is in mid-part has it in memory twice.
"""
ODD_ENTRIES_A_STEP = 200

_KEEP_BYTES = 1 << 18
_KEEP_BLOCKS = 64
_DECODE_BYTES = 1 << 16


class LineVerifier:
    """Verifies a body in the format that ``grammar`` describes."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._pending: list[bytes] = []
        """The incomplete entry at the end of what has been fed."""
        self._pending_bytes = 0
        self._retry_bytes = 0
        """An entry that goes on over a line break is not looked at again below this size, which
        doubles each time: otherwise a hostile body could make it be read once per chunk."""
        self._lines = 0
        """Line breaks before ``_passed``, which comes before the pending entry."""
        self._passed: list[tuple[bytes, int]] = []
        """Checked blocks and how far, whose line breaks are counted only when they are many
        or a fault must be reported: on a small page counting would be a tenth of the work."""
        self._passed_bytes = 0
        self._keep_bytes = _KEEP_BYTES
        self._odd_entries = 0
        self._empty = True
        self._skips_line = False
        self._ended = False
        self._unjudged = False

    def feed(self, chunk: bytes | memoryview) -> None:
        """Check as much as is complete. Raises ``Malformed``."""
        for _ in self.feed_in_steps(chunk):
            pass

    def feed_in_steps(self, chunk: bytes | memoryview) -> Iterator[None]:
        """See ``Verifier.feed_in_steps``; most parts of a body are one step."""
        data = chunk if isinstance(chunk, bytes) else bytes(chunk)
        if not data or self._unjudged:
            return
        self._empty = False
        if self._ended:
            self._reject_after_end(data, 0)
            return
        if self._skips_line:
            following = data.find(b"\n") + 1
            if not following:
                return
            self._skips_line = False
            self._lines += 1
            data = data[following:]
        self._pending_bytes += len(data)
        if self._pending:
            self._pending.append(data)
            waits = b"\n" not in data or self._pending_bytes < self._retry_bytes
            if waits and self._pending_bytes <= ENTRY_LIMIT_BYTES:
                return
            data = b"".join(self._pending)
        yield from self._judge(data, data.rfind(b"\n") + 1)

    def finish(self) -> None:
        """Check what is left, and that the page is whole. Raises ``Malformed``."""
        if self._unjudged or self._ended or self._empty:
            # An empty body is no error to Prometheus 3, in no format.
            return
        rest = b"".join(self._pending)
        if rest:
            if not rest.endswith(b"\n"):
                # Prometheus does the same: the last line break may be missing.
                rest += b"\n"
            for _ in self._judge(rest, len(rest)):
                pass
            if self._pending:
                line, excerpt = self._count_lines() + 1, excerpt_of(self._pending[0], 0, 0)
                raise Malformed(line, excerpt, "the body ends inside quotes or braces")
        if self._grammar.needs_end and not self._ended:
            raise Malformed(max(self._count_lines(), 1), "", "the body does not end with # EOF")

    def _judge(self, block: bytes, end: int) -> Iterator[None]:
        """Check the whole lines ``block[:end]`` and set aside what is incomplete."""
        at = yield from self._judge_entries(block, end)
        if self._ended:
            self._reject_after_end(block, at)
        rest = b"" if self._ended or self._unjudged else block[at:]
        self._pending = [rest] if rest else []
        self._pending_bytes = len(rest)
        self._retry_bytes = 2 * len(rest) if at < end else 0
        if len(rest) > ENTRY_LIMIT_BYTES:
            self._let_pass(rest)

    def _judge_entries(self, block: bytes, end: int) -> Generator[None, None, int]:
        """The position after the last whole entry of ``block[:end]``."""
        grammar = self._grammar
        pattern = grammar.canonical if BACKSLASH in block or NUL in block else grammar.plain
        valid_to = end if block.isascii() else 0
        at = 0
        try:
            while at < end:
                if valid_to <= at:
                    valid_to = _valid_utf8_to(block, at, end)
                at = yield from _match_entries(pattern, block, at, valid_to)
                if at < valid_to and pattern is not grammar.general:
                    pattern = grammar.general
                    at = yield from _match_entries(pattern, block, at, valid_to)
                if at < end:
                    at = grammar.step(block, at, end)
                    self._odd_entries += 1
                    if self._odd_entries > ODD_ENTRIES_LIMIT:
                        self._unjudged = True
                        return at
                    if self._odd_entries % ODD_ENTRIES_A_STEP == 0:
                        yield
        except TooManyLabels:
            self._unjudged = True
            return at
        except Incomplete:
            pass
        except EndOfPage as last:
            at = last.at
            self._ended = True
        except Rejected as fault:
            self._reject(block, at, fault)
        if at:
            self._passed.append((block, at))
            self._passed_bytes += len(block)
        if self._passed_bytes > self._keep_bytes or len(self._passed) > _KEEP_BLOCKS:
            self._count_lines()
            self._keep_bytes = 0
        return at

    def _count_lines(self) -> int:
        """Line breaks in all that has passed."""
        for block, end in self._passed:
            self._lines += block.count(b"\n", 0, end)
        self._passed.clear()
        self._passed_bytes = 0
        return self._lines

    def _let_pass(self, entry: bytes) -> None:
        """Give up on an entry that is too long, unless its beginning is already wrong."""
        self._pending = []
        self._pending_bytes = self._retry_bytes = 0
        try:
            self._grammar.step(entry, 0, ENTRY_LIMIT_BYTES)
        except Incomplete as cut:
            self._skips_line = cut.ends_at_line_break
            self._unjudged = not cut.ends_at_line_break
        except TooManyLabels:
            self._unjudged = True
        except EndOfPage:
            self._ended = True
        except Rejected as fault:
            self._reject(entry, 0, fault)

    def _reject(self, data: bytes, entry: int, fault: Rejected) -> NoReturn:
        line = self._count_lines() + data.count(b"\n", 0, entry) + 1
        raise Malformed(line, excerpt_of(data, entry, fault.at), fault.problem) from None

    def _reject_after_end(self, data: bytes, at: int) -> None:
        # Prometheus's lexer drops NULs there, as padding of a fixed buffer would be.
        if self._grammar.needs_end and data[at:].strip(b"\0"):
            raise Malformed(self._count_lines() + 1, "", "something follows # EOF")


def _match_entries(pattern: re.Pattern[bytes], block: bytes, at: int, end: int) -> Generator[None, None, int]:
    """The position after all entries that ``pattern`` matches from ``at`` on, some thousands in a step."""
    rounds = 0
    while (found := pattern.match(block, at, end)) and found.end() > at:
        at = found.end()
        rounds += 1
        if rounds % ROUNDS_A_STEP == 0:
            yield
    return at


def _valid_utf8_to(data: bytes, at: int, end: int) -> int:
    """The position of the first byte of ``data[at:end]`` that is not UTF-8, or ``end``."""
    view = memoryview(data)
    while at < end:
        stop = min(at + _DECODE_BYTES, end)
        try:
            at += codecs.utf_8_decode(view[at:stop], "strict", stop == end)[1]
        except UnicodeDecodeError as error:
            return at + error.start
    return end
