"""The site as a whole: a host with its exporters and the daemon, and what can be turned on it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.soak.certificates import Certificates
from tests.soak.exporters import CHECKSUM, COMMAND, COMMANDS, Exporter, exporters, write_command
from tests.soak.ledger import Ledger
from tests.soak.supervisor import Supervisor

LOG_DISK_BYTES = 64 << 20
ACCESS_LOG = "access.log"
FILLER = "filler"
OWN = "exporter_proxy"
"""The job of the daemon's own metrics."""
CHECKER, HOSTILE, STRANGER = "127.0.0.2", "127.0.66.6", "127.0.67.7"
"""Addresses that the checking scraper and the hostile clients come from; the last may not come at all."""
FIELDS = [
    *("time_nsec", "status", "size", "reqtime_nsec", "path", "query", "method"),
    *("reason", "remote", "exporter", "user_agent"),
]


@dataclass
class Site:
    """Everything, by name."""

    directory: Path
    log_disk: Path
    """A file system of its own, small enough to be filled."""
    kept_logs: Path
    """Where rotated access logs go."""
    ledger: Ledger
    exporters: dict[str, Exporter]
    command: list[str]
    certificates: Certificates
    daemon: Supervisor

    @property
    def names(self) -> list[str]:
        """All exporters."""
        return [*self.exporters, COMMAND]

    def write_config(self, variant: int) -> None:
        """A good configuration. Those of other variants differ in what does not matter to any scrape."""
        entries: dict[str, Any] = {name: {"url": one.url} for name, one in self.exporters.items()}
        entries[COMMAND] = {"command": self.command, "working_dir": str(self.directory / COMMANDS)}
        entries[f"gone_after_{variant}"] = {"url": self.exporters[CHECKSUM].url}
        changing = self.names[variant % len(self.names)]
        entries[changing]["timeout"] = f"{20 + variant % 10}s"
        self.write_raw_config(
            {
                "listen": "systemd",
                # The last of these may be long in coming: the hostile client's are to be over soon.
                "read_header_timeout": "3s",
                "max_connections": 100 + variant % 10,
                "allow_clients": ["127.0.0.1", CHECKER, HOSTILE],
                "defaults": {"timeout_offset": "100ms", "verify": variant % 2 == 1},
                "access_log": {"format": "json", "path": str(self.log_disk / ACCESS_LOG), "fields": FIELDS},
                "exporters": entries,
            }
        )

    def write_raw_config(self, config: object) -> None:
        (self.directory / "config.yml").write_text(yaml.safe_dump(config, sort_keys=False))

    @property
    def addresses(self) -> set[tuple[str, int]]:
        """Of the exporters."""
        return {one.address for one in self.exporters.values()}


@contextmanager
def site(directory: Path, seed: int) -> Iterator[Site]:
    """Set everything up but what scrapes. Raises NotInstalled."""
    log_disk, kept_logs = directory / "log_disk", directory / "access_logs"
    for one in (log_disk, kept_logs):
        one.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={LOG_DISK_BYTES}", "tmpfs", str(log_disk)], check=True
    )
    try:
        with exporters(directory, seed) as started:
            ready = Site(
                directory,
                log_disk,
                kept_logs,
                Ledger(directory / "faults.log"),
                started,
                write_command(directory),
                Certificates(directory),
                Supervisor(directory),
            )
            ready.write_config(0)
            with ready.daemon.running():
                yield ready
    finally:
        # Its files are for who looks, and it is not to be in the way of who clears up.
        for file in log_disk.glob(f"{ACCESS_LOG}*"):
            shutil.copy(file, kept_logs)
        subprocess.run(["umount", "--lazy", str(log_disk)], check=True)
