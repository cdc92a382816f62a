"""One connection to an exporter: writes a request, reads a response, strictly framed.

httptools (llhttp) parses the head and chunked bodies. A body whose length the head gives, or
that lasts until the connection closes, bypasses the parser: its bytes are passed on as they
were received. What a scrape may last or weigh is for others to say; here, reading pauses
when nobody takes what was read.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections import deque
from collections.abc import Awaitable
from typing import cast

import httptools

from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.upstreams import strangers
from exporter_proxy.upstreams.strangers import HTTP_START, begins_like_http
from exporter_proxy.upstreams.tls import NO_PROPER_END, Tls, hand_over_rest

READ_AHEAD_BYTES = 256 * 1024
"""More than this unread: reading from the exporter pauses."""
MAX_HEAD_BYTES = 64 * 1024
"""Headers of all interim responses and of the final one together."""
MAX_LENGTH_DIGITS = 64
"""Of a Content-Length, which has 19 digits at most and may have zeros ahead of them."""

_CLOSE_DELIMITED = sys.maxsize
_END_OF_HEAD = b"\r\n\r\n"

Chunk = bytes | memoryview
"""A part of a body. A view where a copy would be made of what was read with the headers."""


class UpstreamConnection(asyncio.Protocol):
    """A connection that carries one scrape at a time.

    ``backend`` is ``host:port`` for messages. After ``ask`` the attributes ``status``,
    ``headers`` and ``content_length`` describe the response.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, backend: str, tls: Tls | None = None) -> None:
        self.closed = False
        self.idle_since = 0.0
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.content_length: int | None = None
        self._loop = loop
        self._backend = backend
        self._tls = tls
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[Chunk] = deque()
        self._pieces: list[bytes] = []
        self._buffered_bytes = 0
        self._body_bytes = 0
        self._unparsed_bytes = 0
        self._head_bytes = 0
        self._fruitless_bytes = 0
        self._transfer_encoding = b""
        self._is_paused = False
        self._is_head_request = False
        self._is_head_complete = False
        self._is_complete = True
        self._is_reusable = True
        self._error: ScrapeError | None = None

    @property
    def is_reusable(self) -> bool:
        """Whether the next request may go out on this connection."""
        return (
            self._is_complete
            and self._is_reusable
            and not self._chunks  # the next scrape would begin with the rest of this one
            and not self.closed
            and self._error is None
        )

    @property
    def is_exhausted(self) -> bool:
        """Whether the response is complete and all of it was taken."""
        return self._is_complete and not self._chunks

    @property
    def has_answered(self) -> bool:
        """Whether any byte came since the request was written."""
        return self._head_bytes > 0

    def ask(self, head: bytes, is_head_request: bool) -> Awaitable[None]:
        """Write a request; what is returned waits for the final response's headers.

        Both raise ScrapeError: ``connect`` where the connection ends first, ``protocol`` where it
        is not valid HTTP/1, ``too_large`` where the headers are.
        """
        self._begin(head, is_head_request)
        return self._until_head()  # as a coroutine this would be one frame more in every scrape

    def _begin(self, head: bytes, is_head_request: bool) -> None:
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers = []
        self.content_length = None
        self._transfer_encoding = b""
        self._body_bytes = self._head_bytes = self._fruitless_bytes = 0
        self._is_head_request = is_head_request
        self._is_head_complete = self._is_complete = False
        if self._error is not None:
            raise self._error
        if self.closed:
            raise self._ended_before_head(None)
        self._transport.write(head)

    async def _until_head(self) -> None:
        while not self._is_head_complete and self._error is None:
            await self._wait()
        if not self._is_head_complete and self._error is not None:
            raise self._error

    async def next_chunk(self) -> Chunk | None:
        """The next received part of the body, or ``None`` at its proper end.

        Raises ScrapeError: ``truncated`` where the connection ends or the framing breaks first.
        """
        while True:
            if self._chunks:
                chunk = self._chunks.popleft()
                self._buffered_bytes -= len(chunk)
                if self._is_paused and not self._chunks and not self.closed:
                    self._is_paused = False
                    self._transport.resume_reading()
                return chunk
            if self._error is not None:
                raise self._error
            if self._is_complete:
                return None
            await self._wait()

    def abort(self) -> None:
        """Close now, whatever is under way."""
        self._is_reusable = False
        self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._unparsed_bytes:
            self._take_unparsed(data)
        elif self._is_complete:
            # Nothing was asked: what an exporter says unasked must not answer the next scrape.
            if not self.status:
                self._fail_protocol("spoke before it was asked")
            self.abort()
        else:
            self._parse(data)
        self._wake()

    def eof_received(self) -> bool:
        """Called by the event loop; the exporter will send no more, so the connection closes."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self.closed = True
        has_said_all = error is None
        if self._tls is not None and has_said_all and not self._is_complete and self._error is None:
            # uvloop drops it where the connection ends while reading is paused. RFC 9112 section 9.8: only a
            # close_notify makes a body whole that lasts until the connection closes.
            has_said_all = hand_over_rest(self._transport.get_extra_info("ssl_object"), self.data_received)
        if not self._is_complete and self._error is None:
            if not self._is_head_complete:
                self._error = self._ended_before_head(error)
            elif self._unparsed_bytes and self.content_length is None and has_said_all:
                self._unparsed_bytes = 0
                self._is_complete = True
            else:
                self._error = self._truncated("reset" if error else "closed")
        self._parser = None
        self._wake()

    def _ended_before_head(self, error: Exception | None) -> ScrapeError:
        if error is None and self._head_bytes:
            return ScrapeError(
                Reason.PROTOCOL, f"{self._backend} closed the connection inside its response headers"
            )
        if self._tls is not None and isinstance(error, ssl.SSLError):
            # In TLS 1.3 a client certificate is judged after the handshake (RFC 8446 section 4.4.2.4).
            return ScrapeError(Reason.CONNECT, self._tls.failure(self._backend, error))
        how = "reset" if error else "closed"
        guess = self._tls.advice_after_reset if self._tls is not None else ""
        return ScrapeError(
            Reason.CONNECT,
            f"{self._backend} {how} the connection before it answered; {guess}see the exporter's own log",
        )

    def _truncated(self, how: str) -> ScrapeError:
        of = f" of {self.content_length}" if self.content_length is not None else ""
        is_of_unknown_length = self._unparsed_bytes and self.content_length is None
        advice = NO_PROPER_END if is_of_unknown_length and how == "closed" else "see its own log"
        return ScrapeError(
            Reason.TRUNCATED,
            f"{self._backend} {how} the connection after {self._body_bytes}{of} body bytes; {advice}",
        )

    def _take_unparsed(self, data: Chunk) -> None:
        size = len(data)
        if size > self._unparsed_bytes:
            data = data[: self._unparsed_bytes]
            size = self._unparsed_bytes
            self._is_reusable = False
        self._unparsed_bytes -= size
        self._push(data)
        if not self._unparsed_bytes:
            self._is_complete = True

    def _parse(self, data: bytes) -> None:
        if self._parser is None or self._error is not None:
            return
        at = 0 if self._is_head_complete else self._parse_heads(data)
        if not self._is_head_complete:
            return
        if self._is_complete:
            if at < len(data):
                self._is_reusable = False  # a proper response, then something unasked
        elif self._transfer_encoding:
            self._feed(data[at:] if at else data)
            self._mind_what_is_no_body(len(data) - at)
        else:
            # From here on the length says it all: no parser, no copy.
            self._pass_on_pieces()
            length = _CLOSE_DELIMITED if self.content_length is None else self.content_length
            self._unparsed_bytes = length - self._body_bytes
            self._parser = None
            if at < len(data):
                self._take_unparsed(memoryview(data)[at:])
            return
        self._pass_on_pieces()

    def _parse_heads(self, data: bytes) -> int:
        """Parse interim heads and the final one; how much of ``data`` they took.

        A head is given to the parser alone, since what follows one would come back as a copy.
        Where its end is spread over two reads, the parser takes the rest of the second.
        """
        at = 0
        while at < len(data) and not self._is_head_complete and self._error is None:
            end = data.find(_END_OF_HEAD, at) + len(_END_OF_HEAD)
            is_whole = end >= at + len(_END_OF_HEAD)
            part = data[at:end] if is_whole else data[at:]
            starts_well = self._head_bytes >= len(HTTP_START) or begins_like_http(part, self._head_bytes)
            self._head_bytes += len(part)
            if not starts_well:
                self._fail_protocol(strangers.described(data))
                break
            self._feed(part)
            at += len(part)
            if self._head_bytes > MAX_HEAD_BYTES and (is_whole or not self._is_head_complete):
                self._is_head_complete = False
                self._fail_too_large("response headers")
        return at

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        assert parser is not None
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if parser.get_status_code() == 101:
                self._fail_protocol("answered 101 Switching Protocols unasked")
            elif self._is_complete:
                self._is_reusable = False  # a proper response, then garbage
            elif self._is_head_complete:
                self._error = ScrapeError(
                    Reason.TRUNCATED,
                    f"{self._backend} sent a malformed chunk after {self._body_bytes} body bytes: {error}",
                )
            else:
                self._fail_protocol(f"does not answer in HTTP: {error}")

    def _pass_on_pieces(self) -> None:
        """One part of the body for all that the parser found in one read."""
        if self._pieces:
            self._push(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
            self._pieces.clear()

    def _mind_what_is_no_body(self, size: int) -> None:
        """Chunk extensions and trailers: nobody gets them, so they may not go on for ever."""
        if self._pieces:
            self._fruitless_bytes = 0
        elif not self._is_complete:
            self._fruitless_bytes += size
            if self._fruitless_bytes > MAX_HEAD_BYTES and self._error is None:
                self._fail_too_large("chunk extensions or trailers")

    def _push(self, data: Chunk) -> None:
        self._chunks.append(data)
        self._buffered_bytes += len(data)
        self._body_bytes += len(data)
        if self._buffered_bytes > READ_AHEAD_BYTES and not self._is_paused and not self.closed:
            self._is_paused = True
            self._transport.pause_reading()

    def _fail_protocol(self, problem: str) -> None:
        self._is_reusable = False
        self._error = ScrapeError(Reason.PROTOCOL, f"{self._backend} {problem}; is it an exporter's port?")

    def _fail_too_large(self, what: str) -> None:
        self._is_reusable = False
        self._error = ScrapeError(
            Reason.TOO_LARGE, f"{self._backend} sent {what} of more than {MAX_HEAD_BYTES} bytes"
        )

    # httptools callbacks. Nothing is raised in them: llhttp would go on in an undefined state.

    def on_message_begin(self) -> None:
        """A response begins; after a complete one it is unasked for."""
        if self._is_complete:
            self._is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        if self._is_head_complete:  # a trailer; RFC 9110 section 6.5.1 has it dropped unless understood
            return
        self.headers.append((name, value))
        size = len(name)
        if size == 14 and name.lower() == b"content-length":
            if len(value) > MAX_LENGTH_DIGITS:  # zeros ahead; Python refuses to read them
                self._fail_protocol(f"sent a Content-Length of {len(value)} characters")
                return
            self.content_length = int(value)  # llhttp has seen to it that this is one number
        elif size == 17 and name.lower() == b"transfer-encoding":
            # Blanks only: behind a tab llhttp takes "chunked" for a coding it does not know.
            coding = value.strip(b" ").lower()
            self._transfer_encoding += b"," + coding if self._transfer_encoding else coding

    def on_headers_complete(self) -> None:
        """The head is complete: an interim response is swallowed, a final one is judged."""
        parser = self._parser
        if self._is_complete or parser is None or self._error is not None:
            return
        status = parser.get_status_code()
        if status == 101:
            self._fail_protocol("answered 101 Switching Protocols unasked")
            return
        if 100 <= status < 200:
            self.headers = []
            self.content_length = None
            self._transfer_encoding = b""
            return
        version = parser.get_http_version()
        if version not in ("1.1", "1.0") or not 200 <= status < 600:
            self._fail_protocol(f"answered HTTP/{version} {status}")
        elif self._transfer_encoding and (self._transfer_encoding != b"chunked" or version == "1.0"):
            # RFC 9112 section 6.1: an unknown coding cannot be passed on; in HTTP/1.0 it is faulty framing.
            self._fail_protocol("answered with a Transfer-Encoding other than chunked")
        else:
            self.status = status
            self._is_head_complete = True
            if self._is_head_request:
                # llhttp cannot know that no body follows, so this connection is not used again.
                self._is_complete = True
                self._is_reusable = False
            elif not parser.should_keep_alive():
                self._is_reusable = False

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._is_head_complete and not self._is_complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The end of a message, interim ones included."""
        if self._is_head_complete:
            self._is_complete = True
