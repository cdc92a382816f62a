"""The role with the Debian package in place of a release of its own: the same from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter_proxy import __version__
from tests.vm.lab import SCRAPER, STRANGER
from tests.vm.machine import A_METRIC, EXPORTERS, Machine
from tests.vm.releases import LATER_VERSION, Release, release

SUITE = "trixie"


@pytest.fixture(scope="module")
def machine(boot: Callable[[str], Machine]) -> Machine:
    return boot(SUITE)


@pytest.fixture(scope="module")
def packages(builds: Path, able: None) -> list[Release]:
    return [release(version, builds, (SUITE,)) for version in (__version__, LATER_VERSION)]


def variables(package: Release, **more: Any) -> dict[str, Any]:
    return {
        "exporter_proxy_install_method": "deb",
        "exporter_proxy_deb": str(package.deb(SUITE)),
        "exporter_proxy_prometheus_addresses": [SCRAPER],
        "exporter_proxy_exporters": EXPORTERS,
        **more,
    }


def changes(machine: Machine, *arguments: str, **played_variables: Any) -> int:
    played = machine.play(played_variables, *arguments)
    assert played.status == 0
    return played.recap.changed


def test_check_mode_on_a_bare_host(machine: Machine, packages: list[Release]) -> None:
    assert changes(machine, "--check", **variables(packages[0])) > 0
    assert not machine.exists("/usr/bin/exporter_proxy")
    assert not machine.exists("/etc/exporter_proxy")


def test_install(
    machine: Machine, packages: list[Release], record_property: Callable[[str, object], None]
) -> None:
    played = machine.play(variables(packages[0]))
    record_property("recap", played.summary)
    assert played.status == 0
    assert machine.running_version() == packages[0].version
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics")
    assert machine.is_dropped("/", source=STRANGER)
    assert changes(machine, **variables(packages[0])) == 0


def test_upgrade_and_rollback(machine: Machine, packages: list[Release]) -> None:
    for package in reversed(packages):
        assert changes(machine, **variables(package)) > 0
        assert machine.running_version() == package.version
        assert changes(machine, **variables(package)) == 0


def test_an_upgrade_over_a_broken_configuration_runs(machine: Machine, packages: list[Release]) -> None:
    """The package restarts nothing where it refuses the configuration; the role's own is a mere reload."""
    machine.write("/etc/exporter_proxy/config.yml", "listen: systemd\nlistne: x\n")
    assert changes(machine, **variables(packages[1])) > 0
    assert machine.running_version() == packages[1].version
    assert changes(machine, **variables(packages[1])) == 0
    assert changes(machine, **variables(packages[0])) > 0


def test_without_the_socket(machine: Machine, packages: list[Release]) -> None:
    without = variables(packages[0], exporter_proxy_use_socket=False)
    assert changes(machine, **without) > 0
    assert machine.running_version() == packages[0].version
    assert (
        machine.guest.run("systemctl", "is-active", "exporter_proxy.socket", check=False).stdout
        == "inactive\n"
    )
    assert changes(machine, **without) == 0
    assert changes(machine, **variables(packages[0])) > 0
    assert machine.running_version() == packages[0].version


def test_uninstall(machine: Machine, packages: list[Release]) -> None:
    gone = variables(packages[0], exporter_proxy_state="absent")
    assert changes(machine, **gone) > 0
    for path in (
        "/usr/bin/exporter_proxy",
        "/usr/lib/exporter_proxy",
        "/etc/exporter_proxy",
        "/var/log/exporter_proxy",
    ):
        assert not machine.exists(path)
    assert not machine.has_user()
    assert changes(machine, **gone) == 0
