"""``verify: true`` before every exporter that Debian packages: Prometheus must not notice it.

One daemon is in front of them all, and of pages as exporters of the JVM write them. Two real Prometheus
servers, one that would rather have OpenMetrics and one that would rather have protobuf, scrape each both
directly and through the daemon, and must come to the same verdict.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.daemon import Daemon
from tests.e2e.debian_exporters import FILES, PACKAGED, Packaged, started
from tests.e2e.processes import Prometheus
from tests.fakes.exporter import FakeExporter, respond
from tests.testdata.exposition.jmx import JMX_PAGES

pytestmark = [
    pytest.mark.needs_prometheus,
    pytest.mark.xdist_group("debian_exporters"),
    pytest.mark.timeout(300),
]

PATIENCE_SECONDS = 90.0
POLL_SECONDS = 0.25
SCRAPE_INTERVAL = "6s"
"""Some exporters answer one scrape at a time and take a second for it, and there are four scrapers."""
BAD_GATEWAY = "server returned HTTP status 502 Bad Gateway"
PREFERENCES: dict[str, tuple[str, ...]] = {
    "openmetrics": (),
    "protobuf": ("--enable-feature=native-histograms",),
}
"""What each Prometheus would rather have, and the flag that makes it so."""
ACCEPTS = [
    "text/plain;version=0.0.4",
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,*/*;q=0.5",
]
MEDIA_TYPES = ["text/plain", "application/openmetrics-text", "application/vnd.google.protobuf"]
ENCODINGS = ["identity", "gzip"]
EXPOSING = [one for one in PACKAGED.values() if one.path is not None]
CUT_OFF = "jmx_cut_off"
DOWN = {CUT_OFF, *(one.name for one in EXPOSING if one.error)}
"""Of these Prometheus takes nothing in, whatever way it goes."""
ODD_LOG_LINE = 'größe "C:\\dir\\"{,}#\n'


@dataclass(frozen=True)
class Verdict:
    """What a Prometheus says of one exporter: health and ``lastError`` of its targets."""

    direct: tuple[str, str]
    proxied: tuple[str, str]


UP = Verdict(("up", ""), ("up", ""))


@dataclass(frozen=True)
class Site:
    """The exporters, the daemon before them, and what was found."""

    names: list[str]
    """Of all that can be asked."""
    failures: Mapping[str, str]
    """Why an exporter does not run."""
    daemon: Daemon
    verdicts: Mapping[str, Mapping[str, Verdict]]
    """By preference and name."""

    def malformed(self, name: str) -> float:
        return self.daemon.metric("exporter_proxy_scrape_errors_total", exporter=name, reason="malformed")


def target(name: str, url: str) -> dict[str, Any]:
    """A static config that scrapes ``url``."""
    parts = urlsplit(url)
    labels = {f"__param_{key}": value for key, value in parse_qsl(parts.query)}
    return {"targets": [parts.netloc], "labels": {**labels, "__metrics_path__": parts.path, "exporter": name}}


def push_metrics(gateway_url: str) -> None:
    """Push what is odd in every part."""
    request = urllib.request.Request(
        f"{gateway_url}/job@base64/Z3LDtsOfZQ", (FILES / "pushed.prom").read_bytes(), method="PUT"
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
        assert response.status == 200


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    wanted = [one for one in EXPOSING if not one.missing and not one.is_forbidden]
    with ExitStack() as stack:
        host = stack.enter_context(started(wanted))
        urls = {one.name: host.urls[one.name] for one in wanted if one.name in host.urls}
        if "pushgateway" in urls:
            push_metrics(urls["pushgateway"])
        with (host.directory / "mail.log").open("a") as log:
            log.write(ODD_LOG_LINE)
        for name, page in JMX_PAGES.items():
            headers = {"Content-Type": page.content_type, "Content-Encoding": page.content_encoding}
            sent = [(name, value) for name, value in headers.items() if value is not None]
            urls[name] = stack.enter_context(FakeExporter(respond(headers=sent, body=page.body))).url()
        entries = {name: {"url": url} for name, url in urls.items()}
        daemon = stack.enter_context(Daemon({"defaults": {"verify": True}, "exporters": entries}))
        yield Site(list(urls), host.failures, daemon, judged(urls, daemon))


def judged(urls: Mapping[str, str], daemon: Daemon) -> dict[str, dict[str, Verdict]]:
    """What each Prometheus says once it is what is wanted, or what it still says after a while."""
    proxied = {name: f"{daemon.url}/{name}/metrics" for name in urls}
    jobs = [
        {"job_name": job, "static_configs": [target(name, url) for name, url in ways.items()]}
        for job, ways in (("direct", urls), ("proxied", proxied))
    ]
    wanted = {name: ("down", "down") if name in DOWN else ("up", "up") for name in urls}
    with ExitStack() as stack:
        servers = {
            preference: stack.enter_context(
                Prometheus(jobs, *flags, scrape_interval=SCRAPE_INTERVAL, scrape_timeout=SCRAPE_INTERVAL)
            )
            for preference, flags in PREFERENCES.items()
        }
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = {preference: verdicts(server) for preference, server in servers.items()}
            health = [
                {name: (verdict.direct[0], verdict.proxied[0]) for name, verdict in said.items()}
                for said in found.values()
            ]
            # Where Prometheus gave up by itself, what the daemon would have said is still to come.
            given_up = [
                one for said in found.values() for one in said.values() if one.proxied[1].startswith('Get "')
            ]
            if (health == [wanted] * len(servers) and not given_up) or time.monotonic() > end:
                return found
            time.sleep(POLL_SECONDS)


def verdicts(prometheus: Prometheus) -> dict[str, Verdict]:
    """What it says now of each exporter that it knows on both ways."""
    try:
        targets = prometheus.targets()
    except urllib.error.HTTPError:  # 503: it is still starting
        return {}
    said = {
        (one["labels"]["exporter"], one["labels"]["job"]): (one["health"], one["lastError"])
        for one in targets
    }
    names = {name for name, _ in said if {(name, "direct"), (name, "proxied")} <= said.keys()}
    return {name: Verdict(said[name, "direct"], said[name, "proxied"]) for name in names}


def skip_what_is_missing(packaged: Packaged) -> None:
    """Skip if it cannot be run here; fail if ``CI`` is "true" and the package is there to be installed."""
    if packaged.is_forbidden:
        pytest.skip("only root can run it")
    for package in packaged.missing:
        if os.environ.get("CI") == "true":
            asked = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
            is_available = asked.returncode == 0
            assert not is_available, f"{package} is not installed"
        pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("packaged", EXPOSING, ids=str)
def test_prometheus_takes_through_the_daemon_what_it_takes_directly(site: Site, packaged: Packaged) -> None:
    skip_what_is_missing(packaged)
    assert packaged.name not in site.failures, site.failures[packaged.name]
    for needed in packaged.needs:
        assert needed not in site.failures, site.failures[needed]
    for said in site.verdicts.values():
        verdict = said[packaged.name]
        if packaged.error:
            assert (verdict.direct[0], verdict.proxied) == ("down", ("down", packaged.error))
        else:
            assert verdict == UP
    assert site.malformed(packaged.name) == 0


@pytest.mark.parametrize("name", JMX_PAGES)
def test_prometheus_takes_pages_of_the_jvm_likewise(site: Site, name: str) -> None:
    is_whole = name != CUT_OFF
    for said in site.verdicts.values():
        verdict = said[name]
        if is_whole:
            assert verdict == UP
        else:
            assert (verdict.direct[0], verdict.proxied) == ("down", ("down", BAD_GATEWAY))
    assert (site.malformed(name) == 0) == is_whole


def fetched(url: str, accept: str, encoding: str) -> tuple[str, str]:
    """The media type and the encoding of what came, which must be a whole page."""
    asked = urllib.request.Request(url, headers={"Accept": accept, "Accept-Encoding": encoding})
    with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as response:
        body = response.read()
        came = response.headers.get("Content-Encoding", "identity")
        media_type = response.headers["Content-Type"].partition(";")[0]
    assert zlib.decompress(body, wbits=31) if came == "gzip" else body
    return media_type, came


def test_no_page_is_malformed_in_any_format_and_encoding(site: Site) -> None:
    """Each is asked for each format, plain and packed; what it cannot say it says as text."""
    up = [name for name in site.names if name not in DOWN]
    urls = [f"{site.daemon.url}/{name}/metrics" for name in up]
    with ThreadPoolExecutor(8) as scrapers:
        seen = set(scrapers.map(fetched, *zip(*product(urls, ACCEPTS, ENCODINGS), strict=True)))
    assert {media_type for media_type, _ in seen} >= set(MEDIA_TYPES)
    assert {encoding for _, encoding in seen} == set(ENCODINGS)
    assert {name: site.malformed(name) for name in up} == dict.fromkeys(up, 0)
