"""README.md and other documents as data: sections, fenced blocks, transcripts and tables; comparing output.

A transcript (``console``) has commands after ``$ ``, each followed by what it prints. There, a line
``...`` stands for any number of lines left out, and ``CHANGING`` lists all that may differ from one run to
the next; the rest must be what the program prints, to the letter.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.daemon import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LEFT_OUT = "..."
PROMPT = "$ "

# Pattern of what changes from run to run, and the word it is replaced by on both sides.
CHANGING: tuple[tuple[str, str], ...] = (
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "TIME"),
    (r"(?<=\bversion=)\S+|(?<=^exporter_proxy )\d[^ ,]*", "VERSION"),
    (r"\b[\d.]+ ms\b", "N ms"),
    (r"\b\d+ on the wire, \d+ decoded\b", "N on the wire, N decoded"),
    (r"\b\d+ in \d+ families\b", "N in N families"),
    # Messages name ports, and the tests' have more digits than the usual ones.
    (r"(?<=^Content-Length: )\d+|(?<=\bsize=)\d+", "N"),
    (r"(?<=\breqtime_nsec=)\d+", "N"),
    (r"^(demo_node_load\d+) [\d.e+-]+$", r"\1 N"),
    (r"\b\d+ s ago\b", "N s ago"),
    (r"\b[\d.]+ [KM]iB\b", "N KiB"),
    (r"\b\d+(?= of \d+ connections\b)", "N"),
    (r"(?<=\bhash )[0-9a-f]{12}\b", "HASH"),
    # promtool shows the time of an answer like this.
    (r"(?<= )@\[[\d.]+\]", "@[TIME]"),
    # Columns are as wide as what stands in them.
    (r"(?<=\S)  +", "  "),
    # The demo exporter takes a free port.
    (r"(?<=demo_exporter/metrics  <-  http://127\.0\.0\.1:)\d+", "PORT"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``line`` is that of its first line of content in ``file``."""

    section: str
    language: str
    text: str
    line: int
    file: str = "README.md"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a transcript and the lines shown below it."""

    command: str
    output: tuple[str, ...]
    line: int
    file: str = "README.md"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.command}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table by its header; cells are text as written."""

    section: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(document: str = README) -> dict[str, str]:
    """The text below each ``## `` heading; what comes before the first is ""."""
    parts = re.split(r"^## (.+)\n", document, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def blocks(document: str = README, file: str = "README.md") -> Iterator[Block]:
    """All fenced blocks. Raises ValueError for a fence that is indented, unclosed or without a language."""
    section, language, start, content = "", "", 0, list[str]()
    for number, line in enumerate(document.splitlines(), 1):
        if not re.match(r"\s*(```|~~~)", line):
            if start:
                content.append(line)
            elif line.startswith("## "):
                section = line[3:]
        elif start:
            yield Block(section, language, "\n".join(content) + "\n", start, file)
            start = 0
        else:
            opening = re.fullmatch(r"```([a-z]+)", line)
            if opening is None:
                raise ValueError(f"{file}:{number}: a fence without a language, or indented")
            language, start, content = opening[1], number + 1, []
    if start:
        raise ValueError(f"{file}:{start - 1}: a fence that is never closed")


def steps(block: Block) -> list[Step]:
    """The commands of a transcript. Raises ValueError where it does not begin with one."""
    found: list[Step] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith(PROMPT):
            found.append(Step(line.removeprefix(PROMPT), (), number, block.file))
        elif found:
            last = found[-1]
            found[-1] = replace(last, output=(*last.output, line))
        else:
            raise ValueError(f"{block.file}:{number}: output without a command before it")
    return found


def tables(document: str = README) -> list[Table]:
    found: list[Table] = []
    for section, text in sections(document).items():
        for lines in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
            rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines.splitlines()]
            found.append(Table(section, rows[0], tuple(rows[2:])))
    return found


def table(section: str, first_column: str, number: int = 0) -> Table:
    """The table in this section whose first column is called so."""
    matching = [one for one in tables() if one.section == section and one.header[0] == first_column]
    return matching[number]


def code_words(text: str) -> list[str]:
    """What stands in backticks outside of fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", prose)


def stable(line: str) -> str:
    """A line without what changes from run to run."""
    for pattern, word in CHANGING:
        line = re.sub(pattern, word, line)
    return line.rstrip()


def difference(shown: Sequence[str], printed: str) -> str:
    """What README.md shows against what was printed; "" where it is the same."""
    expected = [line if line == LEFT_OUT else stable(line) for line in shown]
    actual = [stable(line) for line in printed.replace("\r\n", "\n").splitlines()]
    # Blocks of markdown do not end with blank lines, and neither do the output's ends matter.
    while actual and not actual[-1]:
        actual.pop()
    pattern = "".join(r"(?:.*\n)*" if line == LEFT_OUT else re.escape(line + "\n") for line in expected)
    if re.fullmatch(pattern, "".join(f"{line}\n" for line in actual)):
        return ""
    return "\n".join(difflib.unified_diff(expected, actual, "shown", "printed", lineterm="", n=99))
