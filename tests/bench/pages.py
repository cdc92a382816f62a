"""The pages that are scraped: a real node_exporter's, and others made of it to a given size."""

from __future__ import annotations

import itertools

TINY = b"bench_metric_a 1.5\n"
PAGE_BYTES = 57_000
BIG_BYTES = 1_500_000
HUGE_BYTES = 60_000_000


def families(page: bytes) -> list[bytes]:
    """The metric families of a page in which each begins with its HELP line, as client libraries write it."""
    parts = page.split(b"# HELP ")[1:]
    return [b"# HELP " + part for part in parts]


def renamed(family: bytes, prefix: bytes) -> bytes:
    """The same family under another name."""
    lines = []
    for line in family.splitlines(keepends=True):
        keyword = next((word for word in (b"# HELP ", b"# TYPE ") if line.startswith(word)), b"")
        lines.append(keyword + prefix + line[len(keyword) :])
    return b"".join(lines)


def fitted(page: bytes, size_bytes: int) -> bytes:
    """A valid page of about (at most) this size, in which no family occurs twice.

    It takes the families of ``page`` that fit, and copies of them under new names once they are used up.
    Raises ValueError where there are no families.
    """
    originals = families(page)
    if not originals:
        raise ValueError("not a page of metric families, each with its HELP line")
    taken: list[bytes] = []
    left = size_bytes
    for copy in itertools.count():
        left_before = left
        for original in originals:
            family = renamed(original, b"copy%d_" % copy) if copy else original
            if len(family) <= left:
                taken.append(family)
                left -= len(family)
        if left == left_before:
            break
    return b"".join(taken)


def repeated(page: bytes, size_bytes: int) -> bytes:
    """Exactly this many bytes of the page over and over: large, but no valid exposition."""
    return (page * (size_bytes // len(page) + 1))[:size_bytes]


def chunked(body: bytes, chunk_bytes: int = 2048) -> bytes:
    """The body in HTTP chunks, by default of the size of the buffer that Go's net/http fills."""
    pieces = [body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
