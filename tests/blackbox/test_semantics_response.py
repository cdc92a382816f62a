"""Points 10 to 16 and 18: what the scraper gets to see of an exporter's answer."""

from __future__ import annotations

import gzip
import os

import pytest

from tests.daemon import Daemon, proxied
from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    CONTENT_LENGTH,
    EXPOSITION,
    FRAMINGS,
    PAGE,
    Action,
    FakeExporter,
    chunk,
    close,
    head,
    reset,
    respond,
    send,
    stall,
)
from tests.stalls import is_set_within
from tests.wire import request

PROTOBUF = ("Content-Type", "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily")
BODIES = {
    "page": ([EXPOSITION], PAGE),
    "empty": ([EXPOSITION], b""),
    "gzip": ([EXPOSITION, ("Content-Encoding", "gzip")], gzip.compress(PAGE * 5000)),
    "protobuf": ([PROTOBUF], bytes(range(256)) * 400),
    "2MB": ([EXPOSITION], os.urandom(2_000_000)),
    "looks-like-framing": ([EXPOSITION], b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n5\r\n"),
}


# -- 10: what passes


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("name", BODIES)
def test_point_10_body_and_its_headers_pass_unchanged(
    daemon: Daemon, exporter: FakeExporter, name: str, framing: str
) -> None:
    headers, body = BODIES[name]
    exporter.play(respond(headers=headers, body=body, framing=framing))
    reply = daemon.get("/x/metrics").expect_ok(body)
    for header, value in headers:
        assert reply.header(header) == value
    if framing == CONTENT_LENGTH:
        assert reply.header("content-length") == str(len(body))


def test_point_10_repeated_headers_stay_separate(daemon: Daemon, exporter: FakeExporter) -> None:
    repeated = [("X-A", "1"), ("X-B", "b, c"), ("x-a", "2"), ("X-A", "1")]
    exporter.play(respond(headers=[EXPOSITION, *repeated]))
    reply = daemon.get("/x/metrics").expect_ok(PAGE)
    assert reply.get_all("x-a") == ["1", "2", "1"]
    assert reply.get_all("x-b") == ["b, c"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ETag", '"abc"'),
        ("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT"),
        ("Date", "Sat, 21 Nov 2020 00:00:00 GMT"),
        ("Server", "node_exporter"),
        ("Vary", "Accept-Encoding"),
        ("Content-Type", "text/plain"),
        ("X-Latin", "caf\xe9"),
        ("X-Empty", ""),
    ],
)
def test_point_10_headers_pass_once_and_unchanged(
    daemon: Daemon, exporter: FakeExporter, name: str, value: str
) -> None:
    exporter.play(respond(headers=[(name, value)]))
    assert daemon.get("/x/metrics").expect_ok(PAGE).get_all(name) == [value]


@pytest.mark.parametrize("status", [200, 203, 206, 299])
def test_point_10_status_passes(daemon: Daemon, exporter: FakeExporter, status: int) -> None:
    exporter.play(respond(status))
    reply = daemon.get("/x/metrics")
    assert (reply.status, reply.body, reply.complete) == (status, PAGE, True)
    assert reply.error == (None if status == 200 else "upstream_status")


@pytest.mark.parametrize(
    "headers", [[], [("Content-Type", "application/octet-stream")], [("Content-Type", "")]]
)
def test_point_10_content_type_is_repaired_where_configured(headers: list[tuple[str, str]]) -> None:
    with proxied(respond(headers=headers), route={"content_type": "text/plain; version=0.0.4"}) as (
        daemon,
        _,
    ):
        reply = daemon.get("/x/metrics").expect_ok(PAGE)
        assert reply.get_all("content-type") == ["text/plain; version=0.0.4"]


def test_point_10_a_missing_content_type_is_not_invented(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play(respond(headers=[]))
    assert daemon.get("/x/metrics").expect_ok(PAGE).get_all("content-type") == []


# -- 11: what does not pass


@pytest.mark.parametrize("framing", FRAMINGS)
def test_point_11_hop_by_hop_and_private_headers_are_dropped(
    daemon: Daemon, exporter: FakeExporter, framing: str
) -> None:
    dropped = [
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Authorization", "Basic dTpw"),
        ("TE", "trailers"),
        ("Trailer", "X-Sum"),
        ("Upgrade", "h2c"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2; HttpOnly"),
        ("X-Exporter-Proxy-Error", "timeout"),
    ]
    exporter.play(respond(headers=[EXPOSITION, *dropped, ("X-Kept", "1")], framing=framing))
    reply = daemon.exchange(request("/x/metrics")).expect_ok(PAGE)
    present = {name for name, _ in reply.headers}
    assert not present & {name.lower() for name, _ in dropped}
    assert reply.header("x-kept") == "1"


@pytest.mark.parametrize(
    "connection_lines",
    [["X-Internal"], ["keep-alive, x-internal"], ["", "X-Internal"], ["close", " ,X-INTERNAL ,"]],
)
def test_point_11_headers_named_by_the_exporters_connection_are_dropped(
    daemon: Daemon, exporter: FakeExporter, connection_lines: list[str]
) -> None:
    named = [("X-Internal", "1"), *(("Connection", line) for line in connection_lines), ("x-internal", "2")]
    exporter.play(respond(headers=[EXPOSITION, *named]))
    with daemon.connect() as wire:
        for _ in range(2):  # the exporter's Connection: close is no reason to close the scraper's
            reply = wire.exchange(request("/x/metrics")).expect_ok(PAGE)
            assert reply.get_all("x-internal") == []
            assert reply.get_all("connection") in ([], ["keep-alive"])


def test_point_11_trailers_are_not_passed(daemon: Daemon, exporter: FakeExporter) -> None:
    trailers = b"0\r\nX-Sum: 1\r\nSet-Cookie: a=1\r\n\r\n"
    exporter.play([send(head(200, [EXPOSITION, ("Transfer-Encoding", CHUNKED)]) + chunk(PAGE) + trailers)])
    reply = daemon.get("/x/metrics").expect_ok(PAGE)
    assert b"X-Sum" not in reply.raw


# -- 12: redirects


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308, 399])
@pytest.mark.parametrize("location", ["http://127.0.0.1:9100/", "/login", None])
def test_point_12_redirect_is_a_failure_and_its_location_is_not_passed(
    daemon: Daemon, exporter: FakeExporter, status: int, location: str | None
) -> None:
    headers = [EXPOSITION, ("X-Kept", "1")] + ([("Location", location)] if location else [])
    exporter.play(respond(status, headers))
    reply = daemon.get("/x/metrics").expect_refusal(502, "redirect", "x")
    assert reply.get_all("location") == []
    assert str(status) in reply.body.decode()
    assert len(exporter.requests) == 1


# -- 13: the exporter's own errors


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 499, 500, 502, 503, 504, 599])
def test_point_13_an_exporters_error_passes_marked_as_its_own(
    daemon: Daemon, exporter: FakeExporter, status: int, framing: str
) -> None:
    headers = [("Content-Type", "text/html"), ("Retry-After", "7"), ("WWW-Authenticate", "Basic")]
    exporter.play(respond(status, headers, b"<h1>no</h1>", framing))
    reply = daemon.get("/x/metrics")
    assert (reply.status, reply.body, reply.complete) == (status, b"<h1>no</h1>", True)
    assert reply.error == "upstream_status"
    for name, value in headers:
        assert reply.header(name) == value


# -- 14: 1xx


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("statuses", [[100], [102], [103], [100, 102, 103, 103], [199]])
def test_point_14_informational_responses_are_swallowed(
    daemon: Daemon, exporter: FakeExporter, statuses: list[int], framing: str
) -> None:
    informational = [send(head(status, [("X-Early", "1"), ("Link", "</>")])) for status in statuses]
    exporter.play([*informational, *respond(framing=framing)])
    reply = daemon.get("/x/metrics").expect_ok(PAGE)
    assert reply.informational == ()
    assert reply.get_all("x-early") == []


def test_point_14_informational_response_does_not_end_a_head(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play([send(head(103, [])), *respond()])
    daemon.get("/x/metrics", method="HEAD").expect_ok(b"")
    exporter.play()
    daemon.get("/x/metrics").expect_ok(PAGE)


@pytest.mark.parametrize("asked", [(), (("Connection", "Upgrade"), ("Upgrade", "websocket"))])
def test_point_14_unsolicited_switch_of_protocols_is_a_failure(
    daemon: Daemon, exporter: FakeExporter, asked: tuple[tuple[str, str], ...]
) -> None:
    switch = head(101, [("Upgrade", "websocket"), ("Connection", "Upgrade")])
    exporter.play([send(switch + b"\x81\x05hello"), stall()])
    daemon.exchange(request("/x/metrics", *asked)).expect_refusal(502, "protocol", "x")
    assert is_set_within(exporter.connections[0].closed_by_peer, 5.0), (
        "nothing else can be said on that connection"
    )


# -- 15: not HTTP

OK = b"HTTP/1.1 200 OK\r\n"
NOT_HTTP = {
    "banner": b"SSH-2.0-OpenSSH_9.2\r\n",
    "page-without-head": PAGE,
    "binary": bytes(range(256)),
    "http-2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
    "tls-alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "icy": b"ICY 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "status-word": b"HTTP/1.1 fine OK\r\nContent-Length: 2\r\n\r\nok",
    "status-short": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "status-long": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
    "version": b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "lengths-differ": OK + b"Content-Length: 2\r\nContent-Length: 4\r\n\r\nok",
    "length-list": OK + b"Content-Length: 10, 12\r\n\r\n0123456789ab",
    "length-negative": OK + b"Content-Length: -2\r\n\r\nok",
    "length-signed": OK + b"Content-Length: +2\r\n\r\nok",
    "length-word": OK + b"Content-Length: two\r\n\r\nok",
    "length-too-long": OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nok",
    "space-before-colon": OK + b"Content-Length : 2\r\n\r\nok",
    "no-colon": OK + b"Content-Length\r\n\r\nok",
    "obs-fold": OK + b"X-A: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "name-with-blank": OK + b"Content Length: 2\r\n\r\nok",
    "nul-in-value": OK + b"X-A: a\x00b\r\nContent-Length: 2\r\n\r\nok",
    "bare-cr": OK + b"X-A: a\rX-B: b\r\nContent-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("ending", [stall(), close()], ids=["then-stalls", "then-closes"])
@pytest.mark.parametrize("name", NOT_HTTP)
def test_point_15_what_is_not_http_is_a_failure(
    daemon: Daemon, exporter: FakeExporter, name: str, ending: Action
) -> None:
    exporter.play([send(NOT_HTTP[name]), ending])
    daemon.get("/x/metrics").expect_refusal(502, "protocol", "x")
    assert len(exporter.requests) == 1


def test_point_15_a_server_that_speaks_first_is_not_http() -> None:
    with (
        FakeExporter([stall()], greeting=[send(b"220 mail.test ESMTP\r\n")]) as exporter,
        Daemon({"exporters": {"x": {"url": exporter.url()}}}) as daemon,
    ):
        daemon.get("/x/metrics").expect_refusal(502, "protocol", "x")


@pytest.mark.parametrize(
    "block",
    [b"X-Long: " + b"v" * 1_000_000 + b"\r\n", b"X-Many: v\r\n" * 100_000, b"X-Long: " + b"v" * 1_000_000],
    ids=["one-long", "many", "endless"],
)
def test_point_15_header_block_over_the_limit_is_a_failure(
    daemon: Daemon, exporter: FakeExporter, block: bytes
) -> None:
    exporter.play([send(OK + block), send(b"Content-Length: 2\r\n\r\nok"), stall()])
    daemon.get("/x/metrics").expect_refusal(502, "too_large", "x")
    assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)


@pytest.mark.parametrize("end", [close(), reset()], ids=["closed", "reset"])
def test_point_15_a_head_that_breaks_off_is_a_failure(
    daemon: Daemon, exporter: FakeExporter, end: Action
) -> None:
    exporter.play([send(OK + b"Content-Le"), end])
    reply = daemon.get("/x/metrics")
    assert reply.error in ("protocol", "connect"), "the table can be read either way"
    reply.expect_refusal(502, reply.error or "", "x")
    assert len(exporter.requests) == 1


def test_point_15_equal_lengths_are_not_passed_on_twice(daemon: Daemon, exporter: FakeExporter) -> None:
    exporter.play([send(OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok")])
    reply = daemon.get("/x/metrics")
    if reply.status == 200:
        assert reply.expect_ok(b"ok").get_all("content-length") in (["2"], [])
    else:
        reply.expect_refusal(502, "protocol", "x")


# -- 16: Content-Length together with chunked


@pytest.mark.parametrize("length", [5, 2, 500])
@pytest.mark.parametrize("order", [1, -1])
def test_point_16_length_together_with_chunked_is_never_passed_on(
    daemon: Daemon, exporter: FakeExporter, length: int, order: int
) -> None:
    framing = [("Content-Length", str(length)), ("Transfer-Encoding", CHUNKED)][::order]
    exporter.play([send(head(200, framing) + chunk(PAGE) + b"0\r\n\r\n")])
    reply = daemon.get("/x/metrics")
    if reply.status == 200:
        assert reply.expect_ok(PAGE).header("content-length") in (None, str(len(PAGE)))
        assert len(reply.get_all("content-length") + reply.get_all("transfer-encoding")) <= 1
    else:
        reply.expect_refusal(502, "protocol", "x")


# -- 18: bodies that end with the connection


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("connection", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
@pytest.mark.parametrize("body", [PAGE, b"", os.urandom(300_000)], ids=["page", "empty", "300kB"])
def test_point_18_a_body_may_end_with_the_connection(
    daemon: Daemon, exporter: FakeExporter, version: bytes, connection: bytes, body: bytes
) -> None:
    exporter.play([send(b"HTTP/%b 200 OK\r\n%b\r\n" % (version, connection) + body), close()])
    with daemon.connect() as wire:
        for _ in range(2):
            wire.exchange(request("/x/metrics")).expect_ok(body)
    assert len(exporter.connections) == 2


@pytest.mark.parametrize("framing", [CLOSE, CHUNKED])
def test_point_18_unknown_length_becomes_a_frame_that_has_an_end(
    daemon: Daemon, exporter: FakeExporter, framing: str
) -> None:
    exporter.play(respond(framing=framing))
    reply = daemon.exchange(request("/x/metrics")).expect_ok(PAGE)
    assert (reply.header("transfer-encoding"), reply.header("content-length")) in (
        ("chunked", None),
        (None, str(len(PAGE))),
    )
