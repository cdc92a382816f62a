"""HTTP as bytes on a socket, from the scraper's side.

``Wire`` sends exactly what it is given and reads one answer at a time. ``Reply`` says what came:
h11, an implementation independent of the daemon's own, judges whether the answer is valid and whether
it was ended cleanly or cut.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field
from typing import Self

import h11

from tests.stalls import stalled_since

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
ERROR_HEADER = "x-exporter-proxy-error"
CONNECTION_CLOSE = ("Connection", "close")


def request(
    target: str,
    *headers: tuple[str, str],
    method: str = "GET",
    version: str = "1.1",
    host: str | None = "proxy.test",
    body: bytes = b"",
) -> bytes:
    """A request as it is written here, nothing added but a Host (``None``: not even that)."""
    lines = [f"{method} {target} HTTP/{version}"]
    lines += [f"Host: {host}"] if host is not None else []
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


@dataclass(frozen=True)
class Reply:
    """One answer. Where ``ended`` is not "complete" the body is what came until then."""

    raw: bytes = field(repr=False)
    status: int
    version: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, in the order of arrival, repetitions kept."""
    body: bytes
    ended: str
    """``complete``: as its framing says; ``eof`` or ``reset``: cut in that way.

    An end of TLS without close_notify counts as a reset: it may be anybody's doing.
    """
    informational: tuple[int, ...]
    """Statuses of the 1xx responses that came first."""
    head_after_seconds: float
    ended_after_seconds: float
    """Both counted from the last ``send``."""
    stalled_seconds: float = 0.0
    """For how much of that nothing ran here: bounds on it allow for that."""

    @property
    def took_seconds(self) -> float:
        """``ended_after_seconds`` without those, for bounds from above alone."""
        return self.ended_after_seconds - self.stalled_seconds

    @property
    def complete(self) -> bool:
        return self.ended == "complete"

    @property
    def error(self) -> str | None:
        return self.header(ERROR_HEADER)

    def get_all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of a header that may occur once at most."""
        values = self.get_all(name)
        assert len(values) <= 1, f"{name} occurs {len(values)} times: {values}"
        return values[0] if values else None

    def expect_ok(self, body: bytes | None = None) -> Self:
        assert (self.status, self.error, self.ended) == (200, None, "complete"), self
        assert body is None or self.body == body
        return self

    def expect_refusal(self, status: int, reason: str, exporter: str | None = None) -> Self:
        """An error answer of the daemon's own: status, reason and one line for the person with curl.

        ``exporter`` is the name that a failed scrape's line must carry.
        """
        assert (self.status, self.error, self.ended) == (status, reason, "complete"), self
        assert (self.header("content-type") or "").startswith("text/plain"), self
        line = self.body.decode()
        assert line.startswith(f"exporter_proxy: {exporter}: " if exporter else "exporter_proxy: "), line
        assert line.endswith("\n"), line
        assert line.count("\n") == 1, line
        assert len(line) > len("exporter_proxy: ") + len(exporter or "") + 12, f"says too little: {line}"
        return self

    def expect_cut(self, *, status: int = 200) -> Self:
        """Aborted after its headers: whoever reads it sees an unexpected end."""
        assert self.status == status, self
        assert not self.complete, f"a truncated body was ended cleanly: {self}"
        return self


class Wire:
    """One connection to the daemon."""

    def __init__(
        self,
        address: tuple[str, int] | str,
        *,
        source: str | None = None,
        receive_buffer_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = 15.0,
    ) -> None:
        """``address`` is host and port, or the path of a unix socket."""
        is_unix = isinstance(address, str)
        host = "localhost" if is_unix else address[0]
        family = socket.AF_UNIX if is_unix else socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(timeout_seconds)
        if not is_unix:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        if source is not None:
            self.sock.bind((source, 0))
        try:
            self.sock.connect(address)
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname=host, suppress_ragged_eofs=False)
        except OSError:
            self.sock.close()
            raise
        self.sent_at = time.monotonic()
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Leave with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()

    def send(self, data: bytes) -> Self:
        self.sent_at = time.monotonic()
        self.sock.sendall(data)
        return self

    def exchange(self, data: bytes) -> Reply:
        """Send a request and read its answer."""
        return self.send(data).read_reply("HEAD" if data.startswith(b"HEAD ") else "GET")

    def read_head(self) -> bytes:
        """Read until the final answer's headers are here, and leave them for ``read_reply``."""
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            data = self._receive()
            assert data, f"closed before the headers were complete: {received!r}"
            received += data
        self._unread = received
        return received[: end + 4]

    def read_reply(self, method: str = "GET") -> Reply:
        """Read one answer to a request with this method, however it ends.

        Raises h11.RemoteProtocolError where the answer is not valid HTTP, ConnectionError where the
        connection ended without any answer.
        """
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "proxy.test")]))
        parser.send(h11.EndOfMessage())
        raw, body, informational = bytearray(), bytearray(), []
        final: h11.Response | None = None
        head_after, at_end, ended = 0.0, False, ""
        while not ended:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                if not at_end:
                    raise
                ended = "eof"
                break
            if event is h11.NEED_DATA:
                try:
                    data = self._receive()
                except (ConnectionResetError, ssl.SSLEOFError):
                    ended = "reset"
                    break
                at_end = not data
                raw += data
                parser.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                informational.append(event.status_code)
            elif isinstance(event, h11.Response):
                final, head_after = event, time.monotonic() - self.sent_at
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                ended = "complete" if isinstance(event, h11.EndOfMessage) else "eof"
        if final is None:
            raise ConnectionResetError(f"no answer came, the connection ended with {ended}: {bytes(raw)!r}")
        self._unread = parser.trailing_data[0]
        whole = bytes(raw[: len(raw) - len(self._unread)])
        return Reply(
            raw=whole,
            status=final.status_code,
            version=final.http_version.decode(),
            headers=_header_lines(whole),
            body=bytes(body),
            ended=ended,
            informational=tuple(informational),
            head_after_seconds=head_after,
            ended_after_seconds=time.monotonic() - self.sent_at,
            stalled_seconds=stalled_since(self.sent_at),
        )

    def read_until_closed(self) -> bytes:
        """Everything that comes until the daemon closes; raises ConnectionResetError on RST."""
        received = b""
        while data := self._receive():
            received += data
        return received

    def readable_within(self, seconds: float) -> bool:
        """Whether something, be it the end, is there to be read by then; nothing is read."""
        if self._unread:
            return True
        readable = select.poll()  # not select.select(), which takes no descriptor beyond 1023
        readable.register(self.sock, select.POLLIN)
        return bool(readable.poll(seconds * 1000))

    def closes_within(self, seconds: float) -> bool:
        """Whether the daemon ends the connection by then, saying nothing further."""
        before, began = self.sock.gettimeout(), time.monotonic()
        self.sock.settimeout(seconds)
        try:
            try:
                return not self._receive()
            except TimeoutError:
                self.sock.settimeout(max(0.001, stalled_since(began)))  # the daemon may not have run either
                return not self._receive()
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        finally:
            with contextlib.suppress(OSError):
                self.sock.settimeout(before)

    def _receive(self) -> bytes:
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        return self.sock.recv(65536)


def _header_lines(raw: bytes) -> tuple[tuple[str, str], ...]:
    """The final response's headers as they stand in the bytes: h11 folds what occurs twice."""
    block = raw
    while block.split(b" ", 2)[1].startswith(b"1"):
        block = block.split(b"\r\n\r\n", 1)[1]
    lines = block.split(b"\r\n\r\n", 1)[0].decode("latin-1").split("\r\n")[1:]
    pairs = [line.partition(":") for line in lines]
    return tuple((name.lower(), value.strip(" \t")) for name, _, value in pairs)
