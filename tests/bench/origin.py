"""An exporter that can do what nginx cannot: answer in chunks as Go's exporters do, or never answer.

Run as ``python -m tests.bench.origin PORT FILE``: ``/hang`` never answers, ``/held`` says how many
requests are waiting for it, and any other path is answered with the file, in chunks of 2 KiB. Its CPU
time is nobody's figure.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import ClassVar

from tests.bench.pages import chunked
from tests.bench.processes import LOOPBACK

CONTENT_TYPE = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
END_OF_HEAD = b"\r\n\r\n"


class Answering(asyncio.Protocol):
    """One connection. Requests have no body."""

    held: ClassVar[set[Answering]] = set()

    def __init__(self, page: bytes) -> None:
        self._page = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + CONTENT_TYPE + b"\r\n" + page
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._received = (self._received + data).split(END_OF_HEAD)
        for request in requests:
            path = request.split(b" ", 2)[1]
            if path == b"/hang":
                self.held.add(self)
            elif path == b"/held":
                count = b"%d" % len(self.held)
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(count)
                self._transport.write(head + CONTENT_TYPE + b"\r\n" + count)
            else:
                self._transport.write(self._page)

    def connection_lost(self, error: Exception | None) -> None:
        self.held.discard(self)


async def serve(port: int, page: bytes) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(page), LOOPBACK, port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), chunked(Path(sys.argv[2]).read_bytes())))
