"""A test that failed by a loop's CPU time alone is run again, with all fixtures; one run of three will do.

What a hypervisor does while a guest runs (fetching memory, say) the guest's clocks take for its own thread's
doing. In a bad minute 20 to 32 ms of CPU time were seen for making a line of JSON and ten lines of metrics.
What a test itself does to a loop it does again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import pytest
from _pytest.runner import runtestprotocol

from tests.held import LoopSlow

LOOKS = 3
ONCE = "the loop was held once"

_errors = pytest.StashKey[list[BaseException]]()


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """In place of pytest's own, which this does up to three times."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for look in range(1, LOOKS + 1):
        errors = item.stash[_errors] = []
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if look == LOOKS or not errors or not all(isinstance(error, LoopSlow) for error in errors):
            break
        item.user_properties.append((ONCE, str(errors[0])))
        with contextlib.suppress(LoopSlow):
            # Fixtures that last longer, too: what they did may have been it.
            item.session._setupstate.teardown_exact(None)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.excinfo is not None:
        item.stash[_errors].append(call.excinfo.value)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Each such test is named."""
    for report in terminalreporter.stats.get("passed", ()):
        for name, error in report.user_properties:
            if name == ONCE:
                what, *where = error.splitlines()
                terminalreporter.write_line(f"{report.nodeid}: not again: {what}, {''.join(where[-1:])}")
