"""An answer on the wire: its framing, how it is cut where it cannot be ended, and who is waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from exporter_proxy.front.cycle import ResponseAborted, ScraperGone
from exporter_proxy.front.protocol import ScraperProtocol
from tests.inprocess import LOOPS, Parts, parts, run, until

Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[dict[str, Any], Any, Send], Awaitable[None]]

LOOP = pytest.mark.parametrize("loop", LOOPS)
GET = b"GET /x HTTP/1.1\r\nHost: proxy.test\r\n\r\n"
GET_10 = b"GET /x HTTP/1.0\r\n\r\n"
HEAD = b"HEAD /x HTTP/1.1\r\nHost: proxy.test\r\n\r\n"
LENGTH = (b"Content-Length", b"4")
BODY = b"x 1\n"


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*messages: dict[str, Any]) -> Application:
    """An application that answers with these messages."""

    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


class Scraper:
    """A connection to the front, from the other side."""

    def __init__(self, made: Parts, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made = made
        self.reader = reader
        self.writer = writer

    @property
    def connection(self) -> ScraperProtocol:
        (only,) = self.made.front.connections
        return only

    async def read_to_end(self) -> tuple[bytes, str]:
        """All that comes, and how it ends: ``eof`` or ``reset``."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := await self.reader.read(65536):
                received += part
            return received, "eof"
        return received, "reset"


@contextlib.asynccontextmanager
async def scraper(log: Path, app: Application, **config: Any) -> AsyncIterator[Scraper]:
    async with parts(log, {"x": {"url": "http://127.0.0.1:9/"}}, **config) as made:
        made.front.app = app  # type: ignore[assignment]  # messages are plain dicts here
        async with made.listening() as listener:
            port = listener.socket.getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
            try:
                yield Scraper(made, reader, writer)
            finally:
                writer.transport.abort()


def answer_to(request: bytes, app: Application, log: Path, loop: str) -> tuple[bytes, str]:
    """Everything that comes on a connection that asks this and waits for its end."""

    async def scenario() -> tuple[bytes, str]:
        async with scraper(log, app, keep_alive_timeout="50ms") as asking:
            asking.writer.write(request)
            return await asking.read_to_end()

    return run(scenario, loop)


# Framing

FRAMED: dict[str, tuple[bytes, Application, bytes]] = {
    "length": (
        GET,
        sending(start(LENGTH), body(BODY)),
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nx 1\n",
    ),
    "length, in parts": (
        GET,
        sending(start(LENGTH), body(b"x ", True), body(b"", True), body(b"1\n", True), body()),
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nx 1\n",
    ),
    "no length": (
        GET,
        sending(start(), body(BODY)),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nx 1\n\r\n0\r\n\r\n",
    ),
    "no length, in parts, one of them empty": (
        GET,
        sending(start((b"A", b"b")), body(b"x ", True), body(b"", True), body(b"1\n", True), body()),
        b"HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nx \r\n2\r\n1\n\r\n0\r\n\r\n",
    ),
    "no length and no body": (
        GET,
        sending(start(), body()),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "1.0 with a length": (
        GET_10,
        sending(start(LENGTH), body(BODY)),
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nx 1\n",
    ),
    "1.0 without": (
        GET_10,
        sending(start(), body(b"x ", True), body(b"1\n")),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nx 1\n",
    ),
    "1.0 without, empty": (GET_10, sending(start(), body()), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
    "HEAD": (
        HEAD,
        sending(start((b"ETag", b'"a"'), LENGTH), body(BODY)),
        b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: 4\r\n\r\n',
    ),
    "HEAD, a length but no body": (
        HEAD,
        sending(start(LENGTH), body()),
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
    ),
    "HEAD without a length": (HEAD, sending(start(), body(BODY)), b"HTTP/1.1 200 OK\r\n\r\n"),
    "204": (GET, sending(start(status=204), body()), b"HTTP/1.1 204 No Content\r\n\r\n"),
    "304 with a length": (
        GET,
        sending(start((b"ETag", b'"a"'), LENGTH, status=304), body()),
        b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 4\r\n\r\n',
    ),
    "an unknown status": (
        GET,
        sending(start(LENGTH, status=599), body(BODY)),
        b"HTTP/1.1 599 \r\nContent-Length: 4\r\n\r\nx 1\n",
    ),
    "repeated headers": (
        GET,
        sending(start((b"A", b"1"), (b"a", b"\xff"), (b"A", b""), LENGTH), body(BODY)),
        b"HTTP/1.1 200 OK\r\nA: 1\r\na: \xff\r\nA: \r\nContent-Length: 4\r\n\r\nx 1\n",
    ),
    "Connection: close asked for": (
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        sending(start(LENGTH), body(BODY)),
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nx 1\n",
    ),
}


@LOOP
@pytest.mark.parametrize("case", FRAMED)
def test_framing(loop: str, case: str, tmp_path: Path) -> None:
    request, app, wire = FRAMED[case]
    assert answer_to(request, app, tmp_path / "log", loop) == (wire, "eof")
    assert not (tmp_path / "log").read_text()


@LOOP
def test_a_kept_connection_answers_again(loop: str, tmp_path: Path) -> None:
    """Each answer by its own framing, whatever the one before had."""
    apps = iter(
        [FRAMED[case][1] for case in ("no length", "length", "304 with a length", "no length", "204")]
    )
    wires = [FRAMED[case][2] for case in ("no length", "length", "304 with a length", "no length", "204")]

    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        await next(apps)(scope, receive, send)

    async def scenario() -> None:
        async with scraper(tmp_path / "log", app) as asking:
            for wire in wires:
                asking.writer.write(GET)
                assert await asking.reader.readexactly(len(wire)) == wire

    run(scenario, loop)


def test_a_request_body_is_not_waited_for(tmp_path: Path) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await sending(start(LENGTH), body(BODY))(scope, receive, send)

    request = GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 1000\r\n\r\nthe beginning")
    received, _ = answer_to(request, app, tmp_path / "log", "asyncio")
    assert received.endswith(b"Connection: close\r\n\r\nx 1\n")


# Cutting


def after(*messages: dict[str, Any], error: BaseException | None = None) -> Application:
    """An application that fails, or just returns, before its answer is complete."""

    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        await sending(*messages)(scope, receive, send)
        if messages:
            await asyncio.sleep(0.02)  # what was sent is to be on its way
        if error is not None:
            raise error

    return app


CUT: dict[str, tuple[Application, bool]] = {
    "returns without an answer": (after(), False),
    "returns half way": (after(start(LENGTH), body(b"x", True)), False),
    "aborts before it starts": (after(error=ResponseAborted()), False),
    "aborts half way": (after(start(LENGTH), body(b"x", True), error=ResponseAborted()), False),
    "aborts half way, chunked": (after(start(), body(b"x", True), error=ResponseAborted()), False),
    "is cancelled half way": (after(start(), body(b"x", True), error=asyncio.CancelledError()), False),
    "raises before it starts": (after(error=ValueError("oops")), True),
    "raises half way": (after(start(LENGTH), body(b"x", True), error=ValueError("oops")), True),
    "sends less than its length": (sending(start(LENGTH), body(b"x ", True), body(b"1")), True),
    "sends more than its length": (sending(start(LENGTH), body(b"x 1\n2", True), body()), True),
}


@LOOP
@pytest.mark.parametrize("case", CUT)
def test_an_incomplete_answer_is_cut(loop: str, case: str, tmp_path: Path) -> None:
    """Never ended as if it were whole; a defect is logged, an intended cut is not."""
    app, is_defect = CUT[case]
    received, _ = answer_to(GET, app, tmp_path / "log", loop)
    assert b"0\r\n\r\n" not in received
    assert not received.endswith((BODY, b"\r\n\r\n"))
    assert ("defect in exporter_proxy" in (tmp_path / "log").read_text()) == is_defect


@LOOP
def test_a_body_that_the_close_would_end_is_cut_by_a_reset(loop: str, tmp_path: Path) -> None:
    """HTTP/1.0 without a length: to the scraper an ordinary close means that it has everything."""
    app = after(start(), body(b"x", True), error=ResponseAborted())
    _, ended = answer_to(GET_10, app, tmp_path / "log", loop)
    assert ended == "reset"


# Waiting


@LOOP
def test_the_start_waits_for_the_body_and_goes_out_with_it(loop: str, tmp_path: Path) -> None:
    """Until then the status can still become an error; then it is one packet."""
    go_on = asyncio.Event()
    started = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        await send(start(LENGTH))
        started.set()
        await go_on.wait()
        await send(body(BODY))

    async def scenario() -> None:
        async with scraper(tmp_path / "log", app) as asking:
            asking.writer.write(GET)
            await started.wait()
            reading = asyncio.ensure_future(asking.reader.read(65536))
            done, _ = await asyncio.wait({reading}, timeout=0.05)
            assert not done
            go_on.set()
            assert await reading == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nx 1\n"

    run(scenario, loop)


@LOOP
def test_a_slow_scraper_is_waited_for_in_bounded_memory(loop: str, tmp_path: Path) -> None:
    part, count = b"x" * 65536, 320
    sent: list[int] = []

    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        await send(start((b"Content-Length", b"%d" % (len(part) * count))))
        for number in range(count):
            await send(body(part, number < count - 1))
            sent.append(connection_of[0].transport.get_write_buffer_size())

    connection_of: list[ScraperProtocol] = []

    async def scenario() -> None:
        async with scraper(tmp_path / "log", app) as asking:
            asking.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's stubs lack it
            await until(lambda: bool(asking.made.front.connections), "it is connected")
            connection_of.append(asking.connection)
            asking.writer.write(GET)
            await until(lambda: asking.connection.flow.write_paused, "the front is held up")
            seen = -1
            while seen != len(sent):  # until the front is stuck
                seen = len(sent)
                await asyncio.sleep(0.1)
            assert seen < count, "the front was never held up"
            assert asking.connection.transport.get_write_buffer_size() <= 3 * len(part)
            asking.writer.transport.resume_reading()  # type: ignore[attr-defined]  # asyncio's stubs lack it
            await asking.reader.readuntil(b"\r\n\r\n")
            received = await asking.reader.readexactly(len(part) * count)
            assert len(received) == len(part) * count
            assert max(sent) <= 3 * len(part)

    run(scenario, loop)


@LOOP
def test_a_scraper_that_leaves_while_it_is_waited_for(loop: str, tmp_path: Path) -> None:
    ended: list[BaseException] = []
    scopes: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
        scopes.append(scope)
        await send(start())
        try:
            while True:
                await send(body(b"x" * 65536, True))
        except BaseException as error:
            ended.append(error)
            raise

    async def scenario() -> None:
        async with scraper(tmp_path / "log", app) as asking:
            asking.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's stubs lack it
            asking.writer.write(GET)
            await until(lambda: bool(scopes), "it is asked")
            await until(lambda: asking.connection.flow.write_paused, "the front is held up")
            asking.writer.transport.abort()
            await until(lambda: bool(ended), "the application is told", 1.0)
            assert isinstance(ended[0], asyncio.CancelledError)
            assert scopes[0]["exchange"].client_gone
            await until(lambda: not asking.made.front.uvicorn_state.tasks, "its task ends")

    run(scenario, loop)
    assert not (tmp_path / "log").read_text()


@LOOP
def test_sending_after_the_scraper_left_says_so(loop: str, tmp_path: Path) -> None:
    """Between the connection's end and the cancellation that it brings."""
    told: list[BaseException] = []

    async def scenario() -> None:
        async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
            await send(start())
            asking.connection.transport.abort()
            try:
                await send(body(BODY))
            except ScraperGone as error:
                told.append(error)
                assert scope["exchange"].client_gone
                raise

        async with scraper(tmp_path / "log", app) as asking:
            asking.writer.write(GET)
            received, _ = await asking.read_to_end()
            assert received == b""

    run(scenario, loop)
    assert told
    assert not (tmp_path / "log").read_text()


@LOOP
def test_a_connection_that_is_shut_down_finishes_its_answer(loop: str, tmp_path: Path) -> None:
    async def scenario() -> tuple[bytes, str]:
        async def app(scope: dict[str, Any], receive: Any, send: Send) -> None:
            asking.connection.shutdown()
            await asyncio.sleep(0)
            await sending(start(LENGTH), body(BODY))(scope, receive, send)

        async with scraper(tmp_path / "log", app) as asking:
            asking.writer.write(GET)
            return await asking.read_to_end()

    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nx 1\n"
    assert run(scenario, loop) == (wire, "eof")
