"""What a real Prometheus makes of it: six real exporters and a gallery of broken ones behind one port.

Prometheus shows its operator two things of a target, ``up`` and ``lastError``; both are asserted for each
way in which an exporter can be, as its API has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.daemon import Daemon, wait_until
from tests.e2e.processes import EXPORTER_COMMANDS, Exporter, Prometheus, redis_server
from tests.fakes.exporter import (
    EXPOSITION,
    FakeExporter,
    Script,
    close,
    drip,
    half_close,
    head,
    reset,
    respond,
    send,
    stall,
)
from tests.fakes.ports import refusing_port, unanswering_port

# Prometheus starts to scrape some five seconds after it has started, hence one for all tests here (and in
# one process: --dist loadfile).
pytestmark = pytest.mark.needs_prometheus

SCRAPE_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
BLACKBOX_MODULES = {
    "modules": {
        "http_2xx": {"prober": "http", "timeout": "1s", "http": {"preferred_ip_protocol": "ip4"}},
        "tcp_connect": {"prober": "tcp", "timeout": "1s"},
    }
}

TAKES_A_SECOND = ["postgres_exporter"]
UNHURRIED = {"__scrape_interval__": "2s", "__scrape_timeout__": "2s"}

BAD_GATEWAY = "server returned HTTP status 502 Bad Gateway"
GATEWAY_TIMEOUT = "server returned HTTP status 504 Gateway Timeout"
UNEXPECTED_EOF = "unexpected EOF"

BROKEN: dict[str, tuple[Script, str]] = {
    "silent": ([stall()], GATEWAY_TIMEOUT),
    "dripping_head": ([drip(head() * 20, 0.05)], GATEWAY_TIMEOUT),
    "dripping_body": ([send(head(headers=[EXPOSITION])), drip(b"a 1\n" * 500, 0.05)], UNEXPECTED_EOF),
    "stalling_body": (
        [send(head(headers=[EXPOSITION, ("Content-Length", "1000")]) + b"a 1\n"), stall()],
        UNEXPECTED_EOF,
    ),
    "truncated": (
        [send(head(headers=[EXPOSITION, ("Content-Length", "1000")]) + b"a 1\n"), close()],
        UNEXPECTED_EOF,
    ),
    "truncated_chunk": (
        [send(head(headers=[EXPOSITION, ("Transfer-Encoding", "chunked")]) + b"4\r\na 1\n\r\n"), close()],
        UNEXPECTED_EOF,
    ),
    "garbage": ([send(b"-ERR unknown command 'GET'\r\n"), half_close()], BAD_GATEWAY),
    "resetting": ([reset()], BAD_GATEWAY),
    "redirecting": (
        respond(302, headers=[EXPOSITION, ("Location", "http://127.0.0.1:9090/metrics")]),
        BAD_GATEWAY,
    ),
    "too_large": (respond(body=b"a 1\n" * 1000), BAD_GATEWAY),
    "erring": (respond(500), "server returned HTTP status 500 Internal Server Error"),
    # What a page that is no exposition looks like is Prometheus's to say, and was said anew in 3.0.
    "web_page": (
        respond(headers=[("Content-Type", "text/html")], body=b"<!doctype html><title>It works</title>\n"),
        r".*(is not a valid start token|expected value|unsupported Content-Type).*",
    ),
}
UNREACHABLE = {
    "refused": BAD_GATEWAY,
    "unanswered": GATEWAY_TIMEOUT,
    "unconfigured": "server returned HTTP status 404 Not Found",
}


@dataclass(frozen=True)
class Site:
    """One host with its exporters and one daemon, and the Prometheus that scrapes it."""

    daemon: Daemon
    exporters: dict[str, Exporter]
    prometheus: Prometheus
    probed: str
    """What the blackbox_exporter is to probe."""

    def target(self, exporter: str) -> dict[str, Any] | None:
        """The target with this label, ``None`` where Prometheus does not know it yet."""
        found = [one for one in self.prometheus.targets() if one["labels"].get("exporter") == exporter]
        assert len(found) <= 1, f"{exporter} is not one target: {found}"
        return found[0] if found else None

    def wait_for(self, exporter: str, up: int, error_pattern: str = "") -> None:
        """Until Prometheus shows this ``up`` and a ``lastError`` that matches as a whole."""
        shown: list[object] = []

        def has_come() -> bool:
            target = self.target(exporter)
            value = self.prometheus.value(f'up{{exporter="{exporter}"}}')
            shown[:] = [value, target and target["health"], target and target["lastError"]]
            return (
                target is not None
                and value == up
                and target["health"] == ("up" if up else "down")
                and re.fullmatch(error_pattern, target["lastError"]) is not None
            )

        try:
            wait_until(has_come, f"up of {exporter} became {up}", PATIENCE_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}, {error_pattern!r}; it is {shown}") from None

    def answered_and_given_up(self, exporter: str) -> tuple[float, float]:
        """How many scrapes had an answer, and on how many Prometheus has given up before."""
        scrapes = gone = 0.0
        for (name, labels), value in self.daemon.metrics().items():
            if ("exporter", exporter) in labels:
                scrapes += value * (name == "exporter_proxy_scrapes_total")
                is_error = name == "exporter_proxy_scrape_errors_total"
                gone += value * (is_error and ("reason", "client_gone") in labels)
        return scrapes - gone, gone

    def expect_answers_in_time(self, exporter: str, since: tuple[float, float] = (0, 0)) -> None:
        """Of five scrapes, one may have ended while this machine stood still."""

        def are_in_time() -> bool:
            counted = self.answered_and_given_up(exporter)
            answered, gone = (now - before for now, before in zip(counted, since, strict=True))
            return answered > 2 and gone <= 0.2 * answered

        wait_until(are_in_time, f"{exporter} was answered for in time", PATIENCE_SECONDS)


def scrape_configs(proxy: str, names: list[str], probed: list[str]) -> list[dict[str, Any]]:
    """One job for all exporters of the host, and one for probes through its blackbox_exporter."""
    targets = [
        {"targets": [proxy], "labels": {"exporter": name, **(UNHURRIED if name in TAKES_A_SECOND else {})}}
        for name in names
    ]
    by_label = {
        "source_labels": ["exporter"],
        "regex": "(.+)",
        "target_label": "__metrics_path__",
        "replacement": "/$1/metrics",
    }
    return [
        {
            "job_name": "host",
            "static_configs": targets,
            "relabel_configs": [by_label],
        },
        {
            "job_name": "blackbox",
            # The proxy and blackbox_exporter keep half a second each for themselves.
            "scrape_interval": "2s",
            "scrape_timeout": "2s",
            "metrics_path": "/blackbox/probe",
            "params": {"module": ["http_2xx"]},
            "static_configs": [{"targets": probed}],
            "relabel_configs": [
                {"source_labels": ["__address__"], "target_label": "__param_target"},
                {"source_labels": ["__param_target"], "target_label": "instance"},
                {"target_label": "__address__", "replacement": proxy},
            ],
        },
        {"job_name": "exporter_proxy", "static_configs": [{"targets": [proxy]}]},
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    modules = tmp_path_factory.mktemp("blackbox") / "blackbox.yml"
    modules.write_text(yaml.safe_dump(BLACKBOX_MODULES))
    with ExitStack() as stack:
        arguments = {
            "redis_exporter": [f"--redis.addr={stack.enter_context(redis_server())}"],
            "blackbox_exporter": [f"--config.file={modules}"],
        }
        exporters = {
            name: stack.enter_context(Exporter(name, *arguments.get(name, []))) for name in EXPORTER_COMMANDS
        }
        fakes = {name: stack.enter_context(FakeExporter(script)) for name, (script, _) in BROKEN.items()}
        probed = stack.enter_context(FakeExporter())
        entries: dict[str, dict[str, Any]] = {
            **{name: {"url": exporter.url()} for name, exporter in exporters.items()},
            **{name: {"url": fake.url()} for name, fake in fakes.items()},
            "refused": {"url": f"http://127.0.0.1:{stack.enter_context(refusing_port())}/metrics"},
            "unanswered": {"url": f"http://127.0.0.1:{stack.enter_context(unanswering_port())}/metrics"},
            "blackbox": {
                "url": exporters["blackbox_exporter"].url("/probe"),
                "path": "/blackbox/probe",
                "allow_params": ["module", "target"],
            },
        }
        entries["too_large"]["max_response_bytes"] = "1KiB"
        daemon = stack.enter_context(Daemon({"exporters": entries}))
        proxy = f"127.0.0.1:{daemon.port}"
        names = [*exporters, *BROKEN, *UNREACHABLE]
        interval = f"{SCRAPE_SECONDS:g}s"
        prometheus = stack.enter_context(
            Prometheus(
                scrape_configs(proxy, names, [probed.url(), "http://127.0.0.1:1/"]),
                scrape_interval=interval,
                scrape_timeout=interval,
            )
        )
        yield Site(daemon, exporters, prometheus, probed.url())


@pytest.mark.parametrize(
    ("name", "series", "value"),
    [
        ("node_exporter", "node_exporter_build_info", 1),
        ("redis_exporter", "redis_up", 1),
        ("blackbox_exporter", "blackbox_exporter_build_info", 1),
        # Other tests have process_exporters running as well.
        ("process_exporter", 'namedprocess_namegroup_num_procs{groupname="prometheus-proc"} > bool 0', 1),
        ("mysqld_exporter", "mysql_up", 0),
        ("postgres_exporter", "pg_up", 0),
    ],
)
def test_a_real_exporter_is_up_and_its_series_are_there(
    site: Site, name: str, series: str, value: int
) -> None:
    site.wait_for(name, up=1)
    found: list[tuple[str, float]] = []

    def is_there() -> bool:
        answer = site.prometheus.query(series)
        found[:] = [(one["metric"]["exporter"], float(one["value"][1])) for one in answer]
        return found == [(name, value)]

    wait_until(is_there, f"{series} of {name} was {value}", PATIENCE_SECONDS)


def test_six_real_exporters_are_up_through_one_port(site: Site) -> None:
    for name in EXPORTER_COMMANDS:
        site.wait_for(name, up=1)
    targets = [site.target(name) for name in EXPORTER_COMMANDS]
    assert [target["scrapeUrl"] for target in targets if target] == [
        f"{site.daemon.url}/{name}/metrics" for name in EXPORTER_COMMANDS
    ]


def test_the_proxys_own_metrics_are_scraped(site: Site) -> None:
    series = 'exporter_proxy_exporter_up{exporter="blackbox_exporter"}', 'up{job="exporter_proxy"}'
    wait_until(
        lambda: [site.prometheus.value(one) for one in series] == [1, 1],
        "the proxy's own metrics said that the blackbox_exporter is up",
        PATIENCE_SECONDS,
    )


def test_probes_through_blackbox_exporter_know_their_target(site: Site) -> None:
    def probes() -> dict[str, float]:
        found = site.prometheus.query('probe_success{job="blackbox"}')
        return {one["metric"]["instance"]: float(one["value"][1]) for one in found}

    wait_until(
        lambda: probes() == {site.probed: 1, "http://127.0.0.1:1/": 0},
        "one probe succeeded and one failed",
        PATIENCE_SECONDS,
    )
    wait_until(
        lambda: site.prometheus.value('sum(up{job="blackbox"})') == 2, "both probes were up", PATIENCE_SECONDS
    )


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_exporter_is_down_and_last_error_says_why(site: Site, name: str) -> None:
    site.wait_for(name, up=0, error_pattern=BROKEN[name][1])
    site.expect_answers_in_time(name)


@pytest.mark.parametrize("name", UNREACHABLE)
def test_an_unreachable_exporter_is_down_and_last_error_says_why(site: Site, name: str) -> None:
    site.wait_for(name, up=0, error_pattern=UNREACHABLE[name])


def test_a_killed_exporter_is_a_bad_gateway_until_it_is_back(site: Site) -> None:
    exporter = site.exporters["node_exporter"]
    site.wait_for("node_exporter", up=1)
    exporter.kill()
    site.wait_for("node_exporter", up=0, error_pattern=BAD_GATEWAY)
    exporter.start()
    site.wait_for("node_exporter", up=1)
    site.wait_for("mysqld_exporter", up=1)


def test_a_stopped_exporter_is_a_gateway_timeout_until_it_goes_on(site: Site) -> None:
    exporter = site.exporters["redis_exporter"]
    site.wait_for("redis_exporter", up=1)
    exporter.suspend()
    before = site.answered_and_given_up("redis_exporter")
    try:
        site.wait_for("redis_exporter", up=0, error_pattern=GATEWAY_TIMEOUT)
        site.expect_answers_in_time("redis_exporter", before)
    finally:
        exporter.resume()
    site.wait_for("redis_exporter", up=1)
    site.wait_for("mysqld_exporter", up=1)
