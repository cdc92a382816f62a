"""A thousand routes: the price of a scrape, of a reload, of the own metrics, of ``check``."""

from __future__ import annotations

import signal
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml

from tests.bench.figures import OURS, Budget, Figure
from tests.bench.load import SCRAPE_SECONDS, Scraper, cpu_per_scrape, raw_request
from tests.bench.processes import LOOPBACK, NotMeasured
from tests.bench.run import Run
from tests.bench.site import Proxy, Site, run_check

ROUTES = 1000
ONE_ROUTE = "1 route"
CONNECTIONS = 16
PROBE_PAUSE_SECONDS = 0.002
BASELINE_PROBES = 50
HELD_ROUNDS = 5
"""At least: what is looked for is a worst case, and the machine has bad moments of its own."""
GIVE_UP_SECONDS = 30.0
IDLE, IDLE_SECONDS = "idle", 0.3
TIMEOUTS = "9s", "8s"
HELD = Budget(plus=20)
IN_TURN = """
local requests = {}
init = function()
  for number = 0, %d do requests[number] = wrk.format("GET", "/r" .. number .. "/metrics") end
end
local number = -1
request = function()
  number = (number + 1) %% %d
  return requests[number]
end
"""
"""wrk asks for one route after the other."""


def routes(run: Run) -> list[Figure]:
    """All of it on one daemon with 1,000 routes; the scrapes beside one with a single route."""
    site = run.site
    file = site.file(".yml")
    access_log = {"path": str(site.file(".access.log"))}
    config = partial(many_routes, site, ROUTES, access_log)
    with (
        site.daemon(config(TIMEOUTS[0]), file) as many,
        site.daemon(many_routes(site, 1, access_log, TIMEOUTS[0])) as one,
    ):
        cost = _scrape_cost(run, many, one)
        rounds = max(run.rounds, HELD_ROUNDS)
        rendering = run.take(
            "routes",
            f"own /metrics with {ROUTES:,} routes, loop held",
            "ms",
            {OURS: lambda: held_ms(many, partial(Rendering, many)), IDLE: lambda: held_ms(many, Idleness)},
            HELD,
            rounds=rounds,
        )
        took: list[float] = []

        def reload() -> float:
            """Each time the other timeout, so that every route has to be built anew."""
            file.write_text(yaml.safe_dump(config(TIMEOUTS[(len(took) + 1) % 2]), sort_keys=False))
            return held_ms(many, partial(Reload, many, took))

        what = f"reload of {ROUTES:,} changed routes"
        held = run.take(
            "routes",
            f"{what}, loop held",
            "ms",
            {OURS: reload, IDLE: lambda: held_ms(many, Idleness)},
            HELD,
            rounds=rounds,
        )
        reloaded = Figure("routes", what, "s", {OURS: took}, Budget(plus=1), failure=held.failure)
    checked = run.take(
        "routes", f"check of {ROUTES:,} routes", "s", {OURS: lambda: _check_seconds(file)}, Budget(plus=2)
    )
    return [cost, reloaded, held, rendering, checked]


def many_routes(site: Site, count: int, access_log: dict[str, str], timeout: str) -> dict[str, Any]:
    """``r0``, ``r1`` ...: all lead to the same page."""
    entries = {
        f"r{number}": {"url": site.url("page"), "allow_clients": [LOOPBACK], "timeout": timeout}
        for number in range(count)
    }
    return site.config(exporters=entries, access_log=access_log)


def _scrape_cost(run: Run, many: Proxy, one: Proxy) -> Figure:
    body = run.site.bodies["page"]

    def measure(proxy: Proxy, count: int) -> Callable[[], float]:
        script = run.site.file(".lua")
        script.write_text(IN_TURN % (count - 1, count))
        return partial(
            cpu_per_scrape, proxy.pid, proxy.port, "/", CONNECTIONS, run.seconds, len(body), script
        )

    def prepare() -> None:
        for proxy, count in ((many, ROUTES), (one, 1)):
            with Scraper(proxy.port) as scraper:
                for number in range(count):
                    if scraper.scrape(proxy.path(f"r{number}")) != body:
                        raise NotMeasured(f"route {number} answers something else")

    return run.take(
        "routes",
        f"57 KB, {CONNECTIONS} connections, {ROUTES:,} routes in turn",
        "us",
        {OURS: measure(many, ROUTES), ONE_ROUTE: measure(one, 1)},
        Budget(ONE_ROUTE, 1.15),
        prepare=prepare,
        isolated=[many, one],
    )


class Activity(Protocol):
    """Something that the daemon has been given to do."""

    def is_done(self) -> bool: ...


class Reload:
    """A reload from the SIGHUP to the line in the log that says how it went; ``took`` gets the seconds."""

    def __init__(self, proxy: Proxy, took: list[float]) -> None:
        self._log = proxy.program.log
        self._log_bytes = self._log.stat().st_size
        self._took = took
        self._started = time.monotonic()
        proxy.program.send_signal(signal.SIGHUP)

    def is_done(self) -> bool:
        with self._log.open("rb") as log:
            log.seek(self._log_bytes)
            said = log.read()
        if b"level=error" in said:
            raise NotMeasured(f"the reload failed: {said[-300:]!r}")
        if b'"config reloaded"' not in said:
            return False
        self._took.append(time.monotonic() - self._started)
        return True


class Rendering:
    """The daemon's own metrics, from the request to the last byte."""

    def __init__(self, proxy: Proxy) -> None:
        self._socket = socket.create_connection((LOOPBACK, proxy.port), SCRAPE_SECONDS)
        self._socket.sendall(raw_request("/metrics", close=True))
        self._socket.setblocking(False)
        self._head = b""

    def is_done(self) -> bool:
        """Raises NotMeasured unless the answer is a success."""
        try:
            while data := self._socket.recv(1 << 20):
                self._head = self._head or data[:100]
        except BlockingIOError:
            return False
        self._socket.close()
        if b" 200 " not in self._head.partition(b"\r\n")[0]:
            raise NotMeasured(f"/metrics answered {self._head!r}")
        return True


class Idleness:
    """Nothing for a while: what is seen then is the machine's own doing."""

    def __init__(self) -> None:
        self._until = time.monotonic() + IDLE_SECONDS

    def is_done(self) -> bool:
        return time.monotonic() >= self._until


def held_ms(proxy: Proxy, begin: Callable[[], Activity]) -> float:
    """For how long the event loop was held at most: the longest that a small request had to wait.

    The usual wait for it is taken off. What is left has the machine's scheduling in it.
    """
    with Scraper(proxy.port) as prober:
        usual = statistics.median(_probe_ms(prober) for _ in range(BASELINE_PROBES))
        give_up_at = time.monotonic() + GIVE_UP_SECONDS
        activity = begin()
        worst = 0.0
        while True:
            worst = max(worst, _probe_ms(prober))
            if activity.is_done():
                return max(0.0, worst - usual)
            if time.monotonic() > give_up_at:
                raise NotMeasured(f"{type(activity).__name__} was not done in {GIVE_UP_SECONDS:g} s")


def _probe_ms(prober: Scraper) -> float:
    time.sleep(PROBE_PAUSE_SECONDS)
    started = time.monotonic()
    prober.scrape("/-/healthy")
    return (time.monotonic() - started) * 1e3


def _check_seconds(file: Path) -> float:
    started = time.monotonic()
    said = run_check(file)
    if said.returncode:
        raise NotMeasured(f"check: {said.stdout}{said.stderr}")
    return time.monotonic() - started
