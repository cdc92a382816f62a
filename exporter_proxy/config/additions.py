"""Adds exporters to the text of a configuration, with every byte that is there already kept.

A YAML library that loads and dumps would lose comments, order and quoting, so lines are inserted
at the end of the ``exporters`` section and the result is read again: unless it says what the file
said before and the new entries besides, nothing is given back. Files are for the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import yaml

from exporter_proxy.config.addresses import UPSTREAM_URL
from exporter_proxy.config.include import named_files
from exporter_proxy.config.positions import Document, is_null, position
from exporter_proxy.config.problems import ConfigError, Problem
from exporter_proxy.config.schema import UpstreamUrl
from exporter_proxy.config.source import read_file
from exporter_proxy.config.values import BadValue

_INDENTATION = 2


@dataclass(frozen=True, slots=True)
class Addition:
    """An entry of the ``exporters`` section: its name, and its lines, not indented."""

    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Present:
    """What a configuration has already: as far as it can be read, be it good or bad."""

    names: frozenset[str]
    paths: frozenset[str]
    """Those that are written out, and those that follow from the names."""
    urls: tuple[UpstreamUrl, ...]


def read_present(data: bytes, source: str) -> Present:
    """The exporters in ``data``, and in the files that it includes as far as they can be read.

    Raises ``ConfigError`` where ``data`` is no YAML mapping at all.
    """
    document = _document(data, source)
    if _says_nothing(document):
        return Present(frozenset(), frozenset(), ())
    root = _root(document)
    top = document.entries(root)
    found = _Found()
    found.take(document, root)
    route = top.get("module_route", (None, None))[1]
    path = route.value if isinstance(route, yaml.ScalarNode) else _texts(document, route).get("path")
    if path is not None:
        found.paths.add(path)
    listed = top.get("include", (None, None))[1]
    items = listed.value if isinstance(listed, yaml.SequenceNode) else ()
    patterns = [item.value for item in items if isinstance(item, yaml.ScalarNode)]
    for file in named_files(patterns, source):
        try:
            included = _document(read_file(file, "include"), file)
        except ConfigError:
            continue  # whoever checks the configuration says so
        found.take(included, included.root)
    return Present(frozenset(found.names), frozenset(found.paths), tuple(found.urls))


@dataclass(slots=True)
class _Found:
    """What ``Present`` is made of, file by file."""

    names: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    urls: list[UpstreamUrl] = field(default_factory=list)

    def take(self, document: Document, root: yaml.Node | None) -> None:
        """The exporters of one file."""
        top = document.entries(root) if isinstance(root, yaml.MappingNode) else {}
        section = top.get("exporters", (None, None))[1]
        entries = document.entries(section) if isinstance(section, yaml.MappingNode) else {}
        for name, (_, node) in entries.items():
            texts = _texts(document, node)
            self.names.add(name)
            self.paths.add(texts.get("path", f"/{name}/metrics"))
            try:
                self.urls.append(UPSTREAM_URL.parse(texts.get("url", "")))
            except BadValue:
                continue  # whoever checks the configuration says so


def _texts(document: Document, node: yaml.Node | None) -> dict[str, str]:
    """The keys of a mapping that hold neither a list nor a mapping."""
    entry = document.entries(node) if isinstance(node, yaml.MappingNode) else {}
    return {key: value.value for key, (_, value) in entry.items() if isinstance(value, yaml.ScalarNode)}


def add_exporters(data: bytes, source: str, additions: Sequence[Addition]) -> bytes:
    """``data`` with ``additions`` at the end of its ``exporters`` section.

    Raises ``ConfigError`` where there is no place for them that leaves all else as it is. Whether
    the result is a good configuration is not looked at.
    """
    document = _document(data, source)
    text = data.decode("utf-8-sig")
    if _says_nothing(document):
        root = yaml.MappingNode("", [])
        added = _begin(text, additions)
    else:
        root = _root(document)
        added = _insert(text, document, root, additions)
    result = data[: len(data) - len(text.encode())] + added.encode()  # a byte order mark stays
    try:
        is_right = _says_the_same_and_more(root, _document(result, source).root, additions)
    except ConfigError:
        is_right = False
    if not is_right:
        raise _refusal(
            source, _section_key(root) or document.root, "lines added there would change what it says"
        )
    return result


def _document(data: bytes, source: str) -> Document:
    document = Document(data, source)
    if document.problems:
        raise ConfigError(document.problems)
    return document


def _says_nothing(document: Document) -> bool:
    """Whether there are comments at most, or not even they."""
    return document.root is None or (is_null(document.root) and document.root.value == "")


def _begin(text: str, additions: Sequence[Addition]) -> str:
    """The section below the comments that are all there is."""
    newline = "\r\n" if "\r\n" in text else "\n"
    blanks = " " * _INDENTATION
    new = ["exporters:", *(f"{blanks}{line}" for addition in additions for line in addition.lines)]
    gap = newline if text and not text.endswith("\n") else ""
    return text + gap + "".join(line + newline for line in new)


def _root(document: Document) -> yaml.MappingNode:
    """The mapping at the top; raises ``ConfigError`` where there is none to add to."""
    if not isinstance(document.root, yaml.MappingNode) or document.root.flow_style:
        raise _refusal(document.source, document.root, "the file is not a mapping with one key a line")
    return document.root


def _section_key(root: yaml.MappingNode) -> yaml.Node | None:
    return next((key for key, _ in root.value if key.value == "exporters"), None)


def _insert(text: str, document: Document, root: yaml.MappingNode, additions: Sequence[Addition]) -> str:
    lines = text.splitlines(keepends=True)  # at the same characters as libyaml, all others are refused
    newline = "\r\n" if lines[0].endswith("\r\n") else "\n"
    if lines[-1] == lines[-1].rstrip("\r\n"):
        lines[-1] += newline
    key = _section_key(root)
    opening: list[str] = []
    indentation = root.value[0][0].start_mark.column + _INDENTATION
    if key is None:
        at = _last_line(text, None) + 1
        opening = [" " * (indentation - _INDENTATION) + "exporters:"]
    else:
        section = next(value for known, value in root.value if known is key)
        if _is_empty(section):
            at = key.end_mark.line + 1
            lines[at - 1] = _without_value(lines[at - 1], key, section)
        elif isinstance(section, yaml.MappingNode) and not section.flow_style:
            indentation = section.value[0][0].start_mark.column
            at = _after_comments(lines, _last_line(text, key) + 1, indentation)
        else:
            raise _refusal(document.source, section, "it is not a mapping with one exporter a line")
    blanks = " " * indentation
    new = [*opening, *(f"{blanks}{line}" for addition in additions for line in addition.lines)]
    return "".join([*lines[:at], *(line + newline for line in new), *lines[at:]])


def _is_empty(section: yaml.Node) -> bool:
    return is_null(section) or (isinstance(section, yaml.MappingNode) and not section.value)


def _without_value(line: str, key: yaml.Node, section: yaml.Node) -> str:
    """``exporters: {}  # why`` as ``exporters:  # why``."""
    start, end = section.start_mark, section.end_mark
    if not key.end_mark.line == start.line == end.line or start.column == end.column:
        return line
    return line[: start.column].rstrip() + line[end.column :]


def _last_line(text: str, key: yaml.Node | None) -> int:
    """The last line of the value of a top-level key, or of the whole document for ``None``.

    Told from the events: a node does not say where an alias of it stands, and a block's own end is
    where the next token begins.
    """
    last = key.end_mark.line if key is not None else 0
    is_reading = key is None
    flow_styles: list[bool] = []
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        is_leaf = isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent))
        is_end = isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            flow_styles.append(bool(event.flow_style))
        if is_reading and (is_leaf or (is_end and flow_styles[-1])):
            start, end = event.start_mark, event.end_mark
            assert start is not None
            assert end is not None
            # Of a text in "|" or ">" the end is the start of the line after it.
            last = end.line - 1 if end.column == 0 and end.line > start.line else end.line
        if is_end:
            flow_styles.pop()
        if len(flow_styles) == 1 and key is not None and (is_leaf or is_end):
            if is_reading:
                break
            # The end of a block before it is where the key begins, too.
            is_reading = is_leaf and _place(event) == _place(key)
    return int(last)


def _place(marked: yaml.Event | yaml.Node) -> tuple[int, int]:
    assert marked.start_mark is not None
    return marked.start_mark.line, marked.start_mark.column


def _after_comments(lines: Sequence[str], at: int, indentation: int) -> int:
    """From ``at`` on past the comments that are indented like the entries: they belong to them."""
    end = at
    for number, line in enumerate(lines[at:], at + 1):
        text = line.strip()
        if text and not (text.startswith("#") and line.index("#") >= max(1, indentation)):
            break
        if text:
            end = number
    return end


def _says_the_same_and_more(
    before: yaml.Node, after: yaml.Node | None, additions: Iterable[Addition]
) -> bool:
    """Whether ``after`` is ``before`` with the additions at the end of its exporters."""
    if not isinstance(before, yaml.MappingNode) or not isinstance(after, yaml.MappingNode):
        return False
    old = {key.value: value for key, value in before.value}
    new = {key.value: value for key, value in after.value}
    old_section, section = old.pop("exporters", None), new.pop("exporters", None)
    if list(old) != list(new) or not isinstance(section, yaml.MappingNode):
        return False
    old_entries = [] if old_section is None or _is_empty(old_section) else old_section.value
    names = [key.value for key, _ in section.value[len(old_entries) :]]
    return (
        names == [addition.name for addition in additions]
        and all(_is_same(value, new[key]) for key, value in old.items())
        and all(
            _is_same(old_part, part)
            for old_pair, pair in zip(old_entries, section.value, strict=False)
            for old_part, part in zip(old_pair, pair, strict=True)
        )
    )


def _is_same(one: yaml.Node, other: yaml.Node) -> bool:
    return yaml.serialize(one, Dumper=yaml.CSafeDumper) == yaml.serialize(other, Dumper=yaml.CSafeDumper)


def _refusal(source: str, node: yaml.Node | None, why: str) -> ConfigError:
    where = f" at {position(node)}" if node is not None else ""
    message = f"exporters cannot be added{where}: {why}; nothing was written, add them by hand"
    return ConfigError([Problem(source, None, None, "", message)])
