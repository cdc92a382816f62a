"""The docker-compose example: nothing is started; its files are judged by what reads them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from exporter_proxy.config import load_config
from tests.daemon import REPOSITORY
from tests.packaging.artefacts import PACKAGING, needs

COMPOSE = PACKAGING / "prometheus" / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
PORTS = {
    "exporter_proxy": 9099,
    "node_exporter": 9100,
    "redis_exporter": 9121,
    "prometheus": 9090,
    "alertmanager": 9093,
}


def mounts(service: str) -> dict[str, Path]:
    """Files and directories of this repository by the place where the container has them."""
    pairs = [volume.split(":") for volume in SERVICES[service].get("volumes", [])]
    return {pair[1]: (COMPOSE.parent / pair[0]).resolve() for pair in pairs if pair[0].startswith(".")}


def networks(service: str) -> set[str]:
    return set(SERVICES[service]["networks"])


def test_docker_compose_understands_every_line() -> None:
    command = [needs("docker-compose"), "--file", str(COMPOSE), "config", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("service", SERVICES)
def test_images_have_a_version_and_containers_may_do_little(service: str) -> None:
    said = SERVICES[service]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", said["image"])
    assert said["read_only"] is True
    assert said["cap_drop"] == ["ALL"]
    assert said["security_opt"] == ["no-new-privileges:true"]
    for published in said.get("ports", []):
        assert published.startswith("127.0.0.1:")


def test_every_file_that_is_mounted_exists_and_is_only_read() -> None:
    found = {path for service in SERVICES for path in mounts(service).values()}
    assert len(found) == 6
    for path in found:
        assert path.exists(), path
    for said in SERVICES.values():
        for volume in said.get("volumes", []):
            assert volume.startswith("prometheus:") or ":ro" in volume


def test_the_image_is_built_from_here() -> None:
    build = SERVICES["exporter_proxy"]["build"]
    context = (COMPOSE.parent / build["context"]).resolve()
    assert context == REPOSITORY
    assert (context / build["dockerfile"]).is_file()


def test_the_daemon_takes_its_configuration() -> None:
    path = mounts("exporter_proxy")["/etc/exporter_proxy/config.yml"]
    command = [sys.executable, "-m", "exporter_proxy", "check", f"--config.file={path}"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"{path}: OK (2 exporters)\n"), result.stderr


def test_prometheus_takes_its_configuration_with_the_rules_beside_it() -> None:
    mounted = mounts("prometheus")
    rules = mounted["/etc/prometheus/exporter_proxy.rules.yml"]
    config = mounted["/etc/prometheus/prometheus.yml"]
    assert rules.parent == config.parent
    result = subprocess.run(
        [needs("promtool"), "check", "config", config], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Checking {rules}" in result.stdout


def test_who_is_asked_is_a_service_that_can_be_reached() -> None:
    config = load_config(str(mounts("exporter_proxy")["/etc/exporter_proxy/config.yml"]))
    prometheus = yaml.safe_load(mounts("prometheus")["/etc/prometheus/prometheus.yml"].read_text())
    provisioned = mounts("grafana")["/etc/grafana/provisioning"]
    (datasource,) = yaml.safe_load((provisioned / "datasources/prometheus.yml").read_text())["datasources"]
    targets = [
        target
        for job in [*prometheus["scrape_configs"], *prometheus["alerting"]["alertmanagers"]]
        for static in job["static_configs"]
        for target in static["targets"]
    ]
    asked = {
        *(("exporter_proxy", exporter.source.backend) for exporter in config.exporters),
        *(("prometheus", target) for target in targets),
        ("grafana", urlsplit(datasource["url"]).netloc),
    }
    assert len(asked) == 5
    for who, address in asked:
        service, _, port = address.partition(":")
        assert PORTS[service] == int(port)
        assert networks(who) & networks(service), f"{who} cannot reach {service}"
    # The point of it: from Prometheus to an exporter there is one way.
    for exporter in ("node_exporter", "redis_exporter"):
        assert not networks("prometheus") & networks(exporter)


def test_prometheus_scrapes_every_exporter_by_its_label() -> None:
    config = load_config(str(mounts("exporter_proxy")["/etc/exporter_proxy/config.yml"]))
    prometheus = yaml.safe_load(mounts("prometheus")["/etc/prometheus/prometheus.yml"].read_text())
    own, exporters = prometheus["scrape_configs"]
    assert own["job_name"] == "exporter_proxy"
    assert all("labels" not in static for static in own["static_configs"])
    labels = [static["labels"]["exporter"] for static in exporters["static_configs"]]
    (relabelling,) = exporters["relabel_configs"]
    assert {relabelling["replacement"].replace("$1", label) for label in labels} == {
        exporter.path for exporter in config.exporters
    }


def test_grafana_finds_the_dashboard() -> None:
    mounted = mounts("grafana")
    provider = yaml.safe_load(
        (mounted["/etc/grafana/provisioning"] / "dashboards/exporter_proxy.yml").read_text()
    )["providers"][0]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/exporter_proxy.json"
    assert mounted[home] == PACKAGING / "grafana" / "exporter_proxy.json"
