"""The role's Molecule scenario, which those who change the role run for themselves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.vm.lab import Lab
from tests.vm.play import COLLECTION, environment, tool
from tests.vm.releases import Release


def test_the_scenario_succeeds(able: None, tmp_path: Path, this_release: Release) -> None:
    lab = f"molecule-{os.getpid()}"
    try:
        done = subprocess.run(
            [tool("molecule"), "test"],
            cwd=COLLECTION / "roles/exporter_proxy",
            env={
                **environment(tmp_path),
                "EXPORTER_PROXY_WHEELHOUSE": str(this_release.wheelhouse),
                "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "molecule"),
                "MOLECULE_LAB": lab,
            },
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        Lab(lab).close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "idempotence" in done.stdout + done.stderr
