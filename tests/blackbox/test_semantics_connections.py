"""Points 19 to 21: answers without a body, scrapers that leave, and connections that are used again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import (
    CHUNKED,
    EXPOSITION,
    FRAMINGS,
    PAGE,
    Action,
    FakeExporter,
    Script,
    chunk,
    close,
    head,
    pause,
    reset,
    respond,
    send,
    send_repeatedly,
    stall,
    wait_for,
)
from tests.fakes.ports import unanswering_port
from tests.stalls import is_set_within
from tests.wire import Wire, request

OTHER = b"other_page 1\n"
LENGTH = ("Content-Length", str(len(PAGE)))


# -- 19: HEAD, 204, 304


@pytest.mark.parametrize("framing", FRAMINGS)
def test_point_19_head_has_the_headers_of_get_and_no_body(
    daemon: Daemon, exporter: FakeExporter, framing: str
) -> None:
    exporter.play(respond(headers=[EXPOSITION, ("ETag", '"e"')], framing=framing))
    with daemon.connect() as wire:
        reply = wire.exchange(request("/x/metrics", method="HEAD")).expect_ok(b"")
        assert (reply.header("etag"), reply.header("content-type")) == ('"e"', EXPOSITION[1])
        if framing == "content-length":
            assert reply.header("content-length") == str(len(PAGE))
        wire.exchange(request("/x/metrics")).expect_ok(PAGE)
    assert [request.method for request in exporter.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (204, [("ETag", '"e"')]),
        (304, [("ETag", '"e"'), LENGTH]),
        (304, [("ETag", '"e"')]),
        (304, [("ETag", '"e"'), ("Transfer-Encoding", CHUNKED)]),
    ],
    ids=["204", "304-length", "304", "304-chunked"],
)
def test_point_19_statuses_without_a_body(
    daemon: Daemon, exporter: FakeExporter, method: str, status: int, headers: list[tuple[str, str]]
) -> None:
    exporter.play([send(head(status, headers))], respond())
    with daemon.connect() as wire:
        reply = wire.exchange(request("/x/metrics", method=method))
        assert (reply.status, reply.body, reply.complete) == (status, b"", True)
        assert reply.error == "upstream_status"
        assert reply.header("etag") == '"e"'
        assert reply.get_all("content-length") in (
            [],
            [value for name, value in headers if name == LENGTH[0]],
        )
        if LENGTH in headers:
            assert reply.header("content-length") == LENGTH[1]
        wire.exchange(request("/x/metrics")).expect_ok(PAGE)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("HEAD", 404), ("GET", 204), ("GET", 304)])
@pytest.mark.parametrize("gap_seconds", [0.0, 0.1])
def test_point_19_a_body_where_none_may_be_is_not_the_next_answer(
    daemon: Daemon, exporter: FakeExporter, method: str, status: int, gap_seconds: float
) -> None:
    """What such an exporter sends too much looks like a response: its connection is not used again."""
    surplus = head(200, [EXPOSITION, ("Content-Length", str(len(OTHER)))]) + OTHER
    first_head = head(status, [EXPOSITION, ("Content-Length", str(len(surplus)))])
    late = [send(first_head), pause(gap_seconds), send(surplus)]
    exporter.play(late if gap_seconds else [send(first_head + surplus)], respond())
    with daemon.connect() as wire:
        first = wire.exchange(request("/x/metrics", method=method))
        assert (first.status, first.body, first.complete) == (status, b"", True)
        wait_until(lambda: len(exporter.requests) == 1, "the request was recorded")
        if gap_seconds:
            assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)
        wire.exchange(request("/x/metrics")).expect_ok(PAGE)
    assert len(exporter.connections) == 2


def test_point_19_refusals_of_head_have_no_body(daemon: Daemon, exporter: FakeExporter) -> None:
    with daemon.connect() as wire:
        reply = wire.exchange(request("/nobody", method="HEAD"))
        assert (reply.status, reply.error, reply.body, reply.complete) == (404, "not_found", b"", True)
        exporter.play([close()])
        reply = wire.exchange(request("/x/metrics", method="HEAD"))
        assert (reply.status, reply.error, reply.body, reply.complete) == (502, "connect", b"", True)
        exporter.play()
        wire.exchange(request("/x/metrics")).expect_ok(PAGE)


# -- 20: the scraper leaves

BUSY: dict[str, Script] = {
    "before-the-head": [stall()],
    "within-the-head": [send(b"HTTP/1.1 200 OK\r\nContent-"), stall()],
    "within-the-body": [send(head(200, [("Content-Length", "1000")]) + b"x"), stall()],
    "between-chunks": [send(head(200, [("Transfer-Encoding", CHUNKED)]) + chunk(PAGE)), stall()],
    "while-dripping": [send(head(200, [("Connection", "close")])), *[pause(0.05), send(b"x")] * 200],
    "while-it-pours": [
        send(head(200, [("Connection", "close")])),
        send_repeatedly(b"x" * 65536, 800),
        stall(),
    ],
}


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset], ids=["close", "reset"])
@pytest.mark.parametrize("when", BUSY)
def test_point_20_when_the_scraper_leaves_the_exporter_is_left_within_a_second(
    daemon: Daemon, exporter: FakeExporter, when: str, leave: Callable[[Wire], None]
) -> None:
    labels = {"exporter": "x", "reason": "client_gone"}
    gone = daemon.metric("exporter_proxy_scrape_errors_total", **labels)
    exporter.play(BUSY[when])
    wire = daemon.connect(receive_buffer_bytes=4096)
    wire.send(request("/x/metrics"))
    exporter.wait_for_requests()
    if "head" not in when:
        wire.read_head()
    seen = len(daemon.output_lines)
    leave(wire)
    assert is_set_within(exporter.connections[0].closed_by_peer, 1.0), (
        "the exporter goes on working for nobody"
    )
    daemon.wait_for_metric(gone + 1, "exporter_proxy_scrape_errors_total", **labels)
    daemon.wait_for_metric(0, "exporter_proxy_scrapes_in_flight", exporter="x")
    wait_until(lambda: any("client_gone" in line for line in daemon.output_lines[seen:]), "it was logged")
    logged = [json.loads(line) for line in daemon.output_lines[seen:] if "client_gone" in line]
    assert [(entry["status"], entry["reason"]) for entry in logged] == [(499, "client_gone")]


def test_point_20_a_scraper_that_leaves_during_the_connect_ends_it() -> None:
    with (
        unanswering_port() as port,
        Daemon({"exporters": {"x": {"url": f"http://127.0.0.1:{port}/metrics"}}}) as daemon,
    ):
        with daemon.connect() as wire:
            wire.exchange(request("/nobody"))
            descriptors = daemon.fd_count()
            wire.send(request("/x/metrics"))
            wait_until(lambda: daemon.fd_count() == descriptors + 1, "it connects to the exporter")
        daemon.wait_for_metric(1, "exporter_proxy_scrape_errors_total", exporter="x", reason="client_gone")
        wait_until(lambda: daemon.fd_count() < descriptors, "both sockets were closed", timeout_seconds=1.0)


def test_point_20_a_scraper_that_leaves_while_waiting_for_a_slot_frees_its_place() -> None:
    free = threading.Event()
    with proxied([wait_for(free), *respond()], route={"max_concurrent": 1}) as (daemon, exporter):
        with daemon.connect() as first, daemon.connect() as second:
            first.send(request("/x/metrics"))
            exporter.wait_for_requests()
            second.send(request("/x/metrics?second"))
            daemon.metrics()  # once around the daemon's loop: the second request has been read
            second.close()
            daemon.wait_for_metric(
                1, "exporter_proxy_scrape_errors_total", exporter="x", reason="client_gone"
            )
            free.set()
            first.read_reply().expect_ok(PAGE)
        daemon.get("/x/metrics?third").expect_ok(PAGE)
        assert [request.target for request in exporter.requests] == [b"/metrics", b"/metrics?third"]


# -- 21: connections that are used again


def test_point_21_a_connection_is_used_again(daemon: Daemon, exporter: FakeExporter) -> None:
    for _ in range(5):
        daemon.get("/x/metrics").expect_ok(PAGE)
    assert (len(exporter.requests), len(exporter.connections)) == (5, 1)


@pytest.mark.parametrize("end", [close(), reset()], ids=["closed", "reset"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_point_21_a_stale_connection_is_replaced_once(
    daemon: Daemon, exporter: FakeExporter, end: Action, method: str
) -> None:
    """Read and closed without a byte: for the proxy the same as closed while the request was on its way."""
    exporter.play(respond(), [end], respond())
    daemon.get("/x/metrics").expect_ok(PAGE)
    daemon.get("/x/metrics?again", method=method).expect_ok(PAGE if method == "GET" else b"")
    assert [request.target for request in exporter.requests] == [
        b"/metrics",
        b"/metrics?again",
        b"/metrics?again",
    ]
    assert len(exporter.connections) == 2


@pytest.mark.parametrize("end", [close(), reset()], ids=["closed", "reset"])
def test_point_21_there_is_no_second_retry(daemon: Daemon, exporter: FakeExporter, end: Action) -> None:
    exporter.play(respond(), [end], [end], respond())
    daemon.get("/x/metrics").expect_ok(PAGE)
    daemon.get("/x/metrics").expect_refusal(502, "connect", "x")
    assert len(exporter.requests) == 3


def test_point_21_the_retry_is_on_a_fresh_connection_however_many_are_kept() -> None:
    """After a restart of the exporter all kept connections are stale: trying each would take its time."""
    free = threading.Event()
    with proxied([wait_for(free), *respond()]) as (daemon, exporter), ExitStack() as wires:
        scrapes = [wires.enter_context(daemon.connect()).send(request("/x/metrics")) for _ in range(4)]
        exporter.wait_for_requests(4)
        free.set()
        for wire in scrapes:
            wire.read_reply().expect_ok(PAGE)
        exporter.play([close()], respond(), [close()], [close()], respond())
        daemon.get("/x/metrics").expect_ok(PAGE)
        assert (len(exporter.requests), len(exporter.connections)) == (2, 5)
        daemon.get("/x/metrics").expect_refusal(502, "connect", "x")
        assert len(exporter.requests) == 4


@pytest.mark.parametrize("end", [close(), reset()], ids=["closed", "reset"])
def test_point_21_a_fresh_connection_is_not_retried(
    daemon: Daemon, exporter: FakeExporter, end: Action
) -> None:
    exporter.play([end], respond())
    daemon.get("/x/metrics").expect_refusal(502, "connect", "x")
    assert len(exporter.requests) == 1


@pytest.mark.parametrize("seen", [b"H", b"HTTP/1.1 200 OK\r\n", head(100, [])], ids=["H", "line", "100"])
@pytest.mark.parametrize("end", [close(), reset()], ids=["closed", "reset"])
def test_point_21_not_retried_once_a_byte_was_seen(
    daemon: Daemon, exporter: FakeExporter, seen: bytes, end: Action
) -> None:
    exporter.play(respond(), [send(seen), pause(0.05), end], respond())
    daemon.get("/x/metrics").expect_ok(PAGE)
    reply = daemon.get("/x/metrics")
    assert (reply.status, reply.complete) == (502, True)
    assert reply.error in ("connect", "protocol"), "the table can be read either way"
    assert len(exporter.requests) == 2


def test_point_21_a_connection_closed_in_idleness_is_noticed(daemon: Daemon, exporter: FakeExporter) -> None:
    daemon.get("/x/metrics").expect_ok(PAGE)
    (connection,) = exporter.connections
    exporter.drop_connections()
    assert connection.closed_by_peer.is_set(), "the proxy kept a dead connection"
    daemon.get("/x/metrics").expect_ok(PAGE)
    assert len(exporter.requests) == 2


@pytest.mark.parametrize(
    "surplus", [b"x", head(200, [("Content-Length", str(len(OTHER)))]) + OTHER], ids=["x", "page"]
)
@pytest.mark.parametrize("when", ["with-the-answer", "with-the-end-of-the-body", "later"])
def test_point_21_what_comes_after_an_answer_is_not_the_next_answer(
    daemon: Daemon, exporter: FakeExporter, surplus: bytes, when: str
) -> None:
    answer = head(200, [EXPOSITION, LENGTH])
    script: dict[str, Script] = {
        "with-the-answer": [send(answer + PAGE + surplus)],
        "with-the-end-of-the-body": [send(answer + PAGE[:9]), pause(0.05), send(PAGE[9:] + surplus)],
        "later": [send(answer + PAGE), pause(0.05), send(surplus)],
    }
    exporter.play(script[when], respond())
    daemon.get("/x/metrics").expect_ok(PAGE)
    assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)
    daemon.get("/x/metrics").expect_ok(PAGE)


@pytest.mark.parametrize(
    "answer",
    [
        head(200, [LENGTH, ("Connection", "close")]),
        head(200, [LENGTH, ("Connection", "x, CLOSE")]),
        head(200, [LENGTH]).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["close", "close-in-a-list", "http-1.0"],
)
def test_point_21_a_connection_that_the_exporter_means_to_close_is_not_used_again(
    daemon: Daemon, exporter: FakeExporter, answer: bytes
) -> None:
    exporter.play([send(answer + PAGE)])
    for _ in range(2):
        daemon.get("/x/metrics").expect_ok(PAGE)
    assert len(exporter.connections) == 2


def test_point_21_a_connection_in_the_middle_of_an_abort_is_not_used_again(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    exporter.play(BUSY["between-chunks"], respond())
    with daemon.connect() as wire:
        wire.send(request("/x/metrics")).read_head()
    assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)
    daemon.get("/x/metrics").expect_ok(PAGE)
    assert len(exporter.connections) == 2
