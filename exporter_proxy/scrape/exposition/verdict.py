"""What a verifier is and raises, and how a piece of an untrusted body is made fit to be shown."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

from exporter_proxy.reasons import printable

EXCERPT_MAX_CHARS = 120
"""An excerpt is never longer than this, escapes included."""

_LEAD_BYTES = 40
"""How much before the fault is shown where the fault is far into a long line."""


class Verifier(Protocol):
    """Judges one body while it passes by. After an exception it must not be used again."""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next piece, of any size. Raises ``Malformed`` or ``TooLarge``."""

    def feed_in_steps(self, chunk: bytes | memoryview) -> Iterable[None]:
        """As ``feed``, but to be iterated over, with little work from one item to the next.

        A few KiB of gzip can decode to many MiB, and some of it is a thousand times the work of a usual
        line. An event loop can run others in between.
        """

    def finish(self) -> None:
        """The body is complete. Raises ``Malformed``."""


class Malformed(Exception):
    """The body is none that Prometheus would take in.

    ``line`` counts from 1 and is where the faulty entry starts; ``None`` where lines mean
    nothing (protobuf, gzip). ``excerpt`` is printable, at most 120 characters and may be
    empty; ``problem`` says what is wrong and holds nothing of the body.
    """

    def __init__(self, line: int | None, excerpt: str, problem: str) -> None:
        where = "" if line is None else f"line {line}: "
        super().__init__(f"{where}{problem}: {excerpt}" if excerpt else f"{where}{problem}")
        self.line = line
        self.excerpt = excerpt
        self.problem = problem


class TooLarge(Exception):
    """The body decodes to more than ``max_decoded_bytes``."""

    def __init__(self, max_decoded_bytes: int) -> None:
        super().__init__(f"the body decodes to more than {max_decoded_bytes} bytes")
        self.max_decoded_bytes = max_decoded_bytes


def excerpt_of(data: bytes, start: int, fault: int) -> str:
    """The line of ``data`` around ``fault``, of an entry that begins at ``start``.

    Control characters, terminal escapes, direction marks and broken UTF-8 come out as
    backslash escapes; ``...`` stands where something was left out.
    """
    begin = start if fault - start <= EXCERPT_MAX_CHARS // 2 else fault - _LEAD_BYTES
    stop = data.find(b"\n", max(fault, begin), begin + EXCERPT_MAX_CHARS)
    cut = stop < 0 and begin + EXCERPT_MAX_CHARS < len(data)
    piece = data[begin : stop if stop >= 0 else begin + EXCERPT_MAX_CHARS]
    if begin > start:
        # Not from the middle of a character: its tail would show as an escape.
        piece = piece.lstrip(bytes(range(0x80, 0xC0)))
    # Unless it is final a character that is cut off at the end is held back.
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    text = printable(decoder.decode(piece, final=not cut))
    text = f"...{text}" if begin > start else text
    if cut or len(text) > EXCERPT_MAX_CHARS:
        text = text[: EXCERPT_MAX_CHARS - 3] + "..."
    return text
