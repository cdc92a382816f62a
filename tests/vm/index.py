"""A package index of the lab's own: releases and what they need, as ``pip`` asks for them (PEP 503)."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.lab import SCRAPER, Lab
from tests.vm.releases import Release

PORT = 8080
READY_SECONDS = 30


class Index:
    """Served on the lab's side of the network: a directory for each project, with its wheels."""

    url = f"http://{SCRAPER}:{PORT}/simple"

    def __init__(self, lab: Lab, directory: Path, releases: list[Release]) -> None:
        self.lab = lab
        self.directory = directory
        for release in releases:
            with tarfile.open(release.wheelhouse) as wheelhouse:
                for member in wheelhouse:
                    content = wheelhouse.extractfile(member) if member.name.endswith(".whl") else None
                    if content is not None:
                        self._add(Path(member.name).name, content.read())

    def _add(self, wheel: str, content: bytes) -> None:
        project = re.sub(r"[-_.]+", "-", wheel.partition("-")[0]).lower()
        place = self.directory / "simple" / project
        place.mkdir(parents=True, exist_ok=True)
        (place / wheel).write_bytes(content)

    def __enter__(self) -> Self:
        with (self.directory / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                self.lab.command(
                    *(sys.executable, "-m", "http.server", f"--bind={SCRAPER}"),
                    *(f"--directory={self.directory}", str(PORT)),
                ),
                stdout=log,
                stderr=log,
            )
        probe = self.lab.command("curl", "--silent", "--fail", "--noproxy", "*", f"{self.url}/")
        deadline = time.monotonic() + READY_SECONDS
        while subprocess.run(probe, check=False, stdout=subprocess.DEVNULL).returncode:
            if time.monotonic() > deadline:
                self._server.kill()
                raise TimeoutError(f"no index: {(self.directory / 'server.log').read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.terminate()
        self._server.wait()

    def was_asked_for(self, name: str) -> bool:
        """Whether a file whose name begins like that was fetched."""
        return (
            re.search(rf'"GET \S*/{re.escape(name)}\S* HTTP', (self.directory / "server.log").read_text())
            is not None
        )
