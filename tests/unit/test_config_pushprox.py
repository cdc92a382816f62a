"""The ``pushprox`` section beside others; its keys are in ``test_config_files.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter_proxy.config import ConfigError, load_config

SECTION = "pushprox: {proxy_url: http://p, allow_exporters: [%s]}"


def load(directory: Path, allowed: str) -> frozenset[str] | None:
    (directory / "one.yml").write_text("exporters: {dropped: {url: http://127.0.0.1:9100/}}\n")
    config = f'{SECTION % allowed}\ninclude: ["*ne.yml"]\nexporters: {{own: {{file: /x.prom}}}}\n'
    (directory / "config.yml").write_text(config)
    section = load_config(str(directory / "config.yml")).pushprox
    assert section is not None
    return section.allow_exporters


def test_exporters_of_included_files_can_be_named(tmp_path: Path) -> None:
    assert load(tmp_path, "dropped, own") == frozenset({"dropped", "own"})
    with pytest.raises(ConfigError, match='there is no exporter "droped", did you mean "dropped"'):
        load(tmp_path, "droped")
