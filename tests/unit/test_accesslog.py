"""The access log's lines, field by field, in each format."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime

import pytest

from exporter_proxy.config import AccessLog
from exporter_proxy.config.schema import (
    ACCESS_LOG_FIELDS,
    ACCESS_LOG_FORMATS,
    DEFAULT_ACCESS_LOG_FIELDS,
)
from exporter_proxy.observe.accesslog import access_log_formatter, ltsv_value
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Reason
from tests.inprocess import least_seconds

GO_ORIGINAL = ("time", "time_nsec", "status", "size", "reqtime_nsec", "backend", "path", "query", "method")
FIXED = tuple(name for name in ACCESS_LOG_FIELDS if not name.startswith("time") or name == "timeout")
"""All but the two that depend on when the line is written."""


def exchange() -> Exchange:
    made = Exchange("10.0.0.5", "GET", b"/node_exporter/metrics", b"collect[]=cpu&a=b c", time.monotonic())
    made.user_agent = b"Prometheus/3.0"
    made.exporter, made.backend = "node_exporter", "127.0.0.1:9100"
    made.status, made.sent_bytes, made.total_seconds, made.timeout_seconds = 200, 57344, 0.0125, 9.5
    return made


def line(format_name: str, fields: tuple[str, ...], of: Exchange | None = None) -> str:
    return access_log_formatter(AccessLog(format_name, None, fields))(of or exchange())


def test_ltsv() -> None:
    assert line("ltsv", FIXED) == (
        "status:200\tsize:57344\treqtime_nsec:12500000\tbackend:127.0.0.1:9100\t"
        "path:/node_exporter/metrics\tquery:collect[]=cpu&a=b c\tmethod:GET\treason:\tremote:10.0.0.5\t"
        "timeout:9.5\texporter:node_exporter\tuser_agent:Prometheus/3.0\n"
    )


def test_logfmt() -> None:
    assert line("logfmt", FIXED) == (
        "status=200 size=57344 reqtime_nsec=12500000 backend=127.0.0.1:9100 "
        'path=/node_exporter/metrics query="collect[]=cpu&a=b c" method=GET reason="" remote=10.0.0.5 '
        "timeout=9.5 exporter=node_exporter user_agent=Prometheus/3.0\n"
    )


def test_json() -> None:
    """Numbers are numbers."""
    assert json.loads(line("json", FIXED)) == {
        "status": 200,
        "size": 57344,
        "reqtime_nsec": 12500000,
        "backend": "127.0.0.1:9100",
        "path": "/node_exporter/metrics",
        "query": "collect[]=cpu&a=b c",
        "method": "GET",
        "reason": "",
        "remote": "10.0.0.5",
        "timeout": 9.5,
        "exporter": "node_exporter",
        "user_agent": "Prometheus/3.0",
    }


def test_the_default_begins_as_the_go_original() -> None:
    """Whoever parses its logs by position still can."""
    names = [
        field.partition(":")[0] for field in line("ltsv", DEFAULT_ACCESS_LOG_FIELDS).rstrip("\n").split("\t")
    ]
    assert tuple(names[: len(GO_ORIGINAL)]) == GO_ORIGINAL


@pytest.mark.parametrize("format_name", ACCESS_LOG_FORMATS)
def test_fields_come_as_they_are_configured(format_name: str) -> None:
    text = line(format_name, ("method", "status"))
    assert text in (
        "method:GET\tstatus:200\n",
        "method=GET status=200\n",
        '{"method": "GET", "status": 200}\n',
    )


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("format_name", ACCESS_LOG_FORMATS)
def test_the_reason_is_its_word(format_name: str, reason: Reason) -> None:
    failed = exchange()
    failed.reason = reason
    text = line(format_name, ("reason",), failed)
    assert text in (
        f"reason:{reason.value}\n",
        f"reason={reason.value}\n",
        f'{{"reason": "{reason.value}"}}\n',
    )


def test_the_time_is_that_of_the_end_and_advances() -> None:
    """It is formatted once a second; the next second must not get the last one's text."""
    made = access_log_formatter(AccessLog("json", None, ("time", "time_nsec")))
    ended = exchange()
    for nsec in (1_790_000_000_999_999_999, 1_790_000_001_000_000_000, 1_790_000_000_000_000_001):
        ended.ended_nsec = nsec
        fields = json.loads(made(ended))
        moment = datetime.fromisoformat(fields["time"])
        assert moment.tzinfo is not None
        assert moment.timestamp() == nsec // 10**9
        assert fields["time_nsec"] == nsec
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", fields["time"])


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("a\tb", r"a\tb"),
        ("a\nb", r"a\nb"),
        ("a\rb", r"a\rb"),
        ("a\\b", r"a\\b"),
        ("\x1b[0m", r"\x1b[0m"),
        ("\x00\x7f\x85", r"\x00\x7f\x85"),
        ('a:b="c" d', 'a:b="c" d'),
        ("café", "café"),
    ],
)
def test_ltsv_escapes(value: str, written: str) -> None:
    assert ltsv_value(value) == written


@pytest.mark.parametrize("byte", [b"a", b"\\", b"\x85", b'"', b"\t"])
@pytest.mark.parametrize("format_name", ["ltsv", "json", "logfmt"])
def test_no_line_takes_long_whatever_somebody_asks_for(format_name: str, byte: bytes) -> None:
    asked = exchange()
    asked.path = b"/" + byte * 32_768

    def taken() -> float:
        before = time.thread_time()
        line(format_name, ACCESS_LOG_FIELDS, asked)
        return time.thread_time() - before

    # 1 ms on an idle machine, in the event loop; a hundred such requests a second are easily sent.
    assert least_seconds(taken, 0.02) < 0.02
