"""The Debian package as a file: what is in it, and what lintian says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from exporter_proxy.config import config_warnings, parse_config
from tests.packaging.artefacts import PACKAGING, needs, only

MAINTAINER_SCRIPTS = ("postinst", "prerm", "postrm")


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deb") / "root"
    command = [needs("dpkg-deb"), "--raw-extract", str(only(dist, "*.deb")), str(directory)]
    subprocess.run(command, check=True)
    return directory


def test_lintian_finds_nothing(dist: Path) -> None:
    command = [needs("lintian"), "--allow-root", "--fail-on=error,warning", "--tag-display-limit=0"]
    result = subprocess.run([*command, only(dist, "*.deb")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_every_override_has_its_reason() -> None:
    lines = (PACKAGING / "deb" / "lintian-overrides").read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        assert line.startswith("#") or before.startswith("#"), line


def test_it_depends_on_the_one_python_that_its_modules_are_for(unpacked: Path) -> None:
    control = (unpacked / "DEBIAN" / "control").read_text()
    assert "python3 (>= 3.11), python3 (<< 3.12)" in control
    assert (unpacked / "usr/lib/exporter_proxy/bin/python").resolve().name == "python3.11"
    modules = [path.name for path in unpacked.rglob("*.so")]
    assert modules
    assert all("311-x86_64" in name or ".abi3." in name for name in modules)
    assert "@" not in re.sub(r"<.*>", "", control)


def test_nothing_in_it_knows_where_it_was_built(unpacked: Path) -> None:
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 100
    assert not [
        path for path in files if b"/tmp/" in path.read_bytes() and path.suffix in ("", ".cfg", ".json")
    ]
    assert not [path for path in files if path.suffix == ".pyc" or path.name in ("RECORD", "direct_url.json")]


def test_the_command_runs_in_the_environment(unpacked: Path) -> None:
    assert (
        unpacked / "usr/bin/exporter_proxy"
    ).resolve() == unpacked / "usr/lib/exporter_proxy/bin/exporter_proxy"
    launcher = (unpacked / "usr/lib/exporter_proxy/bin/exporter_proxy").read_text()
    assert launcher.startswith("#!/usr/lib/exporter_proxy/bin/python\n")


def test_configuration_files_are_marked_as_such(unpacked: Path) -> None:
    inside = [f"/{path.relative_to(unpacked)}" for path in (unpacked / "etc").rglob("*") if path.is_file()]
    assert (unpacked / "DEBIAN" / "conffiles").read_text().split() == sorted(inside)


def test_drop_ins_of_features_are_examples(unpacked: Path) -> None:
    directory = unpacked / "usr/lib/systemd/system/exporter_proxy.service.d"
    assert [path.name for path in directory.iterdir()] == ["10-socket.conf"]
    optional = unpacked / "usr/share/doc/exporter-proxy/examples/30-command.conf"
    assert optional.read_bytes() == (PACKAGING / "systemd" / directory.name / optional.name).read_bytes()


def test_the_first_configuration_is_good_and_lets_nobody_else_in() -> None:
    text = (PACKAGING / "deb" / "config.yml").read_text()
    assert yaml.safe_load(text)["listen"] == "systemd"
    config = parse_config(text.replace("listen: systemd", "listen: 127.0.0.1:0").encode(), "config.yml")
    assert config_warnings(config) == []
    assert config.allow_clients is not None
    assert all(network.is_loopback for network in config.allow_clients)


def test_what_is_commented_out_in_it_is_good_too() -> None:
    text = (PACKAGING / "deb" / "config.yml").read_text().replace("listen: systemd", "listen: 127.0.0.1:0")
    config = parse_config(re.sub(r"^( *)#(?=\w)", r"\1", text, flags=re.MULTILINE).encode(), "config.yml")
    assert [exporter.name for exporter in config.exporters] == ["node_exporter", "redis_exporter"]
    assert config.access_log is not None


@pytest.mark.parametrize("script", MAINTAINER_SCRIPTS)
def test_maintainer_scripts_are_valid_shell(script: str) -> None:
    subprocess.run(["sh", "-n", PACKAGING / "deb" / script], check=True)


def test_logrotate_understands_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "logrotate"
    # Neither user nor directory are on this machine.
    path.write_text(
        (PACKAGING / "deb" / "logrotate").read_text().replace("exporter_proxy exporter_proxy", "root root")
    )
    path.chmod(0o644)
    command = [needs("logrotate"), "--debug", f"--state={tmp_path}/state", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "error" not in result.stderr
