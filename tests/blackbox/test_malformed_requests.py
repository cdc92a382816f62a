"""Point 8: what is not a well-formed request is answered 400 and never guessed at."""

from __future__ import annotations

import pytest

from tests.daemon import Daemon
from tests.fakes.exporter import FakeExporter
from tests.wire import request

GET = b"GET /x/metrics HTTP/1.1\r\n"
HOST = b"Host: proxy.test\r\n"

MALFORMED = {
    # Which host?
    "no-host": GET + b"\r\n",
    "no-host-but-others": GET + b"Accept: */*\r\n\r\n",
    "two-hosts": GET + HOST + b"Host: other.test\r\n\r\n",
    "two-equal-hosts": GET + HOST + HOST + b"\r\n",
    "two-hosts-apart": GET + HOST + b"Accept: */*\r\nhost: proxy.test\r\n\r\n",
    # Where does the body end?
    "length-and-chunked": GET + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-and-length": GET + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two-lengths": GET + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length-list": GET + HOST + b"Content-Length: 1, 2\r\n\r\nab",
    "length-negative": GET + HOST + b"Content-Length: -1\r\n\r\n",
    "length-signed": GET + HOST + b"Content-Length: +1\r\n\r\na",
    "length-word": GET + HOST + b"Content-Length: many\r\n\r\n",
    "length-hex": GET + HOST + b"Content-Length: 0x1\r\n\r\na",
    "length-too-long": GET + HOST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "coding-unknown": GET + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    "coding-not-last": GET + HOST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    # Where does a header end?
    "obs-fold": GET + HOST + b"Accept: text/plain,\r\n */*\r\n\r\n",
    "obs-fold-tab": GET + HOST + b"Accept: text/plain,\r\n\t*/*\r\n\r\n",
    "fold-before-headers": GET + b" Accept: */*\r\n" + HOST + b"\r\n",
    "bare-lf": (GET + HOST + b"\r\n").replace(b"\r\n", b"\n"),
    "bare-lf-request-line": b"GET /x/metrics HTTP/1.1\n" + HOST + b"\r\n",
    "bare-lf-header": GET + HOST + b"Accept: */*\nUser-Agent: u\r\n\r\n",
    "bare-lf-at-the-end": GET + HOST + b"\n",
    "bare-cr": GET + HOST + b"Accept: */*\rUser-Agent: u\r\n\r\n",
    "space-before-colon": GET + HOST + b"Accept : */*\r\n\r\n",
    "host-space-before-colon": GET + b"Host : proxy.test\r\n\r\n",
    "tab-before-colon": GET + HOST + b"Accept\t: */*\r\n\r\n",
    "no-colon": GET + HOST + b"Accept\r\n\r\n",
    "no-name": GET + HOST + b": */*\r\n\r\n",
    "name-with-bracket": GET + HOST + b"Acc(ept: */*\r\n\r\n",
    "name-with-high-byte": GET + HOST + b"Acc\xe9pt: */*\r\n\r\n",
    # Control characters
    "nul-in-value": GET + HOST + b"Accept: a\x00b\r\n\r\n",
    "soh-in-value": GET + HOST + b"Accept: a\x01b\r\n\r\n",
    "del-in-value": GET + HOST + b"Accept: a\x7fb\r\n\r\n",
    "nul-in-name": GET + HOST + b"Acc\x00ept: b\r\n\r\n",
    "nul-in-path": b"GET /x/metrics\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "soh-in-query": b"GET /x/metrics?a=\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "tab-in-query": b"GET /x/metrics?a=\tb HTTP/1.1\r\n" + HOST + b"\r\n",
    "cr-in-query": b"GET /x/metrics?a=\rb HTTP/1.1\r\n" + HOST + b"\r\n",
    "nul-in-host": GET + b"Host: proxy\x00.test\r\n\r\n",
    # The request line
    "space-in-target": b"GET /x/metrics now HTTP/1.1\r\n" + HOST + b"\r\n",
    "no-target": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "relative-target": b"GET x/metrics HTTP/1.1\r\n" + HOST + b"\r\n",
    "no-version": b"GET /x/metrics\r\n" + HOST + b"\r\n",
    "version-word": b"GET /x/metrics HTTP/one\r\n" + HOST + b"\r\n",
    "other-protocol": b"GET /x/metrics ICE/1.0\r\n" + HOST + b"\r\n",
    "leading-space": b" " + GET + HOST + b"\r\n",
    # Not a request at all
    "tls-client-hello": bytes.fromhex("16030100c4010000c00303") + b"\x5a" * 186,
    "response": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "binary": bytes(range(128, 256)) + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_point_08_malformed_request_is_answered_400_and_closed(
    daemon: Daemon, exporter: FakeExporter, name: str
) -> None:
    denied = daemon.metric("exporter_proxy_requests_denied_total", reason="bad_request")
    with daemon.connect() as wire:
        reply = wire.exchange(MALFORMED[name]).expect_refusal(400, "bad_request")
        assert reply.header("connection") == "close"
        assert wire.closes_within(3.0)
    daemon.wait_for_metric(denied + 1, "exporter_proxy_requests_denied_total", reason="bad_request")
    assert exporter.requests == []


@pytest.mark.parametrize("name", ["no-host", "two-hosts", "length-and-chunked", "obs-fold", "nul-in-value"])
def test_point_08_nothing_behind_a_malformed_request_is_answered(
    daemon: Daemon, exporter: FakeExporter, name: str
) -> None:
    """After it nobody knows where the next request begins: smuggling lives there."""
    with daemon.connect() as wire:
        wire.exchange(MALFORMED[name] + request("/x/metrics")).expect_refusal(400, "bad_request")
        assert wire.closes_within(3.0)
    assert exporter.requests == []


def test_point_08_a_malformed_second_request_does_not_spoil_the_first(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    with daemon.connect() as wire:
        wire.send(request("/x/metrics") + MALFORMED["space-before-colon"])
        wire.read_reply().expect_ok()
        wire.read_reply().expect_refusal(400, "bad_request")
        assert wire.closes_within(3.0)
    assert len(exporter.requests) == 1


@pytest.mark.parametrize(
    "oddity",
    [
        b"\r\n" + GET + HOST + b"\r\n",
        GET + b"host:proxy.test\r\n\r\n",
        GET + b"HOST:\t proxy.test \t\r\n\r\n",
        GET + b"Accept:\r\n" + HOST + b"\r\n",
        GET + HOST + b"User-Agent: \xe4\xff\r\n\r\n",
        GET + b"Host: [::1]:9099\r\n\r\n",
    ],
    ids=["empty-line-first", "no-space", "blanks", "empty-value", "high-bytes", "ipv6-host"],
)
def test_point_08_unusual_but_well_formed_is_served(
    daemon: Daemon, exporter: FakeExporter, oddity: bytes
) -> None:
    daemon.exchange(oddity).expect_ok()
    assert len(exporter.requests) == 1
