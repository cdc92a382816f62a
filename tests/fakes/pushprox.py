"""A stand-in for the PushProx proxy: its side of the protocol, as observed, in a process of its own.

    python -m tests.fakes.pushprox 127.0.0.1:0 [--prefix /p] [--tls both.pem] [--client-ca ca.pem]
                                   [--authorization "Bearer x"] [--max-push-bytes N] [--cut-pushes]

Like the original it holds polls without a limit, does not notice a poller that is gone, gives one poll to
each scrape, evicts a waiting poll when a newer one comes (408), routes by host name without the port, and
keeps every answer in memory until it is whole. ``GET /clients`` lists who has polled; ``GET /recorded``,
which the original has not, tells what it was sent. The options stand for what is often put in front of
it. The first line that it prints is its port.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import ssl
import uuid
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

DEFAULT_SECONDS, MAX_SECONDS = 15.0, 300.0
TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"
Headers = list[tuple[str, str]]


@dataclass
class Message:
    """A request here, or a response inside a push."""

    first_line: str
    headers: Headers
    body: bytes = b""

    def get(self, name: str, default: str = "") -> str:
        return next((value for found, value in self.headers if found.lower() == name), default)

    @property
    def timeout_seconds(self) -> float:
        try:
            return min(float(self.get(TIMEOUT_HEADER)), MAX_SECONDS)
        except ValueError:
            return DEFAULT_SECONDS


@dataclass
class Scrape:
    raw: bytes
    id: str
    answer: asyncio.Future[Message]


@dataclass
class Host:
    """One FQDN: scrapes that wait for a poll, and the poll that waits for a scrape."""

    scrapes: deque[Scrape] = field(default_factory=deque)
    poll: asyncio.Future[Scrape | None] | None = None


def parse(raw: bytes) -> Message:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return Message(first, [(name, value.strip()) for name, _, value in pairs], body)


def formatted(status: str, headers: Headers, body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def text(status: str, body: str) -> bytes:
    return formatted(status, [("Content-Length", str(len(body.encode())))], body.encode())


class Proxy:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._hosts: dict[str, Host] = {}
        self._scrapes: dict[str, Scrape] = {}
        self._recorded: list[dict[str, object]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                request = parse(await reader.readuntil(b"\r\n\r\n"))
                if self._options.cut_pushes and "/push " in request.first_line:
                    await reader.readexactly(1)
                    break
                request.body = await reader.readexactly(int(request.get("content-length", "0")))
                writer.write(await self._answer(request))
                await writer.drain()
        writer.close()

    async def _answer(self, request: Message) -> bytes:
        method, target, _ = request.first_line.split(" ")
        if "://" in target:
            return await self._scrape(request, target)
        if target == "/recorded":
            return text("200 OK", json.dumps(self._recorded))
        path = target.removeprefix(self._options.prefix) if target.startswith(self._options.prefix) else ""
        self._recorded.append(
            {"path": target, "headers": request.headers, "body": request.body.decode("latin-1")}
        )
        wanted = self._options.authorization
        if wanted and request.get("authorization") != wanted:
            return text("401 Unauthorized", "no\n")
        if len(request.body) > self._options.max_push_bytes:
            return text("413 Request Entity Too Large", "no\n")
        match method, path:
            case "POST", "/poll":
                return await self._poll(request.body.decode().strip())
            case "POST", "/push":
                return await self._push(parse(request.body))
            case "GET", "/clients":
                return text(
                    "200 OK", json.dumps([{"targets": [name], "labels": None} for name in self._hosts])
                )
        return text("404 Not Found", "404: not found\n")

    async def _poll(self, fqdn: str) -> bytes:
        host = self._hosts.setdefault(fqdn, Host())
        if host.poll is not None and not host.poll.done():
            host.poll.set_result(None)
        scrape: Scrape | None = None
        while host.scrapes and (scrape is None or scrape.answer.done()):
            scrape = host.scrapes.popleft()
        if scrape is None or scrape.answer.done():
            host.poll = asyncio.get_running_loop().create_future()
            scrape = await host.poll
        if scrape is None:
            return text("408 Request Timeout", "Error WaitForScrapeInstruction: request is expired\n")
        return formatted("200 OK", [("Content-Length", str(len(scrape.raw)))], scrape.raw)

    async def _push(self, answer: Message) -> bytes:
        scrape = self._scrapes.pop(answer.get("id"), None)
        if scrape is None or scrape.answer.done():
            await asyncio.sleep(answer.timeout_seconds)
            return text("500 Internal Server Error", "Error pushing: context deadline exceeded\n")
        scrape.answer.set_result(answer)
        return text("200 OK", "")

    async def _scrape(self, request: Message, target: str) -> bytes:
        """A scraper's request in absolute form, which waits for a poll and then for a push."""
        host = self._hosts.setdefault(urlsplit(target).hostname or "", Host())
        # Appended, whatever the scraper sent by that name.
        request.headers.append(("Id", str(uuid.uuid4())))
        raw = formatted("", request.headers, b"").partition(b"\r\n")[2]
        scrape = Scrape(
            f"{request.first_line}\r\n".encode("latin-1") + raw,
            request.headers[-1][1],
            asyncio.get_running_loop().create_future(),
        )
        self._scrapes[scrape.id] = scrape
        if host.poll is not None and not host.poll.done():
            host.poll.set_result(scrape)
        else:
            host.scrapes.append(scrape)
        try:
            async with asyncio.timeout(request.timeout_seconds):
                answer = await asyncio.shield(scrape.answer)
        except TimeoutError:
            scrape.answer.cancel()
            return text(
                "500 Internal Server Error", f"Error scraping {target!r}: context deadline exceeded\n"
            )
        # All but two are copied as they are: what would harm the scraper's connection must not be pushed.
        kept = [pair for pair in answer.headers if pair[0].lower() not in ("id", TIMEOUT_HEADER)]
        return formatted(answer.first_line.partition(" ")[2], kept, answer.body)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--tls")
    parser.add_argument("--client-ca")
    parser.add_argument("--authorization", default="")
    parser.add_argument("--max-push-bytes", type=int, default=1 << 40)
    parser.add_argument("--cut-pushes", action="store_true")
    options = parser.parse_args()
    context = None
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls)
        if options.client_ca:
            context.load_verify_locations(options.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    host, _, port = options.address.rpartition(":")
    server = await asyncio.start_server(Proxy(options).serve, host, int(port), ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
