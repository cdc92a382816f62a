"""What the role makes of its variables, and which it refuses: played in check mode, and on no guest."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm.play import COLLECTION, environment, tool

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


def rendered(template: str) -> dict[str, Any]:
    found = f"{COLLECTION}/roles/exporter_proxy/templates/{template}"
    return {"ansible.builtin.debug": {"msg": f"{{{{ lookup('ansible.builtin.template', '{found}') }}}}"}}


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("0.0.0.0", "0.0.0.0:9099"),
        ("10.9.9.9", "10.9.9.9:9099"),
        ("::", "[::]:9099"),
        ("[2001:DB8::9]", "[2001:db8::9]:9099"),
    ],
)
def test_an_address_to_listen_on_is_as_systemd_reads_it(tmp_path: Path, address: str, endpoint: str) -> None:
    status, said = play(
        tmp_path,
        {**PROMETHEUS, "exporter_proxy_listen_address": address},
        [role("preflight.yml"), rendered("socket.conf.j2")],
    )
    assert status == 0
    assert f"ListenStream={endpoint}\\n" in said
    (tmp_path / "exporter_proxy.socket").write_text(
        f"[Socket]\nListenStream={endpoint}\nService=dbus.service\n"
    )
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "exporter_proxy.socket"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Failed to parse" not in verified.stderr


@pytest.mark.parametrize(
    ("address", "port"),
    [
        *((address, 9099) for address in ("*", "", "localhost", "10.0.0.256", "10.0.0", ":::", "1:2:3")),
        ("0.0.0.0", 65536),
    ],
)
def test_what_cannot_be_listened_on_is_an_error_before_anything_changes(
    tmp_path: Path, address: str, port: int
) -> None:
    variables = {"exporter_proxy_listen_address": address, "exporter_proxy_port": port}
    status, said = play(tmp_path, {**PROMETHEUS, **variables}, [role("preflight.yml")])
    assert status != 0
    assert f"{address} and {port} cannot be listened on".strip() in said


def test_exporters_in_the_wrong_place_are_an_error(tmp_path: Path) -> None:
    config = {"exporters": {"x": {"url": "http://127.0.0.1:9100/metrics"}}}
    status, said = play(tmp_path, {**PROMETHEUS, "exporter_proxy_config": config}, [role("preflight.yml")])
    assert status != 0
    assert "they belong into exporter_proxy_exporters" in said


def test_what_ansible_cfg_has_files_begin_with_may_have_lines(tmp_path: Path) -> None:
    variables = {**PROMETHEUS, "__exporter_proxy_exporters": {}, "ansible_managed": "Ours.\nNot: yours"}
    status, said = play(tmp_path, variables, [role("preflight.yml"), rendered("config.yml.j2")])
    assert status == 0
    assert '"# Ours.\\n# Not: yours: changes here are lost.\\nlisten: systemd\\n' in said


def test_systemd_takes_flags_to_the_letter(tmp_path: Path) -> None:
    """``%`` and ``$`` have a meaning in units, and a backslash has one in their quotes."""
    flags = ["--web.external-url=https://example.org/a%20b/", "--web.route-prefix=/$x", "--log.level=a \\b'c"]
    status, said = play(
        tmp_path,
        {**PROMETHEUS, "exporter_proxy_flags": flags, "_exporter_proxy_command": "/bin/true"},
        [role("preflight.yml"), rendered("service.conf.j2")],
    )
    assert status == 0
    found = re.search(r'"msg": ("(?:[^"\\]|\\.)*")', said)
    assert found is not None
    drop_in = json.loads(found[1])
    assert drop_in.splitlines()[-1] == (
        "ExecStart=/bin/true serve --config.file=/etc/exporter_proxy/config.yml"
        " --web.external-url=https://example.org/a%%20b/ '--web.route-prefix=/$$x'"
        """ '--log.level=a \\\\b'"'"'c'"""
    )
    (tmp_path / "exporter_proxy.service").write_text(drop_in)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "exporter_proxy.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize(
    ("sources", "address", "status", "told"),
    [
        (["2001:db8::5"], "0.0.0.0", 2, "nobody could scrape"),
        (["192.0.2.5", "2001:db8::5"], "0.0.0.0", 0, "2001:db8::5 cannot scrape over IPv6"),
        (["2001:db8::5"], "::", 0, ""),
        (["192.0.2.5"], "0.0.0.0", 0, ""),
    ],
)
def test_it_is_said_for_whom_nothing_listens(
    tmp_path: Path, sources: list[str], address: str, status: int, told: str
) -> None:
    variables = {
        "exporter_proxy_prometheus_addresses": sources,
        "exporter_proxy_listen_address": address,
    }
    done, said = play(tmp_path, {**PROMETHEUS, **variables}, [role("preflight.yml")])
    assert done == status
    assert told in said
    assert told or "IPv4 only" not in said


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
