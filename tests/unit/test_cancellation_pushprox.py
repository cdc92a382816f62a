"""Polls, scrapes and pushes through PushProx that are given up at any step, on both loops.

After each: nothing held, no slot taken, no connection in use; and the next one is answered.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.config.schema import UpstreamUrl
from exporter_proxy.observe.pushprox import PushProxRecord
from exporter_proxy.pushprox.judge import Place
from exporter_proxy.pushprox.messages import PushedRequest, parse_request
from exporter_proxy.pushprox.poller import Poller
from exporter_proxy.pushprox.scrape import Held
from exporter_proxy.upstreams.pushprox import ProxyLink
from tests.cancelling import GONE_SECONDS, TIMINGS, Cancellation, count_steps, until_closed
from tests.fakes.origin import Answer, Origin, Visit, hang, response, say
from tests.inprocess import LOOPS, Parts, open_descriptors, parts, run, until

PAGE = b"# TYPE x gauge\nx 1\n"
LARGE = b"#" + b"x" * 4_000_000 + b"\n"
NAME = "vm1.example.org"
RAW = f"GET http://{NAME}:9099/x/metrics HTTP/1.1\r\nHost: {NAME}:9099\r\nId: 1\r\n\r\n".encode()


class FakeProxy:
    """Gives ``polls`` requests and then none; takes what is pushed, as slowly as its reader is."""

    def __init__(self, polls: int = 0) -> None:
        self.pushed: list[bytes] = []
        self._polls = polls

    async def __call__(self, visit: Visit) -> None:
        head = visit.requests[-1]
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        body = await visit.reader.readexactly(int(length[1]))
        if head.startswith(b"POST /push "):
            self.pushed.append(body)
            await visit.send(response())
        elif self._polls:
            self._polls -= 1
            await visit.send(response(RAW))
        else:
            await visit.until_left()


class Setting:
    """A daemon's parts with an exporter, and a proxy for it to poll."""

    def __init__(self, made: Parts, proxy: FakeProxy, proxy_origin: Origin, link: ProxyLink) -> None:
        self.made = made
        self.proxy = proxy
        self.proxy_origin = proxy_origin
        self.link = link
        self.held = Held()
        self.request: PushedRequest = parse_request(RAW)
        section = made.proxy.running.config.pushprox
        assert isinstance(section, PushProx)
        place = Place(NAME, frozenset((9099,)))
        self.poller = Poller("http://proxy.test/", link, place, section, made.proxy, self.held)

    async def check_nothing_is_left(self) -> None:
        front = self.made.front
        await until(lambda: not front.detached and not front.uvicorn_state.tasks, "no scrape is under way")
        assert self.held.n_bytes == 0
        assert self.made.route.record.in_flight == 0
        assert self.made.route.slots.free == 1
        # The exporter's connection is kept, and so may one with the proxy be.
        await until(lambda: len(self.proxy_origin.tasks) <= 1, "no connection is left", GONE_SECONDS)


@asynccontextmanager
async def setting(log: Path, answer: Answer, polls: int = 0) -> AsyncIterator[Setting]:
    """Afterwards no task and no descriptor is left."""
    descriptors, tasks = open_descriptors(), asyncio.all_tasks()
    proxy = FakeProxy(polls)
    async with Origin(answer) as exporter, Origin(proxy) as proxy_origin:
        entry = {"url": exporter.url(), "max_concurrent": 1}
        section: dict[str, Any] = {"proxy_url": proxy_origin.url(), "fqdn": NAME}
        async with parts(log, {"x": entry}, pushprox=section) as made:
            made.proxy.pushprox = PushProxRecord()
            link = ProxyLink(UpstreamUrl("http", "127.0.0.1", proxy_origin.port, "/"), None, None)
            one = Setting(made, proxy, proxy_origin, link)
            yield one
            await one.check_nothing_is_left()
            link.close()
    await until(lambda: asyncio.all_tasks() == tasks, "no task is left", GONE_SECONDS)
    await until_closed(descriptors, str(log))


async def ended(cancellation: Cancellation, work: Any) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(cancellation.drive(work))
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() is None
    return task


@TIMINGS
@pytest.mark.parametrize("loop", LOOPS)
def test_a_poll_at_any_step(loop: str, with_result: bool, tmp_path: Path) -> None:
    async def scenario(cancellation: Cancellation) -> None:
        sent: list[bool] = []
        async with setting(tmp_path / "log", say(response(PAGE)), polls=2) as one:
            await ended(cancellation, one.link.poll(NAME, lambda: sent.append(True)))
            one.proxy._polls = 1
            assert (await one.link.poll(NAME, lambda: sent.append(True))).body == RAW

    assert run(lambda: count_steps(scenario, with_result), loop) >= 2


@TIMINGS
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_push_at_any_step(loop: str, size: str, with_result: bool, tmp_path: Path) -> None:
    message = [b"HTTP/1.1 200 OK\r\nId: 1\r\n\r\n", PAGE if size == "small" else LARGE]

    async def scenario(cancellation: Cancellation) -> None:
        async with setting(tmp_path / "log", say(response(PAGE))) as one:
            await ended(cancellation, one.link.push(message))
            one.proxy.pushed.clear()
            assert (await one.link.push(message)).status == 200
            is_same = one.proxy.pushed[-1] == b"".join(message)
            assert is_same

    assert run(lambda: count_steps(scenario, with_result), loop) >= (2 if size == "small" else 3)


@TIMINGS
@pytest.mark.parametrize("body", [PAGE, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_scrape_and_its_push_at_any_step(loop: str, body: bytes, with_result: bool, tmp_path: Path) -> None:
    """A stop that waits no longer: what is pushed then says so, or nothing is."""

    async def scenario(cancellation: Cancellation) -> None:
        async with setting(tmp_path / "log", say(response(body))) as one:
            await ended(cancellation, one.poller._serve(one.request))
            for pushed in one.proxy.pushed:
                head, _, rest = pushed.partition(b"\r\n\r\n")
                is_whole = head.startswith(b"HTTP/1.1 200 ") and rest == body
                assert is_whole or head.startswith(b"HTTP/1.1 503 ")
            await one.check_nothing_is_left()
            one.proxy.pushed.clear()
            await one.poller._serve(one.request)
            is_same = one.proxy.pushed[-1].endswith(b"\r\n\r\n" + body)
            assert is_same
            assert sum(one.made.route.record.scrapes_by_code.values()) == 2

    assert run(lambda: count_steps(scenario, with_result), loop) >= 3


@TIMINGS
@pytest.mark.parametrize("loop", LOOPS)
def test_polling_that_ends_at_any_step(loop: str, with_result: bool, tmp_path: Path) -> None:
    """As a reload ends it: what is under way is scraped and pushed to its end."""
    enough_steps = 12

    async def scenario() -> None:
        async with Origin(hang):
            pass  # a loop's first server has uvloop open a spare descriptor for good
        for at in range(1, enough_steps):
            async with setting(tmp_path / "log", say(response(PAGE)), polls=3) as one:
                cancellation = Cancellation(at, with_result)
                task = asyncio.ensure_future(cancellation.drive(one.poller.run()))
                polls = one.made.proxy.pushprox
                assert polls is not None
                await asyncio.wait([task], timeout=0.3)
                task.cancel()
                await asyncio.wait([task])
                await one.check_nothing_is_left()
                assert len(one.proxy.pushed) == polls.polls["ok"] == polls.pushes["ok"]
                assert all(PAGE in pushed for pushed in one.proxy.pushed)
                if not cancellation.happened:
                    return
        raise AssertionError("it does not come to wait for a fourth request")

    run(scenario, loop)
