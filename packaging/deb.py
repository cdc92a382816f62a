"""Builds the Debian package: a virtual environment at its final place, the units and what dpkg needs.

A virtual environment is three small files beside its packages, and pip can pick wheels for another machine
than this one, so any machine can build the package of any release and architecture.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from reproducible import REPOSITORY, normalise, source_date_epoch
from wheelhouse import requirements
from wheels import RUNTIME, Target, install, pinned_wheels, pip_wheel

HERE = Path(__file__).resolve().parent
PACKAGE = "exporter-proxy"
VENV = Path("usr/lib/exporter_proxy")
DOCUMENTATION = Path("usr/share/doc") / PACKAGE
UNITS = Path("usr/lib/systemd/system")
OPTIONAL_DROP_INS = "[2-9]?-*.conf"
"""Each for a feature that not everyone has; they are examples."""
CONFFILES = {"etc/exporter_proxy/config.yml": "config.yml", f"etc/logrotate.d/{PACKAGE}": "logrotate"}
LAUNCHER = """\
#!/{venv}/bin/python
import sys

from exporter_proxy.cli import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian, and the Python that is its python3."""

    name: str
    number: int
    python: str


RELEASES = (Release("bookworm", 12, "3.11"), Release("trixie", 13, "3.13"))
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def build(wheel: Path, version: str, release: Release, architecture: str, destination: Path) -> Path:
    """Put the package into ``destination``; its path."""
    # 1.0.0rc1 comes before 1.0.0, which dpkg knows by a tilde; an upgrade of Debian brings its own package.
    upstream = re.sub(r"\.?(dev|a|b|rc)(\d+)$", r"~\1\2", version)
    package_version = f"{upstream}-1+deb{release.number}"
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        target = Target(release.python, ARCHITECTURES[architecture])
        _make_venv(root / VENV, requirements(wheel, version), wheel.parent, target)
        (root / "usr/bin").mkdir()
        (root / "usr/bin/exporter_proxy").symlink_to("../lib/exporter_proxy/bin/exporter_proxy")
        shutil.copytree(HERE / "systemd", root / UNITS, ignore=shutil.ignore_patterns(OPTIONAL_DROP_INS))
        for installed, source in CONFFILES.items():
            (root / installed).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / "deb" / source, root / installed)
        _write_documentation(root / DOCUMENTATION, package_version, release)
        overrides = root / "usr/share/lintian/overrides" / PACKAGE
        overrides.parent.mkdir(parents=True)
        shutil.copyfile(HERE / "deb" / "lintian-overrides", overrides)
        _write_control(root, package_version, release, architecture)
        normalise(root)
        built = destination / f"{PACKAGE}_{package_version}_{architecture}.deb"
        # -z2: a tenth larger than the best, in a quarter of the time.
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z2", "--threads-max=1", "--build"]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(source_date_epoch())}
        subprocess.run([*command, root, built], check=True, stdout=subprocess.DEVNULL, env=environment)
    return built


def _make_venv(venv: Path, pins: str, wheels: Path, target: Target) -> None:
    """What ``python3 -m venv`` and pip would make at the final place, less what nobody needs there.

    No bytecode: Debian's policy leaves it to postinst, which has the Python that will use it.
    """
    site_packages = venv / "lib" / f"python{target.python}" / "site-packages"
    site_packages.mkdir(parents=True)
    pins_file = venv / "requirements.txt"
    pins_file.write_text(pins)
    kept = pinned_wheels(RUNTIME)[0].parent
    from_here = [f"--find-links={kept}", f"--find-links={wheels}"]
    install(
        [*from_here, "--require-hashes", f"--requirement={pins_file}"], pip_wheel(), site_packages, target
    )
    pins_file.unlink()
    shutil.rmtree(site_packages / "bin")
    for trace in ("RECORD", "REQUESTED", "direct_url.json", "INSTALLER"):  # pip's notes for pip
        for path in site_packages.glob(f"*.dist-info/{trace}"):
            path.unlink()
    (venv / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {target.python}\n"
    )
    (venv / "bin").mkdir()
    (venv / "bin" / "python3").symlink_to(f"../../../bin/python{target.python}")
    (venv / "bin" / "python").symlink_to("python3")
    launcher = venv / "bin" / "exporter_proxy"
    launcher.write_text(LAUNCHER.format(venv=VENV))
    launcher.chmod(0o755)


def _write_documentation(directory: Path, package_version: str, release: Release) -> None:
    (directory / "examples").mkdir(parents=True)
    shutil.copyfile(REPOSITORY / "config.example.yml", directory / "examples/config.example.yml")
    for drop_in in (HERE / "systemd").rglob(OPTIONAL_DROP_INS):
        shutil.copyfile(drop_in, directory / "examples" / drop_in.name)
    shutil.copyfile(HERE / "deb" / "copyright", directory / "copyright")
    date = formatdate(source_date_epoch())
    entry = f"{PACKAGE} ({package_version}) {release.name}; urgency=medium\n\n  * See changelog.gz.\n\n"
    for name, text in (
        ("changelog.Debian.gz", f"{entry} -- {_maintainer()}  {date}\n"),
        ("changelog.gz", (REPOSITORY / "CHANGELOG.md").read_text()),
        ("README.md.gz", (REPOSITORY / "README.md").read_text()),
        ("MIGRATION.md.gz", (HERE / "MIGRATION.md").read_text()),
    ):
        (directory / name).write_bytes(gzip.compress(text.encode(), mtime=0))


def _maintainer() -> str:
    found = re.search(r"^Maintainer: (.+)$", (HERE / "deb" / "control").read_text(), re.MULTILINE)
    assert found is not None, "deb/control names no maintainer"
    return found[1]


def _write_control(root: Path, package_version: str, release: Release, architecture: str) -> None:
    """DEBIAN/: what the package is, its scripts, configuration files and sums."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    directory = root / "DEBIAN"
    directory.mkdir()
    minor = int(release.python.partition(".")[2])
    control = (HERE / "deb" / "control").read_text()
    for placeholder, value in {
        "@VERSION@": package_version,
        "@ARCHITECTURE@": architecture,
        "@PYTHON@": release.python,
        "@NEXT_PYTHON@": f"3.{minor + 1}",
        "@INSTALLED_SIZE@": str(sum(path.stat().st_size for path in files) // 1024 + 1),
    }.items():
        control = control.replace(placeholder, value)
    (directory / "control").write_text(control)
    (directory / "conffiles").write_text("".join(f"/{name}\n" for name in CONFFILES))
    sums = (
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files
        if str(path.relative_to(root)) not in CONFFILES
    )
    (directory / "md5sums").write_text("".join(sums))
    for script in ("postinst", "prerm", "postrm"):
        (directory / script).write_text((HERE / "deb" / script).read_text())
        (directory / script).chmod(0o755)
