"""What the daemon still holds when nobody asks for anything any more, and what is left when it has ended."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.daemon import wait_until
from tests.soak.client import Samples
from tests.soak.site import Site
from tests.soak.watch import Watch, children, descriptors, tcp_peers, threads

QUIET_SECONDS = 30.0
ESTABLISHED, LISTENING = "01", "0A"
IN_FLIGHT, CONNECTIONS = "exporter_proxy_scrapes_in_flight", "exporter_proxy_connections"
BAD_LOG = re.compile(
    r"defect in exporter_proxy|Traceback|never retrieved|was destroyed|never awaited|level=fatal"
)


@dataclass(frozen=True)
class Holdings:
    """What a process has open: everything but sockets by what it leads to, and how many threads."""

    files: Counter[str]
    threads: int

    @classmethod
    def of(cls, pid: int) -> Holdings:
        links = [link for link in descriptors(pid) if not link.startswith("socket:")]
        kinds = Counter(re.sub(r"(pipe:\[|faketime_shm_)\d+", r"\1", link) for link in links)
        return cls(kinds, threads(pid))


def leaks(site: Site, watch: Watch, before: Holdings) -> list[str]:
    """Waits for quiet; what is held all the same. ``before`` is what a process has that has been used."""
    pid = site.daemon.pid
    last: list[str] = []

    def is_quiet() -> bool:
        time.sleep(0.3)
        samples = watch.read()
        last[:] = ["it does not answer"] if samples is None else [*_held(samples), *_open(site, pid, before)]
        return not last

    try:
        wait_until(is_quiet, "it became quiet", QUIET_SECONDS)
    except AssertionError:
        return [f"{QUIET_SECONDS:g} s after the last request: {one}" for one in last]
    return []


def _held(samples: Samples) -> list[str]:
    found = [
        f"{dict(labels)['exporter']} has {value:g} scrapes in flight"
        for (name, labels), value in samples.items()
        if name == IN_FLIGHT and value
    ]
    connections = samples[CONNECTIONS, frozenset()]
    return found + ([f"{connections:g} connections are open, ours is 1"] if connections != 1 else [])


def _open(site: Site, pid: int, before: Holdings) -> list[str]:
    found = [f"child process {child}" for child in children(pid)]
    now = Holdings.of(pid)
    found += [f"{count} more of {link} open" for link, count in (now.files - before.files).items()]
    if now.threads > before.threads:
        found.append(f"{now.threads} threads, {before.threads} before")
    of_exporters = 0
    for state, peer in tcp_peers(pid):
        if state == ESTABLISHED and peer in site.addresses:
            of_exporters += 1
        elif state != LISTENING:
            found.append(f"a socket to {peer[0]}:{peer[1]} in state {state}")
    # Listening, and a pair by which signals come in.
    usual = 3
    sockets = sum(link.startswith("socket:") for link in descriptors(pid))
    if sockets != usual + of_exporters:
        found.append(f"{sockets} sockets: {of_exporters} to exporters, {usual} of its own, others")
    return found


def end(site: Site) -> list[str]:
    """Stop the daemon; what is wrong with how it ends."""
    status = site.daemon.stop(signal.SIGTERM)
    found = [f"at SIGTERM it ended with status {status}"] if status else []
    left = site.daemon.current.left
    return found + ([f"{left} processes that it had started outlived it"] if left else [])


def left_processes(directory: Path) -> list[str]:
    """Processes that have something to do with this directory, when all should be gone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            is_ours = str(directory) in command or (process / "cwd").resolve() == directory
        except OSError:
            continue
        if is_ours and int(process.name) not in (os.getpid(), os.getppid()):
            found.append(f"process {process.name} is left: {command}")
    return found


def complaints(log: Path) -> list[str]:
    """Lines of the daemon's log that speak of a defect."""
    with log.open(errors="replace") as lines:
        return [f"the daemon's log: {line.strip()}" for line in lines if BAD_LOG.search(line)]
