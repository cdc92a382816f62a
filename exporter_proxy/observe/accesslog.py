"""The access log: one line a request, in the Go original's LTSV or in JSON or logfmt.

Paths, queries and user agents come from whoever connects, so each format escapes what could
forge a field or a line.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime

from exporter_proxy.config.schema import AccessLog
from exporter_proxy.observe.daemonlog import format_json, logfmt_value
from exporter_proxy.observe.exchange import Exchange

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029]")


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    return {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\\": "\\\\"}.get(character) or f"\\x{ord(character):02x}"


def ltsv_value(value: object) -> str:
    r"""A value without tabs, newlines and other control characters: ``\t``, ``\n``, ``\x1b``."""
    return _UNSAFE.sub(_escape, str(value))


class _Clock:
    """RFC 3339 in local time, as the original writes it; formatted once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            text = datetime.fromtimestamp(second).astimezone().isoformat()
            self._text = text.replace("+00:00", "Z")
        return self._text


_clock = _Clock()

_FIELDS: dict[str, Callable[[Exchange, float], object]] = {
    "time": lambda exchange, now: _clock.text(now),
    "time_nsec": lambda exchange, now: time.time_ns(),
    "status": lambda exchange, now: exchange.status,
    "size": lambda exchange, now: exchange.sent_bytes,
    "reqtime_nsec": lambda exchange, now: int(exchange.total_seconds * 1e9),
    "backend": lambda exchange, now: exchange.backend,
    "path": lambda exchange, now: exchange.path.decode("latin-1"),
    "query": lambda exchange, now: exchange.query.decode("latin-1"),
    "method": lambda exchange, now: exchange.method,
    "reason": lambda exchange, now: exchange.reason or "",
    "remote": lambda exchange, now: exchange.remote,
    "timeout": lambda exchange, now: round(exchange.timeout_seconds, 3),
    "exporter": lambda exchange, now: exchange.exporter,
    "user_agent": lambda exchange, now: exchange.user_agent.decode("latin-1"),
}
_FROM_OUTSIDE = frozenset(("path", "query", "user_agent", "method"))
"""Whoever connects chooses these; all others are ours and need no escaping in LTSV."""

AccessLogFormatter = Callable[[Exchange], str]
_Getters = list[tuple[str, Callable[[Exchange, float], object]]]


def _ltsv(getters: _Getters) -> AccessLogFormatter:
    rows = [(f"{name}:", get, name in _FROM_OUTSIDE) for name, get in getters]

    def line(exchange: Exchange) -> str:
        now = time.time()
        values = [
            f"{label}{ltsv_value(get(exchange, now)) if is_escaped else get(exchange, now)}"
            for label, get, is_escaped in rows
        ]
        return "\t".join(values) + "\n"

    return line


def _json(getters: _Getters) -> AccessLogFormatter:
    def line(exchange: Exchange) -> str:
        now = time.time()
        return format_json({name: get(exchange, now) for name, get in getters})

    return line


def _logfmt(getters: _Getters) -> AccessLogFormatter:
    def line(exchange: Exchange) -> str:
        now = time.time()
        return " ".join([f"{name}={logfmt_value(get(exchange, now))}" for name, get in getters]) + "\n"

    return line


_FORMATTERS: dict[str, Callable[[_Getters], AccessLogFormatter]] = {
    "ltsv": _ltsv,
    "json": _json,
    "logfmt": _logfmt,
}


def access_log_formatter(config: AccessLog) -> AccessLogFormatter:
    """A function that makes the line of one exchange."""
    return _FORMATTERS[config.format]([(name, _FIELDS[name]) for name in config.fields])
