"""The artefacts of the working tree, built once per run and shared by the test processes."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY
from tests.packaging.artefacts import BUILD_SECONDS, build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first of these tests builds, or waits for another process that does, before it begins."""
    for item in items:
        if "dist" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(2 * BUILD_SECONDS))


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Wheel, sdist, wheelhouse and the Debian package for Debian 12 on amd64."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with (shared / "dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "dist.built").exists():
            build(REPOSITORY, shared / "dist")
            (shared / "dist.built").touch()
    return shared / "dist"
