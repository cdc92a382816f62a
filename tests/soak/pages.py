"""Pages that carry a checksum of themselves, so that one that lacks a piece can be told from a whole one."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator

SAMPLES = 4
"""In each page, the checksum included, whatever its size: Prometheus is not to be measured."""
SIZES_BYTES = (300, 3_000, 60_000, 400_000, 1_500_000, 4_000_000)
_CHECKSUM = re.compile(rb"soak_page_checksum ([0-9]+)\n\Z")
_HEAD = b"""# HELP soak_page_sample One of some samples.
# TYPE soak_page_sample gauge
soak_page_sample{number="0"} 0
soak_page_sample{number="1"} 1
soak_page_sample{number="2"} 2
"""
_CHECKSUM_HEAD = (
    b"# HELP soak_page_checksum CRC-32 of all that stands before.\n# TYPE soak_page_checksum gauge\n"
)


def page(size_bytes: int, chance: random.Random) -> bytes:
    """A page of about this size, most of it comments that say nothing and hardly compress."""
    padding = b"".join(_comments(size_bytes - len(_HEAD) - len(_CHECKSUM_HEAD), chance))
    rest = _HEAD + padding + _CHECKSUM_HEAD
    return rest + b"soak_page_checksum %d\n" % zlib.crc32(rest)


def problem(text: bytes) -> str | None:
    """What is wrong with a page that was delivered as a whole one; ``None``: nothing."""
    found = _CHECKSUM.search(text[-100:])
    if found is None:
        return f"its last line is no checksum but {text[-60:]!r}"
    said, is_sum = int(found[1]), zlib.crc32(text[: len(text) - len(found[0])])
    return None if said == is_sum else f"its checksum is {is_sum}, it says {said}"


def _comments(size_bytes: int, chance: random.Random) -> Iterator[bytes]:
    while size_bytes > 0:
        text = b"# %b\n" % chance.randbytes(min(100, max(1, size_bytes // 2))).hex().encode()
        size_bytes -= len(text)
        yield text
