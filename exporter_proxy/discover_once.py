"""``discover``: one look at this host, shown as a configuration, a table or JSON, or added to a file.

What is asked and how it is recognised is in ``discover/``; where lines may go in a file that people
keep is for ``config/additions.py``. Here a file is read, and replaced whole or not at all.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exporter_proxy.config import ConfigError, Problem, UpstreamUrl, parse_config
from exporter_proxy.config.additions import Addition, add_exporters, read_present
from exporter_proxy.config.addresses import UPSTREAM_URL, with_suffix
from exporter_proxy.config.source import read_file
from exporter_proxy.discover import Discovery, FoundExporter, config_text, discover_exporters
from exporter_proxy.discover.found import entry_lines, json_text, table_text

FORMATS = {"config": config_text, "table": table_text, "json": json_text}
_ERASE_LINE = "\r\033[K"


async def find(ask_all: bool) -> Discovery:
    """Look once, with a line of progress where standard error is a terminal."""
    if not sys.stderr.isatty():
        return await discover_exporters(ask_all=ask_all)

    def tell(done: int, sockets: int) -> None:
        print(f"{_ERASE_LINE}asked {done} of {sockets} sockets", end="", file=sys.stderr, flush=True)

    try:
        return await discover_exporters(ask_all=ask_all, tell=tell)
    finally:
        print(_ERASE_LINE, end="", file=sys.stderr, flush=True)


def none_found(asked_all: bool) -> str:
    """What to say where nothing was found."""
    if asked_all:
        return "no exporter was found, and every socket of this host was asked"
    return "no exporter was found; --all asks every socket of this host, not only those like exporters'"


def write(found: Sequence[FoundExporter], file: str, asked_all: bool) -> str:
    """Add what is new to the configuration ``file``, or create it; one line that says what was done.

    An exporter is known where an entry asks the same port of the same address, be the path another
    one; 127.0.0.1, ::1, localhost, 0.0.0.0, :: and the host's name are the same. Raises ``ConfigError``,
    and then the file is as it was.
    """
    if not os.path.lexists(file):
        if not found:
            raise ConfigError([Problem(file, None, None, "", f"not created: {none_found(asked_all)}")])
        _replace(file, config_text(found).encode())
        return f"{file}: created with {_names(found)}"
    if _is_odd(file):
        # A pipe or a terminal would be waited for, and then be replaced.
        raise ConfigError([Problem(file, None, None, "", "not a regular file; name another with --write")])
    data = read_file(file, "--write")
    present = read_present(data, file)
    known = {_place(url) for url in present.urls}
    taken = set(present.names)
    new = []
    for exporter in found:
        if _place(UPSTREAM_URL.parse(exporter.url)) in known:
            continue
        name = exporter.name
        number = exporter.port
        while name in taken or f"/{name}/metrics" in present.paths:
            name = with_suffix(exporter.name, f"_{number}")
            number += 1
        taken.add(name)
        new.append(replace(exporter, name=name))
    if not new:
        return f"{file}: nothing to add, {_count(len(found))} found"
    result = add_exporters(data, file, [Addition(one.name, tuple(entry_lines(one))) for one in new])
    try:
        parse_config(result, file)
    except ConfigError as error:
        raise ConfigError(_as_the_file_is(error.problems, data, file)) from None
    _replace(file, result)
    return f"{file}: added {_names(new)}"


def _is_odd(file: str) -> bool:
    """Whether there is something that is neither a file nor a directory."""
    try:
        mode = Path(file).stat().st_mode
    except OSError:
        return False  # whoever reads it says so
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _as_the_file_is(problems: Sequence[Problem], data: bytes, file: str) -> list[Problem]:
    """The problems, with the places that they have in ``data``; what the new lines would bring has none."""
    try:
        parse_config(data, file)
        there: Sequence[Problem] = ()
    except ConfigError as error:
        there = error.problems
    keys = {(one.source, one.key_path) for one in problems}
    told = [one for one in there if (one.source, one.key_path) in keys]
    told_keys = {(one.source, one.key_path) for one in told}
    for problem in problems:
        if (problem.source, problem.key_path) not in told_keys:
            told.append(replace(problem, line=None, column=None) if problem.source == file else problem)
    return [*told, Problem(file, None, None, "", "nothing was written; correct this first")]


def _place(url: UpstreamUrl) -> tuple[str, int | str]:
    """What two URLs of one exporter have in common."""
    if url.socket_path is not None:
        return "unix", url.socket_path
    host = url.host.lower().removesuffix(".")
    is_here = host in ("127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname().lower())
    return "localhost" if is_here else host, url.port


def _names(exporters: Sequence[FoundExporter]) -> str:
    return f"{_count(len(exporters))}: {', '.join(one.name for one in exporters)}"


def _count(exporters: int) -> str:
    return "1 exporter" if exporters == 1 else f"{exporters} exporters"


def _replace(file: str, data: bytes) -> None:
    """Have ``data`` in the file, or what was there before, whatever happens meanwhile.

    A link stays one. Mode, owner and ACL stay; a new file gets what the umask leaves.
    """
    path = Path(file).resolve()
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as new:
            if path.exists():
                before = path.stat()
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, before.st_mode & 0o7777)
                _copy_attributes(path, descriptor)
            else:
                umask = os.umask(0o077)
                os.umask(umask)
                os.fchmod(descriptor, 0o666 & ~umask)
            new.write(data)
            new.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        is_missing = isinstance(error, FileNotFoundError)
        why = f"there is no directory {path.parent}" if is_missing else error.strerror
        raise ConfigError([Problem(file, None, None, "", f"not written: {why}")]) from None


def _copy_attributes(path: Path, descriptor: int) -> None:
    """Give the open file the extended attributes of the one at ``path``, and no others.

    An ACL is one of them, and without it the group would have what its mask lets anyone have. A directory
    may have given the new file an ACL of its own.
    """
    try:
        names = os.listxattr(path)
        others = [name for name in os.listxattr(descriptor) if name not in names]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        raise
    for name in others:
        os.removexattr(descriptor, name)
    for name in names:
        value = os.getxattr(path, name)
        try:
            os.setxattr(descriptor, name, value)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
