"""packaging/README.md speaks of what is there: files, alerts, directories, drop-ins, all of them."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.packaging.artefacts import PACKAGING, tracked

README = (PACKAGING / "README.md").read_text()
TABLES = [
    [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    for table in re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE)
]


def first_column(heading: str) -> list[str]:
    """What is in backticks in the first column of the table with this heading."""
    (table,) = (rows for rows in TABLES if rows[0][0] == heading)
    return [word for row in table[2:] for word in re.findall(r"`([^`]+)`", row[0])]


def test_every_file_and_directory_is_in_the_first_table() -> None:
    top = {name.removeprefix("packaging/").split("/")[0] for name in tracked("packaging")}
    named = {name.split("/")[0] for name in first_column("File")}
    # The pins are told of with what makes them; the text around is for those who read this at all.
    assert top - named <= {"README.md", "requirements.txt", "requirements-build.txt"}
    for name in first_column("File"):
        assert (PACKAGING / name).exists(), name


def test_the_alerts_are_all_there() -> None:
    groups = yaml.safe_load((PACKAGING / "prometheus/exporter_proxy.rules.yml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert first_column("Alert") == alerts


def test_the_drop_ins_are_all_there() -> None:
    files = [path.name for path in (PACKAGING / "systemd/exporter_proxy.service.d").iterdir()]
    assert sorted(["10-socket.conf", *first_column("Drop-in")]) == sorted(files)


def test_the_directories_for_kubernetes_are_all_there() -> None:
    directories = [path.parent for path in (PACKAGING / "kubernetes").glob("*/kustomization.yaml")]
    assert sorted(first_column("Directory")) == sorted(f"kubernetes/{one.name}/" for one in directories)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_to_files_that_exist(link: str) -> None:
    assert "://" in link or (PACKAGING / link).exists()
