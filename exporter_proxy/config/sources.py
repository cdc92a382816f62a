"""Where an exporter's metrics come from: its ``url``, ``file`` or ``command``, and the keys of each.

Only whether a source can be used at all is looked at here: what it gives is for each scrape to see.
"""

from __future__ import annotations

import os
from pathlib import Path

from exporter_proxy.config.addresses import UPSTREAM_URL
from exporter_proxy.config.problems import quoted
from exporter_proxy.config.schema import CommandSource, FileSource, UpstreamUrl
from exporter_proxy.config.sections import Section
from exporter_proxy.config.values import BOOLEAN, ENV_NAME, FILE_PATH, PROCESS_TEXT, duration

SOURCE_KEYS = ("url", "file", "command")
FILE_KEYS = ("max_age", "follow_symlinks")
COMMAND_KEYS = ("env", "working_dir")
_URL_KEYS = (
    "allow_params",
    "params",
    "pass_headers",
    "headers",
    "basic_auth",
    "bearer_token_file",
    "tls",
    "insecure_skip_verify",
)
_KEYS_OF = {"url": _URL_KEYS, "file": FILE_KEYS, "command": COMMAND_KEYS}

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
    wrong = _why_no_file(source)
    if wrong is not None:
        entry.report("file", f"{quoted(given)}: {wrong}")
        return None
    return source


def _why_no_file(source: FileSource) -> str | None:
    """What is wrong with the place of the files. They themselves may come and go."""
    directory = Path(source.directory)
    if not source.has_wildcards and Path(source.path).is_dir():
        return f"is a directory; name the files in it, as in {quoted(str(Path(source.path, '*.prom')))}"
    if any(wildcard in str(directory) for wildcard in "*?["):
        return "wildcards can stand in the name of the file only, not in its directory"
    if not directory.exists():
        return "there is no such directory, create it or correct the path"
    if not directory.is_dir():
        return f"{quoted(str(directory))} is no directory"
    if not os.access(directory, os.R_OK | os.X_OK if source.has_wildcards else os.X_OK):
        return "its directory is not readable (permission denied) for the user that runs exporter_proxy"
    return None


def _read_command(entry: Section, base_dir: str) -> CommandSource | None:
    words = entry.get_list("command", PROCESS_TEXT, None)
    env = _read_env(entry)
    given_dir = entry.get("working_dir", FILE_PATH, "/")
    working_dir = os.path.join(base_dir, given_dir)  # noqa: PTH118 - as above
    if not Path(working_dir).is_dir():
        wrong = "there is no such directory, create it or correct the path"
        entry.report("working_dir", f"{quoted(given_dir)}: {wrong}")
    if not words:
        if entry.is_empty_list("command"):
            entry.report("command", "the list is empty, it needs at least the program")
        return None
    program, *arguments = words
    unusable = _why_no_program(program)
    if unusable is not None:
        # What is no path is not shown, nor what follows a blank: a password may be in it.
        shown = f"{quoted(program.split()[0])}: " if program.startswith("/") else ""
        entry.report("command", shown + unusable)
        return None
    return CommandSource(program, tuple(arguments), env, working_dir)


def _read_env(entry: Section) -> tuple[tuple[str, str], ...]:
    section = entry.section("env", known_keys=None)
    if section is None:
        return ()
    return tuple(
        (name, section.get(name, PROCESS_TEXT, "")) for name in section if section.check_key(name, ENV_NAME)
    )


def _why_no_program(program: str) -> str | None:
    path = Path(program)
    if not path.is_absolute():
        return "the path of the program must be absolute, no PATH is searched and no shell reads it"
    if not path.exists():
        advice = "write each argument as an item of its own" if " " in program else "correct the path"
        return f"there is no such program, install it or {advice}"
    if not path.is_file():
        return "not a regular file"
    if not os.access(path, os.X_OK):
        return "not executable, make it so for the user that runs exporter_proxy"
    return None
