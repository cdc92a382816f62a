"""The rules and the inhibition of packaging/prometheus, on the labels that ``prometheus-config`` gives.

One daemon, and a Prometheus for each way of being told about it; all send their alerts to one Alertmanager.
An exporter dies, and then the daemon. The rules are as they are delivered, but that alerts fire sooner.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon import REPOSITORY, Daemon, wait_until
from tests.e2e.alertmanager import Alertmanager
from tests.e2e.processes import MODULE, Exporter, Prometheus

pytestmark = pytest.mark.needs_prometheus

PACKAGED = REPOSITORY / "packaging/prometheus"
FOR = "6s"
"""Longer than two scrapes and two evaluations: so long may the daemon's death take to be known."""
TARGET_DOWN = {"alert": "TargetDown", "expr": 'up{exporter!=""} == 0', "for": FOR}
"""As most who run Prometheus have it: it knows nothing of the daemon."""
LAYOUTS: dict[str, tuple[str, ...] | None] = {
    "jobs": (),
    "jobs, instance": ("--instance=exporter",),
    "one job": ("--job=one",),
    "one job, instance": ("--job=one", "--instance=exporter"),
    "http_sd": None,
}
JOBS = {"jobs": "node_exporter", "one job": "exporters", "http_sd": "vm"}
"""That of node_exporter, by the layout's name up to the comma."""
HOST = "127.0.0.1"
PATIENCE_SECONDS = 40.0
Labels = dict[str, str]


def scrape_configs(daemon: Daemon, layout: str) -> list[dict[str, Any]]:
    """What Prometheus is told."""
    target = f"{HOST}:{daemon.port}"
    arguments = LAYOUTS[layout]
    if arguments is None:
        own = {"job_name": "exporter_proxy", "static_configs": [{"targets": [target]}]}
        return [{"job_name": "vm", "http_sd_configs": [{"url": f"http://{target}/-/sd"}]}, own]
    printed = subprocess.run(
        [*MODULE, "prometheus-config", f"--target={target}", *arguments],
        cwd=daemon.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stdout
    found: list[dict[str, Any]] = yaml.safe_load(printed)["scrape_configs"]
    return found


def write_rules(directory: Path) -> list[Path]:
    """The packaged rules with another ``for``, and somebody else's."""
    rules = yaml.safe_load((PACKAGED / "exporter_proxy.rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["for"] = FOR
    theirs = {"groups": [{"name": "theirs", "rules": [TARGET_DOWN]}]}
    files = {directory / "exporter_proxy.rules.yml": rules, directory / "theirs.rules.yml": theirs}
    for file, content in files.items():
        file.write_text(yaml.safe_dump(content))
    return [*files]


@dataclass(frozen=True)
class Site:
    node: Exporter
    daemon: Daemon
    servers: Mapping[str, Prometheus]
    """By layout."""
    alertmanager: Alertmanager

    def wait_for_alert(self, layout: str, name: str) -> Labels:
        """The labels of the alert of this name once it fires; no other of the packaged ones does then."""
        names = ("ExporterDown", "ExporterProxyDown")
        firing: list[Labels] = []

        def is_firing() -> bool:
            alerts = self.servers[layout].alerts()
            firing[:] = [one["labels"] for one in alerts if one["state"] == "firing"]
            return any(labels["alertname"] == name for labels in firing)

        wait_until(is_firing, f"{layout}: {name} fired", PATIENCE_SECONDS)
        (found,) = (labels for labels in firing if labels["alertname"] in names)
        return found

    def wait_for_sent(self, layout: str, expected: Mapping[str, bool]) -> None:
        """Until Alertmanager has these of this Prometheus; by name and exporter, whether inhibited."""

        def is_sent() -> bool:
            return expected == {
                " ".join(
                    one["labels"][label] for label in ("alertname", "exporter") if label in one["labels"]
                ): (bool(one["status"]["inhibitedBy"]))
                for one in self.alertmanager.alerts()
                if one["labels"]["layout"] == layout
            }

        wait_until(is_sent, f"{layout}: Alertmanager had {expected}", PATIENCE_SECONDS)

    def wait_for_all_up(self, layout: str) -> None:
        server = self.servers[layout]

        def is_quiet() -> bool:
            return server.value("sum(up)") == 3 and server.alerts() == []

        wait_until(is_quiet, f"{layout}: all were up and nothing fired", PATIENCE_SECONDS)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        node, redis = (stack.enter_context(Exporter(name)) for name in ("node_exporter", "redis_exporter"))
        config = {"exporters": {one.name: {"url": one.url()} for one in (node, redis)}}
        daemon = stack.enter_context(Daemon(config))
        alertmanager = stack.enter_context(Alertmanager(PACKAGED / "alertmanager.yml"))
        rule_files = write_rules(tmp_path)
        servers = {
            layout: stack.enter_context(
                Prometheus(
                    scrape_configs(daemon, layout),
                    rule_files=rule_files,
                    alertmanager=alertmanager.address,
                    scrape_interval="1s",
                    scrape_timeout="1s",
                    evaluation_interval="1s",
                    external_labels={"layout": layout},
                )
            )
            for layout in LAYOUTS
        }
        yield Site(node, daemon, servers, alertmanager)


@pytest.mark.timeout(300)
def test_an_exporter_that_dies_is_told_from_a_daemon_that_dies(site: Site) -> None:
    for layout in LAYOUTS:
        site.wait_for_all_up(layout)

    site.node.kill()
    dead = {}
    for layout in LAYOUTS:
        labels = dead[layout] = site.wait_for_alert(layout, "ExporterDown")
        own_port = site.node.url("").rpartition(":")[2]
        instance = f"{HOST}:{own_port if 'instance' in layout else site.daemon.port}"
        assert labels["exporter"] == "node_exporter"
        assert labels["job"] == JOBS[layout.partition(",")[0]]
        assert (labels["instance"], labels["host"]) == (instance, HOST)
        site.wait_for_sent(layout, {"ExporterDown node_exporter": False, "TargetDown node_exporter": False})

    site.daemon.stop()
    for layout, server in site.servers.items():
        labels = site.wait_for_alert(layout, "ExporterProxyDown")
        assert "exporter" not in labels
        assert (labels["job"], labels["host"]) == ("exporter_proxy", HOST)
        # Nobody has said of the other exporter that it is down.
        series = 'ALERTS{alertname="ExporterDown",alertstate="firing",exporter="redis_exporter"}'
        assert server.query(f"count_over_time({series}[5m])") == [], layout
        # Others' alerts have only the instance in common with it, and that where it is not kept.
        inhibited = "instance" not in layout
        theirs = {f"TargetDown {name}": inhibited for name in ("node_exporter", "redis_exporter")}
        site.wait_for_sent(layout, {"ExporterProxyDown": False, **theirs})

        # Prometheus has withdrawn it, but another one, which is late, may not have.
        site.alertmanager.post([{"labels": {**dead[layout], "layout": layout}}])
        site.wait_for_sent(layout, {"ExporterProxyDown": False, "ExporterDown node_exporter": True, **theirs})
