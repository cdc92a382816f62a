"""Point 9: HTTP/1.0 clients get answers that HTTP/1.0 can read, whatever the exporter's framing."""

from __future__ import annotations

import os

import pytest

from tests.daemon import Daemon
from tests.fakes.exporter import (
    CHUNKED,
    FRAMINGS,
    PAGE,
    Action,
    FakeExporter,
    chunk,
    close,
    head,
    pause,
    reset,
    respond,
    send,
)
from tests.wire import Reply, request


def get_1_0(target: str, *headers: tuple[str, str], method: str = "GET") -> bytes:
    return request(target, *headers, method=method, version="1.0", host=None)


def expect_1_0_framing(reply: Reply) -> None:
    assert reply.get_all("transfer-encoding") == []
    assert reply.header("content-length") is not None or reply.header("connection") != "keep-alive"


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("body", [PAGE, b"", os.urandom(300_000)], ids=["page", "empty", "300kB"])
def test_point_09_http_1_0_body_without_chunks(
    daemon: Daemon, exporter: FakeExporter, framing: str, body: bytes
) -> None:
    exporter.play(respond(body=body, framing=framing))
    with daemon.connect() as wire:
        reply = wire.exchange(get_1_0("/x/metrics")).expect_ok(body)
        expect_1_0_framing(reply)
        assert wire.closes_within(3.0)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_point_09_http_1_0_keep_alive_only_where_the_length_is_known(
    daemon: Daemon, exporter: FakeExporter, framing: str
) -> None:
    exporter.play(respond(framing=framing))
    with daemon.connect() as wire:
        reply = wire.exchange(get_1_0("/x/metrics", ("Connection", "keep-alive"))).expect_ok(PAGE)
        expect_1_0_framing(reply)
        if reply.header("connection") == "keep-alive":
            wire.exchange(get_1_0("/x/metrics")).expect_ok(PAGE)
        assert wire.closes_within(3.0)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_point_09_http_1_0_head(daemon: Daemon, exporter: FakeExporter, framing: str) -> None:
    exporter.play(respond(framing=framing))
    with daemon.connect() as wire:
        reply = wire.exchange(get_1_0("/x/metrics", method="HEAD")).expect_ok(b"")
        expect_1_0_framing(reply)
        assert wire.closes_within(3.0)
    assert exporter.request.method == "HEAD"


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (get_1_0("/nobody"), 404, "not_found"),
        (get_1_0("/x/metrics", method="POST"), 405, "method"),
        (b"GET /x/metrics HTTP/1.0\r\nAccept : */*\r\n\r\n", 400, "bad_request"),
    ],
)
def test_point_09_http_1_0_refusals(daemon: Daemon, data: bytes, status: int, reason: str) -> None:
    with daemon.connect() as wire:
        expect_1_0_framing(wire.exchange(data).expect_refusal(status, reason))
        assert wire.closes_within(3.0)


def test_point_09_http_1_0_scraper_does_not_make_the_exporter_speak_1_0(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    daemon.exchange(get_1_0("/x/metrics?a=1", ("Accept", "*/*"))).expect_ok(PAGE)
    assert exporter.request.head.startswith(b"GET /metrics?a=1 HTTP/1.1\r\n")
    assert exporter.request.header("host") == exporter.authority


@pytest.mark.parametrize("end", [close(), reset()], ids=["closed", "reset"])
def test_point_09_http_1_0_truncated_body_never_looks_whole(
    daemon: Daemon, exporter: FakeExporter, end: Action
) -> None:
    """Without chunks and Content-Length only RST can tell an abort from the end."""
    chunked_head = head(200, [("Transfer-Encoding", CHUNKED)])
    exporter.play([send(chunked_head + chunk(PAGE)), pause(0.2), end])
    reply = daemon.exchange(get_1_0("/x/metrics"))
    if reply.status == 200:
        reply.expect_cut()
    else:
        reply.expect_refusal(502, "truncated", "x")
