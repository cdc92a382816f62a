"""Clients that mean no good, or do not know better: ``python -m tests.soak.hostile PORT SEED PATH...``.

Some at once, each doing one thing after the other until standard input ends. Their addresses are their own,
so that the access log tells them from everyone else. At the end it prints how often each did what.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.soak.certificates import HOST, PASSWORD, USER
from tests.soak.site import HOSTILE, STRANGER

CLIENTS = 6
PAUSE_SECONDS = 1.0
PATIENCE_SECONDS = 6.0
TIMEOUT = b"X-Prometheus-Scrape-Timeout-Seconds: 2\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Peer:
    """One connection to the daemon, and what chance has for it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    chance: random.Random
    path: bytes

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def request(self, *, path: bytes = b"", password: str = PASSWORD, more: bytes = TIMEOUT) -> bytes:
        shown = b64encode(f"{USER}:{password}".encode())
        head = b"GET %b HTTP/1.1\r\nHost: soak.test\r\nAuthorization: Basic %b\r\n" % (
            path or self.path,
            shown,
        )
        return head + more + b"\r\n"

    async def read_all(self) -> None:
        while await self.reader.read(1 << 16):
            pass

    def reset(self) -> None:
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


async def slow_head(peer: Peer) -> None:
    for byte in peer.request():
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.05)


async def silence(peer: Peer) -> None:
    await peer.read_all()


async def garbage(peer: Peer) -> None:
    await peer.send(peer.chance.randbytes(peer.chance.randint(1, 5000)))
    await peer.read_all()


async def huge_head(peer: Peer) -> None:
    await peer.send(peer.request(more=b"X-Much: " + b"x" * peer.chance.randint(30_000, 200_000) + b"\r\n"))
    await peer.read_all()


async def many_headers(peer: Peer) -> None:
    await peer.send(peer.request(more=b"a: b\r\n" * peer.chance.randint(100, 3000)))
    await peer.read_all()


async def wrong_password(peer: Peer) -> None:
    await peer.send(peer.request(password=f"guess {peer.chance.random()}"))
    await peer.reader.readuntil(b"\r\n\r\n")


async def odd_path(peer: Peer) -> None:
    odd = [
        b"/nobody/metrics",
        b"//metrics",
        b"/../etc/passwd",
        b"/%00",
        b"/" + b"x" * 3000,
        b"*",
        b"/metrics/\xff",
    ]
    await peer.send(peer.request(path=peer.chance.choice(odd)))
    await peer.reader.read(1000)


async def leave_before_the_answer(peer: Peer) -> None:
    await peer.send(peer.request())
    if peer.chance.random() < 0.5:
        peer.reset()


async def leave_in_the_body(peer: Peer) -> None:
    await peer.send(peer.request())
    await peer.reader.read(peer.chance.randint(1, 5000))
    if peer.chance.random() < 0.5:
        peer.reset()


async def never_read(peer: Peer) -> None:
    """Until the scrape's own deadline has passed."""
    await peer.send(peer.request())
    await asyncio.sleep(3.0)


async def ahead(peer: Peer) -> None:
    """Requests ahead of their answers."""
    await peer.send(peer.request() * peer.chance.randint(2, 20))
    await peer.reader.read(1000)


async def half_a_request(peer: Peer) -> None:
    whole = peer.request()
    await peer.send(whole[: peer.chance.randrange(len(whole))])
    if peer.chance.random() < 0.5:
        peer.reset()


async def body(peer: Peer) -> None:
    await peer.send(peer.request(more=b"Content-Length: 100000\r\n") + peer.chance.randbytes(1000))
    await peer.reader.read(1000)


async def half_closed(peer: Peer) -> None:
    """Without TLS: what is half-closed there is the handshake."""
    await peer.send(peer.chance.randbytes(10))
    peer.writer.write_eof()
    await peer.read_all()


async def no_tls(peer: Peer) -> None:
    await peer.send(peer.request())
    await peer.read_all()


OVER_TLS: list[Callable[[Peer], Awaitable[None]]] = [
    *(
        slow_head,
        silence,
        garbage,
        huge_head,
        many_headers,
        wrong_password,
        odd_path,
        leave_before_the_answer,
    ),
    *(leave_in_the_body, never_read, ahead, half_a_request, body),
]
PLAIN: list[Callable[[Peer], Awaitable[None]]] = [half_closed, no_tls, garbage, silence]


class Hostile:
    """All clients, and what they have done."""

    def __init__(self, port: int, seed: int, paths: list[bytes]) -> None:
        self._port = port
        self._chance = random.Random(seed)
        self._paths = paths
        self._tls = ssl.create_default_context()
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self.done: Counter[str] = Counter()

    async def client(self) -> None:
        while True:
            await asyncio.sleep(self._chance.random() * 2 * PAUSE_SECONDS)
            is_plain = self._chance.random() < 0.2
            act = self._chance.choice(PLAIN if is_plain else OVER_TLS)
            source = STRANGER if self._chance.random() < 0.05 else HOSTILE
            self.done[act.__name__] += 1
            try:
                await asyncio.wait_for(
                    self._act(act, None if is_plain else self._tls, source), PATIENCE_SECONDS
                )
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):  # a timeout included
                pass

    async def _act(
        self, act: Callable[[Peer], Awaitable[None]], tls: ssl.SSLContext | None, source: str
    ) -> None:
        reader, writer = await asyncio.open_connection(
            HOST, self._port, ssl=tls, local_addr=(source, 0), limit=4096
        )
        try:
            await act(Peer(reader, writer, self._chance, self._chance.choice(self._paths)))
        finally:
            writer.close()


async def _main(port: int, seed: int, paths: list[str]) -> None:
    hostile = Hostile(port, seed, [path.encode() for path in paths])
    loop = asyncio.get_running_loop()
    # What a connection does at its end, cut off as it is, is nobody's business here.
    loop.set_exception_handler(lambda loop, context: None)
    clients = [loop.create_task(hostile.client()) for _ in range(CLIENTS)]
    await loop.run_in_executor(None, sys.stdin.read)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    for name, times in sorted(hostile.done.items()):
        print(name, times)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
