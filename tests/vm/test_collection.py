"""The collection as it is handed out: lint, documentation of each variable, and what the archive contains."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.vm.play import COLLECTION, collections_path, environment, tool
from tests.vm.releases import REPOSITORY

ROLES = ("exporter_proxy", "prometheus_targets")
UNITS = ("exporter_proxy.service", "exporter_proxy.socket", "exporter_proxy.service.d/30-command.conf")
LINT_SECONDS = 300
CONDITIONAL = ("when", "that", "until", "changed_when", "failed_when")


def test_ansible_lint_at_its_strictest(tmp_path: Path) -> None:
    place = collections_path(tmp_path) / "ansible_collections/exporter_proxy/fleet"
    done = subprocess.run(
        [tool("ansible-lint"), "--offline", "--nocolor", "--strict", "--profile=production"],
        cwd=place,
        env={**environment(tmp_path), "PWD": str(place)},
        capture_output=True,
        text=True,
        check=False,
        timeout=LINT_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_documented_with_its_default(role: str) -> None:
    defaults = yaml.safe_load((COLLECTION / "roles" / role / "defaults/main.yml").read_text())
    specs = yaml.safe_load((COLLECTION / "roles" / role / "meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults
    assert all(option["description"] for option in options.values())


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_names_every_variable(role: str) -> None:
    defaults = yaml.safe_load((COLLECTION / "roles" / role / "defaults/main.yml").read_text())
    readme = (COLLECTION / "README.md").read_text()
    assert not [name for name in defaults if f"| `{name}` |" not in readme]


def conditions(part: Any) -> Iterator[str]:
    """All that tasks make themselves depend on."""
    if isinstance(part, list):
        for each in part:
            yield from conditions(each)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in CONDITIONAL:
                yield from (
                    one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)
                )
            else:
                yield from conditions(value)


def test_older_ansibles_understand_each_condition() -> None:
    """Before 2.19 they put it between ``{% if`` and ``%}``, where ``a if b else c`` needs parentheses."""
    jinja2 = pytest.importorskip("jinja2", reason="it comes with Ansible")
    files = [
        file for file in COLLECTION.rglob("*.yml") if file.parent.name in ("tasks", "handlers", "playbooks")
    ]
    found = [(file, one) for file in files for one in conditions(yaml.safe_load(file.read_text()))]
    assert len(found) > 50
    for file, condition in found:
        try:
            jinja2.Environment().parse(f"{{% if {condition} %}}{{% endif %}}")
        except jinja2.TemplateSyntaxError as error:
            pytest.fail(f"{file}: {condition}: {error}")


def test_the_archive_has_the_units_themselves(tmp_path: Path) -> None:
    subprocess.run(
        [tool("ansible-galaxy"), "collection", "build", f"--output-path={tmp_path}", str(COLLECTION)],
        check=True,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
    )
    (archive,) = tmp_path.glob("exporter_proxy-fleet-*.tar.gz")
    with tarfile.open(archive) as opened:
        for name in UNITS:
            packed = opened.extractfile(f"roles/exporter_proxy/files/{Path(name).name}")
            assert packed is not None
            assert packed.read() == (REPOSITORY / "packaging/systemd" / name).read_bytes()
        assert opened.getmember("plugins/modules/scrape_port.py").isfile()
