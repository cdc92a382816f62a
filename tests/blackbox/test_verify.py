"""``verify: true`` and pages that are judged whole: good ones pass as they are, bad ones are a 502.

Pages that are longer than what is held back for that have their tests in test_verify_long.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.daemon import REPOSITORY, Daemon, parse_logfmt, proxied
from tests.fakes.exporter import (
    CHUNKED,
    CONTENT_LENGTH,
    EXPOSITION,
    FRAMINGS,
    PAGE,
    FakeExporter,
    chunk,
    close,
    head,
    respond,
    send,
    stall,
)
from tests.second_address import with_second_address
from tests.testdata.exposition.long_pages import LONG_OPENMETRICS, LONG_PROTOBUF, LONG_TEXT
from tests.testdata.exposition.pages import OPENMETRICS, PROTOBUF, TEXT, Page, bad, stored, zipped
from tests.testdata.exposition.protobuf import BAR, FOO, delimited
from tests.wire import request

ERRORS = "exporter_proxy_scrape_errors_total"

GOOD = {
    "text": Page(stored("jmx_exporter.txt"), TEXT),
    "text-long": Page(LONG_TEXT, TEXT),
    "text-empty": Page(b"", TEXT),
    "text-1.0.0": Page(stored("text_1.0.0.txt"), "text/plain; version=1.0.0; escaping=allow-utf-8"),
    "openmetrics": Page(stored("openmetrics.txt"), OPENMETRICS),
    "openmetrics-long": Page(LONG_OPENMETRICS, OPENMETRICS),
    "protobuf": Page(delimited(FOO, BAR), PROTOBUF),
    "protobuf-long": Page(LONG_PROTOBUF, PROTOBUF),
    "without-a-type": Page(PAGE, None),
}
BAD = {
    "text": bad(b'a 1\nb 2\nrequests{path="/} 5\nc 3\n', 3, "the body ends inside quotes"),
    "html": bad(b"<html>It works</html>\n", 1, "not HTML"),
    "json": bad(b'a 1\n{"status": "ok"}\n', 2, "expected ="),
    "openmetrics": bad(b"a 1\n\n# EOF\n", 2, "no blank line", OPENMETRICS),
    "openmetrics-cut": bad(b"a 1\nb 2\n", 2, "does not end with # EOF", OPENMETRICS),
    "protobuf": bad(delimited(FOO, BAR)[:-1], None, "the body ends inside MetricFamily 2", PROTOBUF),
    "gzip-inside": replace(bad(zipped(b"a 1\n<html>\n"), 2, "not HTML"), content_encoding="gzip"),
    "gzip-cut": replace(bad(zipped(PAGE)[:-3], None, "the gzip body is cut off"), content_encoding="gzip"),
    "gzip-none": replace(bad(PAGE, None, "not a gzip body"), content_encoding="gzip"),
    "deflated": replace(bad(b"\x78\x9c\x03\x00", 1, "does not decode"), content_encoding="deflate"),
}
NASTY = (
    b'a 1\nfoo{a="x\n\x1b[31mforged\x1b]0;title\x07 \x9b31m \x7f\xc2\x85\xe2\x80\xae'
    b'\xe2\x80\xa8\r"} oops " b="\\" msg=forged\n'
)
"""Terminal escapes, a bell, C1 controls, a direction mark, a line separator: none may reach a terminal."""
INVISIBLE = re.compile(r"[^\x20-\x7e\u00a1-\ud7ff]|[\u2000-\u206f]")


def sent_as(page: Page) -> list[tuple[str, str]]:
    headers = [] if page.content_type is None else [("Content-Type", page.content_type)]
    return headers + ([] if page.content_encoding is None else [("Content-Encoding", page.content_encoding)])


@pytest.fixture(scope="module")
def verifying() -> Iterator[tuple[Daemon, FakeExporter]]:
    """One exporter behind several paths, all but one of them verified."""
    with FakeExporter() as exporter:
        entries: dict[str, dict[str, Any]] = {
            "x": {},
            "as_text": {"content_type": TEXT},
            "as_openmetrics": {"content_type": OPENMETRICS},
            "hurried": {"timeout": "400ms"},
            "small": {"max_response_bytes": "64KiB"},
            "unverified": {"verify": False},
            "once": {},
        }
        entries = {name: {"url": exporter.url(), **entry} for name, entry in entries.items()}
        with Daemon({"defaults": {"verify": True}, "exporters": entries}) as daemon:
            yield daemon, exporter


@pytest.fixture
def exporter(verifying: tuple[Daemon, FakeExporter]) -> Iterator[FakeExporter]:
    verifying[1].play()
    yield verifying[1]
    verifying[1].drop_connections()


@pytest.fixture
def daemon(verifying: tuple[Daemon, FakeExporter], exporter: FakeExporter) -> Daemon:
    return verifying[0]


# -- What passes


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("encoding", ["plain", "gzip"])
@pytest.mark.parametrize("name", GOOD)
def test_a_good_page_passes_as_it_is(
    daemon: Daemon, exporter: FakeExporter, name: str, encoding: str, framing: str
) -> None:
    page = GOOD[name]
    if encoding == "gzip":
        page = replace(page, body=zipped(page.body, 1), content_encoding="gzip")
    exporter.play(respond(200, sent_as(page), page.body, framing))
    reply = daemon.get("/x/metrics").expect_ok(page.body)
    assert reply.header("content-type") == page.content_type
    assert reply.header("content-encoding") == page.content_encoding


@pytest.mark.parametrize(
    ("method", "status", "headers"),
    [
        ("HEAD", 200, [EXPOSITION]),
        ("HEAD", 200, [EXPOSITION, ("Content-Encoding", "gzip")]),
        ("GET", 404, [EXPOSITION]),
        ("GET", 500, [("Content-Type", OPENMETRICS)]),
        ("GET", 503, [("Content-Type", PROTOBUF), ("Content-Encoding", "gzip")]),
        ("GET", 200, [("Content-Type", "application/openmetrics-text; version=2.0.0")]),
    ],
)
def test_what_prometheus_does_not_parse_is_not_judged(
    daemon: Daemon, exporter: FakeExporter, method: str, status: int, headers: list[tuple[str, str]]
) -> None:
    page = b"<html>Sorry</html>\n"
    exporter.play(respond(status, headers, page))
    reply = daemon.get("/x/metrics", method=method)
    assert (reply.status, reply.ended, reply.error) == (
        status,
        "complete",
        None if status == 200 else "upstream_status",
    )
    assert reply.body == (b"" if method == "HEAD" else page)
    assert reply.header("content-length") == str(len(page))


def test_without_verify_nothing_is_judged(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play(respond(body=BAD["html"].body))
    daemon.get("/unverified/metrics").expect_ok(BAD["html"].body)


@pytest.mark.parametrize(
    ("path", "content_type", "body", "problem"),
    [
        ("as_text", OPENMETRICS, b"a 1\n\n", None),
        ("as_text", PROTOBUF, PAGE, None),
        ("as_text", OPENMETRICS, b"# EOF\n<html>\n", "line 2"),
        ("as_openmetrics", TEXT, b"a 1\n# EOF\n", None),
        ("as_openmetrics", "text/html", b"a 1\n# EOF\n", None),
        ("as_openmetrics", TEXT, b"a 1\n", "does not end with # EOF"),
    ],
)
def test_content_type_says_how_a_page_is_read(
    daemon: Daemon, exporter: FakeExporter, path: str, content_type: str, body: bytes, problem: str | None
) -> None:
    exporter.play(respond(200, [("Content-Type", content_type)], body))
    reply = daemon.get(f"/{path}/metrics")
    if problem is None:
        reply.expect_ok(body)
        assert reply.header("content-type") == {"as_text": TEXT, "as_openmetrics": OPENMETRICS}[path]
    else:
        assert problem in reply.expect_refusal(502, "malformed", path).body.decode()


# -- What is refused


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_page_is_a_502_that_says_where(
    daemon: Daemon, exporter: FakeExporter, name: str, framing: str
) -> None:
    page = BAD[name]
    exporter.play(respond(200, sent_as(page), page.body, framing), respond())
    said = daemon.get("/x/metrics").expect_refusal(502, "malformed", "x").body.decode()
    assert exporter.authority in said
    assert page.problem in said
    assert ("line" in said) == (page.line is not None)
    if page.line is not None:
        assert f" line {page.line}: " in said
    daemon.get("/x/metrics").expect_ok(PAGE)


def test_everyone_is_told_of_a_bad_page() -> None:
    page = b'a 1\nrequests{path="/"} many\nb 2\n'
    fields = ["status", "reason", "size", "exporter"]
    access_log = {"format": "json", "fields": fields}
    with proxied(respond(body=page), route={"verify": True}, access_log=access_log) as (daemon, _):
        reply = daemon.get("/x/metrics").expect_refusal(502, "malformed", "x")
        assert " line 2: " in reply.body.decode()
        assert reply.body.endswith(b': requests{path="/"} many\n')
        logged = parse_logfmt(daemon.wait_for_log('msg="exporter failing"'))
        assert (logged["exporter"], logged["reason"]) == ("x", "malformed")
        assert " line 2: " in logged["error"]
        assert logged["excerpt"] == 'requests{path="/"} many'
        line = json.loads(daemon.wait_for_output('"malformed"'))
        assert line == {"status": 502, "reason": "malformed", "size": len(reply.body), "exporter": "x"}
        daemon.wait_for_metric(1, ERRORS, exporter="x", reason="malformed")
        assert daemon.metric("exporter_proxy_scrapes_total", exporter="x", code="502") == 1
        assert daemon.metric("exporter_proxy_exporter_up", exporter="x") == 0
        (shown,) = json.loads(daemon.get("/-/exporters").expect_ok().body)["exporters"]
        assert shown["state"] == "down"
        for failure in (shown["recent"][0], shown["last_failures"]["malformed"]):
            assert (failure["status"], failure["reason"]) == (502, "malformed")
            assert " line 2: " in failure["message"]
            assert failure["excerpt"] == 'requests{path="/"} many'
        assert b"malformed: " in daemon.get("/").expect_ok().body


def test_the_bytes_of_a_bad_page_are_counted(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play(respond(body=BAD["html"].body))
    daemon.get("/once/metrics").expect_refusal(502, "malformed", "once")
    daemon.wait_for_metric(1, ERRORS, exporter="once", reason="malformed")
    counted = daemon.metric("exporter_proxy_scrape_response_bytes_total", exporter="once")
    assert counted == len(BAD["html"].body)


def test_an_excerpt_carries_no_control_characters(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play(respond(body=PAGE), respond(body=NASTY))
    daemon.get("/x/metrics").expect_ok(PAGE)
    said = daemon.get("/x/metrics").expect_refusal(502, "malformed", "x").body.decode()
    page = daemon.get("/-/exporters").expect_ok().body.decode()
    shown = {one["name"]: one for one in json.loads(page)["exporters"]}["x"]
    excerpt = shown["last_failures"]["malformed"]["excerpt"]
    logged = daemon.wait_for_log("forged")
    for text in (said.rstrip("\n"), excerpt, logged):
        assert not INVISIBLE.findall(text)
        assert "forged" in text
    assert len(excerpt) <= 120
    assert parse_logfmt(logged)["msg"] == "exporter failing"


@pytest.mark.parametrize("framing", [CONTENT_LENGTH, CHUNKED])
def test_a_page_that_breaks_off_is_truncated_not_malformed(
    daemon: Daemon, exporter: FakeExporter, framing: str
) -> None:
    """While all of it is held back the status can still say so."""
    length = ("Content-Length", "1000") if framing == CONTENT_LENGTH else ("Transfer-Encoding", "chunked")
    part = PAGE if framing == CONTENT_LENGTH else chunk(PAGE)
    exporter.play([send(head(headers=[EXPOSITION, length]) + part), close()])
    daemon.get("/x/metrics").expect_refusal(502, "truncated", "x")


def test_a_page_that_hangs_is_a_504_that_says_how_far_it_came(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play([send(head(headers=[EXPOSITION, ("Content-Length", "1000")]) + PAGE), stall()])
    reply = daemon.get("/hurried/metrics").expect_refusal(504, "timeout", "hurried")
    assert reply.took_seconds < 2.0
    assert f" {len(PAGE)} body bytes" in reply.body.decode()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_page_over_the_limit_is_too_large_not_malformed(
    daemon: Daemon, exporter: FakeExporter, framing: str
) -> None:
    exporter.play(respond(body=PAGE * 2000, framing=framing))
    assert "65536" in daemon.get("/small/metrics").expect_refusal(502, "too_large", "small").body.decode()


def test_the_limit_is_minded_while_a_page_is_held_back(daemon: Daemon, exporter: FakeExporter) -> None:
    """Not only once it is whole: what comes after the limit is not waited for."""
    chunked = head(headers=[EXPOSITION, ("Transfer-Encoding", "chunked")])
    exporter.play([send(chunked + chunk(PAGE * 2000)), stall()])
    reply = daemon.get("/small/metrics", ("X-Prometheus-Scrape-Timeout-Seconds", "3"))
    assert reply.expect_refusal(502, "too_large", "small").took_seconds < 2.0


@pytest.mark.parametrize("extra", [0, 1])
def test_a_bomb_is_too_large(daemon: Daemon, exporter: FakeExporter, extra: int) -> None:
    """The limit holds for what a body decodes to as well."""
    page = b"# " + b"x" * (64 * 1024 - 3 + extra) + b"\n"
    packed = zipped(page)
    assert len(packed) < 200
    exporter.play(respond(200, [EXPOSITION, ("Content-Encoding", "gzip")], packed))
    reply = daemon.get("/small/metrics")
    if extra:
        reply.expect_refusal(502, "too_large", "small")
        assert "decodes to more than 65536 bytes" in reply.body.decode()
    else:
        reply.expect_ok(packed)


# -- To whom


def test_an_excerpt_is_shown_to_loopback_clients_only() -> None:
    def test(address: str) -> None:
        listen = ["127.0.0.1:0", f"{address}:0"]
        with proxied(respond(body=b"secret many\n"), route={"verify": True}, listen=listen) as (daemon, _):
            daemon.get("/x/metrics").expect_refusal(502, "malformed", "x")
            shown = {}
            for at in daemon.addresses:
                with daemon.connect(at, source=at[0]) as wire:
                    body = wire.exchange(request("/-/exporters")).expect_ok().body
                    landing = wire.exchange(request("/")).expect_ok().body
                (one,) = json.loads(body)["exporters"]
                assert " line 1: " in one["last_failures"]["malformed"]["message"]
                shown[at[0]] = one["last_failures"]["malformed"]["excerpt"]
                assert (b"secret" in body + landing) == at[0].startswith("127.")
            assert shown == {"127.0.0.1": "secret many", address: ""}

    with_second_address(test)


# -- exporter_proxy scrape NAME


def scraped_once(daemon: Daemon) -> tuple[int, dict[str, str], str]:
    """``scrape x`` with the daemon's configuration: its status, its rows, and the line below them."""
    ran = subprocess.run(
        [sys.executable, "-m", "exporter_proxy", "scrape", "x"],
        cwd=daemon.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ran.stderr == ""
    assert not INVISIBLE.findall(ran.stdout.replace("\n", ""))
    *rows, last = ran.stdout.splitlines()
    pairs = (row.partition(":") for row in [*rows, last])
    return ran.returncode, {label: value.strip() for label, _, value in pairs}, last


def test_scrape_once_says_what_is_wrong(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play(respond(body=NASTY))
    status, rows, last = scraped_once(daemon)
    assert (status, rows["status"], rows["reason"]) == (1, "502", "malformed")
    assert last.startswith("x: ")
    assert " line 2: " in last
    assert "forged" in last
    assert "series" not in rows


def test_scrape_once_shows_what_the_exporter_sent(daemon: Daemon, exporter: FakeExporter) -> None:
    """Not what the refusal weighs."""
    exporter.play(respond(200, [("Content-Type", OPENMETRICS)], PAGE))
    _, rows, last = scraped_once(daemon)
    assert "does not end with # EOF" in last
    assert rows["bytes"].startswith(f"{len(PAGE)} on the wire")
    assert rows.get("content type", OPENMETRICS) == OPENMETRICS


@pytest.mark.parametrize(
    ("body", "shown", "expected"),
    [
        (zipped(b"a 1\n") + zipped(b"b 2\n"), "2 in 2 families", 0),
        (zipped(b"a 1\n" * 1_000_000), None, 0),
        (zipped(b"a 1\n") + b"\0\0", None, 1),
    ],
    ids=["members", "bomb", "padding"],
)
def test_scrape_once_counts_what_prometheus_would_decode(
    body: bytes, shown: str | None, expected: int
) -> None:
    """All members of a gzip body, and nothing of one that grows over max_response_bytes."""
    script = respond(200, [("Content-Type", TEXT), ("Content-Encoding", "gzip")], body)
    with proxied(script, route={"max_response_bytes": "1MB"}) as (daemon, _):
        status, rows, _ = scraped_once(daemon)
    assert (status, rows["status"]) == (expected, "200")
    assert rows.get("series") == shown
    assert ("decoded" in rows["bytes"]) == (shown is not None)
