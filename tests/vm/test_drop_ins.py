"""What the unit allows with its drop-ins and not without them: commands, and polling a PushProx proxy.

The role writes a drop-in where a host's variables need it, and removes it where they do not. The proxy is
the stand-in, on the lab's side of the network. The tests are the chapters of one story, in this order.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.daemon import wait_until
from tests.standin import StandIn
from tests.vm.lab import SCRAPER
from tests.vm.machine import A_METRIC, EXPORTERS, PATIENTLY, PORT, Machine
from tests.vm.releases import Release

SUITE = "bookworm"
FQDN = "vm1.example.org"
DROP_INS = "/etc/systemd/system/exporter_proxy.service.d"
PUSHPROX, COMMAND = f"{DROP_INS}/20-pushprox.conf", f"{DROP_INS}/30-command.conf"
RAID = """\
#!/bin/sh
# As commands do: other programs, a temporary file, the state of the host.
set -eu
scratch=$(mktemp)
trap 'rm "$scratch"' EXIT
cat /proc/loadavg >"$scratch"
echo "raid_load1 $(cut -d' ' -f1 "$scratch")"
echo "raid_tasks_max $(cat /sys/fs/cgroup/system.slice/exporter_proxy.service/pids.max 2>/dev/null || echo 0)"
"""
BOMB = "#!/bin/sh\nbomb() { bomb | bomb & }\nbomb\nsleep 300\n"
COMMANDS: dict[str, Any] = {
    "raid": {"command": ["/usr/local/bin/raid_metrics"], "env": {"PATH": "/usr/bin:/bin"}},
    "bomb": {"command": ["/usr/local/bin/bomb"], "timeout": "1s"},
    "fails": {"command": ["/bin/sh", "-c", "echo why >&2; exit 3"]},
}
DEFAULT_TASKS_MAX, COMMAND_TASKS_MAX = "64", "256"


@pytest.fixture(scope="module")
def machine(boot: Callable[[str], Machine]) -> Machine:
    machine = boot(SUITE)
    for name, text in (("raid_metrics", RAID), ("bomb", BOMB)):
        machine.write(f"/usr/local/bin/{name}", text)
        machine.guest.run("chmod", "755", f"/usr/local/bin/{name}")
    return machine


@pytest.fixture(scope="module")
def proxy(machine: Machine) -> Iterator[StandIn]:
    with StandIn(host=SCRAPER, launcher=machine.lab.command()) as proxy:
        yield proxy


@pytest.fixture
def plain(this_release: Release) -> dict[str, Any]:
    return {
        "exporter_proxy_install_method": "wheelhouse",
        "exporter_proxy_wheelhouse": str(this_release.wheelhouse),
        "exporter_proxy_prometheus_addresses": [SCRAPER],
        "exporter_proxy_exporters": EXPORTERS,
    }


@pytest.fixture
def opened(plain: dict[str, Any], proxy: StandIn) -> dict[str, Any]:
    return {
        **plain,
        "exporter_proxy_exporters": {**EXPORTERS, **COMMANDS},
        "exporter_proxy_config": {"pushprox": {"proxy_url": proxy.url, "fqdn": FQDN}},
    }


def shown(machine: Machine, *properties: str) -> dict[str, str]:
    """As systemd has them in force."""
    asked = [f"--property={name}" for name in properties]
    lines = machine.guest.run("systemctl", "show", *asked, "exporter_proxy.service").stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def own_metric(machine: Machine, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", machine.scrape("/metrics"), re.MULTILINE)
    assert found is not None, sample
    return float(found[1])


def through(machine: Machine, proxy: StandIn, path: str) -> subprocess.CompletedProcess[str]:
    """A scrape by way of the proxy."""
    options = ("--proxy", proxy.url, "--noproxy", "", "--max-time", "5", "--write-out", r"\n%{http_code}")
    header = ("--header", "X-Prometheus-Scrape-Timeout-Seconds: 3")
    return subprocess.run(
        machine.lab.command("curl", "--silent", *options, *header, f"http://{FQDN}:{PORT}{path}"),
        capture_output=True,
        text=True,
        check=False,
    )


def connected(machine: Machine) -> Callable[[], bool]:
    return lambda: own_metric(machine, "exporter_proxy_pushprox_connected") == 1


def test_neither_is_there_without_need(
    machine: Machine, plain: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    played = machine.play(plain)
    record_property("recap", played.summary)
    assert played.status == 0
    assert not machine.exists(PUSHPROX)
    assert not machine.exists(COMMAND)
    assert shown(machine, "TasksMax")["TasksMax"] == DEFAULT_TASKS_MAX


def test_both_are_written_where_they_are_needed(
    machine: Machine, opened: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    played = machine.play(opened)
    record_property("recap", played.summary)
    assert played.status == 0
    allowed = shown(machine, "IPAddressAllow", "IPAddressDeny", "TasksMax", "OOMPolicy", "OOMScoreAdjust")
    assert SCRAPER in allowed["IPAddressAllow"]
    assert "0.0.0.0/0" in allowed["IPAddressDeny"]
    assert allowed["TasksMax"] == COMMAND_TASKS_MAX
    assert (allowed["OOMPolicy"], allowed["OOMScoreAdjust"]) == ("continue", "0")
    assert machine.play(opened).recap.changed == 0


def test_an_exporter_on_an_address_of_the_host_itself(machine: Machine, opened: dict[str, Any]) -> None:
    """It is no loopback address, and the unit lets the daemon out to it by a drop-in only."""
    own = {"url": f"http://{machine.guest.address}:9100/metrics"}
    exporters = {**opened["exporter_proxy_exporters"], "own": own}
    assert machine.play({**opened, "exporter_proxy_exporters": exporters}).status == 0
    assert machine.guest.address in shown(machine, "IPAddressAllow")["IPAddressAllow"]
    assert A_METRIC["node_exporter"] in machine.scrape("/own/metrics")
    assert machine.play(opened).status == 0
    assert machine.guest.address not in shown(machine, "IPAddressAllow")["IPAddressAllow"]


def test_a_command_runs_in_the_hardened_unit(machine: Machine) -> None:
    page = machine.scrape("/raid/metrics")
    assert "raid_load1 " in page
    # Where this kernel has the controller for it, the limit is the kernel's, too.
    assert re.search(rf"^raid_tasks_max (0|{COMMAND_TASKS_MAX})$", page, re.MULTILINE)
    assert "exited with status 3" in machine.curl("/fails/metrics", options=PATIENTLY).stdout
    score = machine.guest.run("cat", f"/proc/{machine.main_pid()}/oom_score_adj").stdout.strip()
    assert score == "0"


def test_a_fork_bomb_stays_within_the_unit(machine: Machine) -> None:
    """Without the pids controller nothing would hold it, and the machine of these tests is not to suffer."""
    controllers = machine.guest.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()
    if "pids" not in controllers:
        pytest.skip(
            "this kernel gives its guests no limit for tasks; tests/blackbox/test_command_bombs.py has it"
        )
    pid = machine.main_pid()
    for _ in range(2):
        assert machine.curl("/bomb/metrics", options=PATIENTLY).stdout[-3:] in ("502", "504")
        assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics")
        wait_until(lambda: "raid_load1" in machine.curl("/raid/metrics").stdout, "commands run again", 10)
    assert machine.main_pid() == pid


def test_a_scrape_by_way_of_the_proxy(machine: Machine, proxy: StandIn) -> None:
    wait_until(connected(machine), "it polls", 15)
    for path, expected in (
        ("/node_exporter/metrics", A_METRIC["node_exporter"]),
        ("/raid/metrics", "raid_load1"),
    ):
        done = through(machine, proxy, path)
        assert done.stdout.endswith("\n200"), done.stdout
        assert expected in done.stdout


def test_without_its_drop_in_no_proxy_is_reached(machine: Machine, proxy: StandIn) -> None:
    text = machine.guest.run("cat", PUSHPROX).stdout
    try:
        machine.guest.run("rm", PUSHPROX)
        machine.guest.run("systemctl", "daemon-reload")
        machine.guest.run("systemctl", "restart", "exporter_proxy.service")
        assert SCRAPER not in shown(machine, "IPAddressAllow")["IPAddressAllow"]
        wait_until(
            lambda: own_metric(machine, 'exporter_proxy_pushprox_polls_total{result="failed"}') > 0,
            "a poll failed",
            15,
        )
        assert own_metric(machine, "exporter_proxy_pushprox_connected") == 0
        # Scrapers still come in, and the exporters of this host are still reached.
        assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics")
    finally:
        machine.write(PUSHPROX, text)
        machine.guest.run("systemctl", "daemon-reload")
        machine.guest.run("systemctl", "restart", "exporter_proxy.service")
    wait_until(connected(machine), "it polls again", 15)


def test_a_proxy_by_name_needs_its_address(machine: Machine, opened: dict[str, Any]) -> None:
    named = {"pushprox": {"proxy_url": "http://proxy.example.org:8080/", "fqdn": FQDN}}
    played = machine.play({**opened, "exporter_proxy_config": named})
    assert played.status != 0
    assert "exporter_proxy_pushprox_addresses" in played.output
    assert connected(machine)(), "nothing was changed"
    wanted = {**opened, "exporter_proxy_config": named, "exporter_proxy_pushprox_addresses": ["192.0.2.0/24"]}
    assert machine.play(wanted).status == 0
    assert "192.0.2.0/24" in shown(machine, "IPAddressAllow")["IPAddressAllow"]


def test_both_go_with_what_needed_them(machine: Machine, plain: dict[str, Any]) -> None:
    played = machine.play(plain)
    assert played.status == 0
    assert played.recap.changed > 0
    assert not machine.exists(PUSHPROX)
    assert not machine.exists(COMMAND)
    assert shown(machine, "TasksMax")["TasksMax"] == DEFAULT_TASKS_MAX
    listed = json.loads(machine.scrape("/-/exporters"))
    assert sorted(one["name"] for one in listed["exporters"]) == sorted(EXPORTERS)
    assert "pushprox" not in listed
    assert machine.play(plain).recap.changed == 0
