"""The daemon's own parts, put together in the test's event loop instead of in a process.

For what only shows from inside: tasks, descriptors and slots left behind, a loop blocked, memory held.
Everything here is the real thing; only names are resolved by the test, since it cannot have its own DNS.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import uvloop
import yaml

from exporter_proxy.app import App
from exporter_proxy.config import Config, ListenAddress, parse_config
from exporter_proxy.front.auth import Guard
from exporter_proxy.front.listener import Listener
from exporter_proxy.front.sockets import bind_all
from exporter_proxy.front.state import FrontLimits, FrontState
from exporter_proxy.observe.daemonlog import DaemonLog
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.observe.logwriter import LogWriter
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.scrape.routing import Route, build_routes
from exporter_proxy.upstreams import make_upstream
from tests.fakes.exporter import EVENT_SECONDS

NAMES: dict[str, tuple[str, ...]] = {
    "two.test": ("127.0.0.2", "127.0.0.1"),
    "three.test": ("127.0.0.3", "127.0.0.2", "127.0.0.1"),
    "nowhere.test": (),
}
"""The names that are known while a scenario runs, with their addresses in order."""

LEAST_TURNS = 100
"""How often a loop has turned at least before what it was to bring about is late."""

T = TypeVar("T")
Scenario = Callable[[], Coroutine[Any, Any, T]]


_getaddrinfo = socket.getaddrinfo


def _known(host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
    if host not in NAMES:
        return _getaddrinfo(host, port, *arguments, **options)
    if not NAMES[host]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES[host]]


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.Loop,
}


def run(scenario: Scenario[T], loop: str = "asyncio", timeout_seconds: float = 60.0) -> T:
    """Run the scenario in a fresh loop; whatever the loop would only have logged fails it."""
    troubles: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        async with asyncio.timeout(timeout_seconds):
            return await scenario()

    with (
        mock.patch.object(socket, "getaddrinfo", _known),
        asyncio.Runner(loop_factory=LOOPS[loop]) as runner,
    ):
        result = runner.run(watched())
        gc.collect()  # an exception that nobody took shows when its task goes
    assert not troubles, troubles
    return result


async def until(condition: Callable[[], bool], what: str, timeout_seconds: float = EVENT_SECONDS) -> None:
    """Let the loop go on until the condition holds. ``what`` completes "it did not happen that".

    Seconds in which a busy machine kept the loop from running are no reason to give up.
    """
    end = time.monotonic() + timeout_seconds
    turns = 0
    while not condition():
        is_over = time.monotonic() >= end and turns >= LEAST_TURNS
        assert not is_over, f"within {timeout_seconds} s it did not happen that {what}"
        turns += 1
        await asyncio.sleep(0.001)


def least_seconds(measured: Callable[[], float], bound_seconds: float) -> float:
    """The least of three runs; CPU time has the interrupts of a busy machine in it. One below is enough."""
    least = measured()
    for _ in range(2):
        if least >= bound_seconds:
            least = min(least, measured())
    return least


def open_descriptors() -> dict[str, str]:
    """Every open file descriptor of this process and what it leads to."""
    links: dict[str, str] = {}
    for descriptor in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the one that the listing itself was read with
            links[descriptor.name] = str(descriptor.readlink())
    return links


def opened_since(before: dict[str, str]) -> dict[str, str]:
    """The open descriptors that were not there before. What others have left may close meanwhile."""
    return {number: to for number, to in open_descriptors().items() if before.get(number) != to}


@dataclass
class Answered:
    """What the application sent, message by message."""

    exchange: Exchange
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    is_complete: bool = False

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not self.status, "two starts"
            self.status, self.headers = message["status"], message["headers"]
            return
        assert self.status, "a body before its start"
        assert not self.is_complete, "more after the end"
        self.parts.append(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def header(self, name: bytes) -> bytes | None:
        return next((value for found, value in self.headers if found.lower() == name), None)


class Parts:
    """Application, routes and front of a configuration."""

    def __init__(self, config: Config, log: DaemonLog) -> None:
        self.config = config
        running = Running(config, build_routes(config, make_upstream), None, guard=Guard.of(config))
        self.proxy = Proxy(running, log, False)
        self.app = App(self.proxy)
        self.front = FrontState(
            asyncio.get_running_loop(),
            self.app,  # type: ignore[arg-type]  # messages are plain dicts here
            self.proxy.record,
            FrontLimits.of(config),
            log,
        )
        self.proxy.front = self.front

    @property
    def route(self) -> Route:
        """The first exporter's."""
        return self.proxy.running.routes.routes[0]

    async def scrape(
        self,
        answered: Answered,
        headers: Sequence[tuple[bytes, bytes]] = (),
        send: Callable[..., Any] | None = None,
    ) -> Answered:
        """One request given to the application as the front gives it."""
        exchange = answered.exchange
        scope = {
            "type": "http",
            "method": exchange.method,
            "path": exchange.path.decode("latin-1"),
            "query_string": exchange.query,
            "headers": list(headers),
            "exchange": exchange,
            "address": IPv4Address("127.0.0.1"),
            "admitted_by": None,
        }
        await self.app(scope, _no_body, send or answered.send)
        return answered

    def request(self, method: str = "GET", query: bytes = b"") -> Answered:
        """A request for the first exporter, as yet without an answer."""
        return Answered(Exchange("127.0.0.1", method, self.route.path, query, time.monotonic()))

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Listener]:
        """A listener on a port of its own, every connection gone afterwards."""
        (bound,) = bind_all([ListenAddress("127.0.0.1", 0)])
        listener = Listener(bound, self.front)
        listener.start()
        try:
            yield listener
        finally:
            listener.stop()
            listener.give_up()
            self.front.admitted.give_up_handshakes()
            for connection in list(self.front.connections):
                connection.transport.abort()
            await until(lambda: not self.front.connections, "all connections are gone")


async def _no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


@contextlib.asynccontextmanager
async def parts(log_path: Path, exporters: Mapping[str, Any], **config: Any) -> AsyncIterator[Parts]:
    """The parts for these exporters; transports and log are closed at the end."""
    text = yaml.safe_dump({**config, "exporters": dict(exporters)})
    writer = LogWriter(str(log_path))
    writer.open()
    made = Parts(parse_config(text.encode(), "config.yml"), DaemonLog(writer))
    try:
        yield made
    finally:
        for route in made.proxy.running.routes.routes:
            await route.transport.aclose()
        writer.close()
