"""What a daemon must say and count, worked out from what it was asked and told, and from nothing else.

Pure values: who talks to a real daemon, and compares, is ``test_daemon_model.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.properties.many_exporters import SORTS, Held, Outcome, failed

AT_ONCE = (
    "plain",
    "chunked",
    "close",
    "gzip",
    "error",
    "moved",
    "garbage",
    "malformed",
    "reset",
    "truncated",
)
"""Exporters that answer at once, each scrape by itself."""
WAITING = ("gated", "limited", "flown", "stuck", "sleeper")
"""Exporters whose scrapes stay under way until something ends them."""
LOCAL = ("file", "command", "sleeper")
"""Exporters that are no servers: no query, and in flight they share."""
PAGES = {
    "/": True,
    "/metrics": True,
    "/-/exporters": True,
    "/-/sd": True,
    "/-/healthy": False,
    "/-/ready": False,
}
"""Whether each wants credentials where there are any."""
LOCAL_PAGE = b"local 1\n"
TIMEOUT = failed(504, "timeout")
SATURATED = failed(503, "saturated")
GONE = failed(499, "client_gone")
DEAD = failed(502, "connect")
SHARE_FOR = "5m"


@dataclass(frozen=True)
class Said:
    """One request. ``exporter`` may be one that is not there, ``path`` is that of a page."""

    exporter: str = ""
    path: str = ""
    method: str = "GET"
    token: str = "right"
    param: str = ""
    variant: int = 0
    """Of those that share, scrapes of one variant ask for the same."""
    is_impatient: bool = False
    """The scraper says that it will wait a moment only."""


@dataclass
class Record:
    """What is counted of one exporter since it came into the configuration."""

    scrapes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    shared: int = 0

    def count(self, outcome: Outcome) -> None:
        self.scrapes[str(outcome.status)] += 1
        if outcome.reason is not None:
            self.errors[outcome.reason] += 1


@dataclass(eq=False)
class Scrape:
    """A scrape that is under way. ``ask`` is what the exporter knows it by."""

    route: Route
    ask: int
    waits_for_slot: bool = False
    flight: Flight | None = None
    is_shared: bool = False
    """Whether it takes part in what another has asked."""
    held: Held | None = None
    """What the exporter holds back; of a flight, see there."""


@dataclass(eq=False)
class Flight:
    """One answer of an exporter that shares, for all who take part in it; ``kept`` once it is complete."""

    ask: int
    held: Held | None = None
    scrapes: list[Scrape] = field(default_factory=list)
    kept: bytes | None = None


@dataclass(eq=False)
class Route:
    """An exporter as one configuration has it, with its slots and shared answers."""

    name: str
    entry: Mapping[str, Any]
    record: Record
    with_slot: list[Scrape] = field(default_factory=list)
    without_slot: list[Scrape] = field(default_factory=list)
    flights: dict[int, Flight] = field(default_factory=dict)

    @property
    def shares(self) -> bool:
        return "share_for" in self.entry or self.name in LOCAL

    @property
    def has_free_slot(self) -> bool:
        return len(self.with_slot) < int(self.entry.get("max_concurrent", 64))

    def begin(self, scrape: Scrape) -> None:
        (self.without_slot if scrape.waits_for_slot else self.with_slot).append(scrape)

    def end(self, scrape: Scrape) -> Scrape | None:
        """It is over, however; gives the one that has its slot now, if any waited."""
        if scrape in self.without_slot:
            self.without_slot.remove(scrape)
            return None
        self.with_slot.remove(scrape)
        if not self.without_slot:
            return None
        following = self.without_slot.pop(0)
        following.waits_for_slot = False
        self.with_slot.append(following)
        return following


@dataclass(frozen=True)
class Settings:
    """What reloads change."""

    removed: frozenset[str] = frozenset()
    wants_token: bool = False
    is_forbidden: bool = False
    """Nobody here may scrape ``plain``."""
    slots: int = 1
    """Of ``limited``."""
    generation: int = 0
    """Of exporters that a reload replaces: their entries change."""


def entries(settings: Settings, url_of: Mapping[str, str], page_path: str) -> dict[str, dict[str, Any]]:
    """The ``exporters`` section. The file at ``page_path`` says LOCAL_PAGE."""
    timeout = f"{60 + settings.generation}s"  # nobody waits for that long, but the entry is another
    made: dict[str, dict[str, Any]] = {name: {"url": url} for name, url in url_of.items()}
    made["plain"]["allow_params"] = ["ask"]
    made["malformed"]["verify"] = True
    made["large"]["max_response_bytes"] = "1MB"
    made["shared"].update(share_for=SHARE_FOR, timeout=timeout)
    made["flown"].update(share_for=SHARE_FOR, timeout=timeout)
    made["gated"]["timeout"] = timeout
    made["stuck"]["timeout"] = "60s"
    made["limited"].update(max_concurrent=settings.slots, timeout="60s")
    made["file"] = {"file": page_path}
    made["command"] = {"command": ["/bin/cat", page_path], "timeout": timeout}
    made["sleeper"] = {"command": ["/bin/sleep", "600"], "timeout": "60s"}
    if settings.is_forbidden:
        made["plain"]["allow_clients"] = ["192.0.2.1"]
    return {name: entry for name, entry in made.items() if name not in settings.removed}


class Model:
    """The daemon, as far as it can be told from outside."""

    def __init__(self, url_of: Mapping[str, str], page_path: str) -> None:
        self._sources = url_of, page_path
        self.settings = Settings()
        self.routes: dict[str, Route] = {}
        self.exporters: dict[str, dict[str, Any]] = {}
        """The section of the configuration in force."""
        self.denied: Counter[str] = Counter()
        self.requests = 0
        """All that have been recorded: so many lines has the access log."""
        self.is_last_reload_good = True
        self.apply(self.settings)

    def apply(self, settings: Settings) -> None:
        """A reload. What did not change goes on, what changed keeps its counts, what was gone begins anew."""
        before = self.routes
        self.settings = settings
        self.routes = {}
        self.exporters = self.section(settings)
        for name, entry in self.exporters.items():
            old = before.get(name)
            if old is not None and old.entry == entry:
                self.routes[name] = old
            else:
                self.routes[name] = Route(name, entry, old.record if old is not None else Record())

    def section(self, settings: Settings) -> dict[str, dict[str, Any]]:
        """The ``exporters`` section that says so."""
        return entries(settings, *self._sources)

    def changed(self, what: str, exporter: str) -> Settings:
        """The settings after one change."""
        now = self.settings
        if what == "exporter":
            return replace(now, removed=now.removed ^ {exporter})
        if what == "token":
            return replace(now, wants_token=not now.wants_token)
        if what == "address":
            return replace(now, is_forbidden=not now.is_forbidden)
        if what == "limits":
            return replace(now, slots=3 - now.slots)
        if what == "entries":
            return replace(now, generation=now.generation + 1)
        return now

    def refusal(self, said: Said) -> tuple[int, str] | None:
        """Status and reason where no exporter is asked; the order of the checks is the pipeline's."""
        if self.settings.wants_token and said.token != "right" and PAGES.get(said.path, True):
            return 401, "unauthorized"
        if said.path not in PAGES and said.exporter not in self.routes:
            return 404, "not_found"
        if said.exporter == "plain" and self.settings.is_forbidden:
            return 403, "forbidden"
        if said.method not in ("GET", "HEAD"):
            return 405, "method"
        if said.param and said.exporter in ("plain", *LOCAL):
            return 403, "param"
        return None

    def outcome(self, name: str) -> Outcome:
        """What a scrape gets of an exporter that answers."""
        if name == "dead":
            return DEAD
        return SORTS[name][1] if name in SORTS else Outcome()

    def begin(self, name: str, ask: int) -> Scrape:
        """A scrape that is not answered at once."""
        route = self.routes[name]
        scrape = Scrape(route, ask)
        if route.shares:
            flight = route.flights.get(ask)
            scrape.is_shared = flight is not None
            scrape.flight = flight or Flight(ask)
            route.flights[ask] = scrape.flight
            scrape.flight.scrapes.append(scrape)
        else:
            scrape.waits_for_slot = not route.has_free_slot
            route.begin(scrape)
        return scrape

    def end(self, scrape: Scrape, outcome: Outcome) -> Scrape | None:
        """It is over; gives the one that has its slot now and asks the exporter, if any waited."""
        self.count(scrape.route, outcome, scrape.is_shared and outcome.reason is None)
        flight = scrape.flight
        if flight is None:
            return scrape.route.end(scrape)
        flight.scrapes.remove(scrape)
        if not flight.scrapes and flight.kept is None and scrape.route.flights.get(flight.ask) is flight:
            del scrape.route.flights[flight.ask]
        return None

    def count(self, route: Route, outcome: Outcome, is_shared: bool = False) -> None:
        """A scrape is over."""
        route.record.count(outcome)
        route.record.shared += is_shared
        self.requests += 1

    def deny(self, reason: str) -> None:
        self.denied[reason] += 1
        self.requests += 1

    def expected_metrics(self, connections: int) -> dict[tuple[str, ...], float]:
        """All that is not 0, by name and label values."""
        expected: dict[tuple[str, ...], float] = {
            ("connections",): connections,
            ("config_last_reload_successful",): float(self.is_last_reload_good),
        }
        expected |= {("requests_denied_total", reason): count for reason, count in self.denied.items()}
        for name, route in self.routes.items():
            record = route.record
            expected |= {("scrapes_total", code, name): count for code, count in record.scrapes.items()}
            expected |= {
                ("scrape_errors_total", name, reason): count for reason, count in record.errors.items()
            }
            if name not in LOCAL:
                expected["shared_scrapes_total", name] = record.shared
        return {key: value for key, value in expected.items() if value}
