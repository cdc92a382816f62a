"""README.md's section Install: the wheelhouse is installed as it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.packaging.artefacts import only
from tests.readme.document import blocks, code_words, difference, sections, steps

DIRECTORY = "/opt/exporter_proxy"
PATIENCE_SECONDS = 60.0


def test_the_wheelhouse_is_installed_as_it_says(dist: Path, tmp_path: Path) -> None:
    archive = only(dist, "*-wheelhouse.tar.gz")
    (tmp_path / archive.name).symlink_to(archive)
    transcripts = [block for block in blocks() if (block.section, block.language) == ("Install", "console")]
    for step in [step for block in transcripts for step in steps(block)]:
        result = subprocess.run(
            ["sh", "-c", step.command.replace(DIRECTORY, f"{tmp_path}{DIRECTORY}")],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert difference(step.output, result.stdout.replace(str(tmp_path), "")) == "", str(step)


def test_the_debian_package_is_called_as_it_says(dist: Path) -> None:
    named = [word for word in code_words(sections()["Install"]) if word.startswith("apt install ")]
    assert len(named) == 1
    assert only(dist, named[0].removeprefix("apt install ./dist/")).is_file()
