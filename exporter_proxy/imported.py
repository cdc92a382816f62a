"""exporter_exporter's configuration written as ours, and what of it has no counterpart.

Pure functions on what ``config/expexp.py`` has read. Every entry is held against the program's own
loader: one that this host could not use (no such program, no such directory) stands there as a comment
with the reason, so that the rest can be used as it is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter_proxy.config import ConfigError, Problem, parse_config
from exporter_proxy.config.addresses import exporter_name_like, with_suffix
from exporter_proxy.config.expexp import ExecModule, Expexp, FileModule, HttpModule, Module, Place
from exporter_proxy.config.problems import quoted
from exporter_proxy.config.scalars import scalar
from exporter_proxy.config.schema import MAX_TIMEOUT_SECONDS

LISTEN = ":9999"
"""exporter_exporter's own default: its file does not say where it listens."""
MODULE_ROUTE = "/proxy"

_LINE_CHARACTERS = 100
_TLS_KEYS = tuple(
    f"http.tls_{key}" for key in ("insecure_skip_verify", "cert_file", "key_file", "ca_cert_file")
)

# What holds for a whole kind of module is said once.
_NO_ARGS = (
    "no part of the URL reaches a command here, and a scrape with args is a 403: write them into command"
)
_NO_ENVIRONMENT = "it ran with exporter_exporter's environment; here it has PATH and what you add to env"
_NO_MTIME = (
    "expexp_file_mtime_timestamp is not in the page; exporter_proxy_file_mtime_seconds at /metrics has it"
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""That of systemd's services."""
_BAD_QUERY = 'url: what is behind the "?" cannot be sent as it is; encode it, as in %20'


@dataclass(frozen=True, slots=True)
class Imported:
    """The text of a configuration, and what to tell whoever asked for it."""

    text: str
    notes: tuple[Problem, ...]
    """What has no counterpart or needs a hand, in the order of the files."""
    names: tuple[str, ...]
    """The exporters in it."""
    left_out: tuple[str, ...]
    """Modules that stand there as comments."""
    may_hold_secrets: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    """A module as an entry of ``exporters``: lines not indented, the first of them its name."""

    name: str
    lines: tuple[str, ...]
    notes: tuple[Problem, ...]
    comments: tuple[str, ...]
    """The notes, for someone who reads them beside the entry."""
    why_left_out: str | None
    may_hold_secrets: bool


def import_expexp(expexp: Expexp, sources: Sequence[str]) -> Imported:
    """Our configuration for exporter_exporter's. ``sources`` are its files' names, for the comment.

    Raises ``ConfigError`` where no module could be used on this host.
    """
    # Names that are good first: Prometheus asks by them, and must not be given another's exporter.
    taken = {module.name for module in expexp.modules if _is_good(module.name)}
    entries: list[_Entry] = []
    for module in expexp.modules:
        name = module.name if _is_good(module.name) else _name(module.name, taken)
        taken.add(name)
        entries.append(_entry(module, name))
    usable = {
        module.name: entry.name
        for module, entry in zip(expexp.modules, entries, strict=True)
        if entry.why_left_out is None
    }
    notes = [note for entry in entries for note in entry.notes] + _notes_by_kind(expexp.modules)
    if not usable:
        raise ConfigError(
            module.place.note(f"cannot be used on this host: {entry.why_left_out}")
            for module, entry in zip(expexp.modules, entries, strict=True)
        )
    head_notes = list(expexp.notes)
    default = usable.get(expexp.default_module) if expexp.default_module is not None else None
    if expexp.default_place is not None and default is None:
        head_notes.append(expexp.default_place.note("there is no such module here, so none is the default"))
    lines = [*_head(sources, head_notes, default), "exporters:"]
    is_airy = any(len(entry.lines) > 2 or entry.comments for entry in entries)
    for number, entry in enumerate(entries):
        lines += ["", *_block(entry)] if is_airy and number else _block(entry)
    return Imported(
        text="\n".join(lines) + "\n",
        notes=tuple(_in_order([*head_notes, *notes], expexp)),
        names=tuple(usable.values()),
        left_out=tuple(entry.name for entry in entries if entry.why_left_out is not None),
        may_hold_secrets=any(entry.may_hold_secrets for entry in entries),
    )


def _head(sources: Sequence[str], notes: Iterable[Problem], default: str | None) -> list[str]:
    lines = [
        f"# From exporter_exporter's configuration ({', '.join(map(_comment, sources))}).",
        "# Prometheus may go on asking for /proxy?module=NAME. NAME has a path of its own as well:",
        "# /NAME/metrics.",
        *(f"# {_comment(f'{note.key_path}: {note.message}')}" for note in notes if note.key_path),
        "",
        "# Where exporter_exporter listens by default. Its flags are not in its file; MIGRATION.md tells",
        "# what becomes of each.",
        f'listen: "{LISTEN}"',
        "",
    ]
    if default is None:
        lines.append(f"module_route: {MODULE_ROUTE}")
    else:
        lines += ["module_route:", f"  path: {MODULE_ROUTE}", f"  default_module: {scalar(default)}"]
    return [*lines, "", "defaults:", "  verify: true  # as with exporter_exporter", ""]


def _block(entry: _Entry) -> list[str]:
    """The entry in the exporters section, as a comment if it is left out."""
    comments = [f"  # {_comment(one)}" for one in entry.comments]
    mark = "" if entry.why_left_out is None else "# "
    return [*comments, *(f"  {mark}{line}" for line in entry.lines)]


def _comment(text: str) -> str:
    """One line, whatever a name of a file or key has in it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _is_good(name: str) -> bool:
    """Whether it can be an exporter's as it is."""
    return name == exporter_name_like(name)


def _name(name: str, taken: set[str]) -> str:
    """A name for an exporter that is like ``name`` and not taken."""
    wanted = unique = exporter_name_like(name)
    number = 2
    while unique in taken:
        unique = with_suffix(wanted, f"_{number}")
        number += 1
    return unique


def _entry(module: Module, name: str) -> _Entry:
    notes = list(module.notes)
    if name != module.name:
        message = (
            f"called {name} here: a name has letters, digits and _.- only; say so in Prometheus's params"
        )
        notes.insert(0, module.place.note(message))
    source = module.source
    if isinstance(source, HttpModule):
        lines = _http_lines(module, source, notes)
    elif isinstance(source, ExecModule):
        lines = _exec_lines(module, source, notes)
    else:
        lines = [f"file: {scalar(source.path)}"]
    if module.timeout_seconds > MAX_TIMEOUT_SECONDS:
        notes.append(module.at("timeout").note("no scrape takes longer than 2 minutes here"))
        lines.append("timeout: 2m")
    elif module.timeout:
        lines.append(f"timeout: {module.timeout}")
    why = _why_unusable(name, lines)
    if why is not None and isinstance(source, HttpModule) and "?" in source.url:
        # A query may hold a token, and a complaint about a URL shows all of it.
        url = source.url.partition("?")[0]
        why = _why_unusable(name, [f"url: {_url(url)}", *lines[1:]]) or _BAD_QUERY
    if isinstance(source, FileModule) and re.search(r"[*?\[]", source.path):
        why = "file: *, ? and [ in the name of a file make it a pattern here"
    if why is not None:
        message = f"cannot be used on this host, so it is a comment in the configuration: {why}"
        notes.append(module.place.note(message))
    return _Entry(
        name,
        (f"{name}:", *(f"  {line}" for line in lines)),
        tuple(notes),
        tuple(_beside(note, module) for note in notes),
        why,
        _may_hold_secrets(source),
    )


def _beside(note: Problem, module: Module) -> str:
    key = note.key_path.removeprefix(module.place.key_path).lstrip(".")
    return f"{key}: {note.message}" if key else note.message


def _http_lines(module: Module, source: HttpModule, notes: list[Problem]) -> list[str]:
    lines = [f"url: {_url(source.url)}"]
    if not source.verify:
        lines.append("verify: false")
    is_https = source.url.startswith("https:")
    tls = {"ca_file": source.ca_file, "cert_file": source.cert_file, "key_file": source.key_file}
    if is_https and bool(source.cert_file) != bool(source.key_file):
        place = _at(module, "http.tls_cert_file", "http.tls_key_file")
        notes.append(place.note("left out: a certificate and its key go together"))
    if not (source.cert_file and source.key_file):
        tls = {"ca_file": source.ca_file}
    tls = {key: path for key, path in tls.items() if path}
    if not is_https:
        for key in _TLS_KEYS:
            if key in module.places:
                notes.append(module.at(key).note("left out: it has no effect on http"))
    elif source.ca_file:
        message = "this CA is trusted here, and no other; exporter_exporter goes by the system's all the same"
        notes.append(module.at("http.tls_ca_cert_file").note(message))
    if is_https and source.insecure_skip_verify:
        lines.append("insecure_skip_verify: true")
    if is_https and tls:
        lines += ["tls:", *(f"  {key}: {scalar(path)}" for key, path in tls.items())]
    if source.headers:
        lines += ["headers:", *(f"  {scalar(key)}: {scalar(value)}" for key, value in source.headers)]
    if source.username and source.password:
        lines += ["basic_auth:", f"  username: {scalar(source.username)}"]
        lines.append(f"  password: {scalar(source.password)}")
    elif source.username or source.password:
        place = _at(module, "http.basic_auth_username", "http.basic_auth_password")
        notes.append(place.note("left out: a user name and a password go together"))
    return lines


def _at(module: Module, *keys: str) -> Place:
    """Where the first of ``keys`` stands that is set."""
    return module.at(next(key for key in keys if key in module.places))


def _url(url: str) -> str:
    """As it is, where it can be without quotes: one that is good has no blank in it."""
    return url if re.fullmatch(r"[!-~]*[!-9;-~]", url) and "#" not in url else scalar(url)


def _exec_lines(module: Module, source: ExecModule, notes: list[Problem]) -> list[str]:
    command = source.command
    if "/" not in command and (found := shutil.which(command)) is not None:
        command = str(Path(found).absolute())
        message = f"{quoted(source.command)} is {quoted(command)} on this host; no PATH is searched here"
        notes.append(module.at("exec.command").note(message))
    words = [scalar(word) for word in (command, *source.arguments)]
    lines = [f"command: [{', '.join(words)}]"]
    if len(lines[0]) > _LINE_CHARACTERS:
        lines = ["command:", *(f"  - {word}" for word in words)]
    env = (("PATH", _PATH),) if source.env is None else source.env
    return [*lines, "env:", *(f"  {scalar(name)}: {scalar(value)}" for name, value in env)]


def _why_unusable(name: str, lines: Iterable[str]) -> str | None:
    """What this program says of the entry, on this host; it never shows a secret."""
    text = "\n".join(
        ["defaults: {verify: true}", "exporters:", f"  {name}:", *(f"    {line}" for line in lines)]
    )
    try:
        parse_config(text.encode(), "")
    except ConfigError as error:
        prefix = f"exporters.{name}."
        return "; ".join(
            f"{problem.key_path.removeprefix(prefix)}: {problem.message}" for problem in error.problems
        )
    return None


def _may_hold_secrets(source: HttpModule | ExecModule | FileModule) -> bool:
    if isinstance(source, HttpModule):
        return bool(source.headers or source.password or "?" in source.url)
    return isinstance(source, ExecModule) and bool(source.arguments or source.env)


def _notes_by_kind(modules: Iterable[Module]) -> list[Problem]:
    """What differs for all modules of a kind, at the first of them."""
    commands = [module for module in modules if isinstance(module.source, ExecModule)]
    bare = [one for one in commands if isinstance(one.source, ExecModule) and one.source.env is None]
    files = [module for module in modules if isinstance(module.source, FileModule)]
    notes = []
    for kind, key, message in (
        (commands, "exec", _NO_ARGS),
        (bare, "exec", _NO_ENVIRONMENT),
        (files, "file", _NO_MTIME),
    ):
        if kind:
            times = f" ({len(kind)} modules)" if len(kind) > 1 else ""
            notes.append(kind[0].at(key).note(message + times))
    return notes


def _in_order(notes: Iterable[Problem], expexp: Expexp) -> list[Problem]:
    """By file, in the order in which they were read, and by position."""
    sources = [note.source for note in expexp.notes if note.line is None]
    sources += [module.place.source for module in expexp.modules]
    order = {source: number for number, source in reversed(list(enumerate(sources)))}
    return sorted(notes, key=lambda note: (order.get(note.source, -1), note.line or 0, note.column or 0))
