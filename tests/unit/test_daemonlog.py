"""The daemon's own log: levels, the fields of a line, and what libraries say."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from exporter_proxy.observe.daemonlog import (
    LEVELS,
    LOG_FORMATS,
    DaemonLog,
    capture_library_logs,
    exception_fields,
    format_logfmt,
    logfmt_value,
)
from exporter_proxy.observe.logwriter import LogWriter
from exporter_proxy.reasons import Reason
from tests.daemon import parse_logfmt

NAMES = ("debug", "info", "warning", "error")


class Kept:
    """A log in a file, and its lines."""

    def __init__(self, path: Path, level: str = "debug", format_name: str = "json") -> None:
        self._path = path
        self.writer = LogWriter(str(path))
        self.log = DaemonLog(self.writer, level, format_name)

    @property
    def lines(self) -> list[str]:
        self.writer.close()
        return self._path.read_text().splitlines() if self._path.exists() else []

    @property
    def entries(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "log")


def test_a_line(kept: Kept) -> None:
    before = datetime.now(UTC)
    kept.log.info("listening", address="127.0.0.1:9099", exporters=3, reason=Reason.CONNECT)
    (entry,) = kept.entries
    assert list(entry) == ["ts", "level", "msg", "address", "exporters", "reason"]
    moment = datetime.fromisoformat(entry.pop("ts"))
    assert before - timedelta(milliseconds=1) <= moment <= datetime.now(UTC)
    assert entry == {
        "level": "info",
        "msg": "listening",
        "address": "127.0.0.1:9099",
        "exporters": 3,
        "reason": "connect",
    }


def test_the_time_is_utc_with_milliseconds_and_z(kept: Kept) -> None:
    kept.log.info("x")
    stamp = kept.entries[0]["ts"]
    assert stamp.endswith("Z")
    assert len(stamp) == len("2026-01-02T03:04:05.678Z")


def test_logfmt(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "log", format_name="logfmt")
    kept.log.warning("exporter failing", exporter="x", error='refused by "a"', after="")
    (line,) = kept.lines
    stamp, _, rest = line.partition(" ")
    assert stamp.startswith("ts=20")
    assert rest == 'level=warn msg="exporter failing" exporter=x error="refused by \\"a\\"" after=""'
    assert parse_logfmt(line)["error"] == 'refused by "a"'


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_levels(tmp_path: Path, level: str, name: str) -> None:
    """``info`` lets through info, warning and error, and so on; ``warn`` and ``warning`` are one."""
    kept = Kept(tmp_path / "log", level)
    getattr(kept.log, name)("said")
    threshold = "warning" if level == "warn" else level
    assert bool(kept.entries) == (NAMES.index(name) >= NAMES.index(threshold))


def test_every_format_and_level_of_the_flags_exists() -> None:
    assert set(LOG_FORMATS) == {"logfmt", "json"}
    assert set(LEVELS) >= {"debug", "info", "warn", "error"}


def raised() -> ValueError:
    try:
        raise ValueError('two\nlines, "quoted"')
    except ValueError as error:
        return error


def test_a_defect_is_one_line_that_says_where(kept: Kept) -> None:
    kept.log.defect(raised(), path="/x")
    (entry,) = kept.entries
    assert (entry["level"], entry["msg"], entry["path"]) == ("error", "defect in exporter_proxy", "/x")
    assert entry["exception"] == 'ValueError: two\nlines, "quoted"'
    place, _, number = entry["at"].partition(" < ")[0].rpartition(":")
    assert place == __file__
    assert 'raise ValueError("' in Path(place).read_text().splitlines()[int(number) - 1].replace("'", '"')
    assert len(format_logfmt(dict(entry)).splitlines()) == 1


def test_an_exception_that_was_never_raised_has_no_place() -> None:
    assert exception_fields(KeyError("x")) == {"exception": "KeyError: 'x'", "at": ""}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('"', '"\\""'),
        ("a\\b", '"a\\\\b"'),
        ("a\nb", '"a\\nb"'),
        ("\x1b[0m", '"\\u001b[0m"'),
        ("\x7f", '"\\u007f"'),
        ("\u2028", '"\\u2028"'),
        ("caf\u00e9", "caf\u00e9"),
        (3, "3"),
        (None, "None"),
        (Reason.TOO_LARGE, "too_large"),
    ],
)
def test_logfmt_values(value: object, written: str) -> None:
    assert logfmt_value(value) == written


# Libraries


@pytest.fixture
def captured(kept: Kept) -> Iterator[Kept]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    capture_library_logs(kept.log)
    yield kept
    root.handlers[:] = handlers
    root.setLevel(level)  # which forgets what loggers have decided by the other one


def test_what_libraries_log_is_in_the_same_lines(captured: Kept) -> None:
    logging.getLogger("uvicorn.error").warning("odd: %s", "x")
    logging.getLogger("asyncio").error("bad")
    logging.getLogger("httpx").info("too much detail")
    entries = captured.entries
    assert [(entry["level"], entry["msg"], entry["logger"]) for entry in entries] == [
        ("warn", "odd: x", "uvicorn.error"),
        ("error", "bad", "asyncio"),
    ]


def test_an_exception_that_a_library_logs_is_on_its_line(captured: Kept) -> None:
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("some.library").exception("failed")
    (entry,) = captured.entries
    assert (entry["msg"], entry["exception"]) == ("failed", "OSError: gone")
    assert f"{__file__}:" in entry["at"]


def test_an_exception_that_nobody_awaited_is_on_one_line(captured: Kept) -> None:
    """asyncio tells of it through ``logging``, with a traceback of many lines."""

    async def fail() -> None:
        raise RuntimeError("lost")

    async def scenario() -> None:
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        del task

    asyncio.run(scenario())
    (entry,) = captured.entries
    assert entry["logger"] == "asyncio"
    assert entry["exception"] == "RuntimeError: lost"
    assert len(captured.lines) == 1


def test_nothing_goes_to_standard_error(captured: Kept, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("anything").error("bad")
    assert captured.lines
    assert capfd.readouterr() == ("", "")


def test_a_message_that_cannot_be_formatted_is_not_an_error(
    captured: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library's mistake must not become the scrape's: ``getMessage`` raises here."""
    root = logging.getLogger()
    # pytest's own handler, which is there during a test, raises for such a record.
    ours = [handler for handler in root.handlers if type(handler).__module__.startswith("exporter_proxy")]
    monkeypatch.setattr(root, "handlers", ours)
    logging.getLogger("careless").error("%d things", "many")
    assert len(captured.lines) == 1
    assert "%d things" in captured.lines[0]
