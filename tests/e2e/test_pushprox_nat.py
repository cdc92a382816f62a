"""Behind NAT: Prometheus in one network namespace, exporters and daemon in another, a NAT between them.

Nothing leads from the one to the other but the connections that the daemon makes to the proxy, here the
stand-in. Namespaces need root: without it these tests are skipped, or fail where ``CI`` is "true".
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon import REPOSITORY, Daemon, wait_until
from tests.e2e.processes import EXPORTER_COMMANDS, start_process
from tests.standin import FQDN, StandIn

pytestmark = pytest.mark.needs_prometheus

VM, VM_GATEWAY = "10.77.1.2", "10.77.1.1"
PUBLIC, PUBLIC_GATEWAY = "10.77.2.2", "10.77.2.1"
EXPORTERS = {"node_exporter": 9100, "redis_exporter": 9121, "process_exporter": 9256}
JOBS = (*EXPORTERS, "exporter_proxy", "mapped")
START_SECONDS = 40.0
RECOVERY_SECONDS = 10.0
FORGOTTEN_SECONDS = 75.0
"""The kernel's 45 s, a wait, and a scrape."""


def command(*words: str) -> str:
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {result.stderr or result.stdout}")
    return result.stdout


def inside(namespace: str, *words: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *words]


@contextmanager
def namespaces() -> Iterator[tuple[str, str, str]]:
    """The VM's, the NAT router's and the public one. Raises RuntimeError where they cannot be made."""
    mark = uuid.uuid4().hex[:6]
    vm, nat, public = (f"ep-{kind}-{mark}" for kind in ("vm", "nat", "pub"))
    with ExitStack() as stack:
        for name in (vm, nat, public):
            command("ip", "netns", "add", name)
            stack.callback(command, "ip", "netns", "del", name)
            command(*inside(name, "ip", "link", "set", "lo", "up"))
        for end, own, gateway, link in ((vm, VM, VM_GATEWAY, "v"), (public, PUBLIC, PUBLIC_GATEWAY, "p")):
            command(*inside(end, "ip", "link", "add", f"{link}0", "type", "veth", "peer", "name", f"{link}1"))
            command(*inside(end, "ip", "link", "set", f"{link}1", "netns", nat))
            for name, address, interface in ((end, own, f"{link}0"), (nat, gateway, f"{link}1")):
                command(*inside(name, "ip", "address", "add", f"{address}/24", "dev", interface))
                command(*inside(name, "ip", "link", "set", interface, "up"))
        # The public side knows no way back: what it answers goes to the router's own address.
        command(*inside(vm, "ip", "route", "add", "default", "via", VM_GATEWAY))
        command(*inside(nat, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        for rule in (
            "add table ip nat",
            "add chain ip nat out { type nat hook postrouting priority 100 ; }",
            "add rule ip nat out oifname p1 masquerade",
            "add table ip filter",
            "add chain ip filter through { type filter hook forward priority 0 ; }",
        ):
            command(*inside(nat, "nft", rule))
        yield vm, nat, public


@dataclass
class Site:
    vm: str
    nat: str
    public: str
    proxy: StandIn
    daemon: Daemon
    socket: str

    def curl(self, *words: str) -> str:
        """What curl says in the public namespace."""
        result = subprocess.run(
            inside(self.public, "curl", "-sS", "--max-time", "8", *words),
            capture_output=True,
            text=True,
            check=False,
        )
        return result.stdout + result.stderr

    def through(self, url: str) -> str:
        """Status and body of what a scraper with this ``proxy_url`` gets."""
        return self.curl("-x", self.proxy.url, "-w", "%{http_code} ", "-o", "-", url)

    def ask(self, endpoint: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        answer = self.curl(f"http://{PUBLIC}:9090/api/v1/{endpoint}?{query}")
        try:
            return json.loads(answer)["data"]
        except (json.JSONDecodeError, KeyError):
            return None

    def up(self, since: float = 0.0) -> list[str]:
        """The jobs whose last scrape succeeded and began after ``since``."""
        targets = (self.ask("targets", state="active") or {"activeTargets": []})["activeTargets"]
        return sorted(
            one["labels"]["job"]
            for one in targets
            if one["health"] == "up" and unix_time(one["lastScrape"]) > since
        )

    def metric(self, name: str, **labels: str) -> float:
        return self.daemon.metrics(address=self.socket)[name, frozenset(labels.items())]


def unix_time(text: str) -> float:
    """RFC 3339 with nanoseconds, which Python does not read."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00")).timestamp()


def printed_jobs(daemon: Daemon) -> dict[str, Any]:
    """The Prometheus configuration that the daemon's own command makes of its file."""
    printed = subprocess.run(
        [sys.executable, "-m", "exporter_proxy", "prometheus-config", "--config.file=config.yml"],
        cwd=daemon.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = yaml.safe_load(printed.stdout)
    return document


def mapped_job(proxy: str) -> dict[str, Any]:
    """A job as it was written for PushProx's own client: the exporter's own port and path."""
    targets = [{"targets": [f"{FQDN}:9100"]}]
    return {"job_name": "mapped", "proxy_url": proxy, "static_configs": targets}


def start_all(stack: ExitStack, namespace: str, commands: Sequence[Sequence[str]]) -> None:
    for words in commands:
        if shutil.which(words[0]) is None:
            start_process(words)  # which skips or fails
        process = start_process(inside(namespace, *words))
        stack.callback(process.wait)
        stack.callback(process.kill)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory: Path = tmp_path_factory.mktemp("nat")
    with ExitStack() as stack:
        try:
            vm, nat, public = stack.enter_context(namespaces())
        except (RuntimeError, FileNotFoundError) as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no network namespaces with a NAT: {error}")
        start_all(
            stack,
            vm,
            [
                (*EXPORTER_COMMANDS[name], f"--web.listen-address=127.0.0.1:{port}")
                for name, port in EXPORTERS.items()
            ],
        )
        proxy = stack.enter_context(StandIn(host=PUBLIC, launcher=inside(public)))
        config = {
            "listen": ["0.0.0.0:9099", f"unix:{directory}/sock"],
            "exporters": {
                name: {"url": f"http://127.0.0.1:{port}/metrics"} for name, port in EXPORTERS.items()
            },
            "pushprox": {"proxy_url": proxy.url, "fqdn": FQDN, "map_ports": True},
        }
        daemon = stack.enter_context(Daemon(config, launcher=inside(vm)))
        scrape = printed_jobs(daemon)
        scrape["scrape_configs"].append(mapped_job(proxy.url))
        scrape["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        (directory / "prometheus.yml").write_text(yaml.safe_dump(scrape))
        flags = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
        start_all(stack, public, [("prometheus", *flags, f"--web.listen-address={PUBLIC}:9090")])
        yield Site(vm, nat, public, proxy, daemon, f"{directory}/sock")


def test_every_exporter_is_up_and_nothing_of_the_vm_can_be_reached(site: Site) -> None:

    def result_of(query: str) -> list[Any]:
        return list((site.ask("query", query=query) or {"result": []})["result"])

    def has_all_in() -> bool:
        found = {one["metric"]["job"]: one["value"][1] for one in result_of("up")}
        is_mapped = bool(result_of("node_exporter_build_info{job='mapped'}"))
        return is_mapped and site.up() == sorted(JOBS) and found == dict.fromkeys(JOBS, "1")

    wait_until(has_all_in, "all were up", START_SECONDS)
    for address in (VM, PUBLIC_GATEWAY):
        for port in (9099, *EXPORTERS.values()):
            assert "curl: (7)" in site.curl(f"http://{address}:{port}/metrics"), "it is behind a NAT"


def test_whatever_is_not_configured_is_refused_and_counted(site: Site) -> None:
    wait_until(lambda: site.up() == sorted(JOBS), "all were up", START_SECONDS)
    before = site.metric("exporter_proxy_requests_denied_total", reason="not_found")
    refused = (
        ":9099/nowhere",
        ":9099/",
        ":9099/-/exporters",
        ":22/",
        ":9100/",
        ":9121/scrape?target=x",
        "/metrics",
    )
    for rest in refused:
        answer = site.through(f"http://{FQDN}{rest}")
        assert "404" in answer, rest
        assert answer.startswith("exporter_proxy: ")
    after = site.metric("exporter_proxy_requests_denied_total", reason="not_found")
    assert after == before + len(refused)


def test_after_a_restart_of_the_proxy_all_is_up_again_in_time(site: Site) -> None:
    wait_until(lambda: site.up() == sorted(JOBS), "all were up", START_SECONDS)
    site.proxy.kill()
    wait_until(lambda: not site.up(), "Prometheus noticed", 10)
    wait_until(lambda: site.metric("exporter_proxy_pushprox_connected") == 0, "the daemon noticed", 10)
    site.proxy.start()
    restarted = time.time()
    wait_until(lambda: site.up(restarted) == sorted(JOBS), "all were up again", RECOVERY_SECONDS)


@pytest.mark.timeout(300)
def test_connections_that_the_router_forgets_are_made_anew(site: Site) -> None:
    """It drops what belongs to them from now on, and tells neither side."""
    wait_until(lambda: site.up() == sorted(JOBS), "all were up", START_SECONDS)
    remote = f":{site.proxy.port:04X}"
    dropped: set[str] = set()

    def are_lost() -> bool:
        """Connections are made all the time: those that came since are forgotten, too."""
        rows = [row.split() for row in command(*inside(site.vm, "cat", "/proc/net/tcp")).splitlines()[1:]]
        ports = {str(int(row[1].split(":")[1], 16)) for row in rows if row[2].endswith(remote)}
        for port in ports - dropped:
            rule = f"add rule ip filter through meta l4proto tcp ct original proto-src {port} drop"
            command(*inside(site.nat, "nft", rule))
        dropped.update(ports)
        return not site.up()

    wait_until(are_lost, "scrapes are lost", 20)
    forgotten = time.time()
    wait_until(lambda: site.up(forgotten) == sorted(JOBS), "all were up again", FORGOTTEN_SECONDS)
