"""One run of a command seen from inside: late readers, starts that are cancelled, who is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest

from exporter_proxy.config.schema import CommandSource
from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.threads import Threads
from exporter_proxy.upstreams.command import GRACE_SECONDS, Run
from tests.inprocess import LOOPS, open_descriptors, opened_since, run, until

SHELL_ENV = (("PATH", "/usr/bin:/bin"),)


def shell(script: str, directory: Path | str = "/") -> CommandSource:
    return CommandSource("/bin/sh", ("-c", script), SHELL_ENV, str(directory))


async def output_of(one: Run) -> bytes:
    parts = []
    while part := await one.read():
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_was_printed_waits_for_a_reader_that_is_late(loop: str) -> None:
    """Longer than the grace after its exit: that is for what its children may still print."""

    async def scenario() -> None:
        one = Run(shell("seq 1000"), Threads(1, "start"))
        await one.start()
        await asyncio.sleep(GRACE_SECONDS + 0.3)
        assert (await output_of(one)).splitlines()[-1] == b"1000"
        await one.finish()
        assert one.ended.done()

    run(scenario, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_start_that_nobody_waits_for_is_seen_to(loop: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = open_descriptors()
        threads, free = Threads(1, "start"), threading.Event()
        blocking = asyncio.ensure_future(threads.run(free.wait))
        one = Run(shell("echo $$ > pid; exec sleep 300", tmp_path), threads)
        starting = asyncio.ensure_future(one.start())
        await asyncio.sleep(0)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        one.abandon()
        assert not one.ended.done()
        free.set()
        await blocking
        await until(one.ended.done, "the run ended")
        assert not opened_since(before)

    run(scenario, loop)
    pid = tmp_path / "pid"
    assert not pid.exists() or not Path("/proc", pid.read_text().strip() or "none").exists()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_start_that_fails_leaves_nothing(loop: str) -> None:
    async def scenario() -> None:
        before = open_descriptors()
        one = Run(CommandSource("/no/such/program", (), (), "/"), Threads(1, "start"))
        with pytest.raises(ScrapeError) as caught:
            await one.start()
        assert caught.value.reason is Reason.COMMAND_FAILED
        assert one.ended.done()
        one.abandon()
        assert not opened_since(before)

    run(scenario, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_no_pidfd_leaves_nothing_either(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 5.3, or a descriptor too many."""

    def no_pidfd(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    async def scenario() -> None:
        before = open_descriptors()
        one = Run(shell("exec sleep 300"), Threads(1, "start"))
        with pytest.raises(ScrapeError, match="Function not implemented"):
            await one.start()
        assert not opened_since(before)

    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    run(scenario, loop)
