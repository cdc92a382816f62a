"""The Debian packages installed, upgraded, removed and purged, on Debian 12 and 13, without systemd running.

Needs root, and ``EXPORTER_PROXY_ROOTFS``: a directory with bookworm.tar and trixie.tar, made as
packaging/README.md says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY
from tests.packaging.artefacts import build, only

ROOTFS = os.environ.get("EXPORTER_PROXY_ROOTFS")
PATIENCE_SECONDS = 120.0
CONFIG = "etc/exporter_proxy/config.yml"
GOOD = "listen: 127.0.0.1:0\nexporters: {x: {url: 'http://127.0.0.1:9100/metrics'}}\n"

pytestmark = [
    pytest.mark.skipif(not ROOTFS, reason="EXPORTER_PROXY_ROOTFS names no directory with root file systems"),
    pytest.mark.timeout(600),
]


@dataclass(frozen=True, slots=True)
class Machine:
    """A root file system with the packages beside it."""

    root: Path
    packages: tuple[Path, Path]
    """Two versions, one after the other."""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["chroot", str(self.root), *command],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def dpkg(self, *arguments: str) -> str:
        """What dpkg and the package's scripts say; it has to succeed."""
        done = self.run("dpkg", "--force-confold", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, version: int) -> str:
        shutil.copyfile(self.packages[version], self.root / "package.deb")
        return self.dpkg("--install", "/package.deb")

    def bytecode(self) -> list[Path]:
        return list((self.root / "usr/lib/exporter_proxy").rglob("*.pyc"))


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def packages(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A release, and two versions of its package."""
    release: str = request.param
    directory = tmp_path_factory.mktemp(release)
    build(REPOSITORY, directory / "old", f"{release}/amd64")
    newer = directory / "newer"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(newer)], check=True)
    (newer / "exporter_proxy" / "__init__.py").write_text('"""Newer."""\n\n__version__ = "99.0"\n')
    (newer / "build").mkdir()
    (newer / "build" / "wheels").symlink_to(REPOSITORY / "build" / "wheels")
    build(newer, directory / "new", f"{release}/amd64")
    return release, only(directory / "old", "*.deb"), only(directory / "new", "*.deb")


@pytest.fixture
def machine(packages: tuple[str, Path, Path], tmp_path: Path) -> Iterator[Machine]:
    assert ROOTFS is not None
    root = tmp_path / "root"
    root.mkdir()
    archive = Path(ROOTFS) / f"{packages[0]}.tar"
    subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={root}"], check=True)
    yield Machine(root, packages[1:])
    shutil.rmtree(root)


def test_a_package_s_life(machine: Machine) -> None:
    root = machine.root
    machine.install(0)
    assert machine.run("exporter_proxy", "--version").stdout.startswith("exporter_proxy ")
    assert machine.bytecode()
    config = root / CONFIG
    user = machine.run("id", "--group", "exporter_proxy").stdout.strip()
    assert (config.stat().st_mode & 0o777, str(config.stat().st_gid)) == (0o640, user)
    assert (root / "var/log/exporter_proxy").stat().st_mode & 0o777 == 0o750
    wanted = root / "etc/systemd/system"
    assert (wanted / "sockets.target.wants/exporter_proxy.socket").is_symlink()
    assert (wanted / "multi-user.target.wants/exporter_proxy.service").is_symlink()

    # What an administrator has changed stays: modes, the file, a disabled unit.
    config.write_text(GOOD)
    config.chmod(0o600)
    os.chown(config, config.stat().st_uid, int(user))
    config.chmod(0o440)
    (wanted / "multi-user.target.wants/exporter_proxy.service").unlink()
    said = machine.install(1)
    assert "not (re)started" not in said
    assert machine.run("exporter_proxy", "--version").stdout == "exporter_proxy 99.0\n"
    assert (config.read_text(), config.stat().st_mode & 0o777) == (GOOD, 0o440)
    assert not (wanted / "multi-user.target.wants/exporter_proxy.service").is_symlink()

    machine.dpkg("--remove", "exporter-proxy")
    assert not (root / "usr/lib/exporter_proxy").exists()
    assert config.read_text() == GOOD
    machine.install(1)
    machine.dpkg("--purge", "exporter-proxy")
    for path in (
        "etc/exporter_proxy",
        "var/log/exporter_proxy",
        "usr/lib/exporter_proxy",
        "etc/logrotate.d/exporter-proxy",
    ):
        assert not (root / path).exists()
    assert not [path for path in wanted.rglob("*") if "exporter_proxy" in path.name]
    assert machine.run("id", "exporter_proxy").returncode == 1


def test_a_broken_configuration_is_reported_in_one_line_and_does_not_hold_up_dpkg(machine: Machine) -> None:
    machine.install(0)
    (machine.root / CONFIG).write_text(f"{GOOD}listne: x\nallow_client: []\n")
    said = [line for line in machine.install(1).splitlines() if line.startswith("exporter-proxy:")]
    assert len(said) == 1
    assert "/etc/exporter_proxy/config.yml:3:1: listne: unknown key" in said[0]
    assert "systemctl restart exporter_proxy.service" in said[0]
    assert machine.run("dpkg-query", "-W", "-f=${Status}", "exporter-proxy").stdout == "install ok installed"
