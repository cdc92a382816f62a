"""Every sort of exporter behind one port: the path says how it behaves, the query who is asking.

Those that hold their answer back say so before they wait, so that nobody has to guess whether a
scrape has reached them.
"""

from __future__ import annotations

import gzip
import itertools
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from tests.daemon import wait_until
from tests.fakes.exporter import CHUNKED, CLOSE, EXPOSITION, Connection, FakeExporter, head, respond

HALF = 40
"""So much of a page is there when an exporter of the sort ``gated`` waits."""


def page(ask: int, serial: int) -> bytes:
    """What the exporter says to scrape ``ask``, which is its ``serial``-th; the same for no other."""
    return b'# TYPE fake gauge\nfake{ask="%d",serial="%d"} 1\nfake_padding 1\n' % (ask, serial)


@dataclass(frozen=True)
class Outcome:
    """What the scraper gets. ``body`` is made from the page; ``None``: what it is is not looked at."""

    status: int = 200
    reason: str | None = None
    is_cut: bool = False
    body: Callable[[bytes], bytes] | None = bytes


CUT = Outcome(reason="truncated", is_cut=True)
"""Of an answer that had begun."""


def failed(status: int, reason: str) -> Outcome:
    return Outcome(status, reason, body=None)


def _length(page_bytes: bytes) -> tuple[str, str]:
    return "Content-Length", str(len(page_bytes))


Play = Callable[["ManyExporters", Connection, int, bytes], None]


def _respond(status: int = 200, framing: str = "content-length", *headers: tuple[str, str]) -> Play:
    def play(_: ManyExporters, connection: Connection, ask: int, text: bytes) -> None:
        for action in respond(status, [EXPOSITION, *headers], text, framing, chunk_bytes=7):
            action(connection)

    return play


def _gzip(_: ManyExporters, connection: Connection, ask: int, text: bytes) -> None:
    packed = gzip.compress(text, mtime=0)
    for action in respond(headers=[EXPOSITION, ("Content-Encoding", "gzip")], body=packed):
        action(connection)


def _say_and_close(text: bytes) -> Play:
    def play(_: ManyExporters, connection: Connection, ask: int, page_bytes: bytes) -> None:
        connection.send(text)
        connection.close()

    return play


def _reset(_: ManyExporters, connection: Connection, ask: int, text: bytes) -> None:
    connection.reset()


def _truncate(_: ManyExporters, connection: Connection, ask: int, text: bytes) -> None:
    connection.send(head(headers=[EXPOSITION, ("Content-Length", "1000")]) + text)
    connection.close()


def _gated(exporters: ManyExporters, connection: Connection, ask: int, text: bytes) -> None:
    connection.send(head(headers=[EXPOSITION, _length(text)]) + text[:HALF])
    connection.wait(until=exporters.note_waiting(ask))
    connection.send(text[HALF:])


def _stuck(exporters: ManyExporters, connection: Connection, ask: int, text: bytes) -> None:
    exporters.note_waiting(ask)
    connection.wait()


SORTS: dict[str, tuple[Play, Outcome]] = {
    "plain": (_respond(), Outcome()),
    "chunked": (_respond(200, CHUNKED), Outcome()),
    "close": (_respond(200, CLOSE), Outcome()),
    "gzip": (_gzip, Outcome(body=lambda text: gzip.compress(text, mtime=0))),
    "shared": (_respond(), Outcome()),
    "error": (_respond(503), Outcome(503, "upstream_status")),
    "moved": (_respond(302, "content-length", ("Location", "/")), failed(502, "redirect")),
    "garbage": (_say_and_close(b"SSH-2.0-OpenSSH_9.2\r\n"), failed(502, "protocol")),
    "malformed": (_say_and_close(head() + b"<html>\n"), failed(502, "malformed")),
    "reset": (_reset, failed(502, "connect")),
    "truncated": (_truncate, CUT),
    "large": (_say_and_close(head(headers=[("Content-Length", "99999999")])), failed(502, "too_large")),
    # Those that wait, for a gate to be opened or for ever.
    "gated": (_gated, Outcome()),
    "limited": (_gated, Outcome()),
    "flown": (_gated, Outcome()),
    "stuck": (_stuck, failed(504, "timeout")),
}


@dataclass(frozen=True)
class Held:
    """An answer that an exporter holds back until its ``gate`` is set."""

    page: bytes
    gate: threading.Event


class ManyExporters:
    """Plays all ``SORTS`` from ``with`` to the end of the block."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._serials = itertools.count(1)
        self._served: dict[int, int] = {}
        self._arrived: dict[int, deque[tuple[int, threading.Event]]] = defaultdict(deque)
        self._busy: set[Connection] = set()
        self._running: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        """Of scrapes, by sort."""
        self._fake = FakeExporter([self._play])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._fake.__exit__()

    def url(self, sort: str) -> str:
        return self._fake.url(f"/{sort}")

    def page_for(self, ask: int) -> bytes:
        """What scrape ``ask`` was last answered."""
        return page(ask, self._served[ask])

    def note_waiting(self, ask: int) -> threading.Event:
        """What holds up the answer that is being given; to be set."""
        gate = threading.Event()
        with self._changed:
            self._arrived[ask].append((self._served[ask], gate))
            self._changed.notify_all()
        return gate

    def wait_for(self, ask: int) -> Held:
        """The answer to scrape ``ask``, once an exporter holds it back; each is given out once."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._arrived[ask], 10), f"{ask} never reached its exporter"
            serial, gate = self._arrived[ask].popleft()
        return Held(page(ask, serial), gate)

    def restart(self) -> None:
        """Every connection ends; new ones are welcome.

        The idle ones first: a scrape that begins when another has failed finds none of them.
        """
        live = {one for one in [*self._fake.connections] if not one.ended.is_set()}
        with self._changed:
            busy = live & self._busy
        for some in (live - busy, busy):
            self._fake.drop_connections(patience_seconds=5, which=some)

    def live_connections(self) -> Counter[str]:
        """By the sort that each was last asked for; none is counted that was never asked."""
        live = [one for one in [*self._fake.connections] if not one.ended.is_set()]
        return Counter(_sort_of(one) for one in live if one.requests)

    def expect_few_connections(self) -> None:
        """No more of them than there were ever scrapes at once, or one."""

        def are_few() -> bool:
            most = self.most_at_once
            return all(count <= max(1, most[sort]) for sort, count in self.live_connections().items())

        wait_until(are_few, f"connections were few: {self.live_connections()}, {self.most_at_once}")

    def _play(self, connection: Connection) -> None:
        sort = _sort_of(connection)
        ask = int(connection.request.target.rpartition(b"ask=")[2])
        with self._changed:
            serial = self._served[ask] = next(self._serials)
            self._busy.add(connection)
            self._running[sort] += 1
            self.most_at_once[sort] = max(self.most_at_once[sort], self._running[sort])
        try:
            SORTS[sort][0](self, connection, ask, page(ask, serial))
        finally:
            with self._changed:
                self._busy.discard(connection)
                self._running[sort] -= 1


def _sort_of(connection: Connection) -> str:
    return connection.request.target.partition(b"?")[0][1:].decode()
