"""``include`` from outside: a dropped file is in force after a reload, and a bad one changes nothing."""

from __future__ import annotations

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
