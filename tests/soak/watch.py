"""Looks at the daemon once a second: its counters as it shows them, its memory as the kernel has it."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import h11

from tests.soak.client import Client, Samples
from tests.soak.ledger import clock
from tests.soak.site import Site
from tests.soak.worker import Worker

PAUSE_SECONDS = 1.0
COUNTERS = ("exporter_proxy_scrapes_total", "exporter_proxy_requests_denied_total")
LOST = ("exporter_proxy_log_lines_lost_total", frozenset[tuple[str, str]]())


@dataclass(frozen=True)
class Reading:
    """What the daemon said of itself in answer to request ``number``. Times are Unix times."""

    number: int
    began: float
    counts: Samples
    """Those of ``COUNTERS`` that are not zero."""
    lost_lines: int


@dataclass(frozen=True)
class Look:
    """What the kernel has of the process at one moment (Unix time)."""

    at: float
    pid: int
    resident_bytes: int
    descriptors: int


class Watch(Worker):
    """Reads the daemon's counters and what the kernel has of it."""

    def __init__(self, site: Site, client: Client) -> None:
        super().__init__("watch", site.ledger)
        self._daemon = site.daemon
        self._directory = site.directory
        self._client = client
        self.readings: list[Reading] = []
        self.looks: list[Look] = []
        self.unanswered: set[int] = set()
        """Numbers of the requests whose answer did not come."""

    def read(self) -> Samples | None:
        """One reading now, which is also kept; all samples of it, ``None`` where no answer came."""
        number, began = self._client.next_number(), time.time()
        try:
            _, samples = self._client.metrics(number)
        except (OSError, h11.RemoteProtocolError, AssertionError):
            self.unanswered.add(number)
            return None
        counts = {key: value for key, value in samples.items() if key[0] in COUNTERS and value}
        self.readings.append(Reading(number, began, counts, int(samples[LOST])))
        return samples

    def _run(self) -> None:
        with (self._directory / "process.log").open("w", buffering=1) as log:
            self._look(log)

    def _look(self, log: TextIO) -> None:
        while not self._stopping.wait(PAUSE_SECONDS):
            self.read()
            pid = self._daemon.pid
            try:
                look = Look(time.time(), pid, resident_bytes(pid), len(descriptors(pid)))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it was killed this moment
            self.looks.append(look)
            log.write(f"{clock(look.at)} {pid} {look.resident_bytes} {look.descriptors}\n")


def resident_bytes(pid: int) -> int:
    return _status(pid, "VmRSS") * 1024


def threads(pid: int) -> int:
    return _status(pid, "Threads")


def children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            found += map(int, file.read_text().split())
    return found


def descriptors(pid: int) -> list[str]:
    """What each open descriptor leads to."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except (FileNotFoundError, ProcessLookupError):
            pass  # closed since it was listed
    return links


def tcp_peers(pid: int) -> list[tuple[str, tuple[str, int]]]:
    """State (as /proc/net/tcp numbers it) and remote address of the process's IPv4 TCP sockets."""
    inodes = {link[8:-1] for link in descriptors(pid) if link.startswith("socket:[")}
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes:
            host, port = fields[2].split(":")
            dotted = ".".join(str(byte) for byte in reversed(bytes.fromhex(host)))
            found.append((fields[3], (dotted, int(port, 16))))
    return found


def _status(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:  # a process that has ended and was not waited for has no memory
        raise FileNotFoundError(f"/proc/{pid}/status has no {field}")
    return int(found[1])
