"""Each file of packaging/ has a test that uses it; a file that is new there needs its row here.

Some are used by name, some are found by their directory, some are read by a program that a test runs: then
the row says by which one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY
from tests.packaging.artefacts import PACKAGING, tracked


@dataclass(frozen=True, slots=True)
class Use:
    """``through`` is the file of packaging/ that names this one; without it the test's module does."""

    test: str
    through: str = ""


ARTEFACTS = "tests/packaging/test_artefacts.py"
COMPOSE = "tests/packaging/test_compose.py"
CONTAINER = "tests/packaging/test_containerfile.py"
DEB = "tests/packaging/test_deb.py"
GRAFANA = "tests/packaging/test_grafana.py"
KUBERNETES = "tests/packaging/test_kubernetes.py"
RECIPES = "tests/e2e/test_prometheus_recipes.py"
RULES = "tests/packaging/test_rules.py"
UNITS = "tests/packaging/test_units.py"
IN_THE_DEB = f"{DEB}::test_lintian_finds_nothing"
SAME_BYTES = f"{ARTEFACTS}::test_two_builds_give_the_same_bytes"

USES: dict[str, Use] = {
    "Containerfile": Use(f"{CONTAINER}::test_what_it_copies_is_built_by_make_dist"),
    "MIGRATION.md": Use("tests/readme/test_migration.py::test_from_exporter_exporter"),
    "README.md": Use("tests/packaging/test_packaging_readme.py::test_the_alerts_are_all_there"),
    "dist.py": Use(SAME_BYTES),
    "python_packages.py": Use(f"{ARTEFACTS}::test_the_wheel_has_the_package_and_nothing_else", "dist.py"),
    "reproducible.py": Use(SAME_BYTES, "dist.py"),
    "wheels.py": Use(f"{ARTEFACTS}::test_every_wheel_is_pinned_by_its_hash", "dist.py"),
    "wheelhouse.py": Use(f"{ARTEFACTS}::test_the_wheelhouse_installs_and_its_daemon_is_scraped", "dist.py"),
    "wheelhouse/install.py": Use(f"{ARTEFACTS}::test_a_damaged_wheelhouse_is_not_installed", "wheelhouse.py"),
    "lock.py": Use(f"{ARTEFACTS}::test_locking_what_is_pinned_gives_the_same_pins"),
    "requirements*.txt": Use(f"{ARTEFACTS}::test_locking_what_is_pinned_gives_the_same_pins", "wheels.py"),
    "deb.py": Use(IN_THE_DEB, "dist.py"),
    "deb/config.yml": Use(f"{DEB}::test_the_first_configuration_is_good_and_lets_nobody_else_in"),
    "deb/control": Use(f"{DEB}::test_it_depends_on_the_one_python_that_its_modules_are_for"),
    "deb/copyright": Use(IN_THE_DEB, "deb.py"),
    "deb/lintian-overrides": Use(f"{DEB}::test_every_override_has_its_reason"),
    "deb/logrotate": Use(f"{DEB}::test_logrotate_understands_its_configuration"),
    "deb/p*": Use(f"{DEB}::test_maintainer_scripts_are_valid_shell"),
    "grafana/build_dashboard.py": Use(f"{GRAFANA}::test_the_committed_dashboard_is_what_the_script_makes"),
    "grafana/exporter_proxy.json": Use(f"{GRAFANA}::test_every_query_finds_something"),
    "grafana/provisioning/*": Use(f"{COMPOSE}::test_grafana_finds_the_dashboard"),
    "kubernetes/build_rules.py": Use(f"{KUBERNETES}::test_the_rules_are_those_of_prometheus"),
    "kubernetes/*/config.yml": Use(f"{KUBERNETES}::test_the_daemon_takes_its_configuration"),
    "kubernetes/*/kustomization.yaml": Use(f"{KUBERNETES}::test_every_file_is_part_of_its_kustomization"),
    "kubernetes/*": Use(
        f"{KUBERNETES}::test_manifests_fit_the_published_schemas", "kubernetes/*/kustomization.yaml"
    ),
    "prometheus/alertmanager.yml": Use(f"{RULES}::test_a_proxy_that_is_down_is_one_message"),
    "prometheus/docker-compose.yml": Use(f"{COMPOSE}::test_docker_compose_understands_every_line"),
    "prometheus/exporter_proxy.rules.yml": Use(
        "tests/e2e/test_alerts.py::test_an_exporter_that_dies_is_told_from_a_daemon_that_dies"
    ),
    "prometheus/exporter_proxy.yml": Use(
        f"{COMPOSE}::test_the_daemon_takes_its_configuration", "prometheus/docker-compose.yml"
    ),
    "prometheus/prometheus.yml": Use(
        f"{COMPOSE}::test_prometheus_takes_its_configuration_with_the_rules_beside_it",
        "prometheus/docker-compose.yml",
    ),
    "prometheus/recipes/*": Use(f"{RECIPES}::test_ec2_by_tag"),
    "prometheus/tests/*": Use(f"{RULES}::test_alerts_fire_when_they_should_and_only_then"),
    "systemd/exporter_proxy.service": Use(f"{UNITS}::test_systemd_understands_every_line"),
    "systemd/exporter_proxy.socket": Use(f"{UNITS}::test_systemd_understands_every_line"),
    "systemd/exporter_proxy.service.d/*": Use(f"{UNITS}::test_systemd_rates_the_service_as_safe"),
}
"""By a file's name or a pattern; the first that fits counts."""
FILES = [name.removeprefix("packaging/") for name in tracked("packaging")]


def rows(file: str) -> list[str]:
    return [pattern for pattern in USES if fnmatch(file, pattern)]


def names_of(file: str, pattern: str) -> list[str]:
    """How its user may call a file: by its name, as a module; where the row is for several, by directory."""
    path = Path(file)
    module = [path.stem] if path.suffix == ".py" else []
    return [path.name, *module, *([path.parent.name] if "*" in pattern and "/" in file else [])]


@pytest.mark.parametrize("file", FILES)
def test_it_has_a_test_that_uses_it(file: str) -> None:
    assert rows(file), f"packaging/{file} has no row here"
    use = USES[rows(file)[0]]
    module, _, test = use.test.partition("::")
    text = (REPOSITORY / module).read_text()
    assert re.search(rf"^def {test}\(", text, re.MULTILINE), f"there is no {use.test}"
    if use.through:
        parts = zip(use.through.split("/"), file.split("/"), strict=False)
        text = (PACKAGING / "/".join(own if part == "*" else part for part, own in parts)).read_text()
    else:
        # What the tests of this directory have in common is theirs as well.
        text += (PACKAGING.parent / "tests/packaging/artefacts.py").read_text()
    wanted = names_of(file, rows(file)[0])
    assert any(re.search(rf"\b{re.escape(name)}\b", text) for name in wanted), f"nobody says {wanted}"


def test_no_row_is_left_over() -> None:
    used = {rows(file)[0] for file in FILES if rows(file)}
    assert used == set(USES)
    assert {use.through for use in USES.values() if use.through} <= set(USES)
