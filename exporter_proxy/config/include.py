"""``include``: further files with exporters, so that each package or role can drop one of its own.

Which files there are, and that each is a mapping with exporters and nothing else; what is in an
exporter is for ``exporters.py``.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import yaml

from exporter_proxy.config.certificates import check_readable
from exporter_proxy.config.positions import Document, found, is_null
from exporter_proxy.config.problems import ConfigError, Problem, in_file_order, quoted
from exporter_proxy.config.sections import Section
from exporter_proxy.config.source import read_file
from exporter_proxy.config.values import FILE_PATH

INCLUDED_KEYS = ("exporters",)


@dataclass(slots=True)
class Included:
    """The files that were read, in their order, and what was wrong before there was anything to read."""

    tops: list[Section] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    _documents: list[Document | tuple[Problem, ...]] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """Of all files, in their order; complete once all has been read from ``tops``."""
        return [
            problem
            for one in self._documents
            for problem in (in_file_order(one.problems) if isinstance(one, Document) else one)
        ]

    def add(self, path: str, shown: str) -> None:
        """Read the file at ``path``, which messages call ``shown``."""
        try:
            data = read_file(path, "include")
            document = Document(data, shown)
        except ConfigError as error:
            self._documents.append(tuple(replace(problem, source=shown) for problem in error.problems))
            return
        self.contents.append(data)
        self._documents.append(document)
        root = document.root
        if isinstance(root, yaml.MappingNode):
            self.tops.append(Section(document, root, root, "", INCLUDED_KEYS))
        elif root is not None and not is_null(root):
            document.report(root, "", f'expected the key "exporters", got {found(root)}')


def read_included(top: Section, source: str, base_dir: str) -> Included:
    """The files that ``include`` names: in the order of the list, those of a pattern by name.

    Relative ones are taken from the directory of ``source``: whoever checks a configuration from
    elsewhere means the same files. Each is read once.
    """
    included = Included()
    own_path = os.path.realpath(os.path.join(base_dir, source))  # noqa: PTH118 - as in the file, "./" included
    seen = {own_path}
    for pattern in top.get_list("include", FILE_PATH, ()):
        shown_pattern = os.path.join(os.path.dirname(source), pattern)  # noqa: PTH118, PTH120 - as above
        wrong = None
        named = pattern
        for shown in _matching(shown_pattern, base_dir):
            path = os.path.join(base_dir, shown)  # noqa: PTH118 - as above
            real = os.path.realpath(path)
            wrong = "it includes this file itself" if real == own_path else _why_no_file(path, pattern)
            if wrong is not None:
                named = pattern if real == own_path or shown == shown_pattern else shown
                break
            if real not in seen:
                seen.add(real)
                included.add(path, shown)
        wrong = wrong or _why_nothing_can_match(os.path.join(base_dir, shown_pattern))  # noqa: PTH118 - as above
        if wrong is not None:
            top.report("include", f"{quoted(named)}: {wrong}")
    return included


def named_files(patterns: Iterable[str], source: str) -> Iterator[str]:
    """The regular files that ``include`` of the file ``source`` names, as far as they can be read."""
    for pattern in patterns:
        # As with ``read_included``.
        for path in _matching(os.path.join(os.path.dirname(source), pattern), ""):  # noqa: PTH118, PTH120
            if check_readable(path) is None:
                yield path


def _matching(pattern: str, base_dir: str) -> Iterator[str]:
    directory, name = os.path.split(pattern)
    if not _has_wildcards(name):
        yield pattern
        return
    try:
        names = sorted(os.listdir(os.path.join(base_dir, directory) or "."))  # noqa: PTH118, PTH208
    except OSError:
        return
    for one in names:
        if fnmatch.fnmatchcase(one, name) and not one.startswith("."):
            yield os.path.join(directory, one)  # noqa: PTH118 - as above


def _why_no_file(path: str, pattern: str) -> str | None:
    """What keeps the file at ``path``, which ``pattern`` means, from being read; ``None``: nothing."""
    if os.path.isdir(path):  # noqa: PTH112 - as above
        if _has_wildcards(os.path.basename(pattern)):  # noqa: PTH119 - as above
            return "is a directory; move it, or have the pattern match files only"
        return f"is a directory; name the files in it, as in {quoted(os.path.join(pattern, '*.yml'))}"  # noqa: PTH118
    wrong = check_readable(path)
    is_dangling = os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114 - as above
    return "is a link to a file that is not there" if wrong is not None and is_dangling else wrong


def _why_nothing_can_match(pattern: str) -> str | None:
    directory = os.path.dirname(pattern) or "."  # noqa: PTH120 - as above
    if _has_wildcards(directory):
        return "wildcards can stand in the name of the file only, not in its directory"
    try:
        os.listdir(directory)  # noqa: PTH208 - whether it can be read
    except OSError as error:
        return f"{quoted(directory)} cannot be read ({error.strerror})"
    return None


def _has_wildcards(text: str) -> bool:
    return any(wildcard in text for wildcard in "*?[")
