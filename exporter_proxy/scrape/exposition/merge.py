"""Several pages in the text format made one, as a scraper may have it: each family once, in one piece.

For pages that a verifier has passed. They clash where they do not agree on a family's TYPE or HELP,
or have the same series twice; a page that leaves a TYPE or HELP out does not disagree. Comments and
blank lines are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from exporter_proxy.scrape.exposition.grammar import LABEL_NAME, NAME
from exporter_proxy.scrape.exposition.verdict import excerpt_of

MAX_BYTES = 8 << 20
"""More is not merged: each series is remembered by its name and labels meanwhile."""

_ENTRIES_PER_STEP = 500
"""About a millisecond's work."""
_B = rb"[ \t\x00]*+"
_STRING = rb'(?>"(?:[^"\\]++|\\.){0,10000}")'
_ENTRY = re.compile(
    rb"[ \t]*+(?:"
    rb"(?P<blank>\n)"
    rb"|\#[ \t]++(?P<word>HELP|TYPE)[ \t]++(?P<family>" + NAME + rb"|" + _STRING + rb")(?P<text>[^\n]*+)\n"
    rb"|(?P<comment>\#(?:[ \t]++(?!\x00)[^\n]*+|(?![ \t])[^\n\x00]*+)\n)"
    rb"|(?P<name>" + NAME + rb"|)[ \t]*+(?P<labels>\{(?:[^\"}]++|" + _STRING + rb"){0,10000}\}|)"
    rb"[^\n\x00#][^\n]*+\n)",
    re.DOTALL,
)
_LABEL = re.compile(
    rb"(" + LABEL_NAME + rb"|" + _STRING + rb")" + _B + rb"(?:=" + _B + rb"(" + _STRING + rb")|)", re.DOTALL
)
_NO_LINES: list[bytes] = []
_SUFFIXES = (b"_bucket", b"_sum", b"_count")
_HAVE_SUFFIXES = (b"histogram", b"summary")


class Clash(Exception):
    """Two places that contradict each other; ``excerpt`` is printable and says what they are about."""

    def __init__(self, problem: str, excerpt: str) -> None:
        super().__init__(f"{problem}: {excerpt}")
        self.problem = problem
        self.excerpt = excerpt


@dataclass(frozen=True, slots=True)
class _Page:
    name: str
    data: bytes


_Place = tuple[_Page, int]
"""A page and the position of an entry in it."""


class Merger:
    """``add`` each page, then ``merge`` them; ``page`` is all of them in one."""

    def __init__(self) -> None:
        self._names: dict[bytes, None] = {}
        """Of families and samples, in the order in which they were met."""
        self._metadata: dict[tuple[bytes, bytes], tuple[bytes, _Place]] = {}
        """Text and place of each HELP and TYPE, by that word and the family."""
        self._series: dict[bytes, _Place] = {}
        self._samples: dict[bytes, list[bytes]] = {}
        """Lines by the name that they begin with."""
        self.page = b""

    def add(self, name: str, data: bytes) -> Iterator[None]:
        """Take in a page, to be iterated over, with little work from one item to the next.

        ``name`` is what messages call it. Raises ``Clash``.
        """
        page = _Page(name, data if data.endswith(b"\n") else data + b"\n")
        at = count = 0
        # What no entry matches is a NUL, or one in a comment: to the scraper's parser it ends the page.
        while entry := _ENTRY.match(page.data, at):
            if entry["word"]:
                self._add_metadata(entry, page)
            elif entry["name"] or entry["labels"]:
                self._add_sample(entry, page)
            at = entry.end()
            count += 1
            if count % _ENTRIES_PER_STEP == 0:
                yield

    def merge(self) -> Iterator[None]:
        """Make ``page`` of all that was added, to be iterated over as ``add`` is."""
        families: dict[bytes, list[bytes]] = {}
        for count, name in enumerate(self._names, 1):
            # Lists that are there already: with new ones the collector would walk all of them again.
            family, lines = self._family_of(name), self._samples.get(name, _NO_LINES)
            if families.get(family):
                families[family] += lines
            else:
                families[family] = lines
            if count % _ENTRIES_PER_STEP == 0:
                yield
        parts: list[bytes] = []
        pieces: list[bytes] = []
        for family, lines in families.items():
            for word in (b"HELP", b"TYPE"):
                known = self._metadata.get((word, family))
                if known is not None:
                    parts.append(b"# %b %b %b\n" % (word, family, known[0]))
            for start in range(0, len(lines) or 1, _ENTRIES_PER_STEP):
                parts += lines[start : start + _ENTRIES_PER_STEP]
                if len(parts) > _ENTRIES_PER_STEP:
                    pieces.append(b"".join(parts))
                    parts.clear()
                    yield
        self.page = b"".join([*pieces, *parts])

    def _add_metadata(self, entry: re.Match[bytes], page: _Page) -> None:
        word, family, text = entry["word"], entry["family"], _metadata_text(entry["text"])
        self._names.setdefault(family)
        known, place = self._metadata.setdefault((word, family), (text, (page, entry.start())))
        if known != text:
            places = f"{_shown(place)} and {_shown((page, entry.start()))}"
            raise Clash(f"{places} give one family different {word.decode()}", _excerpt(entry))

    def _add_sample(self, entry: re.Match[bytes], page: _Page) -> None:
        name, series = _identity(entry["name"], entry["labels"])
        here = (page, entry.start())
        first = self._series.setdefault(series, here)
        if first is not here:
            raise Clash(f"{_shown(first)} and {_shown(here)} have the same series", _excerpt(entry))
        self._names.setdefault(name)
        self._samples.setdefault(name, []).append(entry[0])

    def _family_of(self, name: bytes) -> bytes:
        if (b"TYPE", name) not in self._metadata:
            for suffix in _SUFFIXES:
                base = name.removesuffix(suffix)
                known = self._metadata.get((b"TYPE", base))
                if base != name and known is not None and known[0] in _HAVE_SUFFIXES:
                    return base
        return name


def _metadata_text(after_name: bytes) -> bytes:
    """As the scraper's lexers have it: they drop the byte behind the name unseen, most often a blank.

    Unless it begins a character, the rest of which would be no UTF-8: what reads it then keeps it.
    """
    text = after_name[1:]
    try:
        text.decode()
    except UnicodeDecodeError:
        text = after_name
    return text.strip(b" \t")


def _identity(name: bytes, braces: bytes) -> tuple[bytes, bytes]:
    """The metric's name, and what tells its series from others, however it is written."""
    if not braces:
        return name, name
    labels: list[bytes] = []
    for label, value in _LABEL.findall(braces):
        if not value:
            name = label  # in the braces itself, in quotes
        elif value != b'""':  # an empty label is the same as none
            labels.append(label.strip(b'"') + value)
    labels.sort()
    return name, b"\n".join((name, *labels))


def _shown(place: _Place) -> str:
    page, at = place
    line = page.data.count(b"\n", 0, at) + 1
    return f"{page.name} line {line}"


def _excerpt(entry: re.Match[bytes]) -> str:
    return excerpt_of(entry.string, entry.start(), entry.start())
