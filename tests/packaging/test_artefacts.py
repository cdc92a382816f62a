"""Wheel, sdist and wheelhouse: what is in them, that they are the same twice, that they install and run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.daemon import REPOSITORY
from tests.e2e.processes import listening_port
from tests.fakes.exporter import FakeExporter
from tests.packaging.artefacts import BUILD_SECONDS, PACKAGING, build, only, tracked
from tests.wire import CONNECTION_CLOSE, Wire, request

PATIENCE_SECONDS = 60.0
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def test_the_wheel_has_the_package_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(only(dist, "*.whl")) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(tracked("exporter_proxy"))
    assert {"exporter_proxy/py.typed", "exporter_proxy/exporter_ports.tsv"} <= set(names)


def test_the_sdist_has_all_that_the_wheel_is_made_of(dist: Path) -> None:
    with tarfile.open(only(dist, "exporter_proxy-*[0-9].tar.gz")) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
    assert {*tracked("exporter_proxy"), "pyproject.toml", "README.md", "LICENSE"} <= members.keys()
    assert not [name for name in members if name.startswith("tests")]
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 1000000000)}


def test_two_builds_give_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    """From another directory, with other modes of files, another umask and times of their own."""
    elsewhere = tmp_path / "a checkout elsewhere"
    for name in tracked():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, elsewhere / name)
        (elsewhere / name).chmod(0o700 if os.access(REPOSITORY / name, os.X_OK) else 0o600)
    (elsewhere / "build").mkdir()
    (elsewhere / "build" / "wheels").symlink_to(REPOSITORY / "build" / "wheels")
    (elsewhere / "exporter_proxy" / "left_over.py").write_text("")
    subprocess.run(["git", "init", "--quiet", "."], cwd=elsewhere, check=True)
    subprocess.run(["git", "add", *tracked()], cwd=elsewhere, check=True)
    build(elsewhere, tmp_path / "dist", umask=0o077)
    assert sums(tmp_path / "dist") == sums(dist)
    assert len(sums(dist)) == 5


def sums(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def wheelhouse(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheelhouse."""
    directory = tmp_path_factory.mktemp("wheelhouse")
    archive = only(dist, "*-wheelhouse.tar.gz")
    shutil.unpack_archive(archive, directory)
    assert (
        archive.with_name(f"{archive.name}.sha256").read_text()
        == f"{sums(dist)[archive.name]}  {archive.name}\n"
    )
    return directory / archive.name.removesuffix(".tar.gz")


def test_the_wheelhouse_has_wheels_for_every_python_and_machine(wheelhouse: Path) -> None:
    names = [path.name for path in (wheelhouse / "wheels").iterdir()]
    for python in ("cp311", "cp312", "cp313", "cp314"):
        for machine in ("x86_64", "aarch64"):
            assert (
                len(
                    [
                        name
                        for name in names
                        if name.startswith("uvloop-") and python in name and machine in name
                    ]
                )
                == 1
            )


def test_every_wheel_is_pinned_by_its_hash(wheelhouse: Path) -> None:
    pinned = HASH.findall((wheelhouse / "requirements.txt").read_text())
    wheels = sums(wheelhouse / "wheels")
    assert sorted(pinned) == sorted(digest for name, digest in wheels.items() if not name.startswith("pip-"))


def test_the_units_come_along(wheelhouse: Path) -> None:
    for name in tracked("packaging/systemd"):
        assert (wheelhouse / Path(name).relative_to("packaging")).read_bytes() == (
            REPOSITORY / name
        ).read_bytes()


def run_install(wheelhouse: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """As on a host that has Python and nothing else: no packages, no pip, no settings, no other programs."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(wheelhouse / "install"), str(directory)],
        env={"PATH": "/nowhere", "PIP_INDEX_URL": "http://127.0.0.1:1/", "PYTHONPATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_the_wheelhouse_installs_and_its_daemon_is_scraped(wheelhouse: Path, tmp_path: Path) -> None:
    version = (wheelhouse / "VERSION").read_text().strip()
    for _ in range(2):  # the second time it is there already
        installed = run_install(wheelhouse, tmp_path / "opt")
        assert (installed.returncode, installed.stderr) == (0, "")
    assert (tmp_path / "opt" / "current").readlink() == Path("releases") / version
    program = Path(installed.stdout.strip())
    with FakeExporter() as exporter:
        config = tmp_path / "config.yml"
        config.write_text(
            f"listen: 127.0.0.1:0\nexporters: {{x: {{url: 'http://127.0.0.1:{exporter.port}/metrics'}}}}\n"
        )
        process = subprocess.Popen(
            [program, "serve", f"--config.file={config}"], cwd=tmp_path, env={}, stderr=subprocess.DEVNULL
        )
        try:
            with Wire(("127.0.0.1", listening_port(process))) as wire:
                wire.exchange(request("/x/metrics", CONNECTION_CLOSE)).expect_ok()
        finally:
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0
    modules = subprocess.run(
        [
            program.parent / "python",
            "-Ic",
            "import uvloop, bcrypt, exporter_proxy; print(exporter_proxy.__file__)",
        ],
        env={},
        check=True,
        capture_output=True,
        text=True,
    )
    assert modules.stdout.startswith(str(tmp_path / "opt"))


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_wheelhouse_is_not_installed(wheelhouse: Path, damage: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(wheelhouse, copy)
    wheel = only(copy / "wheels", "exporter_proxy-*.whl")
    if damage == "changed":
        wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    elif damage == "missing":
        wheel.unlink()
    else:
        wheel = wheel.rename(copy / "wheels" / "another-1.0-py3-none-any.whl")
    installed = run_install(copy, tmp_path / "opt")
    assert installed.returncode == 1
    assert wheel.name in installed.stderr
    assert not (tmp_path / "opt").exists()


def test_the_pins_are_what_pyproject_asks_for() -> None:
    pins = dict(re.findall(r"^(\S+)==(\S+)", (PACKAGING / "requirements.txt").read_text(), re.MULTILINE))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for dependency in map(Requirement, project["dependencies"]):
        assert pins[dependency.name.lower().replace("_", "-")] in dependency.specifier, (
            f"run `make lock`: {dependency}"
        )


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="pins are made with the oldest Python")
def test_locking_what_is_pinned_gives_the_same_pins(dist: Path, tmp_path: Path) -> None:
    """Where there are no other wheels to choose from than those that the build has brought here."""
    assert dist.is_dir()
    pins = {name: (PACKAGING / name).read_bytes() for name in ("requirements.txt", "requirements-build.txt")}
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for wheel in (REPOSITORY / "build/wheels").glob("*.whl"):
        if any(hashlib.sha256(wheel.read_bytes()).hexdigest().encode() in text for text in pins.values()):
            (wheels / wheel.name).symlink_to(wheel)
    copy = tmp_path / "packaging"
    shutil.copytree(PACKAGING, copy, ignore=shutil.ignore_patterns("__pycache__", "requirements*"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    subprocess.run(
        [sys.executable, copy / "lock.py"],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull},
        check=True,
        timeout=BUILD_SECONDS,
    )
    assert {name: (copy / name).read_bytes() for name in pins} == pins


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_no_index_is_named_in_the_pins(name: str) -> None:
    assert not re.search(r"://|^-", (PACKAGING / name).read_text(), re.MULTILINE)
