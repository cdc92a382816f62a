"""Point 17: a truncated answer is never ended cleanly: Prometheus would take a part for the whole."""

from __future__ import annotations

import threading

import pytest

from tests.daemon import Daemon, proxied
from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    CONTENT_LENGTH,
    EXPOSITION,
    LAST_CHUNK,
    PAGE,
    FakeExporter,
    Script,
    chunk,
    close,
    half_close,
    head,
    reset,
    respond,
    send,
    stall,
    wait_for,
)
from tests.stalls import is_set_within
from tests.wire import Reply, request

HEADS = {
    CONTENT_LENGTH: head(200, [EXPOSITION, ("Content-Length", "1000")]),
    CHUNKED: head(200, [EXPOSITION, ("Transfer-Encoding", "chunked")]),
    CLOSE: head(200, [EXPOSITION, ("Connection", "close")]),
}
FIRST = {CONTENT_LENGTH: PAGE, CHUNKED: chunk(PAGE), CLOSE: PAGE}

# What follows a head and a first part that have already reached the scraper.
TRUNCATIONS: dict[str, tuple[str, Script]] = {
    "short-body-closed": (CONTENT_LENGTH, [close()]),
    "short-body-half-closed": (CONTENT_LENGTH, [half_close(), stall()]),
    "short-body-reset": (CONTENT_LENGTH, [reset()]),
    "short-by-one-byte": (CONTENT_LENGTH, [send(b"x" * (999 - len(PAGE))), close()]),
    "no-last-chunk-closed": (CHUNKED, [close()]),
    "no-last-chunk-reset": (CHUNKED, [reset()]),
    "within-a-chunk": (CHUNKED, [send(b"ff\r\nhalf"), close()]),
    "within-a-chunk-size": (CHUNKED, [send(b"f"), close()]),
    "before-the-chunk-ends": (CHUNKED, [send(b"4\r\nhalf"), close()]),
    "last-chunk-without-its-end": (CHUNKED, [send(b"0\r\n"), close()]),
    "within-the-trailers": (CHUNKED, [send(b"0\r\nX-Sum: 1\r\n"), close()]),
    "chunk-size-word": (CHUNKED, [send(b"zz\r\nabc\r\n"), stall()]),
    "chunk-size-negative": (CHUNKED, [send(b"-1\r\nabc\r\n"), stall()]),
    "chunk-size-empty": (CHUNKED, [send(b"\r\nabc\r\n"), stall()]),
    "chunk-size-overflow": (CHUNKED, [send(b"f" * 17 + b"\r\nabc\r\n"), stall()]),
    "chunk-longer-than-its-size": (CHUNKED, [send(b"3\r\nabcdef\r\n" + LAST_CHUNK), stall()]),
    "page-instead-of-a-chunk": (CHUNKED, [send(PAGE), stall()]),
    "until-closed-but-reset": (CLOSE, [reset()]),
}


def scrape_in_two_steps(
    daemon: Daemon, exporter: FakeExporter, framing: str, rest: Script, *headers: tuple[str, str]
) -> Reply:
    """Play ``rest`` only when the head of the answer has reached the scraper."""
    relayed = threading.Event()
    exporter.play([send(HEADS[framing] + FIRST[framing]), wait_for(relayed), *rest], respond())
    with daemon.connect() as wire:
        wire.send(request("/x/metrics", *headers))
        wire.read_head()
        relayed.set()
        reply = wire.read_reply()
        assert wire.closes_within(3.0)
        return reply


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_point_17_truncated_answer_is_aborted(daemon: Daemon, exporter: FakeExporter, name: str) -> None:
    truncated = daemon.metric("exporter_proxy_scrape_errors_total", exporter="x", reason="truncated")
    reply = scrape_in_two_steps(daemon, exporter, *TRUNCATIONS[name]).expect_cut()
    assert not reply.raw.endswith(LAST_CHUNK)
    assert reply.error is None, "the headers were out before anything was wrong"
    daemon.wait_for_metric(
        truncated + 1, "exporter_proxy_scrape_errors_total", exporter="x", reason="truncated"
    )
    daemon.get("/x/metrics").expect_ok(PAGE)


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_point_17_truncated_answer_in_one_packet_is_never_whole(
    daemon: Daemon, exporter: FakeExporter, name: str
) -> None:
    """Head and defect arrive together: an error answer or an abort, both are honest."""
    framing, rest = TRUNCATIONS[name]
    exporter.play([send(HEADS[framing] + FIRST[framing]), *rest])
    reply = daemon.exchange(request("/x/metrics"))
    if reply.status == 200:
        reply.expect_cut()
    else:
        assert reply.error in ("truncated", "protocol")
        reply.expect_refusal(502, reply.error, "x")


@pytest.mark.parametrize("framing", HEADS)
def test_point_17_deadline_in_the_body_aborts(daemon: Daemon, exporter: FakeExporter, framing: str) -> None:
    timeouts = daemon.metric("exporter_proxy_scrape_errors_total", exporter="x", reason="timeout")
    timeout_header = ("X-Prometheus-Scrape-Timeout-Seconds", "1")
    reply = scrape_in_two_steps(daemon, exporter, framing, [stall()], timeout_header).expect_cut()
    assert 0.45 < reply.ended_after_seconds < 1.0 + reply.stalled_seconds
    assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)
    daemon.wait_for_metric(timeouts + 1, "exporter_proxy_scrape_errors_total", exporter="x", reason="timeout")


@pytest.mark.parametrize("framing", [CHUNKED, CLOSE])
@pytest.mark.parametrize("end", ["stalls", "closes"])
def test_point_17_size_limit_in_the_body_aborts(framing: str, end: str) -> None:
    with proxied(route={"max_response_bytes": "1KiB"}) as (daemon, exporter):
        rest = chunk(b"x" * 2000) if framing == CHUNKED else b"x" * 2000
        ending = {"stalls": stall(), "closes": close()}[end]
        reply = scrape_in_two_steps(daemon, exporter, framing, [send(rest), ending]).expect_cut()
        assert len(reply.body) <= 1024
        assert is_set_within(exporter.connections[0].ended, 5.0)
        daemon.wait_for_metric(1, "exporter_proxy_scrape_errors_total", exporter="x", reason="too_large")


def test_point_17_what_came_before_the_abort_was_relayed_as_it_came(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    """Nothing is held back until the end: memory stays bounded and a person with curl sees how far it got."""
    reply = scrape_in_two_steps(daemon, exporter, CHUNKED, [close()]).expect_cut()
    assert reply.body == PAGE
