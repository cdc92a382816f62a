"""The stand-in for the PushProx proxy as a process, and a scraper that asks through it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from tests.daemon import REPOSITORY, Daemon, proxied
from tests.e2e.processes import own_loopback_address
from tests.fakes.exporter import FakeExporter
from tests.wire import CONNECTION_CLOSE, Reply, Wire, request

FQDN = "vm1.example.org"


class StandIn:
    """``tests/fakes/pushprox.py`` from ``with`` to the end of the block, at the same address all along.

    ``launcher`` goes before the command, and has to exec it.
    """

    def __init__(self, *options: str, host: str | None = None, launcher: Sequence[str] = ()) -> None:
        self._options = options
        self._launcher = launcher
        self.host = host or own_loopback_address()
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        scheme = "https" if "--tls" in self._options else "http"
        return f"{scheme}://{self.host}:{self.port}/"

    def start(self, *further: str) -> None:
        """Start it, for the first time or again where it was before."""
        command = [sys.executable, "-m", "tests.fakes.pushprox", f"{self.host}:{self.port}"]
        self.process = subprocess.Popen(
            [*self._launcher, *command, *self._options, *further],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def get(
        self,
        url: str,
        *headers: tuple[str, str],
        method: str = "GET",
        timeout: float | None = 5.0,
        **options: Any,
    ) -> Reply:
        """What a scraper with this ``proxy_url`` gets. ``timeout`` is its header; ``None``: it sends none."""
        found = re.match(r"https?://([^/?]*)", url)
        sent = [*headers, *([("X-Prometheus-Scrape-Timeout-Seconds", f"{timeout:g}")] if timeout else [])]
        text = request(url, *sent, CONNECTION_CLOSE, method=method, host=found[1] if found else None)
        with Wire((self.host, self.port), **options) as wire:
            return wire.exchange(text)

    def recorded(self, path: str) -> list[dict[str, Any]]:
        """What it was sent under this path: ``headers`` and ``body``."""
        with Wire((self.host, self.port)) as wire:
            messages = json.loads(wire.exchange(request("/recorded", CONNECTION_CLOSE)).body)
        return [message for message in messages if message["path"] == path]


@contextmanager
def polling(*options: str, **pushprox: Any) -> Iterator[tuple[StandIn, Daemon, FakeExporter]]:
    with StandIn(*options) as proxy:
        section = {"proxy_url": proxy.url, "fqdn": FQDN, **pushprox}
        with proxied(pushprox=section) as (daemon, exporter):
            yield proxy, daemon, exporter


def url_of(daemon: Daemon) -> str:
    return f"http://{FQDN}:{daemon.port}/x/metrics"
