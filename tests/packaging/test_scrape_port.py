"""Ansible's module ``scrape_port``: the host's Python and language, and what becomes of its other rules.

What gets through the firewalls themselves is tested on guests, in ``tests/vm/test_firewalls.py``.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.artefacts import needs
from tests.packaging.firewall_host import COLLECTION, FirewallHost

# Of what Ansible supports on the hosts that it manages: RHEL 9's own.
OLDEST_PYTHON = (3, 9)
PLUGINS = sorted((COLLECTION / "plugins").rglob("*.py"))
OPEN: dict[str, Any] = {"port": 9099, "sources": ["192.0.2.5"]}
RULES_FILE = "/etc/nftables.d/exporter_proxy.nft"
UNIT = "exporter_proxy-firewall.service"
UFW_RULE = "ufw allow from 192.0.2.5 to any port 9099 proto tcp comment exporter_proxy\n"
# As iptables-nft, or a unit of the administrator's, loads them. The chain of the first drops by its policy.
STRICT = {
    "policy": """\
table ip filter {
    chain INPUT { type filter hook input priority 0; policy drop; tcp dport 22 accept; }
}
""",
    "last rule": """\
table inet fw {
    chain incoming { type filter hook input priority -5; policy accept; tcp dport 22 accept; drop; }
}
""",
}


@pytest.fixture
def host(tmp_path: Path) -> FirewallHost:
    return FirewallHost(tmp_path)


def oldest_python() -> str:
    """From PATH or pyenv, as ``.ci/matrix`` looks for them; without it the test is skipped."""
    name = "python{}.{}".format(*OLDEST_PYTHON)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in [*sorted(versions.glob(f"{name.removeprefix('python')}.*/bin/{name}")), Path(name)]:
        found = shutil.which(candidate)
        if found is not None:
            return found
    return pytest.skip(f"there is no {name}")


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_an_old_python_of_a_host_understands_it(plugin: Path) -> None:
    tree = ast.parse(plugin.read_text(), feature_version=OLDEST_PYTHON)
    annotations = {
        id(part)
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
        for part in ast.walk(annotation)
    }
    # `X | Y` for types is evaluated everywhere else, and fails before Python 3.10.
    unions = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and id(node) not in annotations
    ]
    assert unions == []


def test_it_runs_on_an_old_python(host: FirewallHost) -> None:
    host.turn_ufw_on()
    opened, added = host.run(OPEN, "cat /etc/ufw.added", python=oldest_python())
    assert (opened["changed"], opened["backend"]) == (True, "ufw")
    assert added == UFW_RULE


def test_it_understands_ufw_in_any_language(host: FirewallHost) -> None:
    host.turn_ufw_on()
    opened, again, added = host.run(OPEN, OPEN, "cat /etc/ufw.added", language="es_ES.UTF-8")
    assert (opened["changed"], opened["backend"]) == (True, "ufw")
    assert (again["changed"], added) == (False, UFW_RULE)


def chains(listed: str) -> list[dict[str, Any]]:
    """What ``nft --json list ruleset`` printed of others' chains, each with its rules."""
    objects = json.loads(listed)["nftables"]
    found = [{**each["chain"], "rules": []} for each in objects if "chain" in each]
    for each in objects:
        if "rule" in each:
            (chain,) = (one for one in found if one["table"] == each["rule"]["table"])
            chain["rules"].append(each["rule"])
    return [chain for chain in found if chain["table"] != "exporter_proxy"]


@pytest.mark.parametrize("strict", STRICT.values(), ids=STRICT)
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_at_boot_a_strict_chain_is_as_strict_as_before(host: FirewallHost, strict: str, first: str) -> None:
    """Whoever loads it, and whenever: another unit than nftables.service does."""
    (host.etc / "strict.nft").write_text(strict)
    loads = [f"nft -f {RULES_FILE}", "nft -f /etc/strict.nft"]
    _, opened, before, _, _, _, after = host.run(
        "nft -f /etc/strict.nft",
        OPEN,
        "nft --json list ruleset",
        "nft flush ruleset",
        *(loads if first == "ours" else reversed(loads)),
        "nft --json list ruleset",
    )
    assert (opened["changed"], opened["backend"]) == (True, "nftables")
    (chain,), (again,) = chains(before), chains(after)
    assert {key: again.get(key) for key in ("hook", "prio", "policy")} == {
        key: chain[key] for key in ("hook", "prio", "policy")
    }
    assert [rule["expr"] for rule in again["rules"]] == [rule["expr"] for rule in chain["rules"]]
    assert again["rules"][0]["comment"].startswith("exporter_proxy ")


def test_what_others_load_at_boot_is_not_flushed(host: FirewallHost) -> None:
    """nftables.service is not switched on: its nftables.conf would flush."""
    configuration = host.etc / "nftables.conf"
    configuration.write_text("#!/usr/sbin/nft -f\nflush ruleset\n")
    opened, again = host.run(OPEN, OPEN)
    assert (opened["changed"], again["changed"]) == (True, False)
    assert not host.is_enabled("nftables.service")
    assert "exporter_proxy" not in configuration.read_text()

    assert host.is_enabled(UNIT)
    unit = host.etc / "systemd/system" / UNIT
    assert f"ExecStart={host.bin}/nft -f {RULES_FILE}\n" in unit.read_text()
    assert "flush" not in (host.etc / "nftables.d/exporter_proxy.nft").read_text()
    verified = subprocess.run(
        [needs("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_nftables_service_loads_the_rules_where_it_is_on(host: FirewallHost) -> None:
    configuration = host.etc / "nftables.conf"
    configuration.write_text("flush ruleset\n")
    host.run(OPEN)
    assert host.is_enabled(UNIT)
    host.enable("nftables.service")
    opened, again = host.run(OPEN, OPEN)
    assert (opened["changed"], again["changed"]) == (True, False)
    assert configuration.read_text() == f'flush ruleset\ninclude "{RULES_FILE}"\n'
    assert not host.is_enabled(UNIT)
    assert not (host.etc / "systemd/system" / UNIT).exists()


@pytest.mark.parametrize("with_service", [True, False], ids=["nftables.service is on", "it is off"])
def test_nothing_is_left_of_it(host: FirewallHost, with_service: bool) -> None:
    (host.etc / "nftables.conf").write_text("flush ruleset\n")
    if with_service:
        host.enable("nftables.service")
    _, removed, ruleset = host.run(OPEN, {"state": "absent"}, "nft list ruleset")
    assert (removed["changed"], ruleset) == (True, "")
    files = [path for path in host.etc.rglob("*") if path.is_file()]
    assert not [path for path in files if "exporter_proxy" in path.name + path.read_text()]
    assert host.is_enabled("nftables.service") is with_service


def test_rules_in_a_firewall_that_is_not_used_any_more_are_taken_back(host: FirewallHost) -> None:
    """Those of nftables would drop a Prometheus server that is new since."""
    host.turn_ufw_on()
    first, second, again, ruleset, added = host.run(
        {**OPEN, "sources": ["192.0.2.4"], "backend": "nftables"},
        OPEN,
        OPEN,
        "nft list ruleset",
        "cat /etc/ufw.added",
    )
    assert (first["backend"], second["backend"]) == ("nftables", "ufw")
    assert (second["changed"], again["changed"]) == (True, False)
    assert (ruleset, added) == ("", UFW_RULE)
    assert not (host.etc / "nftables.d").exists()
    assert not host.is_enabled(UNIT)

    back, added = host.run({**OPEN, "backend": "nftables"}, "cat /etc/ufw.added")
    assert (back["backend"], back["changed"], added) == ("nftables", True, "")


def test_a_firewalld_that_starts_later_is_not_passed_over(host: FirewallHost) -> None:
    host.stop_firewalld()
    host.enable("firewalld.service")
    refused, ruleset, named = host.run(OPEN, "nft list ruleset", {**OPEN, "backend": "nftables"})
    assert refused["failed"]
    assert "firewalld is enabled and does not run" in refused["msg"]
    assert ruleset == ""
    assert named["backend"] == "nftables"


def test_a_firewalld_that_is_off_is_passed_over(host: FirewallHost) -> None:
    host.stop_firewalld()
    (opened,) = host.run(OPEN)
    assert opened["backend"] == "nftables"
