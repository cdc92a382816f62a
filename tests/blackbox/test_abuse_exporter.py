"""Exporters that never come to an end, beside those of test_semantics_response and test_truncation.

Whatever an exporter says, its scrape ends, others are served, and the daemon's memory stays as it was.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon
from tests.fakes.exporter import (
    CHUNKED,
    EVENT_SECONDS,
    EXPOSITION,
    FakeExporter,
    Script,
    chunk,
    head,
    send,
    send_repeatedly,
    stall,
)
from tests.honest import honest_scraper

MIB = 1024 * 1024
CHUNKED_HEAD = head(200, [EXPOSITION, ("Transfer-Encoding", CHUNKED)])
OK = b"HTTP/1.1 200 OK\r\n"
MANY = 1_000

Pestered = tuple[Daemon, FakeExporter]


@pytest.fixture(scope="module")
def pestered() -> Iterator[Pestered]:
    """``x`` and, with ``verify``, ``verified`` ask the exporter that misbehaves."""
    with FakeExporter() as exporter, FakeExporter() as other:
        entries = {
            "x": {"url": exporter.url()},
            "verified": {"url": exporter.url(), "verify": True},
            "honest": {"url": other.url()},
        }
        config = {"defaults": {"timeout": "30s", "max_response_bytes": "1MiB"}, "exporters": entries}
        with Daemon(config) as daemon:
            for name in entries:
                daemon.get(f"/{name}/metrics").expect_ok()
            exporter.drop_connections()
            resident_bytes = daemon.rss_bytes()
            with honest_scraper(daemon):
                yield daemon, exporter
            assert daemon.rss_bytes() - resident_bytes < 32 * MIB


ENDLESS: dict[str, tuple[Script, str]] = {
    "interim-responses": ([send_repeatedly(head(100, []) * 1000, MANY)], "too_large"),
    "interim-headers": (
        [send_repeatedly(head(103, [("Link", "</>; rel=preload")]) * 100, MANY)],
        "too_large",
    ),
    "ten-megabytes-of-header": ([send(OK + b"X-A: " + b"a" * 10 * MIB), stall()], "too_large"),
    "header-lines": ([send(OK), send_repeatedly(b"a: b\r\n" * 10_000, MANY)], "too_large"),
    "reason-phrase": ([send(b"HTTP/1.1 200 "), send_repeatedly(b"a" * 65536, MANY)], "too_large"),
    "blank-lines-first": ([send_repeatedly(b"\r\n" * 32768, MANY)], "protocol"),
    "nothing-but-zeros": ([send_repeatedly(bytes(65536), MANY)], "protocol"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_head_that_does_not_end_is_a_failure(pestered: Pestered, name: str) -> None:
    daemon, exporter = pestered
    script, reason = ENDLESS[name]
    exporter.play(script)
    reply = daemon.get("/x/metrics").expect_refusal(502, reason, "x")
    assert reply.took_seconds < 15
    assert all(connection.closed_by_peer.wait(EVENT_SECONDS) for connection in exporter.connections)


BODIES: dict[str, Script] = {
    "chunk-extension": [send(CHUNKED_HEAD + b"5;a="), send_repeatedly(b"a" * 65536, MANY)],
    "chunk-size-of-zeros": [send(CHUNKED_HEAD), send_repeatedly(b"0" * 65536, MANY)],
    "trailers": [
        send(CHUNKED_HEAD + chunk(b"a 1\n") + b"0\r\n"),
        send_repeatedly(b"a: b\r\n" * 10_000, MANY),
    ],
    "chunk-size-overflow": [send(CHUNKED_HEAD + b"f" * 20 + b"\r\n"), stall()],
    "chunk-size-as-large-as-can-be": [
        send(CHUNKED_HEAD + b"7fffffffffffffff\r\n"),
        send_repeatedly(b"a 1\n" * 16384, MANY),
    ],
    "chunk-size-negative": [send(CHUNKED_HEAD + b"-5\r\na 1\n\r\n0\r\n\r\n"), stall()],
    "chunk-longer-than-it-says": [send(CHUNKED_HEAD + b"2\r\na 1\n\r\n0\r\n\r\n"), stall()],
    "chunks-of-one-byte": [send(CHUNKED_HEAD), send_repeatedly(chunk(b"\n") * 10_000, MANY)],
    "until-the-connection-closes": [
        send(head(200, [EXPOSITION, ("Connection", "close")])),
        send_repeatedly(b"a 1\n" * 16384, MANY),
    ],
    "gzip-bomb": [
        send(head(200, [EXPOSITION, ("Content-Encoding", "gzip"), ("Connection", "close")])),
        send(gzip.compress(b"\n" * 200 * MIB, 9)),
        send_repeatedly(gzip.compress(b"\n" * 10 * MIB, 9), MANY),
    ],
}


@pytest.mark.parametrize("path", ["/x/metrics", "/verified/metrics"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_does_not_end_is_never_whole(pestered: Pestered, name: str, path: str) -> None:
    daemon, exporter = pestered
    exporter.play(BODIES[name])
    reply = daemon.get(path)
    assert reply.status == 502 or not reply.complete
    assert len(reply.body) <= MIB
    assert reply.took_seconds < 15
    assert all(connection.closed_by_peer.wait(EVENT_SECONDS) for connection in exporter.connections)


@pytest.mark.parametrize(
    "value",
    [
        b"a\rSet-Cookie: b=c",
        b"a\nSet-Cookie: b=c",
        b"a\x00b",
        b"a\x0b",
        b"a\r\n\rb: c",
        b"a\r\n\nHTTP/1.1 200 OK",
    ],
)
def test_a_response_is_not_split(pestered: Pestered, value: bytes) -> None:
    daemon, exporter = pestered
    exporter.play([send(OK + b"X-A: " + value + b"\r\nContent-Length: 4\r\n\r\na 1\n"), stall()])
    reply = daemon.get("/x/metrics").expect_refusal(502, "protocol", "x")
    assert b"set-cookie" not in reply.raw.lower()
