"""One request and its response on a scraper's connection: the ASGI ``receive`` and ``send``.

In place of uvicorn's own cycle, for what that cannot do: HTTP/1.0 answers without chunked
framing, 304 with a Content-Length, a body written without being copied into its framing,
and a scraper that leaves, which cancels the scrape instead of being told on request.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, MutableMapping
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from exporter_proxy.front.answers import AddedHeaders
from exporter_proxy.observe.daemonlog import DaemonLog
from exporter_proxy.observe.exchange import Exchange

Message = MutableMapping[str, Any]

WRITE_BYTES = 256 * 1024
"""Of a body at once: TLS encrypts all that it is given, which holds up scrapes and stays for who is slow."""


class ResponseAborted(Exception):
    """Raised by the application once headers are out and the body cannot be ended properly.

    The connection is cut, so that the scraper sees an error and never a complete page.
    """


class ScraperGone(Exception):
    """Raised by ``send`` where the connection closed between the scraper's leaving and its being told."""


def parts_writer(
    transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
) -> Callable[[list[bytes]], None]:
    """How several parts are written at once.

    asyncio's own ``writelines`` pauses nobody from Python 3.12 on, and a scraper that does not read would
    have all of an answer taken into memory; before that it joined them, too. uvloop's is as it should be.
    """
    if isinstance(loop, asyncio.BaseEventLoop):
        return lambda parts: transport.write(b"".join(parts))
    return transport.writelines


class Cycle:
    """Made when a request's headers are complete; ``keep_alive`` may be withdrawn until it answers."""

    __slots__ = (
        "_added_headers",
        "_done",
        "_flow",
        "_has_begun",
        "_head",
        "_is_cancelled",
        "_is_chunked",
        "_is_close_delimited",
        "_left_bytes",
        "_log",
        "_sends_body",
        "_transport",
        "_write",
        "exchange",
        "head_bytes",
        "is_complete",
        "keep_alive",
        "scope",
        "task",
    )

    def __init__(
        self,
        scope: dict[str, Any],
        exchange: Exchange,
        transport: asyncio.Transport,
        write: Callable[[list[bytes]], None],
        flow: FlowControl,
        keep_alive: bool,
        done: Callable[[Cycle], None],
        log: DaemonLog,
        added_headers: AddedHeaders | None,
    ) -> None:
        self.scope = scope
        self.exchange = exchange
        self.keep_alive = keep_alive
        self.head_bytes = 0
        """What its headers take in memory, roughly."""
        self._head = b""
        self.is_complete = False
        self.task: asyncio.Task[None] | None = None
        self._transport = transport
        self._write = write
        self._flow = flow
        self._done = done
        self._log = log
        self._added_headers = added_headers
        self._is_chunked = False
        self._is_close_delimited = False
        self._sends_body = True
        self._left_bytes = 0
        self._has_begun = False
        self._is_cancelled = False

    def cancel(self) -> None:
        """End what ``run`` does.

        A task that is cancelled before its first step takes none at all: the request would be recorded
        nowhere, and the task be waited for at every stop. So ``run`` begins, and then ends.
        """
        self._is_cancelled = True
        if self._has_begun and self.task is not None:
            self.task.cancel()

    async def run(self, app: Callable[..., Any]) -> None:
        """Have ``app`` answer; an answer that it does not complete is cut off."""
        self._has_begun = True
        if self._is_cancelled and self.task is not None:
            self.task.cancel()
        try:
            await app(self.scope, self.receive, self.send)
        except (ResponseAborted, ScraperGone, asyncio.CancelledError):
            pass
        except Exception as error:
            self._log.defect(error)
        if not self.is_complete:
            self.keep_alive = False
            self._cut()
        self._done(self)

    async def receive(self) -> Message:
        """ASGI: request bodies are never read, so there is nothing more to come."""
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        """ASGI: the response's start, then its body; waits while the scraper does not read.

        The start is written together with what follows it, in one system call.
        """
        if message["type"] == "http.response.start":
            self._head = self._make_head(message["status"], message["headers"])
            return
        body: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        if len(body) > WRITE_BYTES and self._sends_body:
            body = await self._send_all_but_the_end(body)
        parts = [self._head] if self._head else []
        self._head = b""
        if self._sends_body:
            if not self._is_chunked:
                self._count(len(body), is_last)
                parts.append(body)
            else:
                if body:
                    parts += (b"%x\r\n" % len(body), body, b"\r\n")
                if is_last:
                    parts.append(b"0\r\n\r\n")
        if self._transport.is_closing():
            self.exchange.client_gone = True
            raise ScraperGone
        self._write(parts)
        if self._flow.write_paused:
            await self._flow.drain()
        self.is_complete = is_last

    async def _send_all_but_the_end(self, body: bytes) -> bytes:
        """Send what is more than can be written at once; the rest."""
        rest = memoryview(body)
        while len(rest) > WRITE_BYTES:
            await self.send({"type": "http.response.body", "body": rest[:WRITE_BYTES], "more_body": True})
            rest = rest[WRITE_BYTES:]
        return cast(bytes, rest)  # a view will do: it is only passed on

    def _count(self, size: int, is_last: bool) -> None:
        if self._is_close_delimited:
            return
        self._left_bytes -= size
        if self._left_bytes < 0 or (is_last and self._left_bytes):
            raise RuntimeError("the body is not as long as its Content-Length")

    def _make_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        scope = self.scope
        parts = [STATUS_LINE[status]]
        if self._added_headers is not None:
            parts.append(self._added_headers.wire)
            headers = self._added_headers.others(headers)
        length: int | None = None
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            if len(name) == 14 and name.lower() == b"content-length":
                length = int(value)
        self._sends_body = scope["method"] != "HEAD" and status not in (204, 304)
        if length is not None:
            self._left_bytes = length
        elif self._sends_body:
            if scope["http_version"] == "1.1":
                self._is_chunked = True
                parts.append(b"Transfer-Encoding: chunked\r\n")
            else:
                # RFC 9112 section 6.3: an HTTP/1.0 client reads until the connection closes.
                self._is_close_delimited = True
                self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"Connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)

    def _cut(self) -> None:
        if self._is_close_delimited:
            _reset_on_close(self._transport)
        self._transport.abort()


def _reset_on_close(transport: asyncio.Transport) -> None:
    """Have the close send a reset: an ordinary close is how such a body ends properly."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
