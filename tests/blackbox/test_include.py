"""``include`` from outside: a dropped file is in force after a reload, and a bad one changes nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.daemon import Daemon


def test_a_dropped_file_is_in_force_after_a_reload(tmp_path: Path) -> None:
    (tmp_path / "page.prom").write_text("a 1\n")
    entry = {"file": str(tmp_path / "page.prom")}
    dropped = f"exporters: {{dropped: {{file: {tmp_path}/page.prom}}}}\n"
    drop = tmp_path / "conf.d" / "role.yml"
    drop.parent.mkdir()
    with Daemon({"include": [f"{drop.parent}/*.yml"], "exporters": {"x": entry}}) as daemon:
        before = daemon.metric("exporter_proxy_config_hash")
        daemon.get("/dropped/metrics").expect_refusal(404, "not_found")
        drop.write_text(dropped)
        assert "config reloaded" in daemon.reload()
        daemon.get("/dropped/metrics").expect_ok(b"a 1\n")
        daemon.get("/x/metrics").expect_ok(b"a 1\n")
        assert daemon.metric("exporter_proxy_config_hash") != before
        drop.write_text(dropped.replace("dropped:", "x:"))
        complaint = daemon.reload()
        assert f"{drop}:1:13: exporters.x: there is one already at config.yml:" in complaint
        daemon.get("/dropped/metrics").expect_ok(b"a 1\n")
        drop.unlink()
        assert "config reloaded" in daemon.reload()
        daemon.get("/dropped/metrics").expect_refusal(404, "not_found")
        assert daemon.metric("exporter_proxy_config_hash") == before


def test_the_hash_is_of_included_files_too_and_is_said_to_be(tmp_path: Path) -> None:
    """Nobody is told to find it in the SHA-256 of one file."""
    (tmp_path / "role.yml").write_text("exporters: {x: {url: http://127.0.0.1:1/metrics}}\n")
    with Daemon({"include": [f"{tmp_path}/*.yml"]}) as daemon:
        shown = f"{int(daemon.metric('exporter_proxy_config_hash')):012x}"
        alone = hashlib.sha256((daemon.directory / "config.yml").read_bytes()).hexdigest()
        assert shown != alone[:12]
        lines = daemon.get("/metrics").expect_ok().body.decode().splitlines()
        (help_line,) = [line for line in lines if line.startswith("# HELP exporter_proxy_config_hash ")]
        assert "included files" in help_line
        page = daemon.get("/").expect_ok().body.decode()
        assert f", hash {shown}\n" in page
        assert "sha256" not in page
