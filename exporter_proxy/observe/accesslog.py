"""The access log: one line a request, in the Go original's LTSV or in JSON or logfmt.

Paths, queries and user agents come from whoever connects, so each format escapes what could
forge a field or a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from exporter_proxy.config.schema import AccessLog
from exporter_proxy.observe.daemonlog import format_json, logfmt_value
from exporter_proxy.observe.exchange import Exchange

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029]")


_ESCAPED = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)},
    **str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r", "\\": "\\\\"}),
}


def ltsv_value(value: object) -> str:
    r"""A value without tabs, newlines and other control characters: ``\t``, ``\n``, ``\x1b``."""
    text = str(value)
    # A function for each match would take 40 ms of the event loop for a path that somebody has made so.
    return text.translate(_ESCAPED) if _UNSAFE.search(text) else text


class _Clock:
    """RFC 3339 in local time, as the original writes it; formatted once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, nsec: int) -> str:
        second = nsec // 1_000_000_000
        if second != self._second:
            self._second = second
            text = datetime.fromtimestamp(second).astimezone().isoformat()
            self._text = text.replace("+00:00", "Z")
        return self._text


_clock = _Clock()

_FIELDS: dict[str, Callable[[Exchange], object]] = {
    "time": lambda exchange: _clock.text(exchange.ended_nsec),
    "time_nsec": lambda exchange: exchange.ended_nsec,
    "status": lambda exchange: exchange.status,
    "size": lambda exchange: exchange.sent_bytes,
    "reqtime_nsec": lambda exchange: int(exchange.total_seconds * 1e9),
    "backend": lambda exchange: exchange.backend,
    "path": lambda exchange: exchange.path.decode("latin-1"),
    "query": lambda exchange: exchange.query.decode("latin-1"),
    "method": lambda exchange: exchange.method,
    "reason": lambda exchange: exchange.reason or "",
    "remote": lambda exchange: exchange.remote,
    "timeout": lambda exchange: round(exchange.timeout_seconds, 3),
    "exporter": lambda exchange: exchange.exporter,
    "user_agent": lambda exchange: exchange.user_agent.decode("latin-1"),
}
_FROM_OUTSIDE = frozenset(("path", "query", "user_agent", "method"))
"""Whoever connects chooses these; all others are ours and need no escaping in LTSV."""

AccessLogFormatter = Callable[[Exchange], str]
_Getters = list[tuple[str, Callable[[Exchange], object]]]


def _ltsv(getters: _Getters) -> AccessLogFormatter:
    rows = [(f"{name}:", get, name in _FROM_OUTSIDE) for name, get in getters]

    def line(exchange: Exchange) -> str:
        values = [
            f"{label}{ltsv_value(get(exchange)) if is_escaped else get(exchange)}"
            for label, get, is_escaped in rows
        ]
        return "\t".join(values) + "\n"

    return line


def _json(getters: _Getters) -> AccessLogFormatter:
    def line(exchange: Exchange) -> str:
        return format_json({name: get(exchange) for name, get in getters})

    return line


def _logfmt(getters: _Getters) -> AccessLogFormatter:
    def line(exchange: Exchange) -> str:
        return " ".join([f"{name}={logfmt_value(get(exchange))}" for name, get in getters]) + "\n"

    return line


_FORMATTERS: dict[str, Callable[[_Getters], AccessLogFormatter]] = {
    "ltsv": _ltsv,
    "json": _json,
    "logfmt": _logfmt,
}


def access_log_formatter(config: AccessLog) -> AccessLogFormatter:
    """A function that makes the line of one exchange."""
    return _FORMATTERS[config.format]([(name, _FIELDS[name]) for name in config.fields])
