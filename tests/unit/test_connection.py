"""One connection to an exporter: what counts as a response, when it may be used again, how much it holds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.upstreams.connection import MAX_HEAD_BYTES, READ_AHEAD_BYTES, UpstreamConnection
from tests.fakes.origin import Origin, Visit, chunked, response, say
from tests.inprocess import LOOPS, run, until

QUESTION = b"GET /metrics HTTP/1.1\r\nHost: exporter\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
MAX_READ_BYTES = 256 * 1024
"""What both loops take from a socket at most before they hand it over."""


@dataclass(frozen=True)
class Outcome:
    status: int
    body: bytes
    is_reusable: bool


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[UpstreamConnection, socket.socket]]:
    """A connection that was asked something, and the exporter's end of it."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        _, connection = await loop.create_connection(
            lambda: UpstreamConnection(loop, "exporter:9"), sock=ours
        )
        try:
            yield connection, theirs
        finally:
            connection.abort()
            await until(lambda: connection.closed, "it is closed")


@contextlib.asynccontextmanager
async def dialled(origin: Origin) -> AsyncIterator[UpstreamConnection]:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: UpstreamConnection(loop, "exporter:9"), "127.0.0.1", origin.port
    )
    try:
        yield connection
    finally:
        connection.abort()
        await until(lambda: connection.closed, "it is closed")


async def read(connection: UpstreamConnection, is_head: bool = False) -> Outcome:
    """Ask and read the answer to its end."""
    await connection.ask(QUESTION, is_head)
    body = b""
    while (part := await connection.next_chunk()) is not None:
        body += part
    return Outcome(connection.status, body, connection.is_reusable)


async def _answer(pieces: Sequence[bytes], is_head: bool, is_closed: bool) -> Outcome | ScrapeError:
    async with connected() as (connection, theirs):
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(read(connection, is_head))
        assert await loop.sock_recv(theirs, 65536) == QUESTION
        for piece in pieces:
            if not connection.closed:
                connection.data_received(piece)
        if is_closed:
            theirs.close()
        try:
            async with asyncio.timeout(30):
                return await reading
        except ScrapeError as error:
            return error


def answered(*pieces: bytes, is_head: bool = False, is_closed: bool = True) -> Outcome | ScrapeError:
    """What becomes of an exporter's bytes that are read in these pieces, then the connection's end."""
    return run(lambda: _answer(pieces, is_head, is_closed))


def both_ways(raw: bytes, **options: bool) -> Outcome | ScrapeError:
    """The same bytes in one read and in many: the outcome must not depend on it."""
    at_once = answered(raw, **options)
    step = 1 if len(raw) < 2000 else 1000
    in_many = answered(*(raw[at : at + step] for at in range(0, len(raw), step)), **options)
    if isinstance(at_once, ScrapeError):
        assert isinstance(in_many, ScrapeError)
        assert in_many.reason is at_once.reason
    else:
        assert isinstance(in_many, Outcome), f"{at_once} at once, {in_many.message} in pieces"
        assert (in_many.status, in_many.body) == (at_once.status, at_once.body)
    return at_once


PAGE = b"hello"
GOOD = {
    "length": OK + b"Content-Length: 5\r\n\r\nhello",
    "length with blanks around": OK + b"Content-Length: \t5 \t\r\n\r\nhello",
    "length with zeros": OK + b"Content-Length: 0005\r\n\r\nhello",
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    "chunked in capitals": OK + b"transfer-encoding: ChunKed \r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunk extension": OK + b'Transfer-Encoding: chunked\r\n\r\n5;a="b"\r\nhello\r\n0;c\r\n\r\n',
    "trailer": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "no phrase": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
    "103 twice, with a length": b"HTTP/1.1 103 Early\r\nContent-Length: 9\r\n\r\n" * 2
    + OK
    + b"Content-Length: 5\r\n\r\nhello",
    "8-bit header": OK + b"X: \xe9\xff\r\nContent-Length: 5\r\n\r\nhello",
    "upgrade offered": OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello",
    "1.0 that stays": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("case", GOOD)
def test_a_complete_response_leaves_the_connection_usable(case: str) -> None:
    assert both_ways(GOOD[case], is_closed=False) == Outcome(200, PAGE, True)


SPENT = {
    "until closed": OK + b"\r\nhello",
    "until closed, 1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "connection close": OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
    "connection close among others": OK + b"Connection: x, Close\r\nContent-Length: 5\r\n\r\nhello",
    "connection close, chunked": OK
    + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "1.0 with a length": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "more than its length": OK + b"Content-Length: 5\r\n\r\nhello world",
    "more after the last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n world",
    "a second response": OK + b"Content-Length: 5\r\n\r\nhello" + OK + b"Content-Length: 3\r\n\r\nbad",
    "a second response, chunked": chunked(b"hello") + chunked(b"bad"),
    "close, then more": OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello world",
}


@pytest.mark.parametrize("case", SPENT)
def test_a_complete_response_that_leaves_the_connection_unusable(case: str) -> None:
    assert both_ways(SPENT[case]) == Outcome(200, PAGE, False)


BODILESS = {
    "204": (204, b"HTTP/1.1 204 No Content\r\n\r\n"),
    "204 with a length": (204, b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
    "304 with a length": (304, b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 5\r\n\r\n'),
    "length 0": (200, OK + b"Content-Length: 0\r\n\r\n"),
    "no chunk": (200, OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("case", BODILESS)
def test_no_body(case: str) -> None:
    status, raw = BODILESS[case]
    assert both_ways(raw, is_closed=False) == Outcome(status, b"", True)


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"Content-Length: 5\r\n\r\n",
        OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\n",
        OK + b"\r\n",
    ],
)
def test_head_has_no_body_whatever_comes(raw: bytes) -> None:
    """The parser cannot be told that none follows, so the connection is not used again."""
    assert both_ways(raw, is_head=True, is_closed=False) == Outcome(200, b"", False)


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BAD: dict[str, tuple[Reason, bytes]] = {
    "another protocol": (Reason.PROTOCOL, b"SSH-2.0-OpenSSH_9.2\r\n"),
    "TLS": (Reason.PROTOCOL, b"\x15\x03\x01\x00\x02\x02F"),
    "RTSP": (Reason.PROTOCOL, b"RTSP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    "HTTP/2": (Reason.PROTOCOL, b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    "HTTP/0.9": (Reason.PROTOCOL, b"HTTP/0.9 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    "status 99": (Reason.PROTOCOL, b"HTTP/1.1 099 Low\r\n\r\n"),
    "status 600": (Reason.PROTOCOL, b"HTTP/1.1 600 High\r\n\r\n"),
    "status 20": (Reason.PROTOCOL, b"HTTP/1.1 20 Short\r\n\r\n"),
    "bare LF": (Reason.PROTOCOL, b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
    "folded header": (Reason.PROTOCOL, OK + b"X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello"),
    "blank before the colon": (Reason.PROTOCOL, OK + b"X : a\r\nContent-Length: 5\r\n\r\nhello"),
    "NUL in a header": (Reason.PROTOCOL, OK + b"X: a\0\r\nContent-Length: 5\r\n\r\nhello"),
    "101": (Reason.PROTOCOL, b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n\1\2"),
    "101 alone": (Reason.PROTOCOL, b"HTTP/1.1 101 Switching\r\n\r\n"),
    "two lengths": (Reason.PROTOCOL, OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    "list of lengths": (Reason.PROTOCOL, OK + b"Content-Length: 10, 12\r\n\r\nhello"),
    "negative length": (Reason.PROTOCOL, OK + b"Content-Length: -5\r\n\r\nhello"),
    "length of 65 bits": (Reason.PROTOCOL, OK + b"Content-Length: 18446744073709551616\r\n\r\nhello"),
    "gzip as a transfer coding": (
        Reason.PROTOCOL,
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    "chunked twice": (
        Reason.PROTOCOL,
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunked and a tab, which llhttp takes for another coding": (
        Reason.PROTOCOL,
        OK + b"Transfer-Encoding: chunked\t\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    "chunked in 1.0": (
        Reason.PROTOCOL,
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    "length and chunked": (
        Reason.PROTOCOL,
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    "a length with zeros without end ahead": (
        Reason.PROTOCOL,
        OK + b"Content-Length: %b5\r\n\r\nhello" % (b"0" * 5000),
    ),
    "closed at once": (Reason.CONNECT, b""),
    "closed in the head": (Reason.PROTOCOL, OK + b"Content-Len"),
    "closed after 103": (Reason.PROTOCOL, b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "shorter than its length": (Reason.TRUNCATED, OK + b"Content-Length: 6\r\n\r\nhello"),
    "no last chunk": (Reason.TRUNCATED, CHUNKED + b"5\r\nhello\r\n"),
    "no end after the last chunk": (Reason.TRUNCATED, CHUNKED + b"5\r\nhello\r\n0\r\n"),
    "chunk size is no number": (Reason.TRUNCATED, CHUNKED + b"5\r\nhello\r\nzz\r\n"),
    "chunk size of 68 bits": (Reason.TRUNCATED, CHUNKED + b"fffffffffffffffff\r\nhello"),
    "chunk longer than its size": (Reason.TRUNCATED, CHUNKED + b"4\r\nhello\r\n0\r\n\r\n"),
    "chunk lines end in LF": (Reason.TRUNCATED, CHUNKED + b"5\nhello\n0\n\n"),
    "header over the limit": (Reason.TOO_LARGE, OK + b"X: %b\r\n\r\n" % (b"a" * MAX_HEAD_BYTES)),
    "headers over the limit": (Reason.TOO_LARGE, OK + b"X: y\r\n" * 12_000 + b"\r\n"),
    "phrase over the limit": (Reason.TOO_LARGE, b"HTTP/1.1 200 %b\r\n\r\n" % (b"a" * 2 * MAX_HEAD_BYTES)),
    "1xx and final over the limit": (
        Reason.TOO_LARGE,
        b"HTTP/1.1 103 Early\r\nX: %b\r\n\r\n" % (b"a" * 40_000) + OK + b"X: %b\r\n\r\n" % (b"a" * 40_000),
    ),
    "1xx for ever": (Reason.TOO_LARGE, b"HTTP/1.1 103 Early\r\n\r\n" * 5000),
}


@pytest.mark.parametrize("case", BAD)
def test_not_a_complete_response(case: str) -> None:
    reason, raw = BAD[case]
    outcome = both_ways(raw)
    assert isinstance(outcome, ScrapeError)
    assert outcome.reason is reason
    assert "exporter:9" in outcome.message


def test_a_length_with_zeros_without_end_is_told() -> None:
    """Python refuses to read such a number, and nothing may be raised while llhttp parses."""
    outcome = both_ways(OK + b"Content-Length: %b5\r\n\r\nhello" % (b"0" * 5000))
    assert isinstance(outcome, ScrapeError)
    assert "sent a Content-Length of 5001 characters" in outcome.message
    assert both_ways(OK + b"Content-Length: 0005\r\n\r\nhello", is_closed=False) == Outcome(200, PAGE, True)


@pytest.mark.parametrize("start", [b"5;x=", b"0\r\nX: "], ids=["chunk extension", "trailer"])
def test_what_is_no_body_cannot_go_on_for_ever_behind_the_head(start: bytes) -> None:
    """It is not counted as body, and a trailer's value is put together in memory, for nobody."""
    outcome = answered(CHUNKED + start, *([b"a" * 65536] * 32), is_closed=False)
    assert isinstance(outcome, ScrapeError)
    assert outcome.reason in (Reason.TOO_LARGE, Reason.TRUNCATED)


def test_a_reset_is_told_from_a_close() -> None:
    async def scenario() -> ScrapeError:
        async def reset(visit: Visit) -> None:
            await visit.send(response(PAGE, length=500))
            visit.reset()

        async with Origin(reset) as origin, dialled(origin) as connection:
            with pytest.raises(ScrapeError) as caught:
                await read(connection)
            return caught.value

    error = run(scenario)
    assert error.reason is Reason.TRUNCATED
    assert "after 5 of 500 body bytes" in error.message


@pytest.mark.parametrize("loop", LOOPS)
def test_what_nobody_takes_is_not_read(loop: str) -> None:
    """10 MB unread: held are READ_AHEAD_BYTES and the read that went over it; then all of it passes."""
    piece, count = b"x" * 65536, 160

    async def scenario() -> None:
        async def answer(visit: Visit) -> None:
            await visit.send(response(length=len(piece) * count))
            for _ in range(count):
                await visit.send(piece)
                sent.append(len(piece))

        sent: list[int] = []
        async with Origin(answer) as origin, dialled(origin) as connection:
            await connection.ask(QUESTION, False)
            await until(lambda: connection._is_paused, "reading is paused")
            seen = -1
            while seen != len(sent):  # until the exporter is stuck
                seen = len(sent)
                await asyncio.sleep(0.05)
            assert seen < count, "the exporter was never held up"
            held = sum(map(len, connection._chunks))
            assert READ_AHEAD_BYTES < held <= READ_AHEAD_BYTES + MAX_READ_BYTES
            received = 0
            while (part := await connection.next_chunk()) is not None:
                received += len(part)
                assert sum(map(len, connection._chunks)) <= READ_AHEAD_BYTES + MAX_READ_BYTES
            assert received == len(piece) * count
            assert connection.is_reusable

    run(scenario, loop)


@pytest.mark.parametrize("size", [5, 400_000], ids=["small", "paused"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_with_something_unread_is_not_reusable(loop: str, size: int) -> None:
    """What one scrape left unread would be the beginning of the next one's page."""

    async def scenario() -> None:
        async with Origin(say(response(b"x" * size))) as origin, dialled(origin) as connection:
            await connection.ask(QUESTION, False)
            while not connection._is_complete:
                await until(lambda: connection._is_complete or connection._is_paused, "all came or a pause")
                if connection._is_paused and not connection._is_complete:
                    await connection.next_chunk()
            assert not connection.is_exhausted
            assert not connection.is_reusable

    run(scenario, loop)


def test_speaking_unasked_ends_the_connection() -> None:
    async def scenario() -> None:
        async with connected() as (connection, theirs):
            reading = asyncio.ensure_future(read(connection))
            theirs.send(response(PAGE))
            assert await reading == Outcome(200, PAGE, True)
            theirs.send(response(b"a page for the next scrape"))
            await until(lambda: connection.closed, "the connection is closed")
            assert not connection.is_reusable

    run(scenario)
