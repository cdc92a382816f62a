"""A scripted exporter in the test's own event loop, for tests that look inside the daemon's parts.

``FakeExporter`` beside it is threads, for a daemon in a process of its own. This one shares loop and
process with the code under test, so that after a scrape every task and descriptor can be accounted for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Self, cast

READ_LIMIT_BYTES = 1 << 20


class Visit:
    """One connection made to the origin."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.requests: list[bytes] = []
        """The heads that came on this connection."""
        self.ended = asyncio.Event()
        """Set when the connection is gone, whoever ended it."""
        self._writer = writer

    async def send(self, *parts: bytes) -> None:
        """Write the parts one by one, each handed to the kernel before the next."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    def close(self) -> None:
        """End the connection properly, after what was sent."""
        self._writer.close()

    def reset(self) -> None:
        """End it at once; unread bytes are dropped."""
        cast(asyncio.Transport, self._writer.transport).abort()

    async def until_left(self) -> None:
        """Say nothing more until the other side closes."""
        await self.reader.read()


Answer = Callable[[Visit], Awaitable[None]]


class Origin:
    """Listens from ``async with`` on.

    The first answer is for the first request that comes, on whichever connection, and so on; the last
    one repeats.
    """

    def __init__(
        self, *answers: Answer, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.visits: list[Visit] = []
        self.tasks: set[asyncio.Task[object]] = set()
        """Those of the connections that are open."""
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._address = host, port
        self._tls = tls

    async def __aenter__(self) -> Self:
        host, port = self._address
        self._server = await asyncio.start_server(
            self._converse, host, port, ssl=self._tls, limit=READ_LIMIT_BYTES
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for visit in self.visits:
            visit.reset()
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/metrics"

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        visit = Visit(reader, writer)
        self.visits.append(visit)
        # However the code under test leaves (politely, by reset, in mid-handshake), it is not an error here.
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                visit.requests.append(head)
                self.requests.append(head)
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                await answer(visit)
        visit.close()
        visit.ended.set()
        # asyncio takes the error of a reset connection itself when its protocol goes. A collection of garbage
        # that comes upon both may let the error go first, as one that nobody took.
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.CancelledError):
            await writer.wait_closed()
        self.tasks.discard(task)


def response(
    body: bytes = b"", *headers: bytes, status: bytes = b"200 OK", length: int | None = None
) -> bytes:
    """A response whose length its head gives; ``headers`` are whole lines."""
    announced = len(body) if length is None else length
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % announced, *headers]
    return b"\r\n".join([*lines, b"", body])


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A response in chunks."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def say(*parts: bytes) -> Answer:
    """An answer that sends the parts and leaves the connection open."""

    async def answer(visit: Visit) -> None:
        await visit.send(*parts)

    return answer


def say_and_close(*parts: bytes) -> Answer:
    """An answer that ends the connection."""

    async def answer(visit: Visit) -> None:
        await visit.send(*parts)
        visit.close()

    return answer


async def hang(visit: Visit) -> None:
    """No answer at all."""
    await visit.until_left()


@contextlib.contextmanager
def unanswering(host: str, port: int) -> Iterator[None]:
    """An address whose accept queue is full: connecting to it hangs, as behind a dropping firewall."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield
