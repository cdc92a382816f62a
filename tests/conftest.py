"""The daemon that most tests share, and the daemon's log beside every failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.daemon import STARTED, Daemon, proxied
from tests.fakes.exporter import FakeExporter


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
