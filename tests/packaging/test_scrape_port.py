"""Ansible's module ``scrape_port``: the host's Python and language, and what becomes of its other rules.

What gets through the firewalls themselves is tested on guests, in ``tests/vm/test_firewalls.py``.
"""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.firewall_host import COLLECTION, FirewallHost

# Of what Ansible supports on the hosts that it manages: RHEL 9's own.
OLDEST_PYTHON = (3, 9)
PLUGINS = sorted((COLLECTION / "plugins").rglob("*.py"))
OPEN: dict[str, Any] = {"port": 9099, "sources": ["192.0.2.5"]}
UFW_RULE = "ufw allow from 192.0.2.5 to any port 9099 proto tcp comment exporter_proxy\n"


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
