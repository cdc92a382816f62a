"""What a reload leaves behind when some step of it fails, and how many loads many reloads are."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from exporter_proxy import reload
from exporter_proxy.config import Config, ConfigError, parse_config
from exporter_proxy.config.files import stamps
from exporter_proxy.config.problems import Problem
from exporter_proxy.observe.daemonlog import DaemonLog
from exporter_proxy.observe.logwriter import LogWriter
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.reload import ROUTES_TO_WALK, Reloader, build_running, close_all
from exporter_proxy.systemd import Notifier
from tests.fakes.origin import Origin, response, say
from tests.inprocess import LOOPS, open_descriptors, parts, run, until

PAGE = b"# TYPE x gauge\nx 1\n"


class Closing(httpx.AsyncBaseTransport):
    """One whose closing waits until all of them are being closed."""

    def __init__(self, everyone: asyncio.Barrier, error: Exception | None = None) -> None:
        self.is_closed = False
        self._everyone = everyone
        self._error = error

    async def aclose(self) -> None:
        await self._everyone.wait()
        if self._error is not None:
            raise self._error
        self.is_closed = True


@pytest.mark.parametrize("loop", LOOPS)
def test_all_is_closed_at_once_and_one_that_fails_is_told(loop: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        writer = LogWriter(str(tmp_path / "log"))
        everyone = asyncio.Barrier(5)
        closing = [Closing(everyone) for _ in range(4)]
        closing.insert(2, Closing(everyone, OSError("planted")))
        async with asyncio.timeout(10):
            await close_all([*closing], DaemonLog(writer))
        assert [one.is_closed for one in closing] == [True, True, False, True, True]
        writer.close()

    run(scenario, loop)
    assert "planted" in (tmp_path / "log").read_text()


def configured(**config: Any) -> Config:
    return parse_config(yaml.safe_dump(config).encode(), "config.yml")


@asynccontextmanager
async def reloading(log: Path, wanted: dict[str, Any]) -> AsyncIterator[tuple[Proxy, Reloader]]:
    """A reloader for what ``wanted`` says when it is loaded."""

    async def load() -> Config:
        return configured(**wanted)

    async with parts(log, wanted["exporters"]) as made:
        yield made.proxy, Reloader(made.proxy, load, made.proxy.log, Notifier(print, {}))
        if made.proxy.running.access_log is not None:
            made.proxy.running.access_log[1].close()


@pytest.mark.parametrize("loop", LOOPS)
def test_what_fails_after_the_swap_is_told_and_leaves_nothing_undone(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Running] = []
    close = os.close

    def close_as_on_nfs(descriptor: int) -> None:
        """What could not be written is told when the file is closed (close(2), NOTES)."""
        path = open_descriptors().get(str(descriptor))
        close(descriptor)
        if path == str(tmp_path / "old"):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def fail(running: Running) -> None:
        told.append(running)
        raise LookupError("planted")

    async def scenario() -> None:
        async with Origin(say(response(PAGE))) as origin:
            wanted: dict[str, Any] = {"exporters": {"old": {"url": origin.url()}}}
            wanted["access_log"] = {"path": str(tmp_path / "old")}
            error_log = str(tmp_path / "log")
            wanted["error_log"] = {"path": error_log}
            async with reloading(tmp_path / "log", wanted) as (proxy, reloader):
                assert await reloader.reload() == ()
                (route,) = proxy.running.routes.routes
                request = httpx.Request("GET", origin.url())
                await (await route.transport.handle_async_request(request)).aread()
                assert len(origin.tasks) == 1, "its connection is kept"
                before = proxy.reload_state

                wanted["exporters"] = {"new": {"url": origin.url()}}
                wanted["access_log"] = {"path": str(tmp_path / "new")}
                monkeypatch.setattr(os, "close", close_as_on_nfs)
                reloader.when_in_force = fail
                assert await reloader.reload() == ()
                assert told == [proxy.running]
                assert proxy.running.config.exporters[0].name == "new"
                assert proxy.reload_state.is_successful
                assert proxy.reload_state.last_success > before.last_success
                await until(lambda: not origin.tasks, "the old connection is closed")

    run(scenario, loop)
    lines = (tmp_path / "log").read_text()
    assert "planted" in lines
    assert "Disk quota exceeded" in lines


@pytest.mark.parametrize("loop", LOOPS)
def test_a_reload_that_raises_is_in_the_log(loop: str, tmp_path: Path) -> None:
    """Nobody waits for the one that a signal asked for. Its notification to systemd is what fails here."""

    async def scenario() -> None:
        wanted: dict[str, Any] = {"exporters": {"x": {"url": "http://127.0.0.1:1/"}}}
        async with parts(tmp_path / "log", wanted["exporters"]) as made:

            async def load() -> Config:
                return configured(**wanted)

            systemd = Notifier(print, {"NOTIFY_SOCKET": "@nobody"})
            systemd.ready(lambda: "")
            systemd.close()
            reloader = Reloader(made.proxy, load, made.proxy.log, systemd)
            with pytest.raises(AssertionError):
                await reloader.reload()

    run(scenario, loop)
    assert "defect in exporter_proxy" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("loop", LOOPS)
def test_garbage_is_collected_again_while_a_reload_hangs(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "LONGEST_BUILD_SECONDS", 0.01)

    async def scenario() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def load() -> Config:
            assert not gc.isenabled()
            begun.set()
            await go_on.wait()
            return made.config

        async with parts(tmp_path / "log", {"x": {"url": "http://127.0.0.1:1/"}}) as made:
            usual = sys.getswitchinterval()
            reloader = Reloader(made.proxy, load, made.proxy.log, Notifier(print, {}))
            reloading = asyncio.create_task(reloader.reload())
            await begun.wait()
            await until(gc.isenabled, "garbage is collected")
            assert sys.getswitchinterval() == usual
            go_on.set()
            assert await reloading == ()
            assert gc.isenabled()
            assert sys.getswitchinterval() == usual

    run(scenario, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_no_collection_of_garbage_walks_what_a_reload_has_built(loop: str, tmp_path: Path) -> None:
    """All scrapes would wait for it; each route is some thirty objects."""
    walked: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            walked.append(sum(len(gc.get_objects(number)) for number in range(info["generation"] + 1)))

    def exporters(timeout: str) -> dict[str, Any]:
        entry = {"url": "http://127.0.0.1:1/metrics", "timeout": timeout}
        return {f"r{number}": entry for number in range(ROUTES_TO_WALK + 1)}

    async def scenario() -> None:
        wanted = {"exporters": exporters("9s")}
        async with reloading(tmp_path / "log", wanted) as (_, reloader):
            gc.collect()
            gc.freeze()
            gc.callbacks.append(note)
            try:
                for timeout in ("8s", "9s"):
                    wanted["exporters"] = exporters(timeout)
                    assert await reloader.reload() == ()
                    assert [[] for _ in range(1000)], "what has the next collection begin"
            finally:
                gc.callbacks.remove(note)

    run(scenario, loop)
    assert len(walked) > 2
    assert max(walked) < 10 * ROUTES_TO_WALK


@pytest.mark.parametrize("loop", LOOPS)
def test_who_waits_for_a_reload_gets_one_that_began_afterwards(loop: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        begun: list[asyncio.Event] = []

        async def load() -> Config:
            number, go_on = len(begun), asyncio.Event()
            begun.append(go_on)
            await go_on.wait()
            raise ConfigError([Problem("config.yml", 1, 1, "", f"load {number}")])

        async with parts(tmp_path / "log", {"x": {"url": "http://127.0.0.1:1/"}}) as made:
            reloader = Reloader(made.proxy, load, made.proxy.log, Notifier(print, {}))
            asked: list[list[asyncio.Task[tuple[str, ...]]]] = []
            for number in range(3):
                asked.append([asyncio.create_task(reloader.reload()) for _ in range(40)])
                if number:
                    asked[-1].pop().cancel()
                    begun[-1].set()
                await until(lambda number=number: len(begun) == number + 1, "one began")  # type: ignore[misc]
            begun[-1].set()
            results = [await asyncio.gather(*group) for group in asked]
            assert results == [
                [(f"config.yml:1:1: load {number}",)] * len(asked[number]) for number in range(3)
            ]
            assert len(begun) == 3

    run(scenario, loop)


def test_a_web_config_that_changes_after_it_was_read_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    """What is seen of the file and what was read of it go together, or nobody would look again."""
    web = tmp_path / "web.yml"
    web.write_text("http_server_config: {headers: {X-Frame-Options: deny}}\n")
    config = configured(exporters={"x": {"url": "http://127.0.0.1:1/"}}, web_config_file=str(web))
    web.write_text("http_server_config: {headers: {X-Frame-Options: sameorigin}}\n")
    running = build_running(config, DaemonLog(LogWriter(str(tmp_path / "log"))))
    assert running.config.web is not None
    assert running.config.web.headers == (("X-Frame-Options", "sameorigin"),)
    assert running.files == stamps((str(web),))
