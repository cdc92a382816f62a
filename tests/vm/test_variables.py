"""What the role makes of its variables, and which it refuses: played in check mode, and on no guest."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm.play import environment, tool

ROLE = "exporter_proxy.fleet.exporter_proxy"
PROMETHEUS = {"exporter_proxy_version": "1.0.0", "exporter_proxy_prometheus_addresses": ["192.0.2.5"]}


def play(directory: Path, variables: dict[str, Any], tasks: list[dict[str, Any]]) -> tuple[int, str]:
    """Whether it went well, as exit status, and what was said, with line breaks made blanks."""
    site = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]
    (directory / "site.yml").write_text(json.dumps(site))
    (directory / "drop-ins").mkdir(exist_ok=True)
    (directory / "variables.yml").write_text(
        json.dumps({**variables, "_exporter_proxy_drop_ins": f"{directory}/drop-ins"})
    )
    done = subprocess.run(
        [
            *(tool("ansible-playbook"), "--check", "--diff", f"--extra-vars=@{directory / 'variables.yml'}"),
            directory / "site.yml",
        ],
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout + done.stderr)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def role(tasks_from: str) -> dict[str, Any]:
    return {"ansible.builtin.import_role": {"name": ROLE, "tasks_from": tasks_from}}


@pytest.mark.parametrize("as_found", [False, True], ids=["listed", "found"])
def test_the_daemon_is_let_out_to_exporters_off_loopback(tmp_path: Path, as_found: bool) -> None:
    """Those that are found are in the configuration by then."""
    exporters = {
        "node": {"url": "http://127.0.0.1:9100/metrics"},
        "six": {"url": "http://[::1]:9100/metrics"},
        "own": {"url": "http://10.9.9.9:9104/metrics", "timeout": "5s"},
        "own_too": {"url": "http://10.9.9.9:9105/metrics"},
        "own_six": {"url": "https://[2001:DB8::9]:9106/metrics"},
        "named": {"url": "http://localhost:9107/metrics"},
        "unix": {"url": "http+unix:///run/exporter.sock"},
        "file": {"file": "/run/page.prom"},
    }
    config = tmp_path / "config.yml"
    config.write_text(json.dumps({"exporters": exporters}))
    status, said = play(
        tmp_path,
        {
            "exporter_proxy_exporters": "auto" if as_found else exporters,
            "_exporter_proxy_config_file": str(config if as_found else tmp_path / "none.yml"),
            **({} if as_found else {"__exporter_proxy_exporters": exporters}),
        },
        [role("drop_ins.yml")],
    )
    assert status == 0
    assert re.findall(r"\+IPAddressAllow=(\S+)", said) == ["10.9.9.9", "2001:db8::9"]


@pytest.mark.parametrize(
    ("url", "use_socket"), [("http://127.0.0.2:9100/metrics", True), ("http://10.9.9.9:9100/metrics", False)]
)
def test_and_nowhere_without_need(tmp_path: Path, url: str, use_socket: bool) -> None:
    written = tmp_path / "drop-ins/25-exporters.conf"
    written.parent.mkdir()
    written.touch()
    status, said = play(
        tmp_path,
        {"__exporter_proxy_exporters": {"node": {"url": url}}, "exporter_proxy_use_socket": use_socket},
        [role("drop_ins.yml")],
    )
    assert status == 0
    assert "changed: [localhost] => (item=25-exporters.conf)" in said
    assert "IPAddressAllow" not in said
