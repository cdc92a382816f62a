"""What the two ends of a case saw, and the judgements over it.

A judgement is a function that raises ``Violated``, with one line that says what was seen instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import h11

from tests.fakes.exporter import Request
from tests.faults.target import HttpSource, ProgramSource, Target
from tests.stalls import stalled_since
from tests.wire import Reply, Wire

LEFT_SECONDS = 1.0
CLOSED_SECONDS = 1.0
REQUEST_SECONDS = 10.0
CLOSED = "closed without an answer"


Judge = Callable[["Seen"], None]
"""Raises ``Violated``."""


class Violated(Exception):
    """A point is not held; the message says in one line what was seen."""


def expect(condition: object, why: str) -> None:
    if not condition:
        raise Violated(why)


@dataclass
class Seen:
    """One case as it goes. A text stands in place of a reply where there was none."""

    target: Target
    turns: list[list[Reply | str]] = field(default_factory=list)
    """The answers to each request of the case, one for each scraper that sent it."""
    took_seconds: float = 0.0
    """How long the last of them took, without what stalled all of this."""
    is_closed: bool = False
    """Whether the proxy closed the scraper's connection after its answer, where that was watched."""
    says_more: bool = False
    """Or whether more came instead."""
    was_left: bool = False
    """Whether the exporter was left soon after the scraper had gone."""

    @property
    def last(self) -> list[Reply]:
        """The replies to the last request."""
        for answer in self.turns[-1]:
            if isinstance(answer, str):
                raise Violated(answer)
        return [answer for answer in self.turns[-1] if isinstance(answer, Reply)]

    @property
    def requests(self) -> list[Request]:
        """What reached the exporter."""
        return self.target.http.requests

    @property
    def request(self) -> Request:
        """The one that did."""
        expect(len(self.requests) == 1, f"{len(self.requests)} requests reached the exporter")
        return self.requests[0]

    # What a scraper does

    def ask(self, sends: Callable[[Target], bytes]) -> None:
        """Send a request, and read the answer to its end; all scrapers of this way at once."""
        self._ask(sends(self.target), self.target.scrapers)

    def ask_and_watch(self, sends: Callable[[Target], bytes]) -> None:
        """One scraper asks, and looks whether its connection is closed after the answer."""
        self._ask(sends(self.target), 1, is_watched=True)

    def ask_twice(self, sends: Callable[[Target], bytes]) -> None:
        """One request after the other."""
        self.ask(sends)
        self.ask(sends)

    def ask_and_get(self, sends: Callable[[Target], bytes]) -> None:
        """This request, and then a plain one."""
        self.ask(sends)
        self.ask(Target.get)

    def leave(self, sends: Callable[[Target], bytes]) -> None:
        """Hang up while the exporter still works on the answer."""
        source = self.target.source
        with self.target.connect() as wire:
            wire.send(sends(self.target))
            if isinstance(source, HttpSource):
                source.gate.set()
                source.exporter.wait_for_requests()
            elif isinstance(source, ProgramSource):
                assert source.wait_until_asked(REQUEST_SECONDS), "the command was not started"
        gone = time.monotonic()
        self.was_left = source.left_within(LEFT_SECONDS) or source.left_within(stalled_since(gone))

    def _ask(self, data: bytes, scrapers: int, is_watched: bool = False) -> None:
        wires: list[Wire] = []
        try:
            wires += [self.target.connect() for _ in range(scrapers)]
            for wire in wires:
                wire.send(data)
            self.target.open_gate(wires)
            started = time.monotonic()
            method = "HEAD" if data.startswith(b"HEAD ") else "GET"
            self.turns.append([read(wire, method) for wire in wires])
            self.took_seconds = time.monotonic() - started - stalled_since(started)
            if is_watched:
                answered = time.monotonic()
                ends = wires[0].readable_within(CLOSED_SECONDS) or wires[0].readable_within(
                    stalled_since(answered)
                )
                self.is_closed = ends and wires[0].closes_within(CLOSED_SECONDS)
                self.says_more = ends and not self.is_closed
        finally:
            for wire in wires:
                wire.close()


def read(wire: Wire, method: str) -> Reply | str:
    """The answer, or why there is none."""
    try:
        return wire.read_reply(method)
    except TimeoutError:
        return f"no whole answer within {wire.sock.gettimeout() or 0:g} s"
    except h11.RemoteProtocolError as error:
        return f"an answer that is not valid HTTP: {error}"
    except ConnectionError:
        return CLOSED
