"""The life of one host: from bare to converged, through mistakes, upgrades and a reboot, to bare again.

The tests of this file are the chapters of one story and run in this order, once for each release of Debian.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trustme

from tests.vm.lab import SCRAPER, STRANGER
from tests.vm.machine import A_METRIC, EXPORTERS, PATIENTLY, PORT, Machine
from tests.vm.play import Played
from tests.vm.releases import Release

# What an administrator has set up: everything is dropped but ssh. The exporters listen on all addresses.
FIREWALL = """\
#!/usr/sbin/nft -f
flush ruleset
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    iif lo accept
    ct state established,related accept
    tcp dport 22 accept
  }
}
"""
OTHER_PORT = 9098
# What the guest itself writes while it runs, also at midnight, and what Ansible and Python leave at any host.
NOT_OURS = re.compile(
    r"/var/(log|lib/(systemd|logrotate)|backups|tmp|cache)/|/root/\.ansible|/tmp/|.*/__pycache__|/run/"
    r"|/etc/\.pwd\.lock|/etc/.*-$"
)

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def machine(boot: Callable[[str], Machine], suite: str) -> Machine:
    machine = boot(suite)
    machine.write("/etc/nftables.conf", FIREWALL)
    machine.guest.run("systemctl", "enable", "--now", "nftables")
    return machine


@pytest.fixture(scope="module")
def bare(machine: Machine) -> set[str]:
    """The files of the host before the role came."""
    return machine.files()


@pytest.fixture
def variables(this_release: Release) -> dict[str, Any]:
    return {
        "exporter_proxy_install_method": "wheelhouse",
        "exporter_proxy_wheelhouse": str(this_release.wheelhouse),
        "exporter_proxy_prometheus_addresses": [SCRAPER],
        "exporter_proxy_exporters": EXPORTERS,
    }


def assert_changed(played: Played, record: Record) -> None:
    record("recap", played.summary)
    assert played.status == 0, played.output
    assert played.recap.changed > 0


def assert_unchanged(played: Played, record: Record) -> None:
    record("recap", played.summary)
    assert played.status == 0, played.output
    assert (played.recap.changed, played.recap.failed) == (0, 0)


def test_check_mode_on_a_bare_host(
    machine: Machine, bare: set[str], variables: dict[str, Any], record_property: Record
) -> None:
    assert_changed(machine.play(variables, "--check", "--diff"), record_property)
    assert not {path for path in machine.files() - bare if not NOT_OURS.match(path)}
    assert not machine.has_user()
    assert "exporter_proxy" not in machine.guest.run("nft", "list", "ruleset").stdout


def test_converge(machine: Machine, variables: dict[str, Any], record_property: Record) -> None:
    played = machine.play(variables)
    assert_changed(played, record_property)
    assert "WARNING" not in played.output
    assert machine.guest.run(
        "systemctl", "is-active", "exporter_proxy.socket", "exporter_proxy.service"
    ).stdout


def test_a_second_run_changes_nothing(
    machine: Machine, variables: dict[str, Any], record_property: Record
) -> None:
    pid = machine.main_pid()
    assert_unchanged(machine.play(variables), record_property)
    assert machine.main_pid() == pid


def test_check_mode_says_that_nothing_would_change(
    machine: Machine, variables: dict[str, Any], record_property: Record
) -> None:
    assert_unchanged(machine.play(variables, "--check"), record_property)


@pytest.mark.parametrize("exporter", sorted(EXPORTERS))
def test_the_prometheus_address_scrapes(machine: Machine, exporter: str) -> None:
    assert A_METRIC[exporter] in machine.scrape(f"/{exporter}/metrics")


def test_a_stranger_does_not_reach_the_port(machine: Machine) -> None:
    assert machine.is_dropped("/node_exporter/metrics", source=STRANGER)


@pytest.mark.parametrize("port", [9100, 9115, 9256])
def test_the_exporters_own_ports_are_closed(machine: Machine, port: int) -> None:
    assert machine.is_dropped("/metrics", port=port)
    machine.guest.run(
        "python3", "-c", f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/metrics')"
    )


def test_an_exporter_more_is_a_reload(
    machine: Machine, variables: dict[str, Any], record_property: Record
) -> None:
    pid = machine.main_pid()
    exporters = {**EXPORTERS, "twice": {"url": "http://127.0.0.1:9100/metrics"}}
    assert_changed(machine.play({**variables, "exporter_proxy_exporters": exporters}), record_property)
    assert A_METRIC["node_exporter"] in machine.scrape("/twice/metrics")
    assert machine.main_pid() == pid


def test_exporters_are_found_by_themselves(
    machine: Machine, variables: dict[str, Any], record_property: Record
) -> None:
    found = {**variables, "exporter_proxy_exporters": "auto"}
    assert machine.play(found).status == 0
    for exporter, metric in A_METRIC.items():
        assert metric in machine.scrape(f"/{exporter}/metrics")
    assert_unchanged(machine.play(found), record_property)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"exporter_proxy_exporters": {"x": {"url": "http://127.0.0.1:1/", "timeout": "soon"}}}, "x.timeout"),
        ({"exporter_proxy_config": {"keep_alive_timout": "1m"}}, "keep_alive_timeout"),
    ],
    ids=["value", "key"],
)
def test_a_mistake_never_replaces_what_runs(
    machine: Machine, variables: dict[str, Any], later_release: Release, mistake: dict[str, Any], message: str
) -> None:
    pid, config = machine.main_pid(), machine.guest.run("cat", "/etc/exporter_proxy/config.yml").stdout
    # Together with an upgrade: the new release refuses, the old one goes on.
    played = machine.play(
        {**variables, "exporter_proxy_wheelhouse": str(later_release.wheelhouse), **mistake}
    )
    assert played.status != 0
    assert played.recap.failed == 1
    assert message in played.output
    assert machine.guest.run("cat", "/etc/exporter_proxy/config.yml").stdout == config
    assert machine.main_pid() == pid
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics")


def test_a_configuration_that_only_the_unit_refuses_fails_the_play(
    machine: Machine, variables: dict[str, Any], record_property: Record
) -> None:
    pid = machine.main_pid()
    machine.guest.run("mkdir", "-p", "/home/x")
    machine.write("/home/x/tokens", "t" * 40 + "\n")
    hidden = {**variables, "exporter_proxy_config": {"bearer_tokens_file": "/home/x/tokens"}}
    for _ in range(2):  # a second play finds nothing to change, and is no better
        played = machine.play(hidden)
        assert played.recap.failed == 1
        assert "config not reloaded" in played.output
        assert "bearer_tokens_file: not readable" in played.output
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics")
    machine.guest.run("rm", "-r", "/home/x")
    assert_changed(machine.play(variables), record_property)
    assert machine.main_pid() == pid


class Scraping:
    """Scrapes again and again while something else happens."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.succeeded = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            done = self.machine.curl("/node_exporter/metrics", options=PATIENTLY)
            if done.returncode == 0 and done.stdout.endswith("\n200"):
                self.succeeded += 1
            else:
                self.failures.append(f"{done.returncode} {done.stderr} {done.stdout[-300:]}")

    def __enter__(self) -> Scraping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_no_scrape_is_lost_in_an_upgrade(
    machine: Machine,
    variables: dict[str, Any],
    this_release: Release,
    later_release: Release,
    record_property: Record,
) -> None:
    assert machine.running_version() == this_release.version
    with Scraping(machine) as scraping:
        played = machine.play({**variables, "exporter_proxy_wheelhouse": str(later_release.wheelhouse)})
    assert_changed(played, record_property)
    assert machine.running_version() == later_release.version
    assert not scraping.failures
    assert scraping.succeeded > 10


def test_rollback_by_variable(
    machine: Machine,
    variables: dict[str, Any],
    this_release: Release,
    later_release: Release,
    record_property: Record,
) -> None:
    back = {
        "exporter_proxy_wheelhouse": str(later_release.wheelhouse),
        "exporter_proxy_version": this_release.version,
    }
    played = machine.play({**variables, **back})
    assert_changed(played, record_property)
    assert "Unpack the wheelhouse" not in played.output
    assert machine.running_version() == this_release.version
    assert machine.exists(f"/opt/exporter_proxy/releases/{later_release.version}/venv/bin/exporter_proxy")


def test_all_of_it_is_there_after_a_reboot(
    machine: Machine, variables: dict[str, Any], this_release: Release, record_property: Record
) -> None:
    machine.guest.reboot()
    assert machine.running_version() == this_release.version
    assert machine.is_dropped("/node_exporter/metrics", source=STRANGER)
    assert machine.is_dropped("/metrics", port=9100)
    assert_unchanged(machine.play(variables), record_property)


def test_another_port(machine: Machine, variables: dict[str, Any], record_property: Record) -> None:
    assert_changed(machine.play({**variables, "exporter_proxy_port": OTHER_PORT}), record_property)
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics", port=OTHER_PORT)
    assert machine.is_dropped("/", port=OTHER_PORT, source=STRANGER)
    assert machine.is_dropped("/", port=PORT)


def test_https_with_passwords(
    machine: Machine, variables: dict[str, Any], tmp_path: Path, record_property: Record
) -> None:
    authority = trustme.CA()
    issued, other = authority.issue_cert(machine.guest.address), authority.issue_cert(machine.guest.address)
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    other.private_key_pem.write_to_path(tmp_path / "other.key")
    password_hash = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    secured = {
        **variables,
        "exporter_proxy_tls_cert": str(tmp_path / "server.crt"),
        "exporter_proxy_tls_key": str(tmp_path / "server.key"),
        "exporter_proxy_web_config": {"basic_auth_users": {"prometheus": password_hash}},
    }
    assert_changed(machine.play(secured), record_property)
    trusting = ("--cacert", str(tmp_path / "ca.crt"))
    knowing = {"scheme": "https", "options": (*trusting, "--user", "prometheus:secret")}
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics", **knowing)
    refused = machine.curl("/node_exporter/metrics", scheme="https", options=trusting)
    assert refused.stdout.endswith("\n401")
    assert_unchanged(machine.play(secured), record_property)

    mismatched = machine.play({**secured, "exporter_proxy_tls_key": str(tmp_path / "other.key")})
    assert mismatched.status != 0
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics", **knowing)


def test_without_the_socket(machine: Machine, variables: dict[str, Any], record_property: Record) -> None:
    variables = {**variables, "exporter_proxy_use_socket": False}
    assert_changed(machine.play(variables), record_property)
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics")
    assert (
        machine.guest.run("systemctl", "is-active", "exporter_proxy.socket", check=False).stdout
        == "inactive\n"
    )
    assert_unchanged(machine.play(variables), record_property)


def test_uninstall_leaves_nothing(
    machine: Machine, bare: set[str], variables: dict[str, Any], record_property: Record
) -> None:
    gone = {**variables, "exporter_proxy_state": "absent"}
    assert_changed(machine.play(gone), record_property)
    assert not {path for path in machine.files() ^ bare if not NOT_OURS.match(path)}
    assert not machine.has_user()
    assert machine.guest.run("cat", "/etc/nftables.conf").stdout == FIREWALL
    assert "exporter_proxy" not in machine.guest.run("nft", "list", "ruleset").stdout
    assert "exporter_proxy" not in machine.guest.run("systemctl", "list-units", "--all").stdout
    assert machine.is_dropped("/")
    assert_unchanged(machine.play(gone), record_property)
