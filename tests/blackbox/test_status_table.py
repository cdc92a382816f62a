"""The status table, row by row: status, reason, the one line, the metric and the access log agree."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import (
    CHUNKED,
    PAGE,
    FakeExporter,
    Script,
    chunk,
    close,
    head,
    reset,
    respond,
    send,
    send_repeatedly,
    stall,
    wait_for,
)
from tests.fakes.ports import refusing_port, unanswering_port
from tests.wire import Reply, Wire, request

LOGGED = {"format": "json", "fields": ["status", "reason"]}
SCRAPE = request("/x/metrics")
HURRIED = request("/x/metrics", ("X-Prometheus-Scrape-Timeout-Seconds", "1"))


@dataclass(frozen=True)
class Row:
    """A situation that an exporter or a request brings about, and what is answered."""

    status: int
    reason: str
    says: tuple[str, ...] = ()
    """What the line names, besides the exporter where one was asked."""
    script: Script = field(default_factory=respond)
    sent: bytes = SCRAPE
    route: dict[str, Any] = field(default_factory=dict)
    denied: bool = False
    """Refused before any exporter was asked."""


ROWS = {
    "unknown path": Row(404, "not_found", ("/x/metrics",), sent=request("/y/metrics"), denied=True),
    "method": Row(405, "method", ("GET", "HEAD"), sent=request("/x/metrics", method="POST"), denied=True),
    "address not allowed": Row(
        403, "forbidden", ("127.0.0.1",), route={"allow_clients": ["10.0.0.0/8"]}, denied=True
    ),
    "malformed request": Row(
        400, "bad_request", ("Host",), sent=request("/x/metrics", host=None), denied=True
    ),
    "headers too large": Row(
        431,
        "bad_request",
        ("max_header_bytes",),
        sent=request("/x/metrics", ("A", "a" * 40_000)),
        denied=True,
    ),
    "parameter not allowed": Row(
        403,
        "param",
        ("allow_params",),
        sent=request("/x/metrics?b=1"),
        route={"allow_params": ["a"]},
        denied=True,
    ),
    "reset before the head": Row(502, "connect", script=[reset()]),
    "closed before the head": Row(502, "connect", script=[close()]),
    "not HTTP": Row(502, "protocol", script=[send(b"SSH-2.0-OpenSSH\r\n"), stall()]),
    "bad framing": Row(502, "protocol", script=[send(head(200, [("Content-Length", "1, 2")])), stall()]),
    "101": Row(502, "protocol", ("101",), script=[send(head(101, [("Upgrade", "h2c")])), stall()]),
    "redirect": Row(502, "redirect", ("302",), script=respond(302, [("Location", "http://127.0.0.1:1/")])),
    "header block over the limit": Row(
        502, "too_large", script=[send(head(200, [("A", "a" * 1_000_000), ("Content-Length", "0")])), stall()]
    ),
    "body over the limit": Row(
        502,
        "too_large",
        ("max_response_bytes",),
        respond(body=b"x" * 1025),
        route={"max_response_bytes": "1KiB"},
    ),
    "deadline": Row(504, "timeout", script=[stall()], sent=HURRIED),
}


@pytest.mark.parametrize("situation", ROWS)
def test_status_table_row(situation: str) -> None:
    row = ROWS[situation]
    with proxied(row.script, route=row.route, access_log=LOGGED) as (daemon, exporter):
        reply = daemon.exchange(row.sent).expect_refusal(row.status, row.reason, None if row.denied else "x")
        for word in row.says if row.denied else (exporter.authority, *row.says):
            assert word in reply.body.decode()
        expect_accounted(daemon, row.status, row.reason, denied=row.denied)
        assert bool(exporter.requests) is not row.denied


def expect_accounted(daemon: Daemon, status: int, reason: str, *, denied: bool) -> None:
    """The same word in the metric and in the log, once, and in no other metric."""
    if denied:
        daemon.wait_for_metric(1, "exporter_proxy_requests_denied_total", reason=reason)
    else:
        daemon.wait_for_metric(1, "exporter_proxy_scrape_errors_total", exporter="x", reason=reason)
    kinds = "exporter_proxy_requests_denied_total", "exporter_proxy_scrape_errors_total"
    failures = {key: value for key, value in daemon.metrics().items() if key[0] in kinds and value}
    assert list(failures.values()) == [1]
    wait_until(lambda: any(reason in line for line in daemon.output_lines), "it was logged")
    logged = [json.loads(line) for line in daemon.output_lines if reason in line]
    assert [(entry["status"], entry["reason"]) for entry in logged] == [(status, reason)]


# -- rows that need more than one request and one script


def test_status_unauthorized(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token\n")
    with proxied(bearer_tokens_file=str(tmp_path / "tokens"), access_log=LOGGED) as (daemon, exporter):
        daemon.credentials = (("Authorization", "Bearer a-token"),)
        reply = daemon.exchange(SCRAPE).expect_refusal(401, "unauthorized")
        assert "bearer_tokens_file" in reply.body.decode()
        assert reply.header("www-authenticate") == 'Bearer realm="exporter_proxy"'
        expect_accounted(daemon, 401, "unauthorized", denied=True)
        assert exporter.requests == []


def test_status_rate_limited(tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text("rate_limit: {interval: 1h, burst: 1}")
    with proxied(web_config_file=str(web), access_log=LOGGED) as (daemon, exporter):
        daemon.get("/-/ready").expect_ok()
        reply = daemon.exchange(SCRAPE).expect_refusal(429, "rate_limited")
        assert "rate_limit" in reply.body.decode()
        assert 3590 <= int(reply.header("retry-after") or 0) <= 3600
        web.write_text("")
        assert "config reloaded" in daemon.reload()
        expect_accounted(daemon, 429, "rate_limited", denied=True)
        assert exporter.requests == []


def test_status_refused_connection() -> None:
    with (
        refusing_port() as port,
        Daemon(
            {"exporters": {"x": {"url": f"http://127.0.0.1:{port}/metrics"}}, "access_log": LOGGED}
        ) as daemon,
    ):
        reply = daemon.exchange(SCRAPE).expect_refusal(502, "connect", "x")
        assert f"127.0.0.1:{port}" in reply.body.decode()
        expect_accounted(daemon, 502, "connect", denied=False)


def test_status_connect_that_hangs() -> None:
    with (
        unanswering_port() as port,
        Daemon(
            {"exporters": {"x": {"url": f"http://127.0.0.1:{port}/metrics"}}, "access_log": LOGGED}
        ) as daemon,
    ):
        reply = daemon.exchange(HURRIED).expect_refusal(504, "timeout", "x")
        assert f"127.0.0.1:{port}" in reply.body.decode()
        expect_accounted(daemon, 504, "timeout", denied=False)


def test_status_saturated() -> None:
    with hanging(1, route={"max_concurrent": 1}) as (daemon, _, _):
        reply = daemon.exchange(HURRIED).expect_refusal(503, "saturated", "x")
        assert int(reply.header("retry-after") or 0) >= 1
        assert "max_concurrent" in reply.body.decode()
        assert 0.49 < reply.ended_after_seconds < 0.95 + reply.stalled_seconds, "at its own deadline"
        expect_accounted(daemon, 503, "saturated", denied=False)


def test_status_connection_limit() -> None:
    with hanging(2, max_connections=2) as (daemon, free, waiting):
        reply = daemon.exchange(SCRAPE).expect_refusal(503, "connection_limit")
        assert int(reply.header("retry-after") or 0) >= 1
        assert "max_connections" in reply.body.decode()
        free.set()
        for wire in waiting:
            wire.read_reply().expect_ok()
        expect_accounted(daemon, 503, "connection_limit", denied=True)


def test_status_draining_past_shutdown_timeout() -> None:
    with hanging(1, shutdown_timeout="300ms") as (daemon, _, (wire,)):
        daemon.process.terminate()
        reply = wire.read_reply().expect_refusal(503, "draining", "x")
        assert int(reply.header("retry-after") or 0) >= 1
        assert reply.header("connection") == "close"
        assert daemon.process.wait(5) == 0


def test_status_draining_lets_scrapes_in_flight_finish() -> None:
    with hanging(1) as (daemon, free, (wire,)):
        daemon.process.terminate()
        wait_until(lambda: refuses(daemon), "new connections are refused")
        free.set()
        assert wire.read_reply().expect_ok().header("connection") == "close"
        assert wire.closes_within(3.0)
        assert daemon.process.wait(5) == 0


def refuses(daemon: Daemon) -> bool:
    try:
        daemon.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # connected, but never accepted: it was in the queue as the listener was closed
    return False


@contextmanager
def hanging(scrapes: int, **config: Any) -> Iterator[tuple[Daemon, threading.Event, list[Wire]]]:
    """So many scrapes that the exporter holds until the event is set."""
    free = threading.Event()
    script = [wait_for(free), *respond()]
    with proxied(script, access_log=LOGGED, **config) as (daemon, exporter), ExitStack() as wires:
        waiting = [wires.enter_context(daemon.connect()) for _ in range(scrapes)]
        for count, wire in enumerate(waiting, 1):
            wire.send(SCRAPE)
            exporter.wait_for_requests(count)
        yield daemon, free, waiting


def test_status_header_timeout() -> None:
    with proxied(read_header_timeout="300ms", access_log=LOGGED) as (daemon, exporter):
        reply = daemon.exchange(b"GET /x/metrics HTTP/1.1\r\nHost: prox").expect_refusal(
            408, "header_timeout"
        )
        assert "read_header_timeout" in reply.body.decode()
        expect_accounted(daemon, 408, "header_timeout", denied=True)
        assert exporter.requests == []


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_status_of_the_exporters_own_errors_passes(status: int) -> None:
    with proxied(respond(status, body=b"no\n"), access_log=LOGGED) as (daemon, _):
        reply = daemon.exchange(SCRAPE)
        assert (reply.status, reply.error, reply.body) == (status, "upstream_status", b"no\n")
        expect_accounted(daemon, status, "upstream_status", denied=False)


@pytest.mark.parametrize("status", [201, 204, 206, 304])
def test_status_that_is_no_success_to_prometheus_passes_and_is_a_failure(status: int) -> None:
    """Answer, access log, metrics, log and pages say the same of it; and that it is over."""
    body = b"" if status in (204, 304) else PAGE
    with proxied(respond(status, body=body), respond(), access_log=LOGGED) as (daemon, _):
        reply = daemon.exchange(SCRAPE)
        assert (reply.status, reply.error, reply.body) == (status, "upstream_status", body)
        expect_accounted(daemon, status, "upstream_status", denied=False)
        assert daemon.metric("exporter_proxy_exporter_up", exporter="x") == 0
        daemon.wait_for_log("exporter failing")
        (failing,) = daemon.logged("exporter failing")
        assert failing["reason"] == "upstream_status"
        assert f" answered {status}, which is no success to Prometheus" in failing["error"]
        assert daemon.get("/").body.startswith(b"the exporter fails: x (upstream_status)\n")
        (shown,) = json.loads(daemon.get("/-/exporters").expect_ok().body)["exporters"]
        assert shown["last_failures"]["upstream_status"]["message"] == failing["error"]

        daemon.exchange(SCRAPE).expect_ok(PAGE)
        assert "after=upstream_status" in daemon.wait_for_log("exporter recovered")


CHUNKED_HEAD = head(200, [("Transfer-Encoding", CHUNKED)])
ABORTS: dict[str, tuple[str, Script, dict[str, Any]]] = {
    "truncated": ("truncated", [close()], {}),
    "deadline": ("timeout", [stall()], {}),
    "body over the limit": ("too_large", [send(chunk(b"x" * 1025)), stall()], {"max_response_bytes": "1KiB"}),
}


@pytest.mark.parametrize("situation", ABORTS)
def test_status_abort_after_the_head(situation: str) -> None:
    reason, script, route = ABORTS[situation]
    relayed = threading.Event()
    opening = [send(CHUNKED_HEAD + chunk(b"first 1\n")), wait_for(relayed)]
    with (
        proxied([*opening, *script], route=route, access_log=LOGGED) as (daemon, _),
        daemon.connect() as wire,
    ):
        wire.send(HURRIED).read_head()
        relayed.set()
        reply: Reply = wire.read_reply().expect_cut()
        assert reply.error is None
        expect_accounted(daemon, 200, reason, denied=False)


def test_status_slow_scraper_is_aborted() -> None:
    pouring = [send(CHUNKED_HEAD), send_repeatedly(chunk(b"x" * 65536), 800), stall()]
    with (
        proxied(pouring, access_log=LOGGED) as (daemon, _),
        daemon.connect(receive_buffer_bytes=4096) as wire,
    ):
        wire.send(HURRIED).read_head()
        expect_accounted(daemon, 200, "client_slow", denied=False)
        wire.read_reply().expect_cut()


def test_status_scraper_left() -> None:
    with proxied([stall()], access_log=LOGGED) as (daemon, exporter):
        with daemon.connect() as wire:
            wire.send(SCRAPE)
            exporter.wait_for_requests()
        expect_accounted(daemon, 499, "client_gone", denied=False)


def test_status_of_success_has_no_reason(daemon: Daemon, exporter: FakeExporter) -> None:
    seen = len(daemon.output_lines)
    assert daemon.exchange(SCRAPE).expect_ok().error is None
    wait_until(lambda: len(daemon.output_lines) > seen, "it was logged")
    entry = json.loads(daemon.output_lines[seen])
    assert entry["status"] == 200
    assert entry.get("reason") in (None, "", "-")


FILES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "files clash": ("file_conflict", {"a": "x 1\n", "b": "x 2\n"}, {}),
    "file too old": ("stale", {"a": "x 1\n"}, {"max_age": "1ns"}),
    "no file": ("connect", {}, {}),
}


@pytest.mark.parametrize("situation", FILES)
def test_status_of_files(situation: str, tmp_path: Path) -> None:
    reason, files, route = FILES[situation]
    for name, page in files.items():
        (tmp_path / f"{name}.prom").write_text(page)
    entry = {"file": f"{tmp_path}/*.prom", **route}
    with Daemon({"exporters": {"x": entry}, "access_log": LOGGED}) as daemon:
        reply = daemon.exchange(SCRAPE).expect_refusal(502, reason, "x")
        assert f"{tmp_path}/" in reply.body.decode()
        expect_accounted(daemon, 502, reason, denied=False)


def test_status_of_a_command_that_fails(tmp_path: Path) -> None:
    entry = {"command": ["/bin/sh", "-c", "echo broken >&2; exit 3"]}
    with Daemon({"exporters": {"x": entry}, "access_log": LOGGED}) as daemon:
        reply = daemon.exchange(SCRAPE).expect_refusal(502, "command_failed", "x")
        assert "command:/bin/sh exited with status 3 after" in reply.body.decode()
        assert reply.body.decode().endswith("ms: broken\n")
        expect_accounted(daemon, 502, "command_failed", denied=False)
