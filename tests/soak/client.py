"""The soak's own requests: over TLS, with the password, from an address of their own, each with a number."""

from __future__ import annotations

import itertools
import ssl
from base64 import b64encode
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.soak.certificates import HOST, PASSWORD, USER
from tests.soak.site import CHECKER, Site
from tests.wire import CONNECTION_CLOSE, Reply, Wire, request

TIMEOUT_SECONDS = 8.0
AUTHORIZATION = ("Authorization", f"Basic {b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}")
TAG = "soak"
"""The parameter that numbers a request: by it, its line in the access log is found."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Answer:
    """What came of one request, and by whose certificate."""

    number: int
    reply: Reply
    serial: int


class Client:
    """Used by several threads: each request has a connection of its own."""

    def __init__(self, site: Site) -> None:
        self._port = site.daemon.port
        self._context = ssl.create_default_context(cafile=str(site.certificates.ca_file))
        self._numbers = itertools.count(1)

    def get(self, path: str, *headers: tuple[str, str], number: int | None = None) -> Answer:
        """Raises OSError and h11.RemoteProtocolError where no answer came."""
        number = number or self.next_number()
        asked = request(
            f"{path}?{TAG}={number}",
            AUTHORIZATION,
            ("X-Prometheus-Scrape-Timeout-Seconds", f"{TIMEOUT_SECONDS:g}"),
            *headers,
            CONNECTION_CLOSE,
        )
        with Wire(
            (HOST, self._port), source=CHECKER, tls=self._context, timeout_seconds=2 * TIMEOUT_SECONDS
        ) as wire:
            assert isinstance(wire.sock, ssl.SSLSocket)
            shown = wire.sock.getpeercert()
            assert shown is not None
            return Answer(number, wire.exchange(asked), int(str(shown["serialNumber"]), 16))

    def next_number(self) -> int:
        return next(self._numbers)

    def metrics(self, number: int | None = None) -> tuple[int, Samples]:
        """The daemon's own metrics, and the number of the request. Raises as ``get`` does."""
        answer = self.get("/metrics", number=number)
        page = answer.reply.expect_ok().body.decode()
        samples = [one for family in text_string_to_metric_families(page) for one in family.samples]
        return answer.number, {(one.name, frozenset(one.labels.items())): one.value for one in samples}
