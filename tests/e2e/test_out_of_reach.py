"""Files and directories that may not be looked into, or whose names are too long: one line says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import MODULE
from tests.e2e.test_command_line import run, write_config

TOO_LONG = "x" * 300
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""Root reads everything: so that it does not, it has none of its capabilities."""
DENIED = "not reachable (permission denied) for the user that runs exporter_proxy"
LONG = "not reachable (File name too long)"

pytestmark = pytest.mark.skipif(
    bool(WITHOUT_RIGHTS) and not shutil.which("setpriv"), reason="root reads every file"
)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody may look into."""
    directory = tmp_path / "locked"
    (directory / "below").mkdir(parents=True)
    directory.chmod(0)
    yield directory
    directory.chmod(0o700)


@pytest.mark.skipif(not WITHOUT_RIGHTS, reason="only root can start a process where it may not look around")
@pytest.mark.parametrize("command", ["serve", "check", "scrape x", "prometheus-config"])
def test_a_default_file_that_may_be_there_is_said_not_to_be_readable(locked: Path, command: str) -> None:
    result = run(locked, *command.split(), command=[*WITHOUT_RIGHTS, *MODULE])
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "config.yml: not readable (permission denied); make it readable for the user that runs "
        "exporter_proxy\n"
    )


@pytest.mark.parametrize("command", ["serve", "check"])
def test_sources_out_of_reach_are_positioned_problems(tmp_path: Path, locked: Path, command: str) -> None:
    (tmp_path / "config.yml").write_text(
        'listen: "127.0.0.1:0"\n'
        "exporters:\n"
        f"  file: {{file: {locked}/below/a.prom}}\n"
        f"  pattern: {{file: '{locked}/below/*.prom'}}\n"
        f"  here: {{file: {locked}/a.prom}}\n"
        f"  long: {{file: {tmp_path}/{TOO_LONG}}}\n"
        f"  program: {{command: [{locked}/below/program]}}\n"
        f"  long_program: {{command: [/{TOO_LONG}]}}\n"
        f"  directory: {{command: [/bin/sh], working_dir: {locked}/below}}\n"
        f"  long_directory: {{command: [/bin/sh], working_dir: /{TOO_LONG}}}\n"
        f"  later: {{file: {tmp_path}/not-there-yet.prom}}\n"
    )
    result = run(tmp_path, command, command=[*WITHOUT_RIGHTS, *MODULE])
    assert (result.returncode, result.stdout) == (1, "")
    told = [line.split(": ", 2) for line in result.stderr.splitlines()]
    unreadable = "its directory is not readable (permission denied) for the user that runs exporter_proxy"
    assert [(place, key, message.split(": ", 1)[1]) for place, key, message in told] == [
        ("config.yml:3:16", "exporters.file.file", DENIED),
        ("config.yml:4:19", "exporters.pattern.file", DENIED),
        ("config.yml:5:16", "exporters.here.file", unreadable),
        ("config.yml:6:16", "exporters.long.file", LONG),
        ("config.yml:7:22", "exporters.program.command", DENIED),
        ("config.yml:8:27", "exporters.long_program.command", LONG),
        ("config.yml:9:48", "exporters.directory.working_dir", DENIED),
        ("config.yml:10:53", "exporters.long_directory.working_dir", LONG),
    ]


def test_import_leaves_out_what_is_out_of_reach(tmp_path: Path, locked: Path) -> None:
    (tmp_path / "expexp.yml").write_text(
        "modules:\n"
        f"  a: {{method: exec, exec: {{command: {locked}/below/program}}}}\n"
        "  b: {method: http, http: {port: 1}}\n"
    )
    result = run(tmp_path, "import", "expexp.yml", command=[*WITHOUT_RIGHTS, *MODULE])
    assert result.returncode == 0, result.stderr
    assert DENIED in result.stderr
    assert "  # a:\n" in result.stdout


def test_a_file_that_is_not_there_yet_is_none_of_them(tmp_path: Path) -> None:
    write_config(tmp_path, exporters={"later": {"file": str(tmp_path / "later.prom")}})
    assert run(tmp_path, "check").stdout == "config.yml: OK (1 exporter)\n"
