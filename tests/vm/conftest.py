"""Machines for the tests of this directory. They need root, and take minutes: ``make vm-test`` runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter_proxy import __version__
from tests.vm.lab import Lab, remove_abandoned_labs
from tests.vm.machine import Machine
from tests.vm.play import tool
from tests.vm.releases import LATER_VERSION, Release, release
from tests.vm.rootfs import SUITES

PROGRAMS = ("mmdebstrap", "unshare", "nsenter", "ip", "curl", "prometheus", "promtool")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    """Skip where guests cannot be booted; fail in continuous integration where only a program is missing."""
    if os.geteuid() != 0:
        pytest.skip("guests are booted by root")
    if subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--cgroup", "--fork", "true"], check=False
    ).returncode:
        pytest.skip("this machine lets nobody make namespaces")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    missing += [name for name in ("ansible-playbook", "ansible-lint") if not tool(name).exists()]
    if missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"missing: {', '.join(missing)}")
        pytest.skip(f"missing: {', '.join(missing)}; .ci/setup vm installs them")
    remove_abandoned_labs()


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Where packages of this run are kept, for all processes of it."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "builds"


@pytest.fixture(scope="session")
def this_release(builds: Path) -> Release:
    """A wheelhouse of this tree."""
    return release(__version__, builds)


@pytest.fixture(scope="session")
def later_release(builds: Path) -> Release:
    """A wheelhouse of this tree as a later version."""
    return release(LATER_VERSION, builds)


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """Each release of Debian in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory, able: None) -> Iterator[Callable[..., Machine]]:
    """Boots a guest of a suite in a lab of its own, for the tests of one module."""
    labs: list[Lab] = []

    def boot_one(suite: str) -> Machine:
        lab = Lab(f"test-{os.getpid()}-{len(labs)}")
        labs.append(lab)
        lab.open()
        return Machine(lab, lab.boot("vm1", suite), tmp_path_factory.mktemp("ansible"))

    try:
        yield boot_one
    finally:
        for lab in labs:
            lab.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every recap with its time, in the order of the tests."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "recap":
                terminalreporter.write_line(f"{report.nodeid.rpartition('/')[2]}: {value}")
