"""One guest as the tests see it: configured by Ansible, scraped over the network."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.guest import Guest
from tests.vm.lab import SCRAPER, Lab
from tests.vm.play import Played, play
from tests.vm.rootfs import SPARE_DIRECTORY

REFUSED_BY_FIREWALL = 28
"""curl's exit status where nothing answers: a dropped packet gets no answer at all."""
PORT = 9099
DROPPED_SECONDS = 3
"""What has not been answered by then is taken for dropped."""
PATIENTLY = ("--max-time", "20")
"""For what is answered in any case, on a busy machine, too: curl goes by the last of several such options."""
EXPORTERS = {
    "node_exporter": {"url": "http://127.0.0.1:9100/metrics"},
    "blackbox_exporter": {"url": "http://127.0.0.1:9115/metrics"},
    "process_exporter": {"url": "http://127.0.0.1:9256/metrics"},
}
A_METRIC = {
    "node_exporter": "node_load1",
    "blackbox_exporter": "blackbox_exporter_build_info",
    "process_exporter": "namedprocess_scrape_errors",
}


@dataclass(slots=True)
class Machine:
    """A guest, alone in its lab."""

    lab: Lab
    guest: Guest
    directory: Path

    def play(self, variables: dict[str, Any], *arguments: str, **more: Any) -> Played:
        return play(self.lab, self.directory, variables, *arguments, **more)

    def curl(
        self,
        path: str,
        *,
        port: int = PORT,
        source: str = SCRAPER,
        scheme: str = "http",
        options: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """From the lab's side of the network."""
        return subprocess.run(
            self.lab.command(
                *("curl", "--silent", "--show-error", "--interface", source, "--noproxy", "*"),
                *("--max-time", f"{DROPPED_SECONDS}", "--write-out", r"\n%{http_code}", *options),
                f"{scheme}://{self.guest.address}:{port}{path}",
            ),
            capture_output=True,
            text=True,
            check=False,
        )

    def scrape(self, path: str, **more: Any) -> str:
        """What a scrape gets; asserts that it succeeds."""
        done = self.curl(path, **{**more, "options": (*more.get("options", ()), *PATIENTLY)})
        body, _, status = done.stdout.rpartition("\n")
        assert (done.returncode, status) == (0, "200"), (
            f"{path}: curl {done.returncode}, {status}: {body}{done.stderr}"
        )
        return body

    def is_dropped(self, path: str, **more: Any) -> bool:
        """Whether a firewall makes the question disappear: a refusal by the daemon is something else."""
        return self.curl(path, **more).returncode == REFUSED_BY_FIREWALL

    def running_version(self, **more: Any) -> str:
        """As the daemon itself says."""
        return self._build_info("version", **more)

    def running_python(self) -> str:
        """The version of the interpreter that the daemon runs on."""
        return self._build_info("python")

    def _build_info(self, label: str, **more: Any) -> str:
        found = re.search(
            rf'exporter_proxy_build_info\{{.*\b{label}="([^"]+)"', self.scrape("/metrics", **more)
        )
        assert found is not None
        return found[1]

    def main_pid(self) -> int:
        return int(
            self.guest.run("systemctl", "show", "--value", "--property=MainPID", "exporter_proxy").stdout
        )

    def exists(self, path: str) -> bool:
        return self.guest.run("test", "-e", path, check=False).returncode == 0

    def has_user(self) -> bool:
        return self.guest.run("getent", "passwd", "exporter_proxy", check=False).returncode == 0

    def install_spare_packages(self) -> None:
        """What a host has whose administrator has installed ``SPARE_PACKAGES``."""
        self.guest.run("sh", "-c", f"dpkg --install {SPARE_DIRECTORY}/*.deb")

    def write(self, path: str, text: str) -> None:
        self.guest.run("sh", "-c", 'cat >"$1"', "sh", path, stdin=text)

    def files(self) -> set[str]:
        """Every path on the guest's disk; what comes and goes meanwhile may be among them or not."""
        listed = self.guest.run("find", "/", "-ignore_readdir_race", "-xdev", "-print0").stdout
        return set(listed.rstrip("\0").split("\0"))
