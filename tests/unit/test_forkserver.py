"""A daemon that was forked is like one that was started: as far as the kernel sees, and its tests."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.daemon import Daemon, wait_until
from tests.forkserver import Forked

CONFIG = {"exporters": {"x": {"url": "http://127.0.0.1:1/"}}}
OF_STATUS = ("Name", "Umask", "Uid", "Gid", "Groups", "Threads", "SigBlk", "SigIgn", "SigCgt", "CapEff")


def seen(daemon: Daemon) -> dict[str, object]:
    """What the kernel has of it."""
    wait_until(lambda: bool(daemon.holds.read()), "it is watched")
    process = Path(f"/proc/{daemon.process.pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    return {
        "directory": (process / "cwd").readlink() == daemon.directory,
        "limits": (process / "limits").read_text(),
        "descriptors": sorted(map(_kind, daemon.descriptors())),
        **{name: status[name] for name in OF_STATUS},
    }


def _kind(link: str) -> str:
    """Without what differs from process to process."""
    return link.partition(":[")[0].rpartition("/")[2]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_they_are_alike(loop: str) -> None:
    chosen = {"EXPORTER_PROXY_LOOP": loop}
    with (
        Daemon(CONFIG, environment=chosen) as forked,
        Daemon(CONFIG, environment={**chosen, "FRESH": "1"}) as fresh,
    ):
        assert isinstance(forked.process, Forked)
        assert isinstance(fresh.process, subprocess.Popen)
        wait_until(lambda: seen(forked) == seen(fresh), "they are alike")
        assert forked.holds.loop == fresh.holds.loop


def test_how_it_ends() -> None:
    with Daemon(CONFIG) as daemon:
        assert isinstance(daemon.process, Forked)
        assert daemon.process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(0.01)
        daemon.process.kill()
        assert daemon.process.wait(5) == daemon.process.poll() == -signal.SIGKILL
        daemon.process.terminate()  # nobody is there any more
    with Daemon(CONFIG) as daemon:
        assert daemon.stop() == 0
        assert daemon.log_lines[-1].endswith("msg=stopped")
