"""An exporter with checksums: ``python -m tests.soak.exporter SEED --web.listen-address=HOST:PORT``.

Sizes, framing and compression change with each scrape. While the file ``broken`` is in its working directory,
all answers are broken ones, each in another way.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.soak.pages import SIZES_BYTES, page

BROKEN = Path("broken")
"""The file that makes it so."""
COPIES = 3
"""Pages of each size."""
GZIP_SHARE = 0.6
STALL_SECONDS = 5.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_TYPE = b"Content-Type: text/plain; version=0.0.4\r\n"


class Cut(Exception):
    """The connection is to end here; with a reset where ``is_reset``."""

    def __init__(self, is_reset: bool = False) -> None:
        super().__init__()
        self.is_reset = is_reset


class Exporter:
    """Pages, packed and plain, and how they are sent."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        plain = [page(size, self._chance) for size in SIZES_BYTES for _ in range(COPIES)]
        self._pages = [(text, gzip.compress(text, 1)) for text in plain]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All requests of one connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Cut as cut:
            if cut.is_reset:
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        finally:
            writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        plain, packed = self._chance.choice(self._pages)
        is_packed = b"gzip" in head and self._chance.random() < GZIP_SHARE
        body = packed if is_packed else plain
        headers = b"HTTP/1.1 200 OK\r\n" + _TYPE + (b"Content-Encoding: gzip\r\n" if is_packed else b"")
        is_chunked = self._chance.random() < 0.5
        if is_chunked:
            parts = _chunked(body, self._chance)
            whole = headers + b"Transfer-Encoding: chunked\r\n\r\n"
        else:
            parts = [body]
            whole = headers + b"Content-Length: %d\r\n\r\n" % len(body)
        if BROKEN.exists():  # noqa: ASYNC240 - it is right here
            await self._chance.choice(BREAKAGES)(writer, whole, b"".join(parts), self._chance)
        writer.write(whole)
        for part in parts:
            writer.write(part)
            await writer.drain()


def _chunked(body: bytes, chance: random.Random) -> list[bytes]:
    step = chance.randint(max(1, len(body) // 50), len(body))
    pieces = [body[start : start + step] for start in range(0, len(body), step)]
    return [*(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"]


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _close_in_body(
    writer: asyncio.StreamWriter, head: bytes, body: bytes, chance: random.Random
) -> None:
    await _send(writer, head + body[: chance.randrange(len(body))])
    raise Cut


async def _reset_in_body(
    writer: asyncio.StreamWriter, head: bytes, body: bytes, chance: random.Random
) -> None:
    await _send(writer, head + body[: chance.randrange(len(body))])
    raise Cut(is_reset=True)


async def _lack_the_end(
    writer: asyncio.StreamWriter, head: bytes, body: bytes, chance: random.Random
) -> None:
    """All but the very last byte: the smallest truncation that there is."""
    await _send(writer, head + body[:-1])
    raise Cut


async def _stall_in_body(
    writer: asyncio.StreamWriter, head: bytes, body: bytes, chance: random.Random
) -> None:
    await _send(writer, head + body[: chance.randrange(len(body))])
    await asyncio.sleep(STALL_SECONDS)
    raise Cut


async def _garbage(writer: asyncio.StreamWriter, head: bytes, body: bytes, chance: random.Random) -> None:
    await _send(writer, chance.randbytes(chance.randint(1, 2000)))
    raise Cut


async def _error(writer: asyncio.StreamWriter, head: bytes, body: bytes, chance: random.Random) -> None:
    await _send(writer, b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\nsorry")
    raise Cut


async def _reset_where_the_end_is_the_end(
    writer: asyncio.StreamWriter, head: bytes, body: bytes, chance: random.Random
) -> None:
    """Without a length only the way in which the connection ends tells a whole body from a part."""
    await _send(
        writer, b"HTTP/1.1 200 OK\r\n" + _TYPE + b"Connection: close\r\n\r\n" + body[: len(body) // 2]
    )
    await asyncio.sleep(0.05)
    raise Cut(is_reset=True)


BREAKAGES: list[Callable[[asyncio.StreamWriter, bytes, bytes, random.Random], Awaitable[None]]] = [
    _close_in_body,
    _reset_in_body,
    _lack_the_end,
    _stall_in_body,
    _garbage,
    _error,
    _reset_where_the_end_is_the_end,
]


async def _main(address: str, seed: int) -> None:
    host, _, port = address.rpartition(":")
    server = await asyncio.start_server(Exporter(seed).serve, host, int(port), limit=1 << 16)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[2].partition("=")[2], int(sys.argv[1])))
