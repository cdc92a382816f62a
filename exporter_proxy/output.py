"""What a command prints, and what comes of it where nobody takes it.

It is UTF-8 whatever the locale is, since YAML and JSON are. Text that cannot be printed ends the command
with status 1, where Python would show a traceback, or end with 120 for what it flushes at its exit.
"""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn, TextIO


def use_utf8() -> None:
    """Print in UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(encoding="utf-8")


def put(text: str) -> None:
    """Print ``text`` as it is to standard output, now."""
    _write(text, sys.stdout)


def complain(line: str) -> None:
    """Print a line to standard error."""
    _write(f"{line}\n", sys.stderr)


def _write(text: str, stream: TextIO | None) -> None:
    if stream is None:
        return  # it was closed before the start, and whoever did that wants nothing
    try:
        # What is no UTF-8, as in a file's name, is escaped.
        stream.write(text.encode(errors="backslashreplace").decode())
        stream.flush()
    except OSError as error:
        _give_up(stream, error)


def _give_up(stream: TextIO, error: OSError) -> NoReturn:
    # What stays in the buffer is tried again at exit, and must not fail again.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    if stream is sys.stdout and not isinstance(error, BrokenPipeError):
        complain(f"exporter_proxy: standard output cannot be written: {error.strerror}")
    raise SystemExit(1)
