"""What is wrong with a configuration and where: the only error that loading one can raise.

Text from the file that a message shows goes through here, so that a message stays on one
line, stays short and never shows what can be told to be secret: the user name and password of
a URL, a key, a password's hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from exporter_proxy.reasons import printable

_MAX_SHOWN_CHARACTERS = 120
_PEM_OR_HASH = re.compile(r"(-----BEGIN|\$2[abxy]?\$).*", re.DOTALL)
_URL_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. ``str()`` is the line a person reads: where, which key, what to do."""

    source: str
    """The file as the user named it, or the flag."""
    line: int | None
    """1-based; ``None``: the file or flag as a whole."""
    column: int | None
    """1-based, in characters; ``None`` together with ``line``."""
    key_path: str
    """``exporters.node_exporter.timeout``; "" for the file or flag as a whole."""
    message: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"
        return f"{where}: {self.key_path}: {self.message}" if self.key_path else f"{where}: {self.message}"


class ConfigError(Exception):
    """A configuration that cannot be used. ``str()`` is one problem per line, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sorted by position; a mistake met several times, through aliases, is shown once."""
    once: dict[tuple[int | None, int | None, str, str], Problem] = {}
    for problem in problems:
        key = problem.key_path.rpartition(".")[2]
        once.setdefault((problem.line, problem.column, key, problem.message), problem)
    return sorted(once.values(), key=lambda problem: (problem.line or 0, problem.column or 0))


def quoted(text: str) -> str:
    """``text`` in double quotes, fit to be shown: see ``visible``."""
    return '"' + visible(text).replace('"', '\\"') + '"'


def visible(text: str) -> str:
    """``text`` without URL credentials, keys and hashes, on one line, cut where it is long.

    Characters that do not print are escaped: a right-to-left mark in a file name or key
    must not be able to rearrange the message.
    """
    shown = _PEM_OR_HASH.sub(r"\1***", _without_credentials(text))
    if len(shown) > _MAX_SHOWN_CHARACTERS:
        shown = shown[: _MAX_SHOWN_CHARACTERS - 3] + "..."
    return printable(shown)


def _without_credentials(text: str) -> str:
    """Everything before the last ``@`` masked, except a URL's scheme.

    Deliberately coarse: what is shown here failed to parse, so where the password ends is
    not known. A password with a ``/`` or ``@`` in it must be masked whole.
    """
    before, at, after = text.rpartition("@")
    if not at:
        return text
    scheme = _URL_SCHEME.match(before)
    return f"{scheme.group() if scheme else ''}***@{after}"
