"""The image's recipe, read as text, since no image is built here; its health check is run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from exporter_proxy.cli import DEFAULT_CONFIG_FILES
from tests.daemon import proxied
from tests.packaging.artefacts import PACKAGING

DEFAULT_PORT = "9099"


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, its FROM first."""
    text = re.sub(r"^\s*#.*\n", "", (PACKAGING / "Containerfile").read_text(), flags=re.MULTILINE)
    found: list[list[tuple[str, str]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            if name == "FROM":
                found.append([])
            found[-1].append((name, arguments.strip()))
    return found


def last(instruction: str) -> str:
    return [arguments for name, arguments in stages()[-1] if name == instruction][-1]


def test_images_it_starts_from_have_a_version_and_no_registry() -> None:
    images = [arguments.split()[0] for stage in stages() for name, arguments in stage if name == "FROM"]
    assert len(images) == 2
    for image in images:
        assert re.fullmatch(r"[a-z]+:\d+\.\d+[\w.-]*", image)


def test_it_does_not_run_as_root() -> None:
    user, group = last("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    order = [name for name, _ in stages()[-1]]
    assert "RUN" not in order
    assert order.index("USER") < order.index("ENTRYPOINT")


def test_what_it_copies_is_built_by_make_dist(dist: Path) -> None:
    copied = [arguments.split()[0] for name, arguments in stages()[0] if name == "COPY"]
    assert copied
    for pattern in copied:
        directory, _, name = pattern.partition("/")
        assert directory == "dist"
        assert len(list(dist.glob(name))) == 1


def test_what_it_takes_from_the_first_stage_is_what_was_installed_there() -> None:
    installed = [shlex.split(arguments)[-1] for name, arguments in stages()[0] if name == "RUN"]
    source, target = last("COPY").split()[1:]
    assert [source] == installed
    # A virtual environment knows where it is.
    assert source == target
    assert f"PATH={target}/current/venv/bin:$PATH" in last("ENV")
    assert {arguments.split()[0] for stage in stages() for name, arguments in stage if name == "FROM"} == {
        stages()[-1][0][1]
    }


def test_it_serves_the_configuration_where_it_is_looked_for() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["exporter_proxy"]
    assert json.loads(last("CMD")) == ["serve", f"--config.file={DEFAULT_CONFIG_FILES[-1]}"]
    assert last("WORKDIR") == str(PurePosixPath(DEFAULT_CONFIG_FILES[-1]).parent)
    assert last("EXPOSE") == DEFAULT_PORT


@pytest.mark.parametrize("is_running", [True, False])
def test_its_health_check_knows_a_daemon_that_runs_from_one_that_does_not(is_running: bool) -> None:
    command = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    assert command[0] == "python3"
    with proxied() as (daemon, _):
        command = [part.replace(DEFAULT_PORT, str(daemon.port)) for part in command]
        if not is_running:
            daemon.stop()
        result = subprocess.run([sys.executable, *command[1:]], capture_output=True, timeout=20, check=False)
    assert result.returncode == (0 if is_running else 1)
