"""``share_for`` from outside: which scrapes share one answer of the exporter, and what each of them gets.

How long they wait, what an answer may weigh and how long it is kept is tested in test_share_limits.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import count
from threading import Event
from typing import Any

import pytest

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    EXPOSITION,
    FRAMINGS,
    PAGE,
    FakeExporter,
    Script,
    close,
    head,
    reset,
    respond,
    send,
    stall,
    wait_for,
)
from tests.fakes.ports import refusing_port
from tests.stalls import stalled_since
from tests.testdata.exposition.long_pages import LONG_TEXT
from tests.testdata.exposition.pages import OPENMETRICS, zipped
from tests.wire import CONNECTION_CLOSE, Reply, Wire, request

SHARED = "exporter_proxy_shared_scrapes_total"
BYTES = "exporter_proxy_scrape_response_bytes_total"
ERRORS = "exporter_proxy_scrape_errors_total"
IN_FLIGHT = "exporter_proxy_scrapes_in_flight"
OTHER_PAGE = b"other_page 1\n"
GZIP = ("Accept-Encoding", "gzip")
ACCEPT = ("Accept", "text/plain;version=0.0.4")
PASSED = ("X-Scope", "vm")
QUERIES = count()


@pytest.fixture(scope="module")
def sharing() -> Iterator[tuple[Daemon, FakeExporter]]:
    """One exporter behind paths that share for a long and for a short time, verified or not."""
    with FakeExporter() as exporter:
        entries: dict[str, dict[str, Any]] = {
            "x": {"share_for": "60s", "pass_headers": ["X-Scope"]},
            "short": {"share_for": "600ms"},
            "off": {},
            "verified": {"share_for": "60s", "verify": True},
            "hurried": {"share_for": "60s", "timeout": "3s"},
            "small": {"share_for": "60s", "max_response_bytes": "1KiB"},
        }
        entries = {name: {"url": exporter.url(), **entry} for name, entry in entries.items()}
        with Daemon({"exporters": entries}) as daemon:
            yield daemon, exporter


@pytest.fixture
def exporter(sharing: tuple[Daemon, FakeExporter]) -> Iterator[FakeExporter]:
    sharing[1].play()
    yield sharing[1]
    sharing[1].drop_connections()


@pytest.fixture
def daemon(sharing: tuple[Daemon, FakeExporter], exporter: FakeExporter) -> Daemon:
    return sharing[0]


@pytest.fixture
def query() -> str:
    """A query that no other test has asked with, so that nothing is kept for it."""
    return f"?test={next(QUERIES)}"


def in_flight(
    daemon: Daemon, exporter: FakeExporter, scrapes: list[bytes], go_on: Event, path: str = "x"
) -> list[Reply]:
    """The answers to these scrapes, all of which are under way before the exporter answers."""
    wires: list[Wire] = []
    before = daemon.metric(IN_FLIGHT, exporter=path)
    try:
        for number, scrape in enumerate(scrapes, 1):
            wires.append(daemon.connect().send(scrape))
            daemon.wait_for_metric(before + number, IN_FLIGHT, exporter=path)
        exporter.wait_for_requests()
        go_on.set()
        return [
            wire.read_reply(scrape.split()[0].decode()) for wire, scrape in zip(wires, scrapes, strict=True)
        ]
    finally:
        for wire in wires:
            wire.close()


def ages(replies: list[Reply]) -> list[str | None]:
    return [reply.header("age") for reply in replies]


# -- Who shares


@pytest.mark.parametrize("framing", FRAMINGS)
def test_scrapes_at_once_ask_the_exporter_once(
    daemon: Daemon, exporter: FakeExporter, query: str, framing: str
) -> None:
    shared = daemon.metric(SHARED, exporter="x")
    go_on = Event()
    exporter.play([wait_for(go_on), *respond(framing=framing)])
    scrapes = [request(f"/x/metrics{query}")] * 5
    replies = in_flight(daemon, exporter, scrapes, go_on)
    for reply in replies:
        reply.expect_ok(PAGE)
    assert ages(replies) == [None, "0", "0", "0", "0"]
    assert len(exporter.requests) == 1
    daemon.wait_for_metric(shared + 4, SHARED, exporter="x")


def test_a_kept_answer_has_an_age_that_grows(daemon: Daemon, exporter: FakeExporter, query: str) -> None:
    exporter.play(respond(), respond(body=OTHER_PAGE))
    asked = time.monotonic()
    assert daemon.get(f"/x/metrics{query}").expect_ok(PAGE).header("age") is None
    seen: list[int] = []

    def is_one_second_old() -> bool:
        reply = daemon.get(f"/x/metrics{query}").expect_ok(PAGE)
        seen.append(int(reply.header("age") or -1))
        assert seen[-1] <= time.monotonic() - asked
        return seen[-1] >= 1

    wait_until(is_one_second_old, "the age became a second", 3.0)
    assert time.monotonic() - asked >= 1.0
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert len(exporter.requests) == 1


def test_after_share_for_the_exporter_is_asked_again(
    daemon: Daemon, exporter: FakeExporter, query: str
) -> None:
    exporter.play(respond(), respond(body=OTHER_PAGE))
    started = time.monotonic()
    daemon.get(f"/short/metrics{query}").expect_ok(PAGE)
    replies: list[Reply] = []

    def is_asked_again() -> bool:
        replies.append(daemon.get(f"/short/metrics{query}").expect_ok())
        return replies[-1].body == OTHER_PAGE

    wait_until(is_asked_again, "the exporter was asked again", 2.0)
    assert 0.59 <= time.monotonic() - started < 1.8 + stalled_since(started)
    assert replies[-1].header("age") is None
    assert len(exporter.requests) == 2


def test_share_for_counts_from_the_end_of_the_answer(
    daemon: Daemon, exporter: FakeExporter, query: str
) -> None:
    """An answer that took longer than share_for is shared all the same."""
    go_on = Event()
    exporter.play([wait_for(go_on), *respond()], respond(body=OTHER_PAGE))
    with daemon.connect() as wire:
        wire.send(request(f"/short/metrics{query}"))
        assert not wire.readable_within(0.8)
        go_on.set()
        wire.read_reply().expect_ok(PAGE)
    assert daemon.get(f"/short/metrics{query}").expect_ok(PAGE).header("age") == "0"


def test_without_share_for_nothing_is_shared(daemon: Daemon, exporter: FakeExporter, query: str) -> None:
    go_on = Event()
    exporter.play([wait_for(go_on), *respond()])
    replies = in_flight(daemon, exporter, [request(f"/off/metrics{query}")] * 2, go_on, path="off")
    assert ages([reply.expect_ok(PAGE) for reply in replies]) == [None, None]
    assert len(exporter.requests) == 2
    assert daemon.metric(SHARED, exporter="off") == 0


@pytest.mark.parametrize(
    "headers",
    [
        [("User-Agent", "Prometheus/3.1.0")],
        [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")],
        [("tracestate", "vendor=1")],
        [("X-Prometheus-Scrape-Timeout-Seconds", "30")],
        [("Authorization", "Bearer t"), ("Cookie", "a=b"), ("If-None-Match", '"1"'), ("Range", "bytes=0-1")],
        [("Connection", "X-Scope"), ("X-Scope", "vm")],
    ],
    ids=["user-agent", "traceparent", "tracestate", "timeout", "not-forwarded", "hop-by-hop"],
)
def test_what_cannot_change_the_answer_does_not_keep_from_sharing(
    daemon: Daemon, exporter: FakeExporter, query: str, headers: list[tuple[str, str]]
) -> None:
    exporter.play(respond(), respond(body=OTHER_PAGE))
    daemon.get(f"/x/metrics{query}", ("User-Agent", "Prometheus/2.42.0")).expect_ok(PAGE)
    with daemon.connect(source="127.0.0.2") as wire:
        reply = wire.exchange(request(f"/x/metrics{query}", *headers, host="another.test"))
    assert reply.expect_ok(PAGE).header("age") == "0"
    assert len(exporter.requests) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("&a=1",), ("&a=2",)),
        (("&a=1&b=2",), ("&b=2&a=1",)),
        (("&a=%41",), ("&a=A",)),
        (("",), ("", ACCEPT)),
        (("", ("Accept", OPENMETRICS)), ("", ACCEPT)),
        (("",), ("", GZIP)),
        (("", GZIP), ("", ("Accept-Encoding", "identity"))),
        (("", PASSED), ("", ("X-Scope", "db"))),
        (("", PASSED), ("",)),
    ],
)
def test_what_could_change_the_answer_is_a_question_of_its_own(
    daemon: Daemon, exporter: FakeExporter, query: str, first: tuple[Any, ...], second: tuple[Any, ...]
) -> None:
    exporter.play(respond(), respond(body=OTHER_PAGE))
    for _ in range(2):
        for (further, *headers), body in ((first, PAGE), (second, OTHER_PAGE)):
            daemon.get(f"/x/metrics{query}{further}", *headers).expect_ok(body)
    assert len(exporter.requests) == 2, "each of them was asked once, and then kept"


def test_head_and_get_do_not_share(daemon: Daemon, exporter: FakeExporter, query: str) -> None:
    for _ in range(2):
        reply = daemon.get(f"/x/metrics{query}", method="HEAD")
        assert (reply.status, reply.body, reply.header("content-length")) == (200, b"", str(len(PAGE)))
        daemon.get(f"/x/metrics{query}").expect_ok(PAGE)
    assert [asked.method for asked in exporter.requests] == ["HEAD", "GET"]


def test_exporters_do_not_share_with_each_other(daemon: Daemon, exporter: FakeExporter, query: str) -> None:
    exporter.play(respond(), respond(body=OTHER_PAGE))
    daemon.get(f"/x/metrics{query}").expect_ok(PAGE)
    assert daemon.get(f"/verified/metrics{query}").expect_ok(OTHER_PAGE).header("age") is None


# -- What they get


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_sharer_gets_the_same_bytes_and_headers(
    daemon: Daemon, exporter: FakeExporter, query: str, framing: str
) -> None:
    packed = zipped(LONG_TEXT)
    sent = [EXPOSITION, ("Content-Encoding", "gzip"), ("ETag", '"1"'), ("X-Twice", "1"), ("X-Twice", "2")]
    exporter.play(respond(200, sent, packed, framing))
    first = daemon.get(f"/x/metrics{query}", GZIP).expect_ok(packed)
    second = daemon.get(f"/x/metrics{query}", GZIP).expect_ok(packed)
    assert [pair for pair in second.headers if pair[0] != "age"] == list(first.headers)
    assert second.get_all("x-twice") == ["1", "2"]
    assert len(exporter.requests) == 1


def test_an_exporters_own_age_is_not_doubled(daemon: Daemon, exporter: FakeExporter, query: str) -> None:
    """RFC 9111 section 5.1: one line, and the time that the answer was kept here comes on top."""
    exporter.play(respond(200, [EXPOSITION, ("Age", "30")]))
    assert daemon.get(f"/x/metrics{query}").expect_ok(PAGE).get_all("age") == ["30"]
    (age,) = daemon.get(f"/x/metrics{query}").expect_ok(PAGE).get_all("age")
    assert int(age) >= 30


@pytest.mark.parametrize("own", ["9" * 5000, str(2**63), "99999999999"])
def test_an_age_beyond_all_bounds_is_the_greatest_that_can_be_told(
    daemon: Daemon, exporter: FakeExporter, query: str, own: str
) -> None:
    """RFC 9111 section 1.2.2. Python refuses to read a number of that many digits."""
    exporter.play(respond(200, [EXPOSITION, ("Age", own)]))
    daemon.get(f"/x/metrics{query}").expect_ok(PAGE)
    assert daemon.get(f"/x/metrics{query}").expect_ok(PAGE).get_all("age") == [str(2**31)]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "sharer"])
def test_an_http_1_0_scraper_shares_too(
    daemon: Daemon, exporter: FakeExporter, query: str, framing: str, is_first: bool
) -> None:
    go_on = Event()
    exporter.play([wait_for(go_on), *respond(framing=framing)])
    old = request(f"/x/metrics{query}", version="1.0", host=None)
    new = request(f"/x/metrics{query}")
    replies = in_flight(daemon, exporter, [old, new] if is_first else [new, old], go_on)
    for reply in replies:
        reply.expect_ok(PAGE)
    assert replies[0 if is_first else 1].get_all("transfer-encoding") == []
    assert len(exporter.requests) == 1


def test_all_that_share_are_in_log_and_metrics_and_the_bytes_once() -> None:
    go_on = Event()
    log = {"format": "json", "fields": ["status", "size", "reason", "exporter", "backend", "query"]}
    route = {"share_for": "60s"}
    with proxied([wait_for(go_on), *respond()], route=route, access_log=log) as (daemon, exporter):
        in_flight(daemon, exporter, [request("/x/metrics?a=1")] * 3, go_on)
        daemon.get("/x/metrics?a=1").expect_ok(PAGE)
        daemon.wait_for_metric(4, "exporter_proxy_scrapes_total", exporter="x", code="200")
        assert daemon.metric(SHARED, exporter="x") == 3
        assert daemon.metric(BYTES, exporter="x") == len(PAGE)
        assert daemon.metric(IN_FLIGHT, exporter="x") == 0
        wait_until(
            lambda: sum("?" not in line and "a=1" in line for line in daemon.output_lines) == 4, "logged"
        )
        expected = {
            "status": 200,
            "size": len(PAGE),
            "reason": "",
            "exporter": "x",
            "backend": exporter.authority,
            "query": "a=1",
        }
        assert [json.loads(line) for line in daemon.output_lines if "a=1" in line] == [expected] * 4


# -- Errors

BAD_PAGE = b"a 1\n<html>\n"
FAILURES: dict[str, tuple[str, Script, int, str]] = {
    "closed": ("x", [close()], 502, "connect"),
    "reset": ("x", [reset()], 502, "connect"),
    "not-http": ("x", [send(b"nonsense\r\n\r\n"), close()], 502, "protocol"),
    "redirect": ("x", respond(302), 502, "redirect"),
    "truncated": ("x", [send(head(headers=[("Content-Length", "9")]) + b"a 1\n"), close()], 502, "truncated"),
    "timeout": ("hurried", [stall()], 504, "timeout"),
    "timeout-in-body": ("hurried", [send(head() + b"a 1\n"), stall()], 504, "timeout"),
    "malformed": ("verified", respond(body=BAD_PAGE), 502, "malformed"),
    "too-large": ("small", respond(body=PAGE * 20), 502, "too_large"),
    "too-large-in-body": ("small", respond(body=PAGE * 20, framing=CHUNKED), 502, "too_large"),
    "error": ("x", respond(500), 500, "upstream_status"),
    "not-found": ("x", respond(404), 404, "upstream_status"),
}


def expect_failure(reply: Reply, name: str) -> None:
    path, _, status, reason = FAILURES[name]
    if reason == "upstream_status":
        assert (reply.status, reply.error, reply.body) == (status, reason, PAGE)
    else:
        reply.expect_refusal(status, reason, path)


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_never_kept(daemon: Daemon, exporter: FakeExporter, query: str, name: str) -> None:
    path, script, *_ = FAILURES[name]
    exporter.play(script, respond())
    expect_failure(daemon.get(f"/{path}/metrics{query}"), name)
    assert daemon.get(f"/{path}/metrics{query}").expect_ok(PAGE).header("age") is None


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_shared_while_it_is_in_flight(
    daemon: Daemon, exporter: FakeExporter, query: str, name: str
) -> None:
    path, script, _, reason = FAILURES[name]
    errors = daemon.metric(ERRORS, exporter=path, reason=reason)
    go_on = Event()
    exporter.play([wait_for(go_on), *script], respond())
    asked = request(f"/{path}/metrics{query}", CONNECTION_CLOSE)
    for reply in in_flight(daemon, exporter, [asked] * 3, go_on, path):
        expect_failure(reply, name)
    assert len(exporter.requests) == 1
    daemon.wait_for_metric(errors + 3, ERRORS, exporter=path, reason=reason)
    daemon.get(f"/{path}/metrics{query}").expect_ok(PAGE)


def test_nobody_there_is_found_out_anew_each_time() -> None:
    with refusing_port() as port:
        entry = {"url": f"http://127.0.0.1:{port}/metrics", "share_for": "60s"}
        with Daemon({"exporters": {"x": entry}}) as daemon:
            for number in range(1, 4):
                daemon.get("/x/metrics").expect_refusal(502, "connect", "x")
                daemon.wait_for_metric(number, ERRORS, exporter="x", reason="connect")
            assert daemon.metric(SHARED, exporter="x") == 0


# -- With verify


def test_a_verified_answer_is_judged_and_shared(daemon: Daemon, exporter: FakeExporter, query: str) -> None:
    exporter.play(respond(body=LONG_TEXT, framing=CLOSE))
    for age in (None, "0"):
        assert daemon.get(f"/verified/metrics{query}").expect_ok(LONG_TEXT).header("age") == age
    assert len(exporter.requests) == 1


def test_a_shared_page_that_is_bad_far_into_it_is_a_502(
    daemon: Daemon, exporter: FakeExporter, query: str
) -> None:
    """All of it is there before anything goes out, so it need not be cut."""
    go_on = Event()
    exporter.play([wait_for(go_on), *respond(body=LONG_TEXT + BAD_PAGE)])
    for reply in in_flight(daemon, exporter, [request(f"/verified/metrics{query}")] * 2, go_on, "verified"):
        said = reply.expect_refusal(502, "malformed", "verified").body.decode()
        line_number = LONG_TEXT.count(b"\n") + 2
        assert f" line {line_number}: " in said
        assert said.endswith(": <html>\n")
