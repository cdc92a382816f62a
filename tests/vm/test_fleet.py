"""Ten hosts and one Prometheus: rolled out in batches, scraped, and a rollout that stops by itself."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.lab import SCRAPER, Lab
from tests.vm.machine import EXPORTERS
from tests.vm.play import Played, play
from tests.vm.releases import Release

HOSTS = 10
PROMETHEUS = f"http://{SCRAPER}:9090"
INTERVAL_SECONDS = 1
Record = Callable[[str, object], None]


class Fleet:
    """The hosts, and the Prometheus that scrapes them from the lab's side of the network."""

    def __init__(self, lab: Lab, directory: Path, release: Release) -> None:
        self.lab = lab
        self.directory = directory
        self.targets = directory / "prometheus"
        self.variables: dict[str, Any] = {
            "exporter_proxy_install_method": "wheelhouse",
            "exporter_proxy_wheelhouse": str(release.wheelhouse),
            "exporter_proxy_prometheus_addresses": [SCRAPER],
            "exporter_proxy_exporters": {
                **EXPORTERS,
                "node_exporter": {**EXPORTERS["node_exporter"], "labels": {"team": "infra"}},
            },
            "prometheus_targets_labels": {"datacentre": "fra1"},
            "prometheus_targets_address": "{{ guest_address }}",
        }

    def roll_out(self, *arguments: str, **changed: Any) -> Played:
        """Play the rollout for the hosts and Prometheus."""
        prometheus = {
            "hosts": {
                "prometheus1": {
                    "ansible_connection": "local",
                    "ansible_python_interpreter": "/usr/bin/python3",
                }
            },
            "vars": {
                "prometheus_targets_directory": str(self.targets),
                "prometheus_targets_service": "",
                "prometheus_targets_file_group": "root",
                "prometheus_targets_scrape_config": {
                    "scrape_interval": f"{INTERVAL_SECONDS}s",
                    "scrape_timeout": f"{INTERVAL_SECONDS}s",
                },
            },
        }
        return play(
            self.lab,
            self.directory,
            {**self.variables, **changed},
            f"--extra-vars=rollout_prometheus_url={PROMETHEUS}",
            "--extra-vars=rollout_wait_seconds=20",
            "--forks=10",
            *arguments,
            playbook="exporter_proxy.fleet.rollout",
            groups={"prometheus": prometheus},
        )

    def query(self, expression: str) -> list[Any]:
        """Prometheus's answer to an instant query."""
        answer = subprocess.run(
            self.lab.command(
                *("curl", "--silent", "--show-error", "--fail", "--noproxy", "*"),
                f"{PROMETHEUS}/api/v1/query?query={urllib.parse.quote(expression)}",
            ),
            capture_output=True,
            check=True,
        ).stdout
        result: list[Any] = json.loads(answer)["data"]["result"]
        return result

    def wait_for_count(self, expression: str, count: int) -> None:
        """Until an expression has that many series."""
        deadline = time.monotonic() + 60
        while len(found := self.query(expression)) != count:
            assert time.monotonic() < deadline, f"{expression}: {len(found)} series, not {count}: {found}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def fleet(able: None, tmp_path_factory: pytest.TempPathFactory, this_release: Release) -> Iterator[Fleet]:
    lab = Lab(f"fleet-{os.getpid()}")
    try:
        lab.open()
        for number in range(1, HOSTS + 1):
            lab.boot(f"vm{number:02}", "bookworm")
        yield Fleet(lab, tmp_path_factory.mktemp("fleet"), this_release)
    finally:
        lab.close()


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet) -> Iterator[None]:
    """A real one. It reads what the role writes: an older one by a whole file, since the job is one, too."""
    fleet.targets.mkdir()
    configuration = fleet.targets / "scrape_config.yml"
    configuration.write_text("{}\n")
    log = (fleet.directory / "prometheus.log").open("wb")
    process = subprocess.Popen(
        fleet.lab.command(
            *(
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={fleet.directory / 'tsdb'}",
            ),
            *(f"--web.listen-address={SCRAPER}:9090", "--web.enable-lifecycle"),
        ),
        stdout=log,
        stderr=log,
    )
    try:
        wait_until_ready(fleet)
        yield
    finally:
        process.terminate()
        process.wait()
        log.close()


def ask(fleet: Fleet, path: str, *options: str) -> int:
    command = (
        "curl",
        "--silent",
        "--fail",
        "--output",
        os.devnull,
        "--noproxy",
        "*",
        *options,
        PROMETHEUS + path,
    )
    return subprocess.run(fleet.lab.command(*command), check=False).returncode


def wait_until_ready(fleet: Fleet) -> None:
    deadline = time.monotonic() + 30
    while ask(fleet, "/-/ready"):
        assert time.monotonic() < deadline, "Prometheus does not get ready"
        time.sleep(0.1)


def test_one_run_for_ten_hosts(fleet: Fleet, prometheus: None, record_property: Record) -> None:
    refused = fleet.roll_out("--extra-vars={rollout_batches: [1, 9]}")
    assert (list(refused.recaps), refused.recap.failed, refused.recap.changed) == (["vm01"], 1, 0)
    assert "rollout_unscraped_ok" in refused.output
    played = fleet.roll_out("--extra-vars={rollout_batches: [1, 9], rollout_unscraped_ok: true}")
    record_property("recap", played.summary)
    assert played.status == 0
    assert len(played.recaps) == HOSTS + 1
    assert ask(fleet, "/-/reload", "--request", "POST") == 0
    fleet.wait_for_count("up == 1", HOSTS * (len(EXPORTERS) + 1))
    for exporter in EXPORTERS:
        assert len(fleet.query(f'up{{job="{exporter}"}} == 1')) == HOSTS
    assert len(fleet.query('count by (instance) (up{job=~".+_exporter"} == 1) == 3')) == HOSTS
    assert not fleet.query("up == 0")


def test_a_second_run_changes_nothing(fleet: Fleet, prometheus: None, record_property: Record) -> None:
    played = fleet.roll_out("--extra-vars={rollout_batches: ['100%']}")
    record_property("recap", played.summary)
    assert played.status == 0
    assert {recap.changed for recap in played.recaps.values()} == {0}


def test_labels_of_hosts_and_exporters_are_on_the_series(fleet: Fleet, prometheus: None) -> None:
    fleet.wait_for_count('node_load1{team="infra", datacentre="fra1", exporter="node_exporter"}', HOSTS)
    fleet.wait_for_count('up{datacentre="fra1", team=""}', HOSTS * len(EXPORTERS))


def test_the_daemons_own_series_name_the_exporters_that_they_are_about(
    fleet: Fleet, prometheus: None
) -> None:
    for exporter in EXPORTERS:
        own = f'exporter_proxy_scrapes_total{{job="exporter_proxy", exporter="{exporter}"}}'
        fleet.wait_for_count(f"count by (instance) ({own})", HOSTS)
    assert not fleet.query('{exported_exporter!=""}')


def test_an_exporter_more_is_one_line_in_one_place(
    fleet: Fleet, prometheus: None, record_property: Record
) -> None:
    fleet.variables["exporter_proxy_exporters"] = {
        **fleet.variables["exporter_proxy_exporters"],
        "again": {"url": "http://127.0.0.1:9100/metrics"},
    }
    played = fleet.roll_out("--extra-vars={rollout_batches: ['100%']}")
    record_property("recap", played.summary)
    assert played.status == 0
    fleet.wait_for_count('up{job="again"} == 1', HOSTS)


def test_a_rollout_stops_where_up_falls(fleet: Fleet, prometheus: None, record_property: Record) -> None:
    exporters = fleet.variables["exporter_proxy_exporters"]
    fleet.wait_for_count("up == 1", HOSTS * (len(exporters) + 1))
    broken = {**exporters, "process_exporter": {"url": "http://127.0.0.1:1/metrics"}}
    played = fleet.roll_out(exporter_proxy_exporters=broken)
    record_property("recap", played.summary)
    assert played.status != 0
    assert list(played.recaps) == ["vm01"]
    assert played.recap.failed == 1
    down = fleet.query("up == 0")
    assert [(each["metric"]["instance"], each["metric"]["job"]) for each in down] == [
        ("vm01", "process_exporter")
    ]
