"""One browser for all the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.chromium import Chromium


@pytest.fixture(scope="module")
def running_chromium() -> Iterator[Chromium]:
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def chromium(running_chromium: Chromium) -> Chromium:
    """One browser for all tests, as wide as a desk's, in light colours."""
    running_chromium.resize(1200)
    running_chromium.prefer(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    running_chromium.open("about:blank")
    running_chromium.complaints()
    return running_chromium
