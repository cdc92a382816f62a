"""A play that is killed between a change and its handler, and the next one, which makes up for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.vm.lab import SCRAPER
from tests.vm.machine import A_METRIC, EXPORTERS, Machine
from tests.vm.releases import Release

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def variables(this_release: Release) -> dict[str, Any]:
    return {
        "exporter_proxy_install_method": "wheelhouse",
        "exporter_proxy_wheelhouse": str(this_release.wheelhouse),
        "exporter_proxy_prometheus_addresses": [SCRAPER],
        "exporter_proxy_exporters": EXPORTERS,
    }


@pytest.fixture(scope="module")
def machine(boot: Callable[[str], Machine], variables: dict[str, Any]) -> Machine:
    machine = boot("bookworm")
    assert machine.play(variables).status == 0
    return machine


def upgraded(machine: Machine, later: Release) -> bool:
    return machine.running_version() == later.version


def serves_one_more(machine: Machine, later: Release) -> bool:
    return machine.curl("/twice/metrics").stdout.endswith("\n200")


def has_the_flag(machine: Machine, later: Release) -> bool:
    return "--log.format=json" in machine.guest.run("cat", f"/proc/{machine.main_pid()}/cmdline").stdout


@pytest.mark.parametrize(
    ("killed_after", "change", "is_in_force"),
    [
        (
            "Write the configuration",
            {"exporter_proxy_exporters": {**EXPORTERS, "twice": {"url": "http://127.0.0.1:9100/metrics"}}},
            serves_one_more,
        ),
        ("Set the command line", {"exporter_proxy_flags": ["--log.format=json"]}, has_the_flag),
        ("Turn the link to the release", {}, upgraded),
    ],
    ids=["configuration", "flags", "release"],
)
def test_the_next_play_makes_up_for_one_that_was_killed(
    machine: Machine,
    variables: dict[str, Any],
    later_release: Release,
    killed_after: str,
    change: dict[str, Any],
    is_in_force: Callable[[Machine, Release], bool],
    record_property: Record,
) -> None:
    change = change or {"exporter_proxy_wheelhouse": str(later_release.wheelhouse)}
    wanted = {**variables, **change}
    pid = machine.main_pid()
    killed = machine.play(wanted, killed_after=killed_after)
    assert (killed.status, killed.recaps) == (-9, {})
    assert machine.main_pid() == pid
    assert not is_in_force(machine, later_release), "it was killed too late to leave anything to do"

    foretold = machine.play(wanted, "--check")
    assert (foretold.status, foretold.recap.changed) == (0, 1)
    assert not is_in_force(machine, later_release)

    made_up = machine.play(wanted)
    record_property("recap", made_up.summary)
    assert made_up.status == 0
    assert is_in_force(machine, later_release)
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics")

    again = machine.play(wanted)
    record_property("recap", again.summary)
    assert (again.status, again.recap.changed) == (0, 0)
