"""packaging/prometheus/recipes: promtool takes each file, and one real Prometheus does what all of them say.

What is asked over the network there is on this host here: addresses are put in, and the discoveries of EC2
and Consul are files with the labels that those would give.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter_proxy.config import parse_config
from tests.daemon import REPOSITORY, Daemon, wait_until
from tests.e2e.debian_exporters import FILES, PACKAGED, started
from tests.e2e.processes import PROMTOOL, Exporter, Prometheus, listening_port, start_process
from tests.fakes.exporter import FakeExporter

pytestmark = pytest.mark.needs_prometheus

RECIPES = {
    file.stem: file.read_text() for file in (REPOSITORY / "packaging/prometheus/recipes").glob("*.yml")
}
PATIENCE_SECONDS = 60.0
REFUSED = "127.0.0.1:1"
BLACKBOX = {"modules": {"http_2xx": {"prober": "http", "http": {"preferred_ip_protocol": "ip4"}}}}
IS_SNMP_MISSING = bool(PACKAGED["snmp_exporter"].missing) and os.environ.get("CI") != "true"

# What EC2 says of three instances: address, name and the tag, where there is one.
EC2 = {
    "127.0.0.1": ("web-1", "node_exporter,redis_exporter"),
    "127.0.0.3": ("db-1", "my_node_exporter, redis_exporter"),
    "127.0.0.4": ("old-1", "redis_exporter_old"),
}
EC2_TARGETS = [
    {
        "targets": [f"{address}:9099"],
        "labels": {
            "__meta_ec2_private_ip": address,
            "__meta_ec2_tag_Name": name,
            "__meta_ec2_tag_exporters": exporters,
        },
    }
    for address, (name, exporters) in EC2.items()
]
CONSUL_TARGETS = [
    {
        "targets": [f"127.0.0.1:{port}"],
        "labels": {
            "__meta_consul_service": service,
            "__meta_consul_address": "127.0.0.1",
            "__meta_consul_node": "vm1",
            "__meta_consul_dc": "dc1",
            "__meta_consul_service_port": str(port),
        },
    }
    for service, port in (("node_exporter", 9100), ("redis_exporter", 9121))
]


def promtool_says(file: Path) -> tuple[int, str]:
    with (file.parent / "promtool.log").open("wb") as output:
        status = start_process([PROMTOOL, "check", "config", str(file)], output=output).wait(PATIENCE_SECONDS)
    return status, (file.parent / "promtool.log").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_promtool_takes_the_recipe(name: str, tmp_path: Path) -> None:
    file = tmp_path / "prometheus.yml"
    file.write_text(RECIPES[name])
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "vm.json").write_text("[]")
    status, said = promtool_says(file)
    if name == "consul" and "field consul_sd_configs not found" in said:
        # A Prometheus that is built without it, as Debian's is: that section is then all that is wrong.
        (job,) = yaml.safe_load(RECIPES[name])["scrape_configs"]
        assert job.pop("consul_sd_configs") == [{"server": "consul.example.org:8500", "tags": ["exporter"]}]
        file.write_text(yaml.safe_dump({"scrape_configs": [job]}))
        status, said = promtool_says(file)
    assert status == 0, said
    assert "WARNING" not in said


def test_every_recipe_is_in_the_list() -> None:
    listed = re.findall(
        r"^\| `(\w+)\.yml` \|",
        (REPOSITORY / "packaging/prometheus/recipes/README.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(listed) == sorted(RECIPES)


def daemon_entries(recipe: str) -> dict[str, Any]:
    """The exporters that a recipe's comment wants in config.yml."""
    text = "".join(f"{line}\n" for line in re.findall(r"^#( {3}.*)$", RECIPES[recipe], re.MULTILINE))
    entries: dict[str, Any] = yaml.safe_load(text)
    assert parse_config(yaml.safe_dump({"exporters": entries}).encode(), recipe).exporters
    return entries


@dataclass(frozen=True)
class Site:
    """One host behind one daemon, and the Prometheus that has all recipes."""

    proxy: str
    probed: str
    switch: str
    """The snmpd; "" where there is none."""
    prometheus: Prometheus

    @property
    def port(self) -> str:
        return self.proxy.rpartition(":")[2]

    def targets(self, pool: str) -> list[Mapping[str, Any]]:
        return [one for one in self.prometheus.targets() if one["scrapePool"] == pool]

    def wait_for(self, pool: str, expected: set[tuple[str, ...]], *labels: str) -> None:
        """Until the targets of ``recipe/job`` have these labels and this health."""
        found: set[tuple[str, ...]] = set()

        def has_come() -> bool:
            found.clear()
            for one in self.targets(pool):
                found.add((*(one["labels"].get(label, "") for label in labels), one["health"]))
            return found == expected

        try:
            wait_until(has_come, f"{pool} had {expected}", PATIENCE_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}; it has {found}") from None


def jobs(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """All jobs as ``recipe/job``, asked every other second."""
    found = []
    for recipe, text in texts.items():
        for job in yaml.safe_load(text)["scrape_configs"]:
            name = f"{recipe}/{job['job_name']}"
            found.append({**job, "job_name": name, "scrape_interval": "2s", "scrape_timeout": "2s"})
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("recipes")
    (directory / "blackbox.yml").write_text(yaml.safe_dump(BLACKBOX))
    with ExitStack() as stack:
        node = stack.enter_context(Exporter("node_exporter"))
        redis, probed = stack.enter_context(FakeExporter()), stack.enter_context(FakeExporter())
        blackbox = stack.enter_context(
            Exporter("blackbox_exporter", f"--config.file={directory / 'blackbox.yml'}")
        )
        inner_job = {"job_name": "inner", "static_configs": [{"targets": [redis.authority]}]}
        inner = stack.enter_context(Prometheus([inner_job], scrape_interval="1s", scrape_timeout="1s"))
        snmp, switch = ("", "") if IS_SNMP_MISSING else snmp_exporter(stack, directory)
        entries: dict[str, Any] = {
            "node_exporter": {"url": node.url()},
            "redis_exporter": {"url": redis.url()},
            **daemon_entries("blackbox"),
            **daemon_entries("snmp"),
            **daemon_entries("federation"),
        }
        entries["blackbox"]["url"] = blackbox.url("/probe")
        entries["snmp"]["url"] = f"{snmp or f'http://{REFUSED}'}/snmp"
        entries["prometheus"]["url"] = inner.url("/federate")
        daemon = stack.enter_context(Daemon({"exporters": entries}))
        proxy = f"127.0.0.1:{daemon.port}"
        for name, targets in {"ec2": EC2_TARGETS, "consul": CONSUL_TARGETS}.items():
            (directory / f"{name}.json").write_text(json.dumps(targets))
        group = {"labels": {"__metrics_path__": "/node_exporter/metrics", "exporter": "node_exporter"}}
        (directory / "vm.json").write_text(json.dumps([{"targets": [proxy], **group}]))
        texts = {
            recipe: re.sub(r"vm[12]\.example\.org:9099", proxy, text)
            .replace("}:9099", f"}}:{daemon.port}")
            .replace("targets/*.json", f"{directory}/vm.json")
            .replace("https://www.example.org/", probed.url())
            .replace("http://intranet.example.org/login", f"http://{REFUSED}/login")
            .replace("switch1.example.org", switch or "switch1")
            .replace("switch2.example.org", REFUSED)
            for recipe, text in RECIPES.items()
        }
        all_jobs = jobs(texts)
        for job in all_jobs:
            for name in ("ec2", "consul"):
                if job.pop(f"{name}_sd_configs", None) is not None:
                    job["file_sd_configs"] = [{"files": [f"{directory}/{name}.json"]}]
        assert "example.org" not in json.dumps(all_jobs)
        yield Site(proxy, probed.url(), switch, stack.enter_context(Prometheus(all_jobs)))


def snmp_exporter(stack: ExitStack, directory: Path) -> tuple[str, str]:
    """An snmp_exporter with a module of the recipe's name, and a device for it: URL and address."""
    host = stack.enter_context(started([PACKAGED["snmpd"]]))
    assert not host.failures
    modules = yaml.safe_load((FILES / "snmp.yml").read_text())
    (directory / "snmp.yml").write_text(yaml.safe_dump({"if_mib": modules["default"]}))
    command = ["prometheus-snmp-exporter", "--web.listen-address=127.0.0.1:0"]
    process = start_process([*command, f"--config.file={directory / 'snmp.yml'}"])
    stack.callback(process.wait)
    stack.callback(process.kill)
    return f"http://127.0.0.1:{listening_port(process)}", host.urls["snmpd"].removeprefix("http://")


def test_file_sd(site: Site) -> None:
    site.wait_for("file_sd/vm", {("node_exporter", site.proxy, "up")}, "exporter", "instance")
    site.wait_for(
        "file_sd/exporter_proxy", {("exporter_proxy", site.proxy, "", "up")}, "job", "instance", "exporter"
    )


def test_http_sd_with_instance_of_both_kinds(site: Site) -> None:
    wait_until(lambda: len(site.targets("http_sd/vm")) == 6, "all were there", PATIENCE_SECONDS)
    targets = site.targets("http_sd/vm")
    exporters = ("node_exporter", "redis_exporter", "prometheus")  # those that need no target
    assert sorted(one["labels"]["exporter"] for one in targets) == sorted(exporters * 2)
    instances = {one["labels"]["instance"] for one in targets}
    assert site.proxy in instances
    assert len(instances) == 4
    assert all(instance.startswith("127.0.0.1:") for instance in instances)
    assert {one["scrapeUrl"] for one in targets} == {
        *(f"http://{site.proxy}/{name}/metrics" for name in exporters[:2]),
        f"http://{site.proxy}/prometheus/federate",
    }
    site.wait_for("http_sd/exporter_proxy", {(site.proxy, "up")}, "instance")


def test_ec2_by_tag(site: Site) -> None:
    labels = ("exporter", "name", "instance")
    site.wait_for("ec2/node_exporter", {("node_exporter", "web-1", "127.0.0.1:9100", "up")}, *labels)
    site.wait_for(
        "ec2/redis_exporter",
        {
            ("redis_exporter", "web-1", "127.0.0.1:9121", "up"),
            ("redis_exporter", "db-1", "127.0.0.3:9121", "down"),  # nobody listens there
        },
        *labels,
    )
    urls = {one["scrapeUrl"] for one in site.targets("ec2/redis_exporter")}
    assert urls == {
        f"http://{host}:{site.port}/redis_exporter/metrics" for host in ("127.0.0.1", "127.0.0.3")
    }
    site.wait_for(
        "ec2/exporter_proxy",
        {
            ("web-1", f"127.0.0.1:{site.port}", "up"),
            ("db-1", f"127.0.0.3:{site.port}", "down"),
            ("old-1", f"127.0.0.4:{site.port}", "down"),
        },
        *("name", "instance"),
    )


def test_consul(site: Site) -> None:
    site.wait_for(
        "consul/consul",
        {
            ("node_exporter", "vm1", "dc1", "127.0.0.1:9100", "up"),
            ("redis_exporter", "vm1", "dc1", "127.0.0.1:9121", "up"),
        },
        *("exporter", "node", "datacenter", "instance"),
    )


def test_blackbox(site: Site) -> None:
    labels = ("exporter", "instance")
    failing = f"http://{REFUSED}/login"
    site.wait_for(
        "blackbox/blackbox", {("blackbox", site.probed, "up"), ("blackbox", failing, "up")}, *labels
    )

    def probes() -> dict[str, float]:
        found = site.prometheus.query('probe_success{job="blackbox/blackbox"}')
        return {one["metric"]["instance"]: float(one["value"][1]) for one in found}

    wait_until(lambda: probes() == {site.probed: 1, failing: 0}, "one succeeded", PATIENCE_SECONDS)


@pytest.mark.skipif(IS_SNMP_MISSING, reason="snmpd or prometheus-snmp-exporter is not installed")
def test_snmp(site: Site) -> None:
    labels = ("exporter", "instance")
    site.wait_for("snmp/snmp", {("snmp", site.switch, "up"), ("snmp", REFUSED, "down")}, *labels)
    uptime = f'sysUpTime{{instance="{site.switch}",job="snmp/snmp"}} >= bool 0'
    wait_until(lambda: site.prometheus.value(uptime) == 1, "the device said since when", PATIENCE_SECONDS)


def test_federation(site: Site) -> None:
    site.wait_for("federation/federation", {(site.proxy, "up")}, "instance")
    # The inner server's series under the inner server's labels.
    wait_until(
        lambda: site.prometheus.value('up{job="inner"}') == 1,
        "the inner series came through",
        PATIENCE_SECONDS,
    )
