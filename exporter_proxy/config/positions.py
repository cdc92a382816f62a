"""From the bytes of a YAML file to a tree of nodes, each of which knows its line and column.

All that can be wrong with a file as YAML is found here: its encoding and syntax, tags,
duplicate keys, anchors and merges. Which keys there are is for ``sections.py`` and ``load.py``.

A configuration may come from a template or a machine, so odd input must end in a message:
libyaml's composer overruns the C stack on deep nesting, and a few lines of aliases to aliases
can stand for billions of values. Both are counted first.
"""

from __future__ import annotations

import re
from typing import Protocol

import yaml

from exporter_proxy.config.problems import ConfigError, Problem, quoted, visible

_MAX_DEPTH = 64
_MAX_VALUES = 500_000
"""Values after aliases and merges are expanded; ten thousand exporters have fewer."""

_YAML = "tag:yaml.org,2002:"
_MERGE = _YAML + "merge"
_KNOWN_TAGS = frozenset(
    _YAML + name
    for name in ("bool", "float", "int", "map", "merge", "null", "seq", "str", "timestamp", "value")
)
_NOT_PRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


class _Mark(Protocol):
    """A place in the text, counted from 0; libyaml's and PyYAML's own are unrelated classes."""

    @property
    def line(self) -> int: ...

    @property
    def column(self) -> int: ...


class Document:
    """One file being read: its tree, and the problems found in it so far."""

    def __init__(self, data: bytes, source: str) -> None:
        """Raises ``ConfigError`` where the file is no YAML document at all."""
        self.source = source
        self.problems: list[Problem] = []
        self._values_left = _MAX_VALUES
        self._entries: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}
        self._refused: set[int] = set()
        self.root = _compose(data, source)
        self._inspect()

    def report(self, node: yaml.Node, key_path: str, message: str) -> None:
        """A problem at ``node``."""
        self.problems.append(_problem_at(self.source, node.start_mark, key_path, message))

    def is_refused(self, node: yaml.Node) -> bool:
        """Whether a problem with the node itself was reported already."""
        return id(node) in self._refused

    def spend(self, values: int) -> None:
        """Counts values as they are read; raises ``ConfigError`` when there are absurdly many."""
        self._values_left -= values
        if self._values_left < 0:
            message = f"its aliases stand for more than {_MAX_VALUES} values"
            raise ConfigError([Problem(self.source, None, None, "", message)])

    def entries(self, mapping: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key and value nodes by the text of the key, as written, merges (``<<``) included.

        A mapping's own keys beat merged ones, and an earlier merge beats a later one.
        """
        known = self._entries.get(id(mapping))
        if known is not None:
            return known
        # Registered before it is filled: a mapping merged into itself finds itself, once.
        entries = self._entries[id(mapping)] = {}
        merges = []
        for key, value in mapping.value:
            if key.tag == _MERGE:
                merges.append(value)
            elif isinstance(key, yaml.ScalarNode):
                entries.setdefault(key.value, (key, value))
        for value in merges:
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(merged, yaml.MappingNode) and merged is not mapping:
                    inherited = self.entries(merged)
                    self.spend(len(inherited))
                    for text, pair in inherited.items():
                        entries.setdefault(text, pair)
        return entries

    def _inspect(self) -> None:
        """Looks at every node once, wherever and however often it is used."""
        if self.root is None:
            return
        seen: set[int] = set()
        stack: list[tuple[yaml.Node, str]] = [(self.root, "")]
        while stack:
            node, path = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            self._inspect_tag(node, path)
            if isinstance(node, yaml.MappingNode):
                self._inspect_keys(node, path)
                # An alias comes after its anchor, so in file order each merge finds its sources
                # done, and a long chain of merges cannot recurse deeply.
                self.entries(node)
                children = []
                for key, value in node.value:
                    if not isinstance(key, yaml.ScalarNode):
                        children.append((key, path))
                    children.append((value, join(path, key.value)))
            elif isinstance(node, yaml.SequenceNode):
                children = [(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
            else:
                continue
            stack.extend(reversed(children))

    def _inspect_tag(self, node: yaml.Node, path: str) -> None:
        if node.tag not in _KNOWN_TAGS:
            self._refused.add(id(node))
            # The tag is not shown: it may be a password that begins with "!".
            message = 'a YAML tag ("!...") is not supported; quote text that begins with "!"'
            self.report(node, path, message)

    def _inspect_keys(self, mapping: yaml.MappingNode, path: str) -> None:
        first_at: dict[str, yaml.Node] = {}
        for key, value in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                self.report(key, path, f"a key must be text, got {shape(key)}")
                continue
            self._inspect_tag(key, path)
            if key.tag == _MERGE:
                self._inspect_merge(mapping, value, join(path, key.value))
            first = first_at.setdefault(key.value, key)
            if first is not key:
                message = f"duplicate key, it is already set at {position(first)}"
                self.report(key, join(path, key.value), message)

    def _inspect_merge(self, mapping: yaml.MappingNode, value: yaml.Node, path: str) -> None:
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if any(source is mapping for source in sources):
            self.report(value, path, "a mapping cannot be merged into itself")
        elif not all(isinstance(source, yaml.MappingNode) for source in sources):
            self.report(value, path, f"expected an alias of a mapping or a list of them, got {shape(value)}")


def found(node: yaml.Node) -> str:
    """What a value is and says, as in "expected ..., got the number 10"."""
    if not isinstance(node, yaml.ScalarNode) or is_null(node):
        return shape(node)
    if is_number(node):
        return f"the number {visible(node.value)}"
    if is_boolean(node):
        return f"the boolean {visible(node.value)}"
    return quoted(node.value)


def shape(node: yaml.Node) -> str:
    """What a value is, as in "expected ..., got a list"; for where its text may be a secret."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if is_null(node):
        return "null"
    if is_number(node):
        return "a number"
    return "a boolean" if is_boolean(node) else "text"


def is_null(node: yaml.Node) -> bool:
    """``null``, ``~`` or nothing at all."""
    return bool(node.tag == _YAML + "null")


def is_number(node: yaml.Node) -> bool:
    """What YAML 1.1 takes for a number: also ``1:30``, ``0x10`` and ``1_000``."""
    return node.tag in (_YAML + "int", _YAML + "float")


def is_boolean(node: yaml.Node) -> bool:
    """``true``, ``false``, and as YAML 1.1 has it ``yes``, ``no``, ``on`` and ``off``."""
    return bool(node.tag == _YAML + "bool")


def join(path: str, key: object) -> str:
    """The key path of ``key`` in the mapping at ``path``.

    Without the blank after its colon ``{password:secret}`` is one key, so the rest of it is not shown.
    """
    name, colon, _ = key.partition(":") if isinstance(key, str) else ("?", "", "")
    shown = f"{visible(name)}:***" if colon else visible(name) or '""'
    return f"{path}.{shown}" if path else shown


def position(node: yaml.Node) -> str:
    """``line:column`` of a node, for messages that name a second place."""
    return f"{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _problem_at(source: str, mark: _Mark, key_path: str, message: str) -> Problem:
    return Problem(source, mark.line + 1, mark.column + 1, key_path, message)


def _compose(data: bytes, source: str) -> yaml.Node | None:
    """The root node, ``None`` for a file without content; raises ``ConfigError``."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 (byte {data[error.start]:#04x} in line {line}); save it as UTF-8"
        raise ConfigError([Problem(source, None, None, "", message)]) from None
    odd = _NOT_PRINTABLE.search(text)
    if odd is not None:
        line = text.count("\n", 0, odd.start()) + 1
        column = odd.start() - text.rfind("\n", 0, odd.start())
        message = f"not valid YAML: the character U+{ord(odd.group()):04X} is not allowed, remove it"
        raise ConfigError([Problem(source, line, column, "", message)])
    try:
        too_deep = _first_too_deep(text)
        if too_deep is not None:
            raise ConfigError(
                [_problem_at(source, too_deep, "", f"nested more than {_MAX_DEPTH} levels deep")]
            )
        return yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error, source)]) from None


def _first_too_deep(text: str) -> _Mark | None:
    """The start of what nests too deeply; reads no further, as libyaml slows down with depth."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                return event.start_mark
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None


# What libyaml says -> what to do about it.
_SYNTAX_ADVICE = {
    "but found another document": (
        'a second document begins here; a configuration is one document, remove "---"'
    ),
    "second occurrence": "this anchor is already defined above, give it another name",
    "found undefined alias": "there is no anchor of this name above",
    "mapping values are not allowed in this context": (
        'unexpected ":"; check the indentation, and quote text that has ": " in it'
    ),
    "did not find expected node content": 'quote text that begins with "[" or "{" or has a "," in it',
    "found character that cannot start any token": (
        "unexpected character; indent with spaces (no tabs), and quote text that begins with @, ` or %"
    ),
}


def _syntax_problem(error: yaml.YAMLError, source: str) -> Problem:
    """libyaml's complaint at its position, without the excerpt: it could hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None:
        return Problem(source, None, None, "", "not valid YAML")
    message = _SYNTAX_ADVICE.get(error.problem, error.problem)
    if error.context is not None and error.context_mark is not None and error.context.startswith("while"):
        began = error.context_mark
        message += f" ({error.context} that begins at {began.line + 1}:{began.column + 1})"
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Problem(source, None, None, "", f"not valid YAML: {message}")
    return _problem_at(source, mark, "", f"not valid YAML: {message}")
