"""``discover --write``: what becomes of a file, and what is said where nothing can become of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter_proxy.config import ConfigError
from exporter_proxy.discover import FoundExporter
from exporter_proxy.discover_once import write

FOUND = [FoundExporter("node_exporter", "http://127.0.0.1:9100/metrics", 9100, None, None)]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A directory that the test may not look into; root may everywhere, so it becomes nobody for a while."""
    directory = tmp_path / "locked"
    directory.mkdir(mode=0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield directory
    finally:
        if is_root:
            os.seteuid(0)


def refusal(file: Path | str, found: list[FoundExporter] = FOUND) -> str:
    with pytest.raises(ConfigError) as caught:
        write(found, str(file), asked_all=False)
    return str(caught.value)


def test_a_place_out_of_reach(locked: Path) -> None:
    for file in (locked / "config.yml", locked / "below" / "config.yml"):
        assert refusal(file) == f"{file}: not written: Permission denied"


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    for file in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "config.yml"):
        assert refusal(file) == f"{file}: not written: File name too long"
