"""The real Prometheus: scrapes each exporter through the daemon once a second, and is asked what it saw.

Its log at level debug has the error of each failed scrape.
"""

from __future__ import annotations

import json
import re
import signal
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from tests.daemon import parse_logfmt, wait_until
from tests.e2e.processes import PROMETHEUS, START_SECONDS, listening_port
from tests.soak.certificates import HOST, PASSWORD, USER
from tests.soak.exporters import start
from tests.soak.site import OWN, Site

INTERVAL_SECONDS = 1
LOG = "prometheus.log"
ANSWER_SECONDS = 60.0
SCRAPE_FAILED = re.compile(r'.*msg="Scrape failed"')


@dataclass(frozen=True)
class Scrape:
    """One scrape as Prometheus has it. Times are Unix times."""

    job: str
    began: float
    seconds: float
    is_up: bool
    samples: int
    error: str = ""

    @property
    def ended(self) -> float:
        return self.began + self.seconds


class Prometheus:
    """Made by ``prometheus``."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._directory = site.directory
        self._write_config(self._jobs())
        self.process = start(
            [
                PROMETHEUS,
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=prometheus",
                f"--web.listen-address={HOST}:0",
                "--log.level=debug",
                "--query.lookback-delta=2s",
            ],
            self._directory,
            LOG,
        )

    def wait_until_ready(self) -> None:
        self._port = listening_port(self.process)
        wait_until(self._is_ready, "Prometheus is ready", START_SECONDS)

    def up(self) -> dict[str, tuple[float, bool]]:
        """By job: when it was last scraped (Unix time), and whether that went well."""
        last = {one["metric"]["job"]: one["value"] for one in self._query("timestamp(up)")}
        is_up = {one["metric"]["job"]: one["value"] for one in self._query("up")}
        return {job: (float(last[job][1]), is_up[job][1] == "1") for job in last.keys() & is_up.keys()}

    def stop_scraping(self) -> None:
        """Have it close its connections; what it knows can still be asked for."""
        self._write_config([])
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not self._ask("targets", state="active")["activeTargets"], "it has no targets", 30)

    def scrapes(self, seconds: float) -> list[Scrape]:
        """All scrapes of the last so many seconds, in their order."""
        span = f"[{int(seconds) + 60}s]"
        up, took, samples = (
            {
                (one["metric"]["job"], moment): value
                for one in self._query(name + span)
                for moment, value in one["values"]
            }
            for name in ("up", "scrape_duration_seconds", "scrape_samples_scraped")
        )
        errors = self._errors()
        found = [
            Scrape(job, float(moment), float(took[job, moment]), value == "1", int(samples[job, moment]))
            for (job, moment), value in up.items()
        ]
        found = [one if one.is_up else _with_error(one, errors) for one in found]
        return sorted(found, key=lambda one: one.began)

    def _errors(self) -> list[tuple[str, float, str]]:
        """Job, time and error of the failed scrapes."""
        found = []
        with (self._directory / LOG).open(errors="replace") as log:
            for line in filter(SCRAPE_FAILED.match, log):
                fields = parse_logfmt(line)
                moment = datetime.fromisoformat(fields["ts"]).timestamp()
                found.append((fields["scrape_pool"], moment, fields["err"]))
        return found

    def _jobs(self) -> list[dict[str, Any]]:
        static = [{"targets": [f"{HOST}:{self._site.daemon.port}"]}]
        shared = {
            "scheme": "https",
            "tls_config": {"ca_file": str(self._site.certificates.ca_file)},
            "basic_auth": {"username": USER, "password": PASSWORD},
            "static_configs": static,
        }
        paths = {name: f"/{name}/metrics" for name in self._site.names} | {OWN: "/metrics"}
        return [{"job_name": name, "metrics_path": path, **shared} for name, path in paths.items()]

    def _write_config(self, jobs: list[dict[str, Any]]) -> None:
        interval = f"{INTERVAL_SECONDS}s"
        config = {"global": {"scrape_interval": interval, "scrape_timeout": interval}, "scrape_configs": jobs}
        (self._directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self._port}/-/ready", timeout=ANSWER_SECONDS):
                return True
        except OSError:
            return False

    def _query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("query", query=expression)["result"]
        return found

    def _ask(self, endpoint: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        url = f"http://{HOST}:{self._port}/api/v1/{endpoint}?{query}"
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as response:
            return json.load(response)["data"]


def _with_error(scrape: Scrape, errors: list[tuple[str, float, str]]) -> Scrape:
    """The error that was logged nearest to its end."""
    near = [(abs(moment - scrape.ended), text) for job, moment, text in errors if job == scrape.job]
    distance, text = min(near, default=(float("inf"), ""))
    error = text if distance < 0.5 else "(not in its log)"
    return Scrape(scrape.job, scrape.began, scrape.seconds, scrape.is_up, scrape.samples, error)


@contextmanager
def prometheus(site: Site) -> Iterator[Prometheus]:
    """One that scrapes; killed at the end of the block."""
    started = Prometheus(site)
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.process.kill()
        started.process.wait()
