"""A scripted exporter on a raw socket, one thread per connection.

It can do everything that a broken exporter does to a proxy: answer garbage, drip, stall, cut a
body short, reset. It also records what the proxy did to it: the exact bytes of every request,
how many connections were made, and when each was closed from the other side.

A script is a sequence of actions and is played once per request, after that request has been
read: the first script for the first request that arrives, and so on; the last one repeats.

    exporter = FakeExporter(respond(body=PAGE), [send(b"HTTP/1.1 200 OK\\r\\n"), stall()])
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

POLL_SECONDS = 0.01
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with zero seconds: close() sends RST instead of FIN."""

EVENT_SECONDS = 15.0
"""What has not come by then does not come: generous, for a test that passes waits for none of it."""

PAGE = b"# HELP fake_up Whether the fake exporter is up.\n# TYPE fake_up gauge\nfake_up 1\n"
EXPOSITION = ("Content-Type", "text/plain; version=0.0.4; charset=utf-8")


class ConnectionEnded(Exception):
    """The script or the peer has ended this connection: nothing further can be played on it."""


@dataclass(frozen=True)
class Request:
    """One request exactly as the exporter received it."""

    head: bytes
    """Request line and headers, the blank line included."""
    body: bytes
    received_at: float
    """On the clock of ``time.monotonic``."""

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode("ascii")

    @property
    def target(self) -> bytes:
        """Path and query in wire bytes."""
        return self.head.split(b"\r\n", 1)[0].split(b" ")[1]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, values without surrounding blanks, in the order of arrival."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        pairs = [line.partition(":") for line in lines]
        return [(name.lower(), value.strip(" \t")) for name, _, value in pairs]

    @property
    def header_names(self) -> list[str]:
        return [name for name, _ in self.headers]

    def get_all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of a header that occurs at most once."""
        values = self.get_all(name)
        assert len(values) <= 1, f"{name} reached the exporter {len(values)} times: {values}"
        return values[0] if values else None


@dataclass(eq=False)
class Connection:
    """One accepted connection. Actions use its methods; tests read its records."""

    sock: socket.socket
    opened_at: float = field(default_factory=time.monotonic)
    requests: list[Request] = field(default_factory=list)
    closed_by_peer: threading.Event = field(default_factory=threading.Event)
    """Set when the peer hung up (FIN or RST), never by our own close."""
    closed_at: float | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the connection is over, whoever ended it."""
    is_dropped: bool = False
    """Whether the exporter itself is ending it, from another thread than the one that plays the script."""
    _received: bytearray = field(default_factory=bytearray)

    @property
    def request(self) -> Request:
        """The request that is being answered."""
        return self.requests[-1]

    def shake_hands(self, tls: ssl.SSLContext) -> None:
        # Not yet by wrap_socket: until it returns, nobody else has the socket that it makes.
        self.sock = sock = tls.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        with self._perhaps_dropped():
            sock.do_handshake()

    def send(self, data: bytes) -> None:
        try:
            self.sock.settimeout(None)
            with self._perhaps_dropped():
                self.sock.sendall(data)
        except OSError:
            raise self._peer_hung_up() from None

    def wait(self, seconds: float | None = None, until: threading.Event | None = None) -> None:
        """Let time pass, noticing at once when the peer hangs up; no limit: until it does."""
        end = None if seconds is None else time.monotonic() + seconds
        while until is None or not until.is_set():
            remaining = POLL_SECONDS if end is None else min(POLL_SECONDS, end - time.monotonic())
            if remaining <= 0:
                return
            self._receive(remaining)

    def read_request(self) -> Request:
        """Read one whole request, body included, and record it."""
        head = self._read_until(b"\r\n\r\n")
        request = Request(head, b"", time.monotonic())
        if "chunked" in (request.header("transfer-encoding") or "").lower():
            request = Request(head, self._read_until(b"0\r\n\r\n"), request.received_at)
        elif length := int(request.header("content-length") or 0):
            request = Request(head, self._read_exactly(length), request.received_at)
        self.requests.append(request)
        return request

    def close(self) -> None:
        self.sock.close()
        raise ConnectionEnded

    def end(self) -> None:
        """Close after having said all: over TLS a close_notify tells this from a cut."""
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError), self._perhaps_dropped():
                self.sock.settimeout(POLL_SECONDS)
                self.sock.unwrap()  # sends it, and has no time to wait for the peer's
        self.close()

    def half_close(self) -> None:
        """Send FIN and keep reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.close()

    def _read_until(self, mark: bytes) -> bytes:
        while (at := self._received.find(mark)) < 0:
            self._receive(None)
        return self._take(at + len(mark))

    def _read_exactly(self, length: int) -> bytes:
        while len(self._received) < length:
            self._receive(None)
        return self._take(length)

    def _take(self, length: int) -> bytes:
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    def _receive(self, timeout_seconds: float | None) -> None:
        try:
            self.sock.settimeout(timeout_seconds)
            with self._perhaps_dropped():
                data = self.sock.recv(65536)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            raise self._peer_hung_up()
        self._received += data

    @contextlib.contextmanager
    def _perhaps_dropped(self) -> Iterator[None]:
        """Around one call of the socket's.

        ``SSLSocket.shutdown()`` in another thread takes TLS away from under it, which it does not expect.
        """
        try:
            yield
        except (ValueError, AttributeError):
            if not self.is_dropped:
                raise
            raise ConnectionEnded from None

    def _peer_hung_up(self) -> ConnectionEnded:
        self.closed_at = time.monotonic()
        self.closed_by_peer.set()
        return ConnectionEnded()


Action = Callable[[Connection], object]
Script = Sequence[Action]


def send(data: bytes) -> Action:
    return lambda connection: connection.send(data)


def send_repeatedly(data: bytes, times: int) -> Action:
    """For bodies that are too large to build."""

    def play(connection: Connection) -> None:
        for _ in range(times):
            connection.send(data)

    return play


def drip(data: bytes, interval_seconds: float) -> Action:
    """One byte at a time: what per-read timeouts never notice."""

    def play(connection: Connection) -> None:
        for byte in data:
            connection.send(bytes([byte]))
            connection.wait(interval_seconds)

    return play


def pause(seconds: float) -> Action:
    return lambda connection: connection.wait(seconds)


def wait_for(event: threading.Event) -> Action:
    return lambda connection: connection.wait(until=event)


def stall() -> Action:
    """Say nothing more until the peer hangs up."""
    return lambda connection: connection.wait()


def read_request() -> Action:
    """Read a further request within the same script."""
    return Connection.read_request


def close() -> Action:
    return Connection.close


def end() -> Action:
    return Connection.end


def half_close() -> Action:
    return Connection.half_close


def reset() -> Action:
    return Connection.reset


def head(
    status: int = 200, headers: Sequence[tuple[str, str]] = (EXPOSITION,), reason: str = "Said"
) -> bytes:
    """Status line and headers, the blank line included."""
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(data: bytes) -> bytes:
    """``data`` as one chunk of the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CONTENT_LENGTH, CHUNKED, CLOSE = FRAMINGS = ("content-length", "chunked", "close")


def respond(
    status: int = 200,
    headers: Sequence[tuple[str, str]] = (EXPOSITION,),
    body: bytes | Callable[[Request], bytes] = PAGE,
    framing: str = CONTENT_LENGTH,
    chunk_bytes: int = 4096,
) -> Script:
    """A whole, correct response: one of ``FRAMINGS`` ends its body; HEAD gets no body."""

    def play(connection: Connection) -> None:
        content = body(connection.request) if callable(body) else body
        framing_header = {
            CONTENT_LENGTH: ("Content-Length", str(len(content))),
            CHUNKED: ("Transfer-Encoding", "chunked"),
            CLOSE: ("Connection", "close"),
        }[framing]
        connection.send(head(status, [*headers, framing_header]))
        if connection.request.method != "HEAD":
            if framing == CHUNKED:
                for at in range(0, len(content), chunk_bytes):
                    connection.send(chunk(content[at : at + chunk_bytes]))
                connection.send(LAST_CHUNK)
            else:
                connection.send(content)
        if framing == CLOSE:
            connection.end()

    return [play]


class FakeExporter:
    """The listening exporter, on a port of its own or a unix socket. Ends with its ``with`` block.

    ``greeting`` is played on each new connection before anything is read from it.
    """

    def __init__(
        self,
        *scripts: Script,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        unix: Path | None = None,
        greeting: Script = (),
    ) -> None:
        self._unix = unix
        self.host = host
        self.port = 0
        if unix is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(unix))
            self._listener.listen(128)
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=128)
            self.port = self._listener.getsockname()[1]
        self._scheme = "http" if tls is None else "https"
        self._tls = tls
        self._greeting = greeting
        self._changed = threading.Condition()
        self._scripts: tuple[Script, ...] = ()
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self._live: set[Connection] = set()
        self.play(*scripts)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_accepting()
        self.drop_connections()

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, target: str = "/metrics") -> str:
        if self._unix is not None:
            return f"http+unix://{self._unix}:{target}"
        return f"{self._scheme}://{self.authority}{target}"

    def play(self, *scripts: Script) -> None:
        """Forget what was recorded and start over with these scripts; none: a small valid page."""
        with self._changed:
            self._scripts = scripts or (respond(),)
            self.connections = [*self._live]
            self.requests = []

    def wait_for_requests(self, count: int = 1, timeout_seconds: float = EVENT_SECONDS) -> list[Request]:
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self.requests) >= count, timeout_seconds)
            assert enough, f"the exporter received {len(self.requests)} requests, not {count}"
            return [*self.requests]

    @property
    def request(self) -> Request:
        """The one request that the exporter has received."""
        (only,) = self.wait_for_requests()
        return only

    def stop_accepting(self) -> None:
        """From now on connections are refused; those that are open live on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # close() alone would leave accept() asleep
        self._listener.close()

    def drop_connections(
        self, patience_seconds: float = 1.0, which: Iterable[Connection] | None = None
    ) -> None:
        """End every connection, or these, idle ones as a polite server does; returns when they are gone."""
        live = [*(self._live if which is None else which)]
        for connection in live:
            connection.is_dropped = True
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
        for connection in live:
            if not connection.ended.wait(patience_seconds):
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
                assert connection.ended.wait(EVENT_SECONDS), "a script goes on after its connection was shut"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self._unix is None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock)
            with self._changed:
                self.connections.append(connection)
                self._live.add(connection)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: Connection) -> None:
        try:
            if self._tls is not None:
                connection.shake_hands(self._tls)
            for action in self._greeting:
                action(connection)
            while True:
                request = connection.read_request()
                with self._changed:
                    script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
                    self.requests.append(request)
                    self._changed.notify_all()
                for action in script:
                    action(connection)
        except (ConnectionEnded, OSError):
            pass  # OSError: the TLS handshake was broken off
        finally:
            connection.sock.close()
            with self._changed:
                self._live.discard(connection)
            connection.ended.set()
