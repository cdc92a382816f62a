"""Clients that say they are someone else, and clients that would have a line of a log say so."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import PAGE, FakeExporter
from tests.wire import request

ALLOWED, DENIED = "127.0.0.1", "127.66.0.1"
CLAIMS = [
    ("X-Forwarded-For", ALLOWED),
    ("X-Forwarded-For", f"{ALLOWED}, {DENIED}"),
    ("X-Forwarded-For", "unix"),
    ("Forwarded", f"for={ALLOWED};by={ALLOWED};host=proxy.test"),
    ("X-Real-IP", ALLOWED),
    ("X-Client-IP", ALLOWED),
    ("True-Client-IP", ALLOWED),
    ("CF-Connecting-IP", ALLOWED),
    ("X-Cluster-Client-IP", ALLOWED),
    ("X-Original-URL", "/-/healthy"),
    ("X-Rewrite-URL", "/-/healthy"),
    ("X-HTTP-Method-Override", "POST"),
]
PROXY_V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + struct.pack(
    "!H4s4sHH", 12, socket.inet_aton(ALLOWED), socket.inet_aton(ALLOWED), 4711, 9099
)
PREFACES = {
    "v1": f"PROXY TCP4 {ALLOWED} {ALLOWED} 4711 9099\r\n".encode(),
    "v1-unknown": b"PROXY UNKNOWN\r\n",
    "v2": PROXY_V2,
}

Guarded = tuple[Daemon, FakeExporter]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    log = {"format": "json", "fields": ["remote", "status", "reason", "path"]}
    with proxied(allow_clients=[ALLOWED], access_log=log) as pair:
        yield pair


def logged(daemon: Daemon, seen: int) -> dict[str, object]:
    """The line that came after ``seen`` others; there is one."""
    wait_until(lambda: len(daemon.output_lines) > seen, "it was logged")
    (line,) = daemon.output_lines[seen:]
    entry: dict[str, object] = json.loads(line)
    return entry


@pytest.mark.parametrize("claim", CLAIMS, ids=": ".join)
def test_a_header_changes_nothing_about_who_asks_for_what(guarded: Guarded, claim: tuple[str, str]) -> None:
    daemon, exporter = guarded
    exporter.play()
    seen = len(daemon.output_lines)
    daemon.get("/x/metrics", claim, source=DENIED).expect_refusal(403, "forbidden")
    assert logged(daemon, seen) == {"remote": DENIED, "status": 403, "reason": "forbidden", "path": ""}
    assert exporter.requests == []
    name, value = claim
    daemon.get("/x/metrics", (name, value.replace(ALLOWED, "10.9.8.7")), source=ALLOWED).expect_ok(PAGE)
    assert logged(daemon, seen + 1) == {"remote": ALLOWED, "status": 200, "reason": "", "path": "/x/metrics"}
    assert exporter.request.header_names == ["host"]


@pytest.mark.parametrize("preface", PREFACES)
def test_the_proxy_protocol_is_not_believed(guarded: Guarded, preface: str) -> None:
    daemon, exporter = guarded
    exporter.play()
    for source, status, reason in ((DENIED, 403, "forbidden"), (ALLOWED, 400, "bad_request")):
        seen = len(daemon.output_lines)
        with daemon.connect(source=source) as wire:
            wire.exchange(PREFACES[preface] + request("/x/metrics")).expect_refusal(status, reason)
            assert wire.closes_within(3.0)
        assert logged(daemon, seen) == {"remote": source, "status": status, "reason": reason, "path": ""}
    assert exporter.requests == []


def test_who_sends_the_proxy_protocol_is_told_so(guarded: Guarded) -> None:
    """``send-proxy`` in HAProxy's configuration, as a rule."""
    daemon, _ = guarded
    seen = len(daemon.output_lines)
    assert b"PROXY protocol" in daemon.exchange(PREFACES["v1"] + request("/x/metrics")).body
    assert logged(daemon, seen)["reason"] == "bad_request"


# -- Connection names what belongs to this connection; it takes nothing away that is the daemon's

OWN = {"Authorization": "Bearer own", "X-Scope": "vm"}
SENT = (
    ("Accept", "text/plain"),
    ("Accept-Encoding", "gzip"),
    ("User-Agent", "u"),
    ("X-Passed", "p"),
    ("X-Prometheus-Scrape-Timeout-Seconds", "5"),
    ("Authorization", "Bearer theirs"),
)
NAMED = {
    "authorization": {"accept", "accept-encoding", "user-agent", "x-passed"},
    "host": {"accept", "accept-encoding", "user-agent", "x-passed"},
    "x-prometheus-scrape-timeout-seconds": {"accept", "accept-encoding", "user-agent", "x-passed"},
    "close, accept-encoding": {"accept", "user-agent", "x-passed"},
    "X-Scope, x-passed": {"accept", "accept-encoding", "user-agent"},
    "accept,accept-encoding,user-agent,x-passed,host": set(),
    "content-length, transfer-encoding, connection": {"accept", "accept-encoding", "user-agent", "x-passed"},
    "*": {"accept", "accept-encoding", "user-agent", "x-passed"},
    "accept\t,\t user-agent": {"accept-encoding", "x-passed"},
    "accept;q=1, acc ept": {"accept", "accept-encoding", "user-agent", "x-passed"},
}


@pytest.fixture(scope="module")
def scoped() -> Iterator[Guarded]:
    with proxied(route={"headers": OWN, "pass_headers": ["X-Passed"]}) as pair:
        yield pair


@pytest.mark.parametrize("named", NAMED)
def test_what_connection_names_stays_behind_and_nothing_else(scoped: Guarded, named: str) -> None:
    daemon, exporter = scoped
    exporter.play()
    daemon.exchange(request("/x/metrics", *SENT, ("Connection", named))).expect_ok(PAGE)
    received = dict(exporter.request.headers)
    assert len(received) == len(exporter.request.headers), "none is there twice"
    assert received.pop("host") == exporter.authority
    assert {name: received.pop(name.lower()) for name in OWN} == OWN
    assert float(received.pop("x-prometheus-scrape-timeout-seconds")) < 5.0
    assert set(received) == NAMED[named]


# -- logs

FORGED = 'ts=2026-01-01T00:00:00Z level=error msg="out of memory"'
HOSTILE = [
    b"GET /x/metrics\r\n" + FORGED.encode() + b"\r\n\r\n",
    b"GET /\x1b[2J\r\n\r\n",
    b"GET /%0d%0a" + FORGED.encode().replace(b" ", b"%20") + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\x1b]0;title\x07\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\n" + FORGED.encode() + b"\r\n\r\n",
    FORGED.encode() + b"\n\n",
    b"PROXY \n" + FORGED.encode() + b"\n\r\n",
    b"\x16\x03\x01" + FORGED.encode(),
    b"GET /x/metrics HTTP/1.1\r\nHost: a\r\nUser-Agent: \xff\x9b31m\xe2\x80\xa8"
    + FORGED.encode()
    + b"\r\n\r\n",
    b"GET /x/metrics?" + b"%0a" * 5_000 + b" HTTP/1.1\r\nHost: a\r\nUser-Agent: \t\\n\"'\r\n\r\n",
]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_nothing_that_a_client_sends_is_in_the_daemons_own_log(level: str) -> None:
    with (
        FakeExporter() as exporter,
        Daemon({"exporters": {"x": {"url": exporter.url()}}}, f"--log.level={level}") as daemon,
    ):
        for data in HOSTILE:
            daemon.exchange(data)
        daemon.stop()
        assert "out of memory" not in "\n".join(daemon.log_lines)
        assert all(line.startswith("ts=") and line.isprintable() for line in daemon.log_lines)
        assert [line for line in daemon.log_lines if "level=debug" not in line] == [
            line for line in daemon.log_lines if "msg=listening" in line or "msg=stop" in line
        ]
