"""What the role prometheus_targets writes, and what Prometheus makes of it. The hosts are mere names."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.vm.play import COLLECTION, PLAY_SECONDS, environment, tool, vaulted

SITE = """\
- name: Write the targets
  hosts: prometheus
  gather_facts: false
  roles: [exporter_proxy.fleet.prometheus_targets]
"""
NODE = {"url": "http://127.0.0.1:9100/metrics"}
HOSTS: dict[str, dict[str, Any]] = {
    "vm1": {
        "ansible_host": "10.0.0.1",
        "prometheus_targets_labels": {"datacentre": "fra1", "team": "infra"},
        "exporter_proxy_exporters": {
            "node_exporter": NODE,
            "mysqld_exporter": {
                "url": "http://127.0.0.1:9104/metrics",
                "labels": {"team": "dba", "shard": "7"},
            },
            "sql_exporter": {"url": "http://127.0.0.1:9399/metrics", "labels": {"job": "reports"}},
        },
    },
    "vm2": {
        "ansible_host": "10.0.0.2",
        "prometheus_targets_address": "vm2.example.org",
        "exporter_proxy_port": 9443,
        "exporter_proxy_tls_cert": "server.crt",
        "exporter_proxy_config": {"route_prefix": "/exporters/"},
        "exporter_proxy_exporters": {
            # Nothing may be labelled as something else than it is.
            "node_exporter": {**NODE, "path": "/node", "labels": {"instance": "other", "exporter": "other"}}
        },
    },
    "vm3": {"exporter_proxy_state": "absent", "exporter_proxy_exporters": {"node_exporter": NODE}},
    "vm4": {},
    "vm5": {"ansible_host": "2001:db8::5"},
    "vm6": {"ansible_host": "10.0.0.6", "prometheus_targets_address": "[2001:db8::6]"},
}


class Written:
    """The role's two files, after one play of it."""

    def __init__(
        self, directory: Path, hosts: dict[str, dict[str, Any]] | None = None, **variables: Any
    ) -> None:
        self.directory = directory
        self.place = directory / "targets"
        self.inventory = directory / "inventory.yml"
        prometheus = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "prometheus_targets_directory": str(self.place),
            "prometheus_targets_service": "",
            "prometheus_targets_file_group": "root",
            **variables,
        }
        self.inventory.write_text(
            json.dumps(
                {
                    "exporter_proxy": {"hosts": {**HOSTS, **(hosts or {})}},
                    "prometheus": {"hosts": {"prometheus1": prometheus}},
                }
            )
        )
        (directory / "site.yml").write_text(SITE)

    def play(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                tool("ansible-playbook"),
                f"--inventory={self.inventory}",
                self.directory / "site.yml",
                *arguments,
            ],
            env=environment(self.directory),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PLAY_SECONDS,
        )

    @property
    def targets(self) -> list[Any]:
        groups: list[Any] = yaml.safe_load((self.place / "targets.yml").read_text())
        return groups

    @property
    def job(self) -> dict[str, Any]:
        (job,) = yaml.safe_load((self.place / "scrape_config.yml").read_text())["scrape_configs"]
        found: dict[str, Any] = job
        return found

    def relabelled(self, job: str) -> list[dict[str, str]]:
        """The labels of each target as Prometheus scrapes it, by its own discovery."""
        done = subprocess.run(
            ["promtool", "check", "service-discovery", "--timeout=3s", self.place / "scrape_config.yml", job],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [each["labels"] for each in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def written(able: None, tmp_path_factory: pytest.TempPathFactory) -> Written:
    written = Written(tmp_path_factory.mktemp("targets"))
    done = written.play()
    assert done.returncode == 0, done.stdout + done.stderr
    return written


def test_a_second_run_changes_nothing(written: Written) -> None:
    done = written.play()
    assert done.returncode == 0, done.stdout + done.stderr
    assert " changed=0 " in done.stdout


def test_targets_have_the_labels_of_host_and_exporter(written: Written) -> None:
    first = {"datacentre": "fra1", "team": "infra", "instance": "vm1"}
    expected = [
        ("10.0.0.1:9099", {**first, "exporter": "exporter_proxy", "__metrics_path__": "/metrics"}),
        (
            "10.0.0.1:9099",
            {
                **{**first, "team": "dba", "shard": "7", "exporter": "mysqld_exporter"},
                "__metrics_path__": "/mysqld_exporter/metrics",
            },
        ),
        (
            "10.0.0.1:9099",
            {**first, "exporter": "node_exporter", "__metrics_path__": "/node_exporter/metrics"},
        ),
        (
            "10.0.0.1:9099",
            {
                **{**first, "job": "reports", "exporter": "sql_exporter"},
                "__metrics_path__": "/sql_exporter/metrics",
            },
        ),
        *(
            (
                "vm2.example.org:9443",
                {"instance": "vm2", "exporter": exporter, "__metrics_path__": path, "__scheme__": "https"},
            )
            for exporter, path in (
                ("exporter_proxy", "/exporters/metrics"),
                ("node_exporter", "/exporters/node"),
            )
        ),
        *(
            (
                f"{address}:9099",
                {"instance": name, "exporter": "exporter_proxy", "__metrics_path__": "/metrics"},
            )
            for name, address in (("vm4", "vm4"), ("vm5", "[2001:db8::5]"), ("vm6", "[2001:db8::6]"))
        ),
    ]
    assert written.targets == [{"targets": [target], "labels": labels} for target, labels in expected]


def test_prometheus_relabels_them(written: Written) -> None:
    """``job`` is the exporter, unless a label says otherwise."""
    found = {
        (labels["instance"], labels["exporter"]): labels for labels in written.relabelled("exporter_proxy")
    }
    assert {where: labels["job"] for where, labels in found.items()} == {
        ("vm1", "exporter_proxy"): "exporter_proxy",
        ("vm1", "mysqld_exporter"): "mysqld_exporter",
        ("vm1", "node_exporter"): "node_exporter",
        ("vm1", "sql_exporter"): "reports",
        ("vm2", "exporter_proxy"): "exporter_proxy",
        ("vm2", "node_exporter"): "node_exporter",
        ("vm4", "exporter_proxy"): "exporter_proxy",
        ("vm5", "exporter_proxy"): "exporter_proxy",
        ("vm6", "exporter_proxy"): "exporter_proxy",
    }
    mysqld = found["vm1", "mysqld_exporter"]
    assert (mysqld["datacentre"], mysqld["team"], mysqld["shard"]) == ("fra1", "dba", "7")
    assert mysqld["__address__"] == "10.0.0.1:9099"
    assert mysqld["__metrics_path__"] == "/mysqld_exporter/metrics"
    assert (mysqld["__scheme__"], found["vm2", "node_exporter"]["__scheme__"]) == ("http", "https")
    assert "team" not in found["vm2", "node_exporter"]


def test_further_keys_of_the_job_are_added_to_the_roles_own(able: None, tmp_path: Path) -> None:
    further = {"source_labels": ["instance"], "target_label": "host"}
    written = Written(
        tmp_path,
        prometheus_targets_scrape_config={
            "job_name": "vms",
            "scrape_interval": "15s",
            "relabel_configs": [further],
        },
    )
    done = written.play()
    assert done.returncode == 0, done.stdout + done.stderr
    assert written.job["scrape_interval"] == "15s"
    node = [each for each in written.relabelled("vms") if each["job"] == "node_exporter"]
    assert sorted(each["host"] for each in node) == ["vm1", "vm2"]


def test_a_job_that_promtool_refuses_is_not_written(able: None, tmp_path: Path) -> None:
    written = Written(tmp_path, prometheus_targets_scrape_config={"scrape_intervall": "15s"})
    done = written.play()
    assert done.returncode != 0
    assert "scrape_intervall" in done.stdout
    assert not (written.place / "scrape_config.yml").exists()


def test_passwords_of_the_job_are_for_prometheus_only(able: None, tmp_path: Path) -> None:
    written = Written(
        tmp_path,
        prometheus_targets_scrape_config={"basic_auth": {"username": "x", "password": "hunter2"}},
        prometheus_targets_file_group="daemon",
    )
    done = written.play("--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    job = written.place / "scrape_config.yml"
    assert "hunter2" in job.read_text()
    assert (job.stat().st_mode & 0o777, job.group()) == (0o640, "daemon")


def test_a_password_that_is_encrypted_by_itself_is_written_as_it_is(able: None, tmp_path: Path) -> None:
    """promtool takes the encrypted text for a password, and Prometheus would show that one to each host."""
    (tmp_path / "secrets.yml").write_text(
        "prometheus_targets_scrape_config:\n"
        f"  basic_auth: {{username: x, password: {vaulted(tmp_path, 'hunter2')}}}\n"
    )
    written = Written(tmp_path)
    done = written.play(
        f"--extra-vars=@{tmp_path / 'secrets.yml'}", f"--vault-password-file={tmp_path / 'vault'}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert written.job["basic_auth"] == {"username": "x", "password": "hunter2"}


def test_a_host_that_cannot_be_asked_keeps_its_targets(able: None, tmp_path: Path) -> None:
    # ssh is refused at once: nothing listens there.
    away = {"ansible_host": "127.0.0.1", "ansible_port": 1, "exporter_proxy_exporters": "auto"}
    written = Written(tmp_path, {"away": away, "new": away})
    written.place.mkdir()
    before = [
        {"targets": ["10.0.0.9:9099"], "labels": {"instance": "away", "exporter": name}}
        for name in ("exporter_proxy", "node_exporter")
    ]
    (written.place / "targets.yml").write_text(json.dumps(before))
    done = written.play()
    assert done.returncode == 0, done.stdout + done.stderr
    by_host = {
        name: [each for each in written.targets if each["labels"]["instance"] == name]
        for name in ("away", "new", "vm1")
    }
    assert by_host["away"] == before
    assert [each["labels"]["exporter"] for each in by_host["new"]] == ["exporter_proxy"]
    assert len(by_host["vm1"]) == 4


def test_hosts_of_the_readme_that_differ_are_different_fleets() -> None:
    """The alert about drift compares the daemons of one fleet."""
    (inventory,) = re.findall(
        r"```yaml\n(exporter_proxy:\n.*?)```", (COLLECTION / "README.md").read_text(), re.S
    )
    group = yaml.safe_load(inventory)["exporter_proxy"]
    exporters: dict[str, list[Any]] = {}
    for host in group["hosts"].values():
        variables = {**group["vars"], **(host or {})}
        fleet = variables.get("prometheus_targets_labels", {}).get("fleet", "")
        exporters.setdefault(fleet, []).append(variables["exporter_proxy_exporters"])
    assert len(exporters) > 1
    assert all(each == alike[0] for alike in exporters.values() for each in alike)
