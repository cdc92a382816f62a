"""The configuration of exporter_exporter, as values with the places that they stand at.

Its file has ``modules`` by name; each file of its ``-config.dirs`` is one module, named by the file.
Known are the keys of versions 0.4 (Debian's) and 0.5, of what came after it, and of the fork that adds
labels. What they mean there was looked up in its documentation and seen by asking 0.4. A mistake is one
here that stops exporter_exporter, too; a key that is known and has no counterpart becomes a note.

No message shows the value of a header, a password, an argument or a variable. What becomes of the
modules is for ``imported.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from exporter_proxy.config.positions import Document, is_boolean, is_null, shape
from exporter_proxy.config.problems import ConfigError, Problem, in_file_order, quoted
from exporter_proxy.config.sections import Section
from exporter_proxy.config.source import read_file
from exporter_proxy.config.values import BOOLEAN, FILE_PATH, BadValue, Kind, duration, one_of, whole_number

TOP_KEYS = ("global", "modules", "defaultModule", "discovery")
MODULE_KEYS = ("method", "timeout", "http", "exec", "file")
METHODS = ("http", "exec", "file")
_LABEL_KEYS = tuple(
    f"{word}{rest}"
    for word in ("label_extend", "extend_labels")
    for rest in ("", "_path", "_target_url_identity")
)
HTTP_KEYS = (
    "verify",
    "tls_insecure_skip_verify",
    "tls_cert_file",
    "tls_key_file",
    "tls_ca_cert_file",
    "port",
    "path",
    "scheme",
    "address",
    "headers",
    "basic_auth_username",
    "basic_auth_password",
    *_LABEL_KEYS,
)
EXEC_KEYS = ("command", "args", "env")
FILE_KEYS = ("path", "use_mtime", "allow")

_NO_COUNTERPART = {
    **dict.fromkeys(_LABEL_KEYS, "no labels are added here; metric_relabel_configs of Prometheus adds them"),
    "use_mtime": "samples get no timestamp here; exporter_proxy_file_mtime_seconds tells the file's age, and "
    "max_age bounds it",
    "allow": "no part of the URL becomes the path of a file here; make an entry for each file",
    "discovery": "nothing is looked for at run time; exporter_proxy discover --write=FILE adds what listens",
}
_NO_EFFECT = "it has no effect on exporter_exporter, and none here"
_FLAG = "exporter_proxy import"
_SUFFIXES = (".yml", ".yaml")


def _parse_program(text: str) -> str:
    if not text or "\0" in text:
        raise BadValue
    return text


TEXT = Kind("text", str)
PORT = whole_number(1, 65535)
PROGRAM = Kind("the name of a program", _parse_program)
_GO_DURATION = duration("52w", zero=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in exporter_exporter's files."""

    source: str
    line: int | None
    column: int | None
    key_path: str

    def note(self, message: str) -> Problem:
        """``message`` for this place."""
        return Problem(self.source, self.line, self.column, self.key_path, message)


@dataclass(frozen=True, slots=True)
class HttpModule:
    """``method: http``. ``url`` as exporter_exporter asks for it; "" for the texts is: not set."""

    url: str = field(repr=False)
    verify: bool
    insecure_skip_verify: bool
    ca_file: str
    cert_file: str
    key_file: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ExecModule:
    """``method: exec``."""

    command: str
    arguments: tuple[str, ...] = field(repr=False)
    env: tuple[tuple[str, str], ...] | None = field(repr=False)
    """``None``: exporter_exporter's own environment."""


@dataclass(frozen=True, slots=True)
class FileModule:
    """``method: file``, of 0.5 and later."""

    path: str


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of ``modules``, or one file of a directory."""

    name: str
    place: Place
    timeout_seconds: float
    """0: none."""
    timeout: str
    """The same as text; "" for 0."""
    source: HttpModule | ExecModule | FileModule
    notes: tuple[Problem, ...]
    """What of it has no counterpart."""
    places: Mapping[str, Place] = field(compare=False, repr=False)
    """Of its keys, as in ``timeout`` and ``http.path``."""

    def at(self, key: str) -> Place:
        """Where ``key`` stands; the module itself where it is not set."""
        return self.places.get(key, self.place)


@dataclass(frozen=True, slots=True)
class Expexp:
    """All that exporter_exporter's files say."""

    modules: tuple[Module, ...]
    default_module: str | None
    default_place: Place | None
    """Where ``default_module`` is set, if it is."""
    notes: tuple[Problem, ...]
    """What has no counterpart, besides what the modules have."""


def read_expexp(paths: Sequence[str]) -> Expexp:
    """The file with ``modules``, and directories with a file for each; in their order, files by name.

    Raises ``ConfigError`` with all problems of all of them, and nothing else.
    """
    reader = _Reader()
    first_as: dict[str, str] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in first_as:
            message = f"it is read already, as {quoted(first_as[real])}; name each file and directory once"
            reader.problems.append(Problem(path, None, None, "", message))
            continue
        first_as[real] = path
        if os.path.isdir(path):  # noqa: PTH112 - as everywhere here, "./x" stays as it was written
            reader.read_directory(path)
        else:
            reader.read_main(path)
    if not reader.problems and not reader.modules:
        message = (
            'no modules, so there is nothing to import; name the file that has "modules", or its directory'
        )
        reader.problems.append(Problem(paths[0], None, None, "", message))
    if reader.problems:
        raise ConfigError(reader.problems)
    return Expexp(tuple(reader.modules), reader.default_module, reader.default_place, tuple(reader.notes))


class _Reader:
    """Reads one file after the other, and collects."""

    def __init__(self) -> None:
        self.modules: list[Module] = []
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.default_module: str | None = None
        self.default_place: Place | None = None
        self._first_at: dict[str, str] = {}

    def read_main(self, path: str) -> None:
        """The file with ``modules``."""
        document, top = self._open(path, TOP_KEYS)
        if document is None:
            return
        if top is not None:
            self._read_top(document, top)
        self.problems += in_file_order(document.problems)

    def read_directory(self, directory: str) -> None:
        """Each file in it is a module."""
        try:
            names = sorted(os.listdir(directory))  # noqa: PTH208 - names are wanted
        except OSError as error:
            self.problems.append(Problem(directory, None, None, "", f"not readable ({error.strerror})"))
            return
        for file_name in names:
            path = os.path.join(directory, file_name)  # noqa: PTH118 - as above
            name, suffix = os.path.splitext(file_name)  # noqa: PTH122 - as above
            if suffix in _SUFFIXES and not os.path.isdir(path):  # noqa: PTH112 - as above
                self._read_module_file(path, name)
            else:
                message = f"left out: its name ends in neither {' nor '.join(_SUFFIXES)}"
                self.notes.append(Problem(path, None, None, "", message))

    def _read_module_file(self, path: str, name: str) -> None:
        document, entry = self._open(path, MODULE_KEYS)
        if document is None:
            return
        if entry is None and not document.problems:
            message = 'the file is empty; a module has at least "method"'
            self.problems.append(Problem(path, None, None, "", message))
        if entry is not None:
            self._read_module(document, entry, name, Place(path, 1, 1, ""))
        self.problems += in_file_order(document.problems)

    def _open(self, path: str, keys: Sequence[str]) -> tuple[Document | None, Section | None]:
        """The document, if it is one, and its mapping, if it is one."""
        try:
            document = Document(read_file(path, _FLAG), path)
        except ConfigError as error:
            self.problems += error.problems
            return None, None
        root = document.root
        if root is None or is_null(root):
            return document, None
        if not isinstance(root, yaml.MappingNode):
            document.report(root, "", f"expected keys such as {quoted(keys[1])}, got {shape(root)}")
            return document, None
        return document, Section(document, root, root, "", keys, null_is_absent=True)

    def _read_top(self, document: Document, top: Section) -> None:
        for key in ("global", "discovery"):
            section = top.section(key, known_keys=None)
            if section is not None and not section.is_empty:
                self.notes.append(_place_of(document, section).note(_NO_COUNTERPART.get(key, _NO_EFFECT)))
        self.default_module = _text(top, "defaultModule") or self.default_module
        if self.default_module is not None and "defaultModule" in top:
            self.default_place = _place(document, top, "defaultModule")
        modules = top.section("modules", known_keys=None, expected="a mapping from names to modules")
        for name in modules or ():
            assert modules is not None
            entry = modules.section(name, MODULE_KEYS, 'a mapping with at least "method"')
            if entry is not None:
                self._read_module(document, entry, name, _place_of(document, entry))

    def _read_module(self, document: Document, entry: Section, name: str, place: Place) -> None:
        first = self._first_at.setdefault(name, place.source)
        if first != place.source:
            message = f"there is a module {quoted(name)} already in {first}"
            self.problems.append(Problem(place.source, place.line, place.column, place.key_path, message))
        notes: list[Problem] = []
        method = entry.require("method", one_of(METHODS), "http")
        for other in METHODS:
            if method is not None and other != method and other in entry:
                message = f'it has no effect with "method: {method}", so it is left out'
                notes.append(_place(document, entry, other).note(message))
        seconds, text = entry.get("timeout", _TIMEOUT, (0.0, ""))
        source = None if method is None else _READERS[method](document, entry, notes)
        if source is not None:
            places = {key: _place(document, entry, key) for key in entry}
            section = entry.section(method, known_keys=None) if method is not None else None
            for key in section or ():
                assert section is not None
                places[f"{method}.{key}"] = _place(document, section, key)
            module = Module(name, place, seconds, text, source, tuple(notes), places)
            self.modules.append(module)


def _read_http(document: Document, entry: Section, notes: list[Problem]) -> HttpModule | None:
    http = _section_of(entry, "http", HTTP_KEYS)
    if http is None:
        return None
    port = http.require("port", PORT, "9100")
    scheme = "http" if http.is_blank("scheme") else http.get("scheme", one_of(("http", "https")), "http")
    address = _text(http, "address") or "localhost"
    if ":" in address and not address.startswith("["):
        address = f"[{address}]"
    path = _text(http, "path") or "/metrics"
    if not path.startswith("/"):
        message = 'it is asked for with a "/" before it; without one exporters answer 400'
        notes.append(_place(document, http, "path").note(message))
        path = f"/{path}"
    for key in _LABEL_KEYS:
        _note_no_counterpart(document, http, key, notes)
    headers = http.section("headers", known_keys=None, private_keys=True)
    return HttpModule(
        url=f"{scheme}://{address}:{port}{path}",
        verify=http.get("verify", BOOLEAN, True),
        insecure_skip_verify=http.get("tls_insecure_skip_verify", BOOLEAN, False),
        ca_file=_text(http, "tls_ca_cert_file"),
        cert_file=_text(http, "tls_cert_file"),
        key_file=_text(http, "tls_key_file"),
        headers=() if headers is None else tuple((name, _text(headers, name)) for name in headers),
        username=_text(http, "basic_auth_username"),
        password=_text(http, "basic_auth_password"),
    )


def _read_exec(document: Document, entry: Section, notes: list[Problem]) -> ExecModule | None:
    section = _section_of(entry, "exec", EXEC_KEYS)
    if section is None:
        return None
    command = section.require("command", PROGRAM, "/usr/local/bin/raid_metrics")
    env = section.section("env", known_keys=None, private_keys=True)
    variables = () if env is None else tuple((name, _text(env, name)) for name in env)
    # To exporter_exporter an empty mapping is none.
    return ExecModule(command or "", section.get_list("args", TEXT, ()), variables or None)


def _read_file(document: Document, entry: Section, notes: list[Problem]) -> FileModule | None:
    section = _section_of(entry, "file", None)
    if section is None:
        return None
    for key in section:
        if key not in FILE_KEYS:
            notes.append(_place(document, section, key).note(_NO_EFFECT))
        _note_no_counterpart(document, section, key, notes)
    return FileModule(section.require("path", FILE_PATH, "/var/lib/backup.prom") or "")


_READERS = {"http": _read_http, "exec": _read_exec, "file": _read_file}


def _section_of(entry: Section, method: str, keys: Sequence[str] | None) -> Section | None:
    """The section that a method needs; ``None`` leaves a problem behind."""
    if method not in entry:
        entry.report_missing(method, f'missing, "method: {method}" needs it')
    return entry.section(method, keys)


def _note_no_counterpart(document: Document, section: Section, key: str, notes: list[Problem]) -> None:
    """A note where ``key`` is set, and not to false."""
    if key in section and key in _NO_COUNTERPART:
        node = section.place_of(key)
        if not (is_boolean(node) and not BOOLEAN.parse(node.value)):
            notes.append(_place(document, section, key).note(_NO_COUNTERPART[key]))


def _place(document: Document, section: Section, key: str) -> Place:
    """Where the value of ``key`` stands."""
    mark = section.place_of(key).start_mark
    return Place(document.source, mark.line + 1, mark.column + 1, section.key_path(key))


def _place_of(document: Document, section: Section) -> Place:
    """Where the section's own key stands."""
    mark = section.place.start_mark
    return Place(document.source, mark.line + 1, mark.column + 1, section.path)


def _text(section: Section, key: str) -> str:
    """The text of ``key``; "" where it is not set, which is the same to exporter_exporter."""
    return "" if section.is_blank(key) else section.get(key, TEXT, "")


def _parse_timeout(text: str) -> tuple[float, str]:
    """Seconds, and the text for it: as in Go, where a bare number is nanoseconds and 0 none at all."""
    if re.fullmatch(r"[0-9]{1,18}", text):
        number, unit = int(text), "ns"
        for larger in ("us", "ms", "s"):
            if number % 1000:
                break
            number, unit = number // 1000, larger
        text = f"{number}{unit}" if number else "0"
    if text.endswith(("d", "w")) or re.search("[dw][0-9]", text):
        raise BadValue("exporter_exporter knows no days and weeks")
    seconds = _GO_DURATION.parse(text)
    return seconds, text if seconds else ""


_TIMEOUT = Kind('a duration such as "10s"', _parse_timeout)
