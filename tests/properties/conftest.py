"""How long the properties are tried: a few examples each as a test, or for FUZZ_MINUTES (`make fuzz`).

As tests they are over in a minute, and where CI is set Hypothesis tries the same examples each time.
With FUZZ_MINUTES every property is tried over and over, with new examples each time, for its share of
those minutes; at the end stands how many examples there were.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.statistics import collector

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
WEIGHTS = {"test_daemon_model": 20, "test_relay_properties": 4, "test_app_properties": 4}
"""Shares of modules whose examples take longer than others'."""

# What was found is told with all that it takes to find it again.
settings.register_profile("as tests", settings.default, print_blob=True)
settings.register_profile("fuzz", settings.default, derandomize=False, print_blob=True)
settings.load_profile("fuzz" if MINUTES else "as tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not MINUTES:
        return
    weights = [WEIGHTS.get(item.path.stem, 1) for item in items]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for item, weight in zip(items, weights, strict=True):
        item.stash[SECONDS] = MINUTES * 60 * min(1.0, workers * weight / sum(weights))


SECONDS = pytest.StashKey[float]()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if SECONDS not in pyfuncitem.stash:
        return None
    counts: Counter[str] = Counter()

    def count(statistics: dict[str, Any]) -> None:
        for phase in statistics.values():
            if isinstance(phase, dict):
                counts.update(case["status"] for case in phase.get("test-cases", ()))

    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    end = time.monotonic() + pyfuncitem.stash[SECONDS]
    try:
        with collector.with_value(count):  # type: ignore[arg-type]  # its default is None, so is its type
            pyfuncitem.obj(**arguments)
            while counts and time.monotonic() < end:  # an ordinary test counts nothing, and is run once
                pyfuncitem.obj(**arguments)
    finally:
        pyfuncitem.user_properties.append(("examples", counts["valid"] + counts["interesting"]))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    if MINUTES:
        tried = {
            report.nodeid.partition("properties/")[2]: count
            for outcome in ("passed", "failed")
            for report in terminalreporter.getreports(outcome)
            for name, count in report.user_properties
            if name == "examples" and count
        }
        terminalreporter.section("examples tried")
        for test, count in sorted(tried.items()):
            terminalreporter.write_line(f"{count:>10,} {test}")
        terminalreporter.write_line(f"{sum(tried.values()):>10,} of {len(tried)} properties")
    return (yield)
