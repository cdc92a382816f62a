"""Reading a mapping of the file key by key.

A value that cannot be read leaves a problem behind and reads as its default, so that one pass
over a file finds everything that is wrong with it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import yaml

from exporter_proxy.config.positions import (
    Document,
    found,
    is_boolean,
    is_null,
    is_number,
    join,
    position,
    shape,
)
from exporter_proxy.config.values import BadValue, Kind

T = TypeVar("T")
D = TypeVar("D")


class Section:
    """A mapping at ``path``. ``place`` is where problems of the mapping as a whole are shown."""

    def __init__(
        self,
        document: Document,
        mapping: yaml.MappingNode,
        place: yaml.Node,
        path: str,
        known_keys: Sequence[str] | None,
        null_is_absent: bool = False,
        private_keys: bool = False,
    ) -> None:
        """Reports the keys that are not in ``known_keys``; ``None``: any key may occur.

        With ``private_keys`` no key is shown that is not known: ``{admin:secret}`` is one, too, and so
        is a password that stands where its user belongs.

        ``null_is_absent``: a known key without a value reads as if it were not there, here and
        in the sections below. Where any key may occur, its null is a value.
        """
        self._document = document
        self._entries = document.entries(mapping)
        self._place = place
        self._null_is_absent = null_is_absent
        self._shown_keys = (known_keys or ()) if private_keys else None
        self.path = path
        document.spend(len(self._entries))
        if known_keys is not None:
            for text, (key, _) in self._entries.items():
                if text not in known_keys:
                    document.report(key, self.key_path(text), _unknown_key(text, known_keys))
            if null_is_absent:
                self._entries = {text: pair for text, pair in self._entries.items() if not is_null(pair[1])}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @property
    def place(self) -> yaml.Node:
        """What stands for the section in messages: its key, if it has one."""
        return self._place

    @property
    def is_empty(self) -> bool:
        """Whether the mapping has no keys at all."""
        return not self._entries

    def is_empty_list(self, key: str) -> bool:
        """Whether ``key`` is set to ``[]``."""
        node = self._entries[key][1] if key in self._entries else None
        return isinstance(node, yaml.SequenceNode) and not node.value

    def is_mapping(self, key: str) -> bool:
        """Whether ``key`` is set to a mapping."""
        return key in self._entries and isinstance(self._entries[key][1], yaml.MappingNode)

    def is_blank(self, key: str) -> bool:
        """Whether ``key`` is absent, null or an empty text."""
        node = self._entries[key][1] if key in self._entries else None
        return node is None or is_null(node) or (isinstance(node, yaml.ScalarNode) and not node.value)

    def key_path(self, key: str) -> str:
        """The key path of ``key`` in this section; the section's own where the key is not to be shown."""
        is_shown = self._shown_keys is None or key in self._shown_keys
        return join(self.path, key) if is_shown else self.path

    def place_of(self, key: str) -> yaml.Node:
        """The value of ``key``, or what stands for the section where it is not set."""
        return self._entries[key][1] if key in self._entries else self._place

    def report(self, key: str, message: str) -> None:
        """A problem with the value of ``key``."""
        self._document.report(self.place_of(key), self.key_path(key), message)

    def report_missing(self, key: str, message: str) -> None:
        """A key that has to be there and is not."""
        self._document.report(self._place, self.key_path(key), message)

    def report_key(self, key: str, message: str) -> None:
        """A problem with ``key`` itself, which is set."""
        self._document.report(self._entries[key][0], self.key_path(key), message)

    def where(self, key: str, seen_from: Section) -> str:
        """Where the value of ``key`` is, or what stands for it, for a message in ``seen_from``."""
        return self._where(self.place_of(key), seen_from)

    def where_key(self, key: str, seen_from: Section) -> str:
        """Where ``key`` itself is, which is set."""
        return self._where(self._entries[key][0], seen_from)

    def _where(self, node: yaml.Node, seen_from: Section) -> str:
        """``line:column``, with the file before it where it is another one."""
        is_elsewhere = seen_from._document is not self._document
        return f"{self._document.source}:{position(node)}" if is_elsewhere else position(node)

    def check_key(self, key: str, kind: Kind[str]) -> bool:
        """Whether the key itself is of ``kind``; a problem names the section where it may be secret."""
        try:
            kind.parse(key)
        except BadValue as bad:
            node = self._entries[key][0]
            path = self.path if bad.secret else self.key_path(key)
            self._document.report(node, path, kind.refusal(found(node), bad))
            return False
        return True

    def get(self, key: str, kind: Kind[T], default: D) -> T | D:
        """The value of ``key``; ``default`` where it is absent or wrong."""
        if key not in self._entries:
            return default
        return self._read(self._entries[key][1], self.key_path(key), kind, default)

    def require(self, key: str, kind: Kind[T], example: str) -> T | None:
        """The value of ``key``, which has to be there; ``None`` where it is not, or is wrong."""
        if key not in self._entries:
            self.report_missing(key, f'missing, add a line such as "{key}: {example}"')
            return None
        return self.get(key, kind, None)

    def get_list(self, key: str, kind: Kind[T], default: D, one_will_do: bool = False) -> tuple[T, ...] | D:
        """The items of a list, or with ``one_will_do`` a single value; wrong items are left out."""
        if key not in self._entries:
            return default
        node = self._entries[key][1]
        path = self.key_path(key)
        if self._document.is_refused(node):
            return default
        if not isinstance(node, yaml.SequenceNode):
            if one_will_do:
                items = [self._read(node, path, kind, None)]
            else:
                self._document.report(
                    node, path, f"expected a list, each item {kind.expected}, got {shape(node)}"
                )
                return default
        else:
            self._document.spend(len(node.value))
            items = [
                self._read(item, f"{path}[{index}]", kind, None) for index, item in enumerate(node.value)
            ]
        return tuple(item for item in items if item is not None)

    def section(
        self,
        key: str,
        known_keys: Sequence[str] | None,
        expected: str = "a mapping",
        private_keys: bool = False,
    ) -> Section | None:
        """The mapping under ``key``; ``None`` where it is absent or no mapping."""
        if key not in self._entries:
            return None
        key_node, node = self._entries[key]
        path = self.key_path(key)
        if isinstance(node, yaml.MappingNode):
            if self._document.is_refused(node):
                return None
            return Section(
                self._document, node, key_node, path, known_keys, self._null_is_absent, private_keys
            )
        self._document.report(node, path, f"expected {expected}, got {shape(node)}")
        return None

    def _read(self, node: yaml.Node, path: str, kind: Kind[T], default: D) -> T | D:
        if self._document.is_refused(node):
            return default
        wrong_type = (
            not isinstance(node, yaml.ScalarNode)
            or is_null(node)
            or (kind.only_text and (is_number(node) or is_boolean(node)))
            or (kind.only_boolean and not is_boolean(node))
        )
        try:
            if not wrong_type:
                return kind.parse(node.value)
            self._document.report(node, path, kind.refusal(found(node)))
        except BadValue as bad:
            self._document.report(node, path, kind.refusal(found(node), bad))
        return default


def _unknown_key(text: str, known_keys: Sequence[str]) -> str:
    # difflib takes time quadratic in the length, and a key that long is no slip of the finger.
    near = difflib.get_close_matches(text, known_keys, n=1) if len(text) <= 40 else []
    if near:
        return f'unknown key, did you mean "{near[0]}"?'
    return f"unknown key, the keys here are {', '.join(known_keys)}"
