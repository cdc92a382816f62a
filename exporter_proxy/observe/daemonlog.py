"""The daemon's own log: one event a line, logfmt or JSON, never waiting for the disk.

Libraries that log through ``logging`` (asyncio, uvicorn) end up in the same lines.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from exporter_proxy.observe.logwriter import LogWriter

LEVELS = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}
"""Prometheus's spellings of ``--log.level``, and ``warning``."""

_NEEDS_QUOTES = re.compile(r'[\s"=\\\x00-\x1f\x7f-\x9f\u2028\u2029]|^$')


def logfmt_value(value: object) -> str:
    """A value as logfmt has it: quoted and escaped where it is not one plain word.

    Escaping is JSON's with everything outside ASCII escaped where quotes are needed, so that
    no value can forge a line, a field or a terminal escape.
    """
    text = str(value)
    return json.dumps(text) if _NEEDS_QUOTES.search(text) else text


def format_logfmt(fields: dict[str, object]) -> str:
    """``key=value`` pairs and a newline."""
    return " ".join(f"{key}={logfmt_value(value)}" for key, value in fields.items()) + "\n"


def format_json(fields: dict[str, object]) -> str:
    """One JSON object and a newline."""
    return json.dumps(fields, default=str) + "\n"


LOG_FORMATS: dict[str, Callable[[dict[str, object]], str]] = {"logfmt": format_logfmt, "json": format_json}


def exception_fields(error: BaseException) -> dict[str, object]:
    """An exception on one line: what it says, and the last places it came through."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    return {"exception": "".join(traceback.format_exception_only(error)).strip(), "at": places}


class DaemonLog:
    """Leveled lines with fields: ``log.info("listening", address=...)``."""

    def __init__(self, writer: LogWriter, level: str = "info", format_name: str = "logfmt") -> None:
        self.writer = writer
        self._level = LEVELS[level]
        self._format = LOG_FORMATS[format_name]

    def debug(self, message: str, **fields: object) -> None:
        """For someone who looks for a defect."""
        self._write("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        """A change of state that is as it should be."""
        self._write("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """Something an operator will want to change."""
        self._write("warn", message, fields)

    def error(self, message: str, **fields: object) -> None:
        """Something that does not work."""
        self._write("error", message, fields)

    def defect(self, error: BaseException, **fields: object) -> None:
        """An exception that nobody expected: its text and where it was raised."""
        self.error("defect in exporter_proxy", **exception_fields(error), **fields)

    def _write(self, level: str, message: str, fields: dict[str, object]) -> None:
        if LEVELS[level] >= self._level:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self.writer.write(self._format({"ts": moment, "level": level, "msg": message, **fields}))


class _LibraryLines(logging.Handler):
    """Carries what libraries log through ``logging`` into the daemon log."""

    def __init__(self, log: DaemonLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields |= exception_fields(record.exc_info[1])
        log = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a library's format string that does not fit its arguments
            message = str(record.msg)
        log(message, **fields)


def capture_library_logs(log: DaemonLog) -> None:
    """Send warnings and errors of every library to ``log``, and nothing to stderr."""
    root = logging.getLogger()
    root.handlers[:] = [_LibraryLines(log)]
    root.setLevel(logging.WARNING)
