"""What the access log and the daemon's own log say: everything, and nothing that a client has made up."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon import Daemon, parse_logfmt, proxied, wait_until
from tests.e2e.processes import serving
from tests.fakes.exporter import PAGE, FakeExporter, close, respond, stall
from tests.fakes.ports import refusing_port
from tests.wire import Wire, request

DEFAULT_FIELDS = [
    *("time", "time_nsec", "status", "size", "reqtime_nsec", "backend", "path", "query", "method"),
    *("reason", "remote", "timeout"),
]
ALL_FIELDS = [*DEFAULT_FIELDS, "exporter", "user_agent"]

LTSV_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|.)")
LTSV_SHORT = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


def parse_ltsv(line: str) -> dict[str, str]:
    """Fields of one line, each written exactly once; escapes undone."""
    pairs = [field.split(":", 1) for field in line.split("\t")]
    assert len(dict(pairs)) == len(pairs), line

    def plain(match: re.Match[str]) -> str:
        return LTSV_SHORT[match[1]] if match[1] in LTSV_SHORT else chr(int(match[1][1:], 16))

    return {name: LTSV_ESCAPE.sub(plain, value) for name, value in pairs}


def parse_quoted_logfmt(line: str) -> dict[str, str]:
    """Fields of one line, each written exactly once and nothing between them; escapes undone."""
    parts = re.findall(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]*)(?: |$)', line)
    assert " ".join(f"{name}={value}" for name, value in parts) == line
    assert len(dict(parts)) == len(parts), line
    return {name: json.loads(value) if value.startswith('"') else value for name, value in parts}


def parse_json(line: str) -> dict[str, str]:
    pairs: list[tuple[str, Any]] = json.loads(line, object_pairs_hook=list)
    assert len(dict(pairs)) == len(pairs), line
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in pairs}


PARSERS: dict[str, Callable[[str], dict[str, str]]] = {
    "ltsv": parse_ltsv,
    "json": parse_json,
    "logfmt": parse_quoted_logfmt,
}


class AccessLog:
    """Reads the access log of a daemon, from its file or its standard output."""

    def __init__(self, daemon: Daemon, log_format: str = "ltsv", file: str | None = None) -> None:
        self._daemon = daemon
        self._parse = PARSERS[log_format]
        self._file = file

    def raw_lines(self) -> list[str]:
        if self._file is None:
            return [*self._daemon.output_lines]
        path = self._daemon.directory / self._file
        # Not splitlines(): what it takes for line ends besides \n must be in no log.
        return path.read_bytes().decode().split("\n")[:-1] if path.exists() else []

    def wait_for(self, count: int) -> list[dict[str, str]]:
        """Parsed, once there are so many; never more."""
        wait_until(lambda: len(self.raw_lines()) >= count, f"the access log had {count} lines")
        lines = self.raw_lines()
        assert len(lines) == count, lines
        assert all(line.splitlines() == [line] for line in lines), lines
        return [self._parse(line) for line in lines]


@pytest.mark.parametrize("file", [None, "access.log"], ids=["stdout", "file"])
@pytest.mark.parametrize("log_format", PARSERS)
def test_every_field_is_filled(log_format: str, file: str | None) -> None:
    access_log = {"format": log_format, **({"path": file} if file else {})}
    with proxied(access_log=access_log) as (daemon, exporter):
        log = AccessLog(daemon, log_format, file)
        before = time.time()
        target = "/x/metrics?collect[]=cpu&collect[]=meminfo"
        with daemon.connect(source="127.0.0.9") as wire:
            wire.exchange(request(target, ("X-Prometheus-Scrape-Timeout-Seconds", "3"))).expect_ok()
        (line,) = log.wait_for(1)
    assert list(line) == DEFAULT_FIELDS
    assert before - 1 <= datetime.fromisoformat(line["time"]).timestamp() <= time.time()
    assert before <= int(line["time_nsec"]) / 1e9 <= time.time()
    assert 0 < int(line["reqtime_nsec"]) < 5e9
    assert float(line["timeout"]) == 2.5
    expected = {
        "status": "200",
        "size": str(len(PAGE)),
        "backend": exporter.authority,
        "path": "/x/metrics",
        "query": "collect[]=cpu&collect[]=meminfo",
        "method": "GET",
        "reason": "",
        "remote": "127.0.0.9",
    }
    assert {name: line[name] for name in expected} == expected


def test_chosen_fields_in_the_order_chosen() -> None:
    fields = ["user_agent", "exporter", "status"]
    with proxied(access_log={"fields": fields}) as (daemon, _):
        daemon.get("/x/metrics", ("User-Agent", "Prometheus/2.42.0"), method="HEAD")
        daemon.get("/nowhere")
        lines = AccessLog(daemon).wait_for(2)
    assert [list(line) for line in lines] == [fields, fields]
    assert [list(line.values()) for line in lines] == [["Prometheus/2.42.0", "x", "200"], ["", "", "404"]]


def test_a_failed_scrape_tells_its_story() -> None:
    with (
        refusing_port() as port,
        FakeExporter([stall()]) as silent,
        Daemon(
            {
                "exporters": {
                    "refused": {"url": f"http://127.0.0.1:{port}/metrics"},
                    "silent": {"url": silent.url(), "timeout": "200ms"},
                    "left": {"url": silent.url()},
                },
                "access_log": {"format": "json"},
            }
        ) as daemon,
    ):
        daemon.get("/refused/metrics")
        daemon.get("/silent/metrics")
        with daemon.connect() as leaving:
            leaving.send(request("/left/metrics"))
            silent.wait_for_requests(2)
        refused, timed_out, left = AccessLog(daemon, "json").wait_for(3)
    assert (refused["status"], refused["reason"], refused["backend"]) == (
        "502",
        "connect",
        f"127.0.0.1:{port}",
    )
    assert (timed_out["status"], timed_out["reason"], timed_out["timeout"]) == ("504", "timeout", "0.2")
    assert int(timed_out["reqtime_nsec"]) >= 200_000_000
    assert (left["status"], left["reason"], left["size"]) == ("499", "client_gone", "0")


def test_time_is_local_as_in_the_go_original() -> None:
    config = {"exporters": {"x": {"url": "http://127.0.0.1:1/"}}, "access_log": {}}
    with Daemon(config, environment={"TZ": "JST-9"}) as daemon:
        daemon.get("/x/metrics")
        (line,) = AccessLog(daemon).wait_for(1)
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(hours=9)


HOSTILE_TARGETS = [
    b"/x/metrics?a=%09status:200%0astatus:200%0d%0a",
    b"/x/metrics?\xff\xfe\x85\xe2\x80\xa8status:200",
    b"/x/metrics?a=%22%20reason=forged%20%5c",
    b'/x/metrics?a="\\,"reason":"forged"}',
    b"/nowhere\\tstatus:200\\n\\x0a\x9b31m",
    b"/x/metrics?a=\ttab",
    b"/x/metrics?a=b HTTP/1.1\nstatus:200",
]
HOSTILE_AGENTS = [
    b'a\tstatus:200\treason:forged" reason=forged \\" \\',
    b"\xff\x85\xe2\x80\xa8\xc2\x85{}:=\x9b31m",
    b"a\x00b",
    b"a\rb",
]


@pytest.mark.parametrize("log_format", PARSERS)
def test_nothing_a_client_sends_forges_a_field_or_a_line(log_format: str) -> None:
    access_log = {"format": log_format, "fields": ALL_FIELDS, "path": "access.log"}
    hostile = [(target, b"plain") for target in HOSTILE_TARGETS]
    hostile += [(b"/x/metrics", agent) for agent in HOSTILE_AGENTS]
    with proxied(access_log=access_log) as (daemon, _):
        log = AccessLog(daemon, log_format, "access.log")
        for count, (target, agent) in enumerate(hostile, 1):
            head = b"GET %b HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\nConnection: close\r\n\r\n"
            status = daemon.exchange(head % (target, agent)).status
            line = log.wait_for(count)[-1]
            assert list(line) == ALL_FIELDS
            assert line["status"] == str(status)
            assert line["reason"] in ("", "not_found", "bad_request")
            if status in (200, 404):
                path, _, query = target.partition(b"?")
                sent = [text.decode("latin-1") for text in (path, query, agent.strip())]
                assert [line["path"], line["query"], line["user_agent"]] == sent
        text = (daemon.directory / "access.log").read_bytes()
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]", text)


def test_the_daemon_log_in_json(tmp_path: Path) -> None:
    with FakeExporter([close()]) as exporter:
        config = {"listen": "127.0.0.1:0", "exporters": {"x": {"url": exporter.url()}}}
        (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
        with serving(tmp_path, "--log.format=json") as port, Wire(("127.0.0.1", port)) as wire:
            wire.exchange(request("/x/metrics"))
        events = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    by_message = {event["msg"]: event for event in events}
    assert [event["level"] for event in events] == ["info", "warn", "info", "info"]
    assert by_message["listening"]["address"] == f"127.0.0.1:{port}"
    assert (by_message["listening"]["exporters"], by_message["listening"]["names"]) == (1, "x")
    assert by_message["exporter failing"]["exporter"] == "x"
    assert all(datetime.fromisoformat(event["ts"]).utcoffset() == timedelta(0) for event in events)


@pytest.mark.parametrize(("level", "messages"), [("error", []), ("warn", ["exporter failing"])])
def test_log_level_leaves_out_what_is_below_it(tmp_path: Path, level: str, messages: list[str]) -> None:
    (tmp_path / "config.yml").write_text(
        'listen: "127.0.0.1:0"\nexporters: {x: {url: "http://127.0.0.1:1/"}}\n'
    )
    with serving(tmp_path, f"--log.level={level}") as port, Wire(("127.0.0.1", port)) as wire:
        wire.exchange(request("/x/metrics"))
    lines = (tmp_path / "output").read_text().splitlines()
    assert [parse_logfmt(line)["msg"] for line in lines] == messages


def test_an_exporter_is_logged_when_its_state_changes_not_at_each_scrape() -> None:
    with proxied(route={"timeout": "1s"}) as (daemon, exporter):

        def scrape(*statuses: int) -> None:
            assert [daemon.get("/x/metrics").status for _ in statuses] == list(statuses)

        scrape(200, 200)
        exporter.play([close()])
        scrape(502, 502, 502)
        exporter.play([stall()])
        scrape(504, 504)
        exporter.play(respond(500))
        scrape(500, 500)
        exporter.play()
        scrape(200, 200)
        exporter.play([stall()])
        with daemon.connect() as leaving:  # which says nothing of the exporter
            leaving.send(request("/x/metrics"))
            exporter.wait_for_requests()
        daemon.wait_for_metric(1, "exporter_proxy_scrape_errors_total", exporter="x", reason="client_gone")
        exporter.play()
        scrape(200)
        daemon.stop()
        events = [parse_logfmt(line) for line in daemon.log_lines if "exporter=x" in line]
    assert [(event["msg"], event.get("reason", event.get("after"))) for event in events] == [
        ("exporter failing", "connect"),
        ("exporter failing", "timeout"),
        ("exporter failing", "upstream_status"),
        ("exporter recovered", "upstream_status"),
    ]
    assert [event["level"] for event in events] == ["warn", "warn", "warn", "info"]
    assert all(exporter.authority in event["error"] for event in events[:3])
