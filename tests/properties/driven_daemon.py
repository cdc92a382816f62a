"""A daemon in a process of its own, asked as a model says and compared with it.

What steps are made of; in which order they come is for ``test_daemon_model.py``.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from hypothesis.stateful import (
    RuleBasedStateMachine,
)
from prometheus_client.parser import text_string_to_metric_families

from tests.daemon import Daemon, wait_until
from tests.fakes.ports import refusing_port
from tests.properties.daemon_model import (
    AT_ONCE,
    GONE,
    LOCAL,
    LOCAL_PAGE,
    SATURATED,
    TIMEOUT,
    WAITING,
    Flight,
    Model,
    Said,
    Scrape,
    Settings,
)
from tests.properties.many_exporters import SORTS, ManyExporters, Outcome, failed
from tests.wire import Reply, Wire, request

CONNECTIONS_AT_MOST = 6
MAX_CONNECTIONS = 12
TOKEN = ("Authorization", "Bearer right")
A_MOMENT = ("X-Prometheus-Scrape-Timeout-Seconds", "0.3")
COUNTED = tuple(
    f"exporter_proxy_{name}"
    for name in (
        "connections",
        "config_last_reload_successful",
        "requests_denied_total",
        "scrapes_total",
        "scrape_errors_total",
        "shared_scrapes_total",
        "scrapes_in_flight",
    )
)
CUT_AT_ONCE = Reply(b"", 0, "", (), b"", "reset", (), 0.0, 0.0)
"""Of an answer that was cut not even its head need arrive."""
EXPORTERS = (*AT_ONCE, "large", "shared", "dead", "file", "command", *WAITING)


@dataclass(eq=False)
class Client:
    """A scraper's connection. ``ahead`` was sent and is yet to be answered."""

    wire: Wire
    scrape: Scrape | None = None
    ahead: list[tuple[Said, int]] = field(default_factory=list)
    unsent: bytes = b""
    """The rest of a request whose beginning was sent."""


class DrivenDaemon(RuleBasedStateMachine):
    """The daemon, its exporters, who is connected to it, and the model of it all."""

    daemon: Daemon

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        self.clients: list[Client] = []
        self.asks = 0

    # The beginning

    def set_up(self, is_tls: bool) -> None:
        """Start it, beside its exporters; what is open then is what has to be left at the end."""
        self.site = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        (self.site / "page.prom").write_bytes(LOCAL_PAGE)
        (self.site / "tokens").write_text("right\n")
        self.exporters = self.cleanup.enter_context(ManyExporters())
        dead = self.cleanup.enter_context(refusing_port())
        urls = {sort: self.exporters.url(sort) for sort in SORTS}
        self.model = Model({**urls, "dead": f"http://127.0.0.1:{dead}/"}, str(self.site / "page.prom"))
        self.trusting: ssl.SSLContext | None = None
        if is_tls:
            self.authority = trustme.CA()
            self.trusting = ssl.create_default_context()
            self.authority.configure_trust(self.trusting)
            self.certificate = self.issue()
        daemon = Daemon(self.config(self.model.settings), "--web.enable-lifecycle")
        self.daemon = self.cleanup.enter_context(daemon)
        self.watch = Client(self.connect())
        self.warm_up()

    def warm_up(self) -> None:
        """Use once what is opened when it is first used, and see what is open then."""
        client = Client(self.connect())
        self.clients.append(client)
        for name in ("plain", "file", "command"):
            self.say(client, [Said(name)])
        self.reload("SIGHUP")
        self.drop(client)
        self.exporters.restart()
        self.check_counts()
        wait_until(lambda: not self.exporters.live_connections(), "its connections were noticed to be gone")
        self.open_at_rest = self.descriptors()

    def config(self, changed: Settings) -> dict[str, Any]:
        section = {
            "shutdown_timeout": "30s",
            "read_header_timeout": "1m",
            "max_connections": MAX_CONNECTIONS,
            "access_log": {"format": "json", "path": str(self.site / "access.log")},
            "exporters": self.model.section(changed),
        }
        if changed.wants_token:
            section["bearer_tokens_file"] = str(self.site / "tokens")
        if self.trusting is not None:
            section["tls"] = {"certfile": str(self.site / "cert.pem"), "keyfile": str(self.site / "key.pem")}
        return section

    def issue(self) -> bytes:
        """Put a new certificate and its key in place; gives the certificate."""
        pair = self.authority.issue_cert("127.0.0.1")
        pair.private_key_pem.write_to_path(self.site / "key.pem")
        pair.cert_chain_pems[0].write_to_path(self.site / "cert.pem")
        return ssl.PEM_cert_to_DER_cert(pair.cert_chain_pems[0].bytes().decode())

    def connect(self) -> Wire:
        wire = self.daemon.connect(tls=self.trusting)
        self.cleanup.callback(wire.close)
        if isinstance(wire.sock, ssl.SSLSocket):
            assert wire.sock.getpeercert(binary_form=True) == self.certificate
        return wire

    # Requests and their answers

    def bytes_of(self, said: Said) -> tuple[bytes, int]:
        """A request, and what the exporter knows it by."""
        self.asks += 1
        ask = self.asks
        target, param = said.path, said.param
        if said.exporter:
            if said.exporter in ("shared", "flown"):
                param = ""  # another query is another answer
                ask = 1_000_000 * EXPORTERS.index(said.exporter) + said.variant
            target = f"/{said.exporter}/metrics"
            query = [param, "" if said.exporter in LOCAL else f"ask={ask}"]
            target += "?" * any(query) + "&".join(filter(None, query))
        headers = [A_MOMENT] if said.is_impatient else []
        if said.token != "none":
            headers.append(("Authorization", f"Bearer {said.token}"))
        return request(target, *headers, method=said.method), ask

    def say(self, client: Client, several: Sequence[Said]) -> None:
        """Send these requests at once, and read what answers there are."""
        made = [self.bytes_of(said) for said in several]
        client.wire.send(b"".join(raw for raw, _ in made))
        client.ahead = [(said, ask) for said, (_, ask) in zip(several, made, strict=True)]
        self.advance(client)

    def advance(self, client: Client) -> None:
        """Read the answers to what was sent ahead, up to a scrape that is not answered at once."""
        while client.ahead and client.scrape is None:
            said, ask = client.ahead.pop(0)
            refusal = self.model.refusal(said)
            if refusal is not None:
                self.expect(client, failed(*refusal), b"", said.method)
                self.model.deny(refusal[1])
            elif said.path:
                self.expect(client, Outcome(body=None), b"", said.method)
                self.model.requests += 1
            elif said.exporter in WAITING:
                self.begin(client, said, ask)
            else:
                self.scrape_at_once(client, said, ask)

    def scrape_at_once(self, client: Client, said: Said, ask: int) -> None:
        route = self.model.routes[said.exporter]
        outcome = self.model.outcome(said.exporter)
        if said.exporter == "shared":
            flight = route.flights.setdefault(ask, Flight(ask))
            is_shared = flight.kept is not None
            reply = self.expect(client, outcome, flight.kept or (lambda: self.exporters.page_for(ask)))
            assert (reply.header("age") is not None) == is_shared
            flight.kept = reply.body
            self.model.count(route, outcome, is_shared)
            return
        is_asked = said.exporter in SORTS and said.method == "GET"
        text = (
            LOCAL_PAGE
            if said.exporter in LOCAL
            else lambda: self.exporters.page_for(ask) if is_asked else b""
        )
        self.expect(client, outcome, text, said.method)
        self.model.count(route, outcome)

    def begin(self, client: Client, said: Said, ask: int) -> None:
        """A scrape that stays under way, unless there is an answer already or the scraper will not wait."""
        route = self.model.routes[said.exporter]
        known = route.flights.get(ask)
        if known is not None and known.kept is not None:
            reply = self.expect(client, Outcome(), known.kept)
            assert reply.header("age") is not None
            self.model.count(route, Outcome(), True)
            return
        scrape = client.scrape = self.model.begin(said.exporter, ask)
        if not scrape.waits_for_slot and not scrape.is_shared:
            self.arrived(scrape)
        elif not said.is_impatient:
            self.wait_until_in_flight(scrape.route.name)  # before another that is yet to be sent
        if said.is_impatient:
            outcome = SATURATED if scrape.waits_for_slot else TIMEOUT
            if said.exporter in ("gated", "limited") and not scrape.waits_for_slot:
                outcome = Outcome(200, "timeout", is_cut=True)
            self.finish(client, outcome)

    def arrived(self, scrape: Scrape) -> None:
        """The exporter has it; of a program it cannot be told."""
        if scrape.route.name not in LOCAL:
            held = self.exporters.wait_for(scrape.ask)
            if scrape.flight is not None:
                scrape.flight.held = held
            else:
                scrape.held = held

    def finish(self, client: Client, outcome: Outcome, text: bytes = b"") -> None:
        """Its scrape ends like this; then what was sent ahead has its turn."""
        self.finish_all([(client, outcome)], text)

    def finish_all(self, ends: Sequence[tuple[Client, Outcome]], text: bytes = b"") -> None:
        """These scrapes end at once: what was sent ahead has its turn once the model knows of all."""
        for client, outcome in ends:
            self.end_scrape(client, outcome, text)
        for client, _ in ends:
            if client in self.clients:
                self.advance(client)

    def end_scrape(self, client: Client, outcome: Outcome, text: bytes) -> None:
        scrape = client.scrape
        assert scrape is not None
        client.scrape = None
        if outcome is not GONE:
            self.expect(client, outcome, text)
        following = self.model.end(scrape, outcome)
        if following is not None:
            self.arrived(following)

    def expect(
        self, client: Client, outcome: Outcome, text: bytes | Callable[[], bytes], method: str = "GET"
    ) -> Reply:
        """Read one answer, which must be this. ``text`` is the exporter's page, looked at afterwards."""
        try:
            reply = client.wire.read_reply(method)
        except ConnectionError:
            assert outcome.is_cut
            reply = CUT_AT_ONCE
        if outcome.is_cut:
            assert not reply.complete
            self.clients.remove(client)
            client.wire.close()
            client.ahead.clear()
            return reply
        assert (reply.status, reply.error, reply.complete) == (outcome.status, outcome.reason, True), reply
        assert reply.header("connection") is None
        if outcome.body is not None and method != "HEAD":
            page = text() if callable(text) else text
            assert reply.body == outcome.body(page)
        return reply

    def let_go_on(self, client: Client) -> None:
        """The exporter answers a scrape that it has held back, and all that share in it have the answer."""
        assert client.scrape is not None
        flight = client.scrape.flight
        held = client.scrape.held if flight is None else flight.held
        assert held is not None
        held.gate.set()
        if flight is None:
            self.finish(client, Outcome(), held.page)
            return
        flight.kept = held.page
        self.finish_all([(one, Outcome()) for one in self.of_flight(flight)], held.page)

    def drop(self, client: Client, how: str = "close") -> None:
        self.clients.remove(client)
        client.ahead.clear()
        if how == "half-close" and self.trusting is None:
            client.wire.sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                client.wire.read_until_closed()
        if how == "reset":
            client.wire.reset()
        client.wire.close()
        if client.scrape is not None:
            self.finish(client, GONE)

    # Who is there

    def idle(self) -> list[Client]:
        return [client for client in self.clients if client.scrape is None and not client.unsent]

    def idle_one(self, pick: int) -> Client:
        """One that can ask, be it a new one."""
        idle = self.idle()
        if not idle or (pick >= len(idle) and len(self.clients) < CONNECTIONS_AT_MOST):
            idle = [Client(self.connect())]
            self.clients += idle
        return one_of(idle, pick)

    def busy(self, *names: str) -> list[Client]:
        """Those whose scrapes an exporter has, of one of these names."""
        return [
            client
            for client in self.clients
            if client.scrape is not None
            and client.scrape.route.name in names
            and not client.scrape.waits_for_slot
        ]

    def waiting(self) -> list[Client]:
        """Those whose scrapes wait for a slot, or for what another has asked."""
        return [
            client
            for client in self.clients
            if client.scrape is not None and (client.scrape.waits_for_slot or client.scrape.is_shared)
        ]

    def of_flight(self, flight: Flight) -> list[Client]:
        return [one for one in self.clients if one.scrape is not None and one.scrape.flight is flight]

    def crowd_in(self, too_many: int) -> None:
        """So many connections at once that all who idle give way, and ``too_many`` find no room even so."""
        idle = [client for client in self.clients if client.scrape is None]
        room = MAX_CONNECTIONS - (len(self.clients) - len(idle))
        self.daemon.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.daemon.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it was stopped")
        crowd = [self.connect().send(request("/-/healthy")) for _ in range(room + too_many)]
        self.daemon.process.send_signal(signal.SIGCONT)
        for wire in crowd[:room]:
            wire.read_reply().expect_ok()
            self.model.requests += 1
        for wire in crowd[room:]:
            wire.read_reply().expect_refusal(503, "connection_limit")
            self.model.deny("connection_limit")
        for client in [*idle, self.watch]:
            assert client.wire.closes_within(5)
            client.wire.close()
        self.clients = [client for client in self.clients if client not in idle]
        for wire in crowd:
            wire.close()
        self.watch = Client(self.connect())

    # Reloads, and what is left

    def reload(self, how: str, problems: int = 0) -> None:
        """Have it load the configuration anew, which has so many problems; returns when it has said so."""
        message = "config not reloaded, the old one stays in force" if problems else "config reloaded"
        logged = len(self.daemon.logged(message))
        if how == "SIGHUP":
            self.daemon.process.send_signal(signal.SIGHUP)
        else:
            reply = self.watch.wire.exchange(request("/-/reload", TOKEN, method=how))
            assert reply.status == (500 if problems else 200), reply
            self.model.requests += 1
        wait_until(
            lambda: len(self.daemon.logged(message)) == logged + max(1, problems), f"it logged: {message}", 20
        )
        self.model.is_last_reload_good = not problems

    def in_flight(self) -> Counter[str]:
        """How many scrapes are under way, by exporter."""
        scrapes = [client.scrape for client in self.clients if client.scrape is not None]
        return Counter(scrape.route.name for scrape in scrapes if self.is_counted(scrape))

    def wait_until_in_flight(self, name: str) -> None:
        """Until this exporter's last scrape has begun; what others sent ahead may have begun, too."""
        count, key = self.in_flight()[name], ("scrapes_in_flight", name)
        wait_until(lambda: self.metrics().get(key, 0) >= count, f"{count} scrapes of {name} had begun")

    def check_counts(self) -> None:
        expected = self.model.expected_metrics(len(self.clients) + 1)
        expected |= {("scrapes_in_flight", name): count for name, count in self.in_flight().items()}
        end = time.monotonic() + 10
        while (found := self.metrics()) != expected and time.monotonic() < end:
            time.sleep(0.01)
        differing = {key: (found.get(key), expected.get(key)) for key in found.keys() | expected.keys()}
        assert found == expected, {key: pair for key, pair in differing.items() if pair[0] != pair[1]}

    def is_counted(self, scrape: Scrape) -> bool:
        """Whether it is one of an exporter that is in the configuration, and has been since it began."""
        current = self.model.routes.get(scrape.route.name)
        return current is not None and current.record is scrape.route.record

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Those that the model knows and that are not 0, by name and label values."""
        self.model.requests += 1
        page = self.watch.wire.exchange(request("/metrics", TOKEN)).expect_ok().body.decode()
        return {
            (
                sample.name.removeprefix("exporter_proxy_"),
                *(sample.labels[key] for key in sorted(sample.labels)),
            ): (sample.value)
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name in COUNTED and sample.value
            if sample.labels.get("exporter") not in LOCAL or "shared" not in sample.name
        }

    def descriptors(self) -> Counter[str]:
        """What is open, by sort."""
        return Counter(link.partition(":[")[0] for link in self.daemon.descriptors())


def one_of(clients: Sequence[Client], pick: int) -> Client:
    return clients[pick % len(clients)]
