"""``exporter_proxy_python``: another Python than the host's own, as Ubuntu 22.04 and RHEL 9 need it.

The host is Debian 13, whose Python is 3.13, with a Python 3.11 beside it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.vm.lab import SCRAPER
from tests.vm.machine import A_METRIC, EXPORTERS, Machine
from tests.vm.releases import Release
from tests.vm.rootfs import rootfs

OTHER_PYTHON = "/usr/local/bin/python3.11"
# An interpreter that is what it is but for its version.
TOO_OLD = """\
#!/bin/sh
exec /usr/bin/python3 -c '
import sys
sys.version_info = (3, 9, 18)
question = sys.argv[3]
del sys.argv[1:4]
exec(question)
' "$@"
"""
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def machine(boot: Callable[[str], Machine]) -> Machine:
    """With Debian 12's Python in /usr/local: it finds its library from where it is."""
    machine = boot("trixie")
    with subprocess.Popen(
        ["tar", "-c", "-C", f"{rootfs('bookworm')}/usr", "bin/python3.11", "lib/python3.11"],
        stdout=subprocess.PIPE,
    ) as packed:
        subprocess.run(
            ["nsenter", f"--target={machine.guest.pid}", "--all", "tar", "-x", "-C", "/usr/local"],
            stdin=packed.stdout,
            check=True,
        )
    assert packed.returncode == 0
    machine.write("/usr/local/bin/python3.9", TOO_OLD)
    machine.guest.run("chmod", "+x", "/usr/local/bin/python3.9")
    return machine


@pytest.fixture
def variables(this_release: Release) -> dict[str, Any]:
    return {
        "exporter_proxy_install_method": "wheelhouse",
        "exporter_proxy_wheelhouse": str(this_release.wheelhouse),
        "exporter_proxy_prometheus_addresses": [SCRAPER],
        "exporter_proxy_exporters": EXPORTERS,
    }


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["play", "check"])
@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("python3.12", "does not run"),
        ("/etc/passwd", "does not run"),
        ("/usr/local/bin/python3.9", "is Python 3.9"),
    ],
)
def test_a_wrong_one_is_one_error_before_anything_changes(
    machine: Machine, variables: dict[str, Any], python: str, says: str, check: tuple[str, ...]
) -> None:
    played = machine.play({**variables, "exporter_proxy_python": python}, *check)
    assert (played.recap.failed, played.recap.changed) == (1, 0)
    told = " ".join(played.output.split())
    assert f"exporter_proxy_python: {python} on vm1 {says}" in told
    assert "Install Python 3.11 or newer there, and name it" in told
    assert not machine.has_user()


@pytest.mark.parametrize(
    ("python", "version"),
    [(OTHER_PYTHON, "3.11"), ("python3.13", "3.13"), ("python3.11", "3.11")],
    ids=["path", "name", "back"],
)
def test_the_daemon_runs_on_the_one_that_is_named(
    machine: Machine, variables: dict[str, Any], python: str, version: str, record_property: Record
) -> None:
    """On the second and third as well, though the release is there, made by another one."""
    named = {**variables, "exporter_proxy_python": python}
    played = machine.play(named)
    record_property("recap", played.summary)
    assert played.status == 0
    assert machine.running_python().startswith(f"{version}.")
    assert A_METRIC["node_exporter"] in machine.scrape("/node_exporter/metrics")

    pid = machine.main_pid()
    played = machine.play(named)
    record_property("recap", played.summary)
    assert (played.status, played.recap.changed) == (0, 0)
    assert machine.main_pid() == pid
