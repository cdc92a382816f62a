"""Where a case is played: a running proxy, how a scraper reaches it, and the exporter behind it.

``ways.py`` and ``peers.py`` set these up. The exporter is a source of one of three kinds: a scripted one
on a socket, a program or a file.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from tests.fakes.exporter import EXPOSITION, PAGE, Connection, FakeExporter, Request, Script, wait_for
from tests.faults.points import GZIP, OURS, SHARED
from tests.wire import Wire, request

ROUTE = "x"
"""The exporter, without any setting of its own."""
HURRIED, HURRIED_SECONDS = "hurried", 0.3
"""The same with a ``timeout``."""
SMALL, SMALL_BYTES = "small", 1024
"""The same with ``max_response_bytes``."""
PROBE, PROBE_TARGET = "probe", "/probe?own=1"
"""The same with a query of its own."""
VOID = "void"
"""An exporter that cannot be connected to, and does not refuse either."""
WIRE_SECONDS = 10.0
"""Longer than any case lasts at whoever holds it."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the exporter has to say where nothing is wrong with it."""

    body: bytes = PAGE
    headers: tuple[tuple[str, str], ...] = (EXPOSITION,)

    @property
    def half(self) -> bytes:
        return self.body[: len(self.body) // 2]


PLAIN_PAGE = Page()


class Source(Protocol):
    """The exporter's side."""

    @property
    def asked(self) -> int:
        """How often it was asked since ``play``; 0 where that cannot be known."""

    def play(self, scripts: Sequence[Script], command: str, content: bytes) -> None:
        """Begin anew, with the one of these that is for this kind."""

    def left_within(self, seconds: float) -> bool:
        """Whether it notices by then that nobody waits for its answer any longer."""


class HttpSource:
    """A scripted exporter; ``gate`` holds its answers back until all scrapers of a case wait."""

    def __init__(self, exporter: FakeExporter) -> None:
        self.exporter = exporter
        self.gate = Event()

    @property
    def asked(self) -> int:
        return len(self.exporter.requests)

    @property
    def requests(self) -> list[Request]:
        return [*self.exporter.requests]

    @property
    def connections(self) -> list[Connection]:
        return [*self.exporter.connections]

    def play(self, scripts: Sequence[Script], command: str, content: bytes) -> None:
        self.gate.set()  # for those of the case before that still wait
        self.exporter.drop_connections()
        self.gate = Event()
        self.exporter.play(*([wait_for(self.gate), *script] for script in scripts))

    def left_within(self, seconds: float) -> bool:
        return self.connections[0].closed_by_peer.wait(seconds)


class ProgramSource:
    """``path`` is a program that says when it was started, and then does what a case wants of it."""

    def __init__(self, directory: Path, page: Page) -> None:
        self.path = directory / "program"
        self._page = directory / "page"
        self._page.write_bytes(page.body)
        self._half = directory / "half"
        self._half.write_bytes(page.half)
        self._runs = directory / "runs"
        self.play((), "", b"")

    @property
    def asked(self) -> int:
        return len(self._pids())

    def play(self, scripts: Sequence[Script], command: str, content: bytes) -> None:
        self._runs.write_bytes(b"")
        new = self.path.with_suffix(".new")
        places = f"PAGE={self._page}\nHALF={self._half}\n"
        new.write_text(f"#!/bin/sh\necho $$ >> {self._runs}\n{places}{command or 'cat $PAGE'}\n")
        new.chmod(0o755)
        new.rename(self.path)

    def left_within(self, seconds: float) -> bool:
        return _within(seconds, lambda: not any(map(_is_alive, self._pids())))

    def wait_until_asked(self, seconds: float) -> bool:
        return _within(seconds, lambda: bool(self.asked))

    def _pids(self) -> list[int]:
        return [int(line) for line in self._runs.read_text().splitlines()]


class FileSource:
    """``path`` is written as the textfile collector wants it."""

    asked = 0

    def __init__(self, directory: Path, page: Page) -> None:
        self.path = directory / "x.prom"
        self._page = page
        self.play((), "", b"")

    def play(self, scripts: Sequence[Script], command: str, content: bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(content or self._page.body)
        new.rename(self.path)

    def left_within(self, seconds: float) -> bool:
        return True


@dataclass
class Target:
    """A proxy in front of a source."""

    program: str
    way: str
    source: Source
    address: tuple[str, int]
    page: Page = PLAIN_PAGE
    path_format: str = "/{}/metrics"
    origin: str = ""
    """What goes before the path: a PushProx proxy is asked with whole URLs."""
    host: str = "proxy.test"
    """What scrapers send as Host."""
    exporter_host: str = ""
    """What the exporter has to see as Host."""
    announced_seconds: float = 1.0
    """What scrapers in a hurry say that they wait; HAProxy's language has whole seconds only, and of less an
    answer through PushProx would have less than half a second to arrive.
    """
    in_flight: Callable[[], int] | None = None
    """How many scrapes are under way, where several are to share an answer."""

    @property
    def is_ours(self) -> bool:
        return self.program == OURS

    @property
    def scrapers(self) -> int:
        """How many ask at once."""
        return 2 if self.way == SHARED else 1

    @property
    def http(self) -> HttpSource:
        assert isinstance(self.source, HttpSource), f"a {self.way} is no HTTP exporter"
        return self.source

    def connect(self) -> Wire:
        return Wire(self.address, timeout_seconds=WIRE_SECONDS)

    def path(self, route: str = ROUTE, query: str = "") -> str:
        path = self.path_format.format(route)
        return path + ("&" if "?" in path else "?") * bool(query) + query

    def changed(self, change: Callable[[str], str]) -> str:
        """A target whose path is not quite the exporter's."""
        path, mark, query = self.path_format.format(ROUTE).partition("?")
        return self.origin + change(path) + mark + query

    def get(
        self,
        *headers: tuple[str, str],
        route: str = ROUTE,
        query: str = "",
        target: str = "",
        host: str = "",
        method: str = "GET",
        version: str = "1.1",
    ) -> bytes:
        """A request as ``tests.wire.request`` makes it, for this proxy."""
        if self.way == GZIP and "accept-encoding" not in [name.lower() for name, _ in headers]:
            headers += (("Accept-Encoding", "gzip"),)
        asked_for = target or self.origin + self.path(route, query)
        return request(asked_for, *headers, method=method, version=version, host=host or self.host)

    def open_gate(self, wires: Sequence[Wire]) -> None:
        """Let the exporter answer, once all of these take part in one scrape or have their answer."""
        if not isinstance(self.source, HttpSource):
            return
        if self.in_flight is not None and len(wires) > 1:
            in_flight = self.in_flight
            _within(
                WIRE_SECONDS,
                lambda: all(wire.readable_within(0) for wire in wires) or in_flight() >= len(wires),
            )
        self.source.gate.set()


@contextlib.contextmanager
def playing(target: Target, scripts: Sequence[Script], command: str, content: bytes) -> Iterator[None]:
    """The source does what these say, and nothing of it is left afterwards."""
    target.source.play(scripts, command, content)
    try:
        yield
    finally:
        if isinstance(target.source, HttpSource):
            target.source.gate.set()
            target.source.exporter.drop_connections()


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return re.sub(r".*\) ", "", stat, flags=re.DOTALL)[0] != "Z"
