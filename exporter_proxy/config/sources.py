"""Where an exporter's metrics come from: its ``url``, ``file`` or ``command``, and the keys of each.

Only whether a source can be used at all is looked at here: what it gives is for each scrape to see.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from exporter_proxy.config.addresses import UPSTREAM_URL
from exporter_proxy.config.problems import quoted
from exporter_proxy.config.schema import CommandSource, FileSource, UpstreamUrl
from exporter_proxy.config.sections import Section
from exporter_proxy.config.values import BOOLEAN, ENV_NAME, FILE_PATH, PROCESS_TEXT, BadValue, duration

SOURCE_KEYS = ("url", "file", "command")
FILE_KEYS = ("max_age", "follow_symlinks")
COMMAND_KEYS = ("env", "working_dir")
URL_KEYS = (
    "allow_params",
    "params",
    "pass_headers",
    "headers",
    "basic_auth",
    "bearer_token_file",
    "tls",
    "insecure_skip_verify",
)
_KEYS_OF = {"url": URL_KEYS, "file": FILE_KEYS, "command": COMMAND_KEYS}

URL_EXAMPLE = "http://127.0.0.1:9100/metrics"
MAX_AGE = duration("52w")
_TEXT_FORMAT = "text/plain"

Source = UpstreamUrl | FileSource | CommandSource


def read_source(entry: Section, base_dir: str) -> Source | None:
    """The one source that ``entry`` names; ``None`` where it names none or it is wrong."""
    named = [key for key in SOURCE_KEYS if key in entry]
    if not named:
        entry.require("url", UPSTREAM_URL, URL_EXAMPLE)
        return None
    kind = named[0]
    for other in named[1:]:
        entry.report(other, f"there is a {kind} as well, keep one of them")
    for owner, keys in _KEYS_OF.items():
        for key in keys:
            if key in entry and owner not in named:
                entry.report(key, f"it has no effect on a {kind}, remove it")
    if kind == "url":
        return entry.get("url", UPSTREAM_URL, None)
    return _read_file(entry, base_dir) if kind == "file" else _read_command(entry, base_dir)


def check_verification(
    entry: Section, verify: bool, source: FileSource | CommandSource, content_type: str | None
) -> None:
    """What no exporter has made is judged always, and only pages in the text format can be merged."""
    if not verify:
        entry.report("verify", f"what comes from a {source.scheme} is always verified, remove it")
    is_text = content_type is None or content_type.partition(";")[0].strip().lower() == _TEXT_FORMAT
    if not is_text and isinstance(source, FileSource) and source.has_wildcards:
        entry.report("content_type", f"several files can be merged in the text format only ({_TEXT_FORMAT})")


def _read_file(entry: Section, base_dir: str) -> FileSource | None:
    given = entry.get("file", FILE_PATH, None)
    max_age = entry.get("max_age", MAX_AGE, None)
    follow_symlinks = entry.get("follow_symlinks", BOOLEAN, True)
    if given is None:
        return None
    source = FileSource(os.path.join(base_dir, given), max_age, follow_symlinks)  # noqa: PTH118 - keeps "./x"
    try:
        _check_file(source)
    except BadValue as bad:
        entry.report("file", f"{quoted(given)}: {bad.why}")
        return None
    return source


def _mode(path: str) -> int:
    """The mode of what is at ``path``, 0 where nothing is; raises ``BadValue`` where nobody can tell."""
    try:
        return Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except PermissionError:
        raise BadValue("not reachable (permission denied) for the user that runs exporter_proxy") from None
    except OSError as error:
        raise BadValue(f"not reachable ({error.strerror})") from None


def _check_file(source: FileSource) -> None:
    """Raises ``BadValue`` for a place where no files can be. They themselves may come and go."""
    directory = source.directory
    mode = 0 if any(wildcard in directory for wildcard in "*?[") else _mode(directory)
    if stat.S_ISDIR(mode) and not os.access(
        directory, os.R_OK | os.X_OK if source.has_wildcards else os.X_OK
    ):
        raise BadValue(
            "its directory is not readable (permission denied) for the user that runs exporter_proxy"
        )
    if not source.has_wildcards and stat.S_ISDIR(_mode(source.path)):
        example = quoted(str(Path(source.path, "*.prom")))
        raise BadValue(f"is a directory; name the files in it, as in {example}")
    if any(wildcard in directory for wildcard in "*?["):
        raise BadValue("wildcards can stand in the name of the file only, not in its directory")
    if not mode:
        raise BadValue("there is no such directory, create it or correct the path")
    if not stat.S_ISDIR(mode):
        raise BadValue(f"{quoted(directory)} is no directory")


def _read_command(entry: Section, base_dir: str) -> CommandSource | None:
    words = entry.get_list("command", PROCESS_TEXT, None)
    env = _read_env(entry)
    given_dir = entry.get("working_dir", FILE_PATH, "/")
    working_dir = os.path.join(base_dir, given_dir)  # noqa: PTH118 - as above
    try:
        if not stat.S_ISDIR(_mode(working_dir)):
            raise BadValue("there is no such directory, create it or correct the path")
    except BadValue as bad:
        entry.report("working_dir", f"{quoted(given_dir)}: {bad.why}")
    if not words:
        if entry.is_empty_list("command"):
            entry.report("command", "the list is empty, it needs at least the program")
        return None
    program, *arguments = words
    try:
        _check_program(program)
    except BadValue as bad:
        # What is no path is not shown, nor what follows a blank: a password may be in it.
        shown = f"{quoted(program.split()[0])}: " if program.startswith("/") else ""
        entry.report("command", shown + bad.why)
        return None
    return CommandSource(program, tuple(arguments), env, working_dir)


def _read_env(entry: Section) -> tuple[tuple[str, str], ...]:
    section = entry.section("env", known_keys=None)
    if section is None:
        return ()
    return tuple(
        (name, section.get(name, PROCESS_TEXT, "")) for name in section if section.check_key(name, ENV_NAME)
    )


def _check_program(program: str) -> None:
    if not program.startswith("/"):
        raise BadValue("the path of the program must be absolute, no PATH is searched and no shell reads it")
    mode = _mode(program)
    if not mode:
        as_items = "write each argument as an item of its own"
        if stat.S_ISREG(_mode(program.split(maxsplit=1)[0])):
            raise BadValue(as_items)
        advice = as_items if " " in program else "correct the path"
        raise BadValue(f"there is no such program, install it or {advice}")
    if not stat.S_ISREG(mode):
        raise BadValue("not a regular file")
    if not os.access(program, os.X_OK):
        raise BadValue("not executable, make it so for the user that runs exporter_proxy")
