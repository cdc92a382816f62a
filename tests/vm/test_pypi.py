"""The role's default, an installation by ``pip``: here from an index of the lab's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.vm.index import Index
from tests.vm.lab import SCRAPER, STRANGER
from tests.vm.machine import A_METRIC, EXPORTERS, Machine
from tests.vm.play import Played
from tests.vm.releases import Release

HARDENED_UMASK = 0o077
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def machine(boot: Callable[[str], Machine]) -> Machine:
    return boot("bookworm")


@pytest.fixture(scope="module")
def index(
    machine: Machine,
    this_release: Release,
    later_release: Release,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Index]:
    with Index(machine.lab, tmp_path_factory.mktemp("index"), [this_release, later_release]) as index:
        yield index


def variables(index: Index, release: Release) -> dict[str, Any]:
    return {
        "exporter_proxy_version": release.version,
        # The server speaks no TLS, which pip would refuse.
        "exporter_proxy_pip_args": [f"--index-url={index.url}", f"--trusted-host={SCRAPER}"],
        "exporter_proxy_prometheus_addresses": [SCRAPER],
        "exporter_proxy_exporters": EXPORTERS,
    }


def assert_changed(played: Played, record: Record) -> None:
    record("recap", played.summary)
    assert played.status == 0, played.output
    assert played.recap.changed > 0


def test_without_ensurepip_it_says_what_to_install(
    machine: Machine, index: Index, this_release: Release
) -> None:
    played = machine.play(variables(index, this_release))
    assert (played.recap.failed, played.recap.changed) == (1, 0)
    told = " ".join(played.output.split())
    assert "exporter_proxy_python: python3 on vm1 has no ensurepip" in told
    assert "install python3.11-venv there; or use exporter_proxy_install_method: wheelhouse" in told
    assert not machine.has_user()


def test_check_mode_on_a_bare_host(
    machine: Machine, index: Index, this_release: Release, record_property: Record
) -> None:
    machine.install_spare_packages()
    assert_changed(machine.play(variables(index, this_release), "--check"), record_property)
    assert not machine.has_user()
    assert not machine.exists("/opt/exporter_proxy")


def test_converge(machine: Machine, index: Index, this_release: Release, record_property: Record) -> None:
    played = machine.play(variables(index, this_release), umask=HARDENED_UMASK)
    assert_changed(played, record_property)
    assert index.was_asked_for(f"exporter_proxy-{this_release.version}")
    assert machine.running_version() == this_release.version
    for exporter, metric in A_METRIC.items():
        assert metric in machine.scrape(f"/{exporter}/metrics")
    assert machine.is_dropped("/", source=STRANGER)


def test_a_second_run_changes_nothing(
    machine: Machine, index: Index, this_release: Release, record_property: Record
) -> None:
    pid = machine.main_pid()
    played = machine.play(variables(index, this_release))
    record_property("recap", played.summary)
    assert (played.status, played.recap.changed) == (0, 0)
    assert machine.main_pid() == pid


def test_a_release_that_is_not_to_be_had_leaves_what_runs(
    machine: Machine, index: Index, this_release: Release
) -> None:
    pid = machine.main_pid()
    played = machine.play({**variables(index, this_release), "exporter_proxy_version": "98.0.0"})
    assert played.recap.failed == 1
    assert "exporter_proxy==98.0.0" in played.output
    assert machine.main_pid() == pid
    assert machine.guest.run("readlink", "/opt/exporter_proxy/current").stdout == (
        f"releases/{this_release.version}\n"
    )


def test_upgrade_and_rollback(
    machine: Machine,
    index: Index,
    this_release: Release,
    later_release: Release,
    record_property: Record,
) -> None:
    assert_changed(machine.play(variables(index, later_release)), record_property)
    assert machine.running_version() == later_release.version
    played = machine.play(variables(index, this_release))
    assert_changed(played, record_property)
    assert "Create the virtual environment" not in played.output
    assert machine.running_version() == this_release.version
