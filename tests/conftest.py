"""The daemon that most tests share, and the daemon's log beside every failure."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.daemon import REPOSITORY, STARTED, Daemon, proxied
from tests.fakes.exporter import FakeExporter

pytest_plugins = ("tests.second_look",)

# A slow example is the machine's doing, as a rule. CI's own profile has it so, and the rest of that stays.
settings.register_profile(
    "unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")

LONGEST = (
    "tests/e2e/test_soak.py",
    "tests/packaging/test_artefacts.py",
    "tests/e2e/test_pushprox_nat.py",
    "tests/blackbox/test_pushprox_survives.py",
    "tests/blackbox/test_abuse_resources.py",
    "tests/blackbox/test_fault_matrix.py",
    "tests/e2e/test_landing_page.py",
    "tests/blackbox/test_own_secrets.py",
    "tests/e2e/test_discover.py",
    "tests/e2e/test_debian_exporters.py",
    "tests/blackbox/test_changed_credentials.py",
    "tests/properties/test_daemon_model.py",
    "tests/blackbox/test_commands.py",
    "tests/unit/test_cancellation_shared.py",
)
"""The files that take longest, in about that order."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first; at the end all others would have nothing to do but wait for it."""
    rank = {REPOSITORY / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Thousands of tests are no garbage. Many look for some, which took half a second with all of these."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def own_garbage() -> Iterator[None]:
    """Each file answers for its own: what the collector has to complain of is told where it is collected."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def standing() -> Iterator[tuple[Daemon, FakeExporter]]:
    """One daemon per test process: starting one for each of some hundred tests would take minutes."""
    with proxied(
        route={"pass_headers": ["X-Passed"]}, access_log={"format": "json", "fields": ["status", "reason"]}
    ) as pair:
        yield pair


@pytest.fixture
def exporter(standing: tuple[Daemon, FakeExporter]) -> Iterator[FakeExporter]:
    """The exporter behind ``daemon``'s ``/x/metrics``: nothing recorded, no connection open."""
    _, exporter = standing
    exporter.play()
    yield exporter
    exporter.drop_connections()


@pytest.fixture
def daemon(standing: tuple[Daemon, FakeExporter], exporter: FakeExporter) -> Daemon:
    """The shared daemon with ``exporter`` behind it. Its counters go on counting."""
    daemon, _ = standing
    assert daemon.running, "an earlier test has brought the shared daemon down"
    return daemon


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """A test fails by what it did to the event loop of any daemon, the shared one included."""
    try:
        result = yield
    except BaseException:
        for daemon in STARTED:
            daemon.holds.take()  # or the next test would have to answer for it
        raise
    for daemon in STARTED:
        daemon.holds.check()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for daemon in STARTED:
            title = f"log of exporter_proxy (pid {daemon.process.pid})"
            report.sections.append((title, daemon.log_tail()))
    if call.when == "teardown":
        STARTED[:] = [daemon for daemon in STARTED if daemon.running]
    return report
