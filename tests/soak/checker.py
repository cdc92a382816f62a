"""The checking scraper: scrapes beside Prometheus, notes what came, and adds up pages with a checksum."""

from __future__ import annotations

import random
import time
import zlib
from dataclasses import dataclass

import h11

from tests.soak import pages
from tests.soak.client import Answer, Client
from tests.soak.exporters import CHECKSUM
from tests.soak.ledger import clock
from tests.soak.site import Site
from tests.soak.worker import Worker

PAUSE_SECONDS = 0.4
GZIP = ("Accept-Encoding", "gzip")


@dataclass(frozen=True)
class Check:
    """One of its scrapes. Times are Unix times."""

    number: int
    exporter: str
    began: float
    ended: float
    status: int
    """0: no answer came."""
    is_complete: bool
    trouble: str = ""

    @property
    def is_up(self) -> bool:
        return self.status == 200 and self.is_complete


class Checker(Worker):
    """Scrapes what carries a checksum, and the others."""

    def __init__(self, site: Site, client: Client, seed: int) -> None:
        super().__init__("checker", site.ledger)
        self._client = client
        self._names = list(site.exporters)  # a command takes no number
        self._chance = random.Random(seed)
        self.checks: list[Check] = []
        self.sums = 0
        """How many pages were found to be what their checksum says."""
        self.serial = 0
        """Of the certificate that was shown last."""

    def _run(self) -> None:
        while not self._stopping.wait(self._chance.random() * 2 * PAUSE_SECONDS):
            # Every other one has a checksum.
            name = CHECKSUM if self._chance.random() < 0.5 else self._chance.choice(self._names)
            self.checks.append(self.check(name))

    def check(self, name: str) -> Check:
        """Scrape once; a page that is not what its checksum says is a violation."""
        number, began = self._client.next_number(), time.time()
        headers = [GZIP] if self._chance.random() < 0.7 else []
        try:
            answer = self._client.get(f"/{name}/metrics", *headers, number=number)
        except (OSError, h11.RemoteProtocolError) as error:
            return Check(number, name, began, time.time(), 0, False, f"{error!r}")
        self.serial = answer.serial
        ended, reply = time.time(), answer.reply
        if name == CHECKSUM and reply.status == 200 and reply.complete:
            self._add_up(answer, began)
        trouble = "" if reply.status == 200 else reply.body.decode(errors="replace").strip()
        return Check(number, name, began, ended, reply.status, reply.complete, trouble)

    def _add_up(self, answer: Answer, began: float) -> None:
        reply = answer.reply
        try:
            is_packed = reply.header("content-encoding") == "gzip"
            found = pages.problem(zlib.decompress(reply.body, wbits=31) if is_packed else reply.body)
        except zlib.error as error:
            found = f"it cannot be unpacked: {error}"
        if found is None:
            self.sums += 1
        else:
            self._ledger.blame(f"{clock(began)} a page that is not whole was delivered as whole: {found}")
