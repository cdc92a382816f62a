"""``verify: true`` before real exporters: no false alarm, whichever format and encoding they are asked for.

A real Prometheus scrapes all of them through one daemon; one exporter says what is no exposition.
"""

from __future__ import annotations

import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon import Daemon, wait_until
from tests.e2e.processes import EXPORTER_COMMANDS, Exporter, Prometheus, redis_server
from tests.fakes.exporter import FakeExporter, respond

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.xdist_group("verify_real_exporters")]

PATIENCE_SECONDS = 30.0
BAD_GATEWAY = "server returned HTTP status 502 Bad Gateway"
ACCEPTS = [
    "text/plain;version=0.0.4",
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,*/*;q=0.5",
]
MEDIA_TYPES = ["text/plain", "application/openmetrics-text", "application/vnd.google.protobuf"]
ENCODINGS = ["identity", "gzip"]
REAL = [*EXPORTER_COMMANDS, "probe", "prometheus", "exporter_proxy", "shared"]
GARBAGE = b"# TYPE a counter\na 1\nTraceback (most recent call last):\n"


@dataclass(frozen=True)
class Site:
    """Real exporters, one that says garbage, the daemon before them, and the Prometheus that scrapes it."""

    daemon: Daemon
    prometheus: Prometheus

    def targets(self, name: str) -> list[dict[str, Any]]:
        """What Prometheus shows of this exporter's targets, each with its ``up``."""
        ups = {
            one["metric"]["job"]: float(one["value"][1])
            for one in self.prometheus.query(f'up{{exporter="{name}"}}')
        }
        found = [one for one in self.prometheus.targets() if one["labels"]["exporter"] == name]
        return [{**one, "up": ups.get(one["labels"]["job"])} for one in found]

    def wait_for(self, name: str, up: int, last_error: str = "") -> None:
        """Until all its targets are like that."""
        targets: list[dict[str, Any]] = []

        def has_come() -> bool:
            targets[:] = self.targets(name)
            return bool(targets) and all((one["up"], one["lastError"]) == (up, last_error) for one in targets)

        try:
            wait_until(has_come, f"{name} was {up}", PATIENCE_SECONDS)
        except AssertionError as error:
            shown = [(one["up"], one["lastError"]) for one in targets]
            raise AssertionError(f"{error}; it is {shown}") from None

    def malformed(self, name: str) -> float:
        return self.daemon.metric("exporter_proxy_scrape_errors_total", exporter=name, reason="malformed")


def scrape_config(job: str, proxy: str, names: list[str]) -> dict[str, Any]:
    targets = [
        {
            "targets": [proxy],
            "labels": {
                "exporter": name,
                "__metrics_path__": f"/{name}/metrics",
                # With its database down it takes a second, and the daemon keeps half a second for itself.
                **({"__scrape_interval__": "2s", "__scrape_timeout__": "2s"} if "postgres" in name else {}),
            },
        }
        for name in names
    ]
    return {"job_name": job, "static_configs": targets}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    modules = Path(tmp_path_factory.mktemp("blackbox"), "blackbox.yml")
    modules.write_text(yaml.safe_dump({"modules": {"tcp": {"prober": "tcp", "timeout": "500ms"}}}))
    with ExitStack() as stack:
        arguments = {
            "redis_exporter": [f"--redis.addr={stack.enter_context(redis_server())}"],
            "blackbox_exporter": [f"--config.file={modules}"],
        }
        exporters = {
            name: stack.enter_context(Exporter(name, *arguments.get(name, []))) for name in EXPORTER_COMMANDS
        }
        garbage = stack.enter_context(FakeExporter(respond(body=GARBAGE)))
        entries: dict[str, dict[str, Any]] = {name: {"url": one.url()} for name, one in exporters.items()}
        probe = exporters["blackbox_exporter"].url("/probe?module=tcp&target=127.0.0.1:1")
        entries["probe"] = {"url": probe}
        entries["shared"] = {"url": exporters["node_exporter"].url(), "share_for": "2s"}
        entries["garbage"] = {"url": garbage.url()}
        daemon = stack.enter_context(Daemon({"defaults": {"verify": True}, "exporters": entries}))
        proxy = f"127.0.0.1:{daemon.port}"
        jobs = [scrape_config("host", proxy, [*REAL, "garbage"]), scrape_config("pair", proxy, ["shared"])]
        prometheus = stack.enter_context(Prometheus(jobs, scrape_interval="1s", scrape_timeout="1s"))
        entries["prometheus"] = {"url": prometheus.url("/metrics")}
        entries["exporter_proxy"] = {"url": f"{daemon.url}/metrics"}
        daemon.write_config({"listen": proxy, "defaults": {"verify": True}, "exporters": entries})
        assert '"config reloaded"' in daemon.reload()
        yield Site(daemon, prometheus)


@pytest.mark.parametrize("name", REAL)
def test_a_real_exporter_is_up(site: Site, name: str) -> None:
    site.wait_for(name, up=1)
    assert site.prometheus.query(f'scrape_samples_scraped{{exporter="{name}"}} > 1')
    assert site.malformed(name) == 0


def test_garbage_is_a_bad_gateway(site: Site) -> None:
    site.wait_for("garbage", up=0, last_error=BAD_GATEWAY)
    assert site.malformed("garbage") > 0
    logged = site.daemon.wait_for_log("exporter=garbage")
    assert "line 3: " in logged
    assert "Traceback (most recent call last):" in logged


def test_both_of_a_pair_are_up_with_what_they_share(site: Site) -> None:
    site.wait_for("shared", up=1)
    assert len(site.targets("shared")) == 2
    wait_until(
        lambda: site.daemon.metric("exporter_proxy_shared_scrapes_total", exporter="shared") > 0,
        "one of the two got the other's answer",
        PATIENCE_SECONDS,
    )


def fetched(url: str, accept: str, encoding: str) -> tuple[str, str]:
    """The media type and the encoding of what came, which must be a whole page."""
    asked = urllib.request.Request(url, headers={"Accept": accept, "Accept-Encoding": encoding})
    with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as response:
        body = response.read()
        came = response.headers.get("Content-Encoding", "identity")
        media_type = response.headers["Content-Type"].partition(";")[0]
    assert len(zlib.decompress(body, wbits=31) if came == "gzip" else body) > 100
    return media_type, came


def test_no_real_page_is_malformed_in_any_format(site: Site) -> None:
    """Each exporter is asked for each format, plain and packed; what it cannot say it says as text."""
    site.wait_for("prometheus", up=1)
    urls = [f"{site.daemon.url}/{name}/metrics" for name in REAL]
    with ThreadPoolExecutor(8) as scrapers:
        seen = set(scrapers.map(fetched, *zip(*product(urls, ACCEPTS, ENCODINGS), strict=True)))
    assert seen == set(product(MEDIA_TYPES, ENCODINGS))
    assert {name: site.malformed(name) for name in REAL} == dict.fromkeys(REAL, 0)
