"""The one rule in each firewall that a host may have, seen from outside.

nftables with an administrator's ruleset is in ``test_role.py``; here are the others, and nftables alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.vm.lab import SCRAPER, STRANGER
from tests.vm.machine import PORT, Machine

OTHER_PORT = 9098
SWITCH_ON = {
    "nftables": "true",  # its table needs no ruleset around it
    "ufw": "systemctl enable --now ufw && ufw --force enable",
    "firewalld": "systemctl enable --now firewalld",
}
SERVER = """\
[Service]
ExecStart=/usr/bin/python3 -m http.server --directory /usr/share/misc {port}
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module", params=[*SWITCH_ON])
def firewall(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def machine(boot: Callable[[str], Machine], firewall: str) -> Machine:
    """A host with that firewall on, and something that answers on two ports."""
    machine = boot("bookworm")
    for port in (PORT, OTHER_PORT):
        machine.write(f"/etc/systemd/system/server-{port}.service", SERVER.format(port=port))
        machine.guest.run("systemctl", "enable", "--now", f"server-{port}")
    machine.guest.run("sh", "-c", SWITCH_ON[firewall])
    wait_for(machine, firewall)
    return machine


def wait_for(machine: Machine, firewall: str) -> None:
    """The servers, and firewalld, count as started a moment before they answer or have their rules."""
    deadline = time.monotonic() + 30
    for port in (PORT, OTHER_PORT):
        ask = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/', timeout=30)"
        while machine.guest.run("python3", "-c", ask, check=False).returncode:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.1)
    while firewall == "firewalld" and machine.guest.run("firewall-cmd", "--state", check=False).returncode:
        assert time.monotonic() < deadline, "firewalld does not get ready"
        time.sleep(0.1)


def variables(**more: Any) -> dict[str, Any]:
    return {
        "exporter_proxy_version": "1.0.0",  # asked for, though only the firewall is played
        "exporter_proxy_prometheus_addresses": [SCRAPER],
        **more,
    }


def opened(machine: Machine, *arguments: str, **more: Any) -> int:
    """Play the firewall's part of the role; how much it changed."""
    played = machine.play(variables(**more), "--tags=exporter_proxy_firewall", *arguments)
    assert played.status == 0
    return played.recap.changed


def reaches(machine: Machine, source: str, port: int = PORT) -> bool:
    """Whether the source gets an answer. What else a firewall does with it is its own choice."""
    return machine.curl("/", source=source, port=port).returncode == 0


def test_check_mode_changes_nothing(machine: Machine, firewall: str) -> None:
    before = reaches(machine, STRANGER)
    assert opened(machine, "--check") == 1
    assert reaches(machine, STRANGER) is before
    assert opened(machine, "--check") == 1


def test_auto_finds_the_firewall_and_opens_the_port_once(machine: Machine, firewall: str) -> None:
    assert opened(machine) == 1
    assert reaches(machine, SCRAPER)
    assert not reaches(machine, STRANGER)
    assert opened(machine) == 0
    assert opened(machine, "--check") == 0
    assert opened(machine, exporter_proxy_firewall=firewall) == 0


def test_it_is_there_after_a_reboot(machine: Machine, firewall: str) -> None:
    machine.guest.reboot()
    wait_for(machine, firewall)
    assert reaches(machine, SCRAPER)
    assert not reaches(machine, STRANGER)
    assert opened(machine) == 0


def test_other_addresses_take_the_place_of_the_first(machine: Machine) -> None:
    more = {"exporter_proxy_prometheus_addresses": [f"{STRANGER}/32", "2001:db8::/64", "192.0.2.0/24"]}
    assert opened(machine, **more) == 1
    assert not reaches(machine, SCRAPER)
    assert reaches(machine, STRANGER)
    assert opened(machine, **more) == 0
    overlapping = {"exporter_proxy_prometheus_addresses": ["10.213.0.0/24", SCRAPER, STRANGER]}
    assert opened(machine, **overlapping) == 1
    assert reaches(machine, SCRAPER)
    assert reaches(machine, STRANGER)
    assert opened(machine, **overlapping) == 0


def test_another_port_takes_the_place_of_the_first(machine: Machine, firewall: str) -> None:
    assert opened(machine, exporter_proxy_port=OTHER_PORT) == 1
    assert reaches(machine, SCRAPER, OTHER_PORT)
    assert not reaches(machine, STRANGER, OTHER_PORT)
    # No rule of ours is left for the first port: ufw and firewalld close it, nftables alone has it as before.
    assert reaches(machine, SCRAPER) is (firewall == "nftables")
    assert opened(machine, exporter_proxy_port=OTHER_PORT) == 0


def test_none_leaves_it_alone(machine: Machine) -> None:
    assert opened(machine, exporter_proxy_firewall="none", exporter_proxy_port=1) == 0
    assert reaches(machine, SCRAPER, OTHER_PORT)


def test_an_address_that_is_none_changes_nothing(machine: Machine) -> None:
    played = machine.play(
        variables(exporter_proxy_prometheus_addresses=["prometheus.example"]),
        "--tags=exporter_proxy_firewall",
    )
    assert played.status != 0
    assert "prometheus.example" in played.output
    assert reaches(machine, SCRAPER, OTHER_PORT)


def test_uninstalling_takes_the_rule_back(machine: Machine, firewall: str) -> None:
    played = machine.play(variables(exporter_proxy_state="absent"))
    assert played.status == 0
    assert reaches(machine, STRANGER, OTHER_PORT) is (firewall == "nftables")
    assert reaches(machine, SCRAPER, OTHER_PORT) is (firewall == "nftables")
    for place in ("/etc/nftables.conf", "/etc/ufw", "/etc/firewalld"):
        found = machine.guest.run("grep", "-rl", "exporter_proxy", place, check=False).stdout.split()
        assert not [path for path in found if not path.endswith(".old")]  # firewalld's own backups
    machine.guest.reboot()
    wait_for(machine, firewall)
    assert reaches(machine, SCRAPER, OTHER_PORT) is (firewall == "nftables")
