"""Reloads, stops, password checks and handshakes that are given up at any step.

A reload leaves the old configuration in force or the new one, and never a part of it; whatever was opened
for the other is closed.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from exporter_proxy.config import Config, parse_config
from exporter_proxy.front.drain import drain
from exporter_proxy.front.passwords import Passwords
from exporter_proxy.proxy import Proxy
from exporter_proxy.reload import Reloader
from exporter_proxy.systemd import Notifier
from tests.cancelling import GONE_SECONDS, TIMINGS, Cancellation, count_steps, until_closed
from tests.fakes.hashing import hash_of
from tests.fakes.origin import Origin, hang, response, say
from tests.inprocess import LOOPS, open_descriptors, parts, run, until

PAGE = b"# TYPE x gauge\nx 1\n"


@pytest.fixture
def thawed() -> Iterator[None]:
    """A reload freezes what is there: other tests' garbage, too, and threads that would end with it."""
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # the tests themselves again, see conftest


def changed(config: dict[str, Any]) -> Config:
    return parse_config(yaml.safe_dump(config).encode(), "config.yml")


def is_whole(proxy: Proxy, name: str, log: Path) -> bool:
    """Whether everything in force belongs to the configuration with that exporter and that access log."""
    running = proxy.running
    assert running.access_log is not None
    return (
        [one.name for one in running.config.exporters] == [name]
        and [route.exporter.name for route in running.routes.routes] == [name]
        and running.access_log[1].path == str(log)
        and proxy.front.limits.max_connections == running.config.max_connections
        and proxy.front.ssl_context is running.tls
    )


@TIMINGS
@pytest.mark.usefixtures("thawed")
@pytest.mark.parametrize("bad", [False, True], ids=["good", "its error log cannot be opened"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_reload_that_nobody_waits_for_any_more(
    loop: str, bad: bool, with_result: bool, tmp_path: Path
) -> None:
    """As when whoever asked for ``/-/reload`` has left: it is finished all the same, once it has begun."""
    old_log, new_log, third_log = (tmp_path / name for name in ("old", "new", "third"))
    error_log = str(tmp_path / "missing" / "error") if bad else str(tmp_path / "error")

    async def scenario(cancellation: Cancellation) -> None:
        before, tasks = open_descriptors(), asyncio.all_tasks()
        async with AsyncExitStack() as stack:
            origin = await stack.enter_async_context(Origin(say(response(PAGE))))
            entry = {"url": origin.url()}
            made = await stack.enter_async_context(parts(tmp_path / "log", {"old": entry}))
            proxy = made.proxy
            stack.callback(_close_logs, proxy)
            wanted: dict[str, Any] = {"exporters": {"old": entry}, "access_log": {"path": str(old_log)}}

            async def load() -> Config:
                return await asyncio.to_thread(changed, wanted)

            reloader = Reloader(proxy, load, proxy.log, Notifier(print, {}))
            assert await reloader.reload() == ()
            wanted |= {
                "exporters": {"new": entry},
                "access_log": {"path": str(new_log)},
                "error_log": {"path": error_log},
                "max_connections": 7,
            }
            task = asyncio.ensure_future(cancellation.drive(reloader.reload()))
            await asyncio.wait([task])
            assert is_whole(proxy, "old", old_log) or is_whole(proxy, "new", new_log)
            await until(lambda: not reloader._background, "it is finished")
            assert is_whole(proxy, "old", old_log) if bad else is_whole(proxy, "new", new_log)
            assert proxy.reload_state.is_successful != bad
            assert gc.isenabled()
            assert sys.getswitchinterval() == 0.005
            wanted["access_log"] = {"path": str(third_log)}
            wanted["error_log"] = {"path": str(tmp_path / "error")}
            assert await reloader.reload() == ()
            assert is_whole(proxy, "new", third_log)
            answered = await made.scrape(made.request())
            assert (answered.status, answered.body) == (200, PAGE)
        await until(lambda: asyncio.all_tasks() == tasks, "no task is left", GONE_SECONDS)
        await until_closed(before, str(tmp_path / "log"))

    async def warmed_up(cancellation: Cancellation) -> None:
        await asyncio.to_thread(int)  # the loop's own threads and what they need
        await scenario(cancellation)

    assert run(lambda: count_steps(warmed_up, with_result), loop) >= 1


def _close_logs(proxy: Proxy) -> None:
    if proxy.running.access_log is not None:
        proxy.running.access_log[1].close()
    proxy.log.writer.close()


@TIMINGS
@pytest.mark.parametrize("loop", LOOPS)
def test_a_password_check_that_nobody_waits_for(loop: str, with_result: bool, tmp_path: Path) -> None:
    async def scenario(cancellation: Cancellation) -> None:
        passwords = Passwords((("u", hash_of(b"right")),))
        for password, is_right in ((b"right", True), (b"wrong", False)):
            login = passwords.login(b"u", password)
            assert login is not None
            task = asyncio.ensure_future(cancellation.drive(passwords.check(login, 5.0)))
            await asyncio.wait([task])
            assert task.cancelled() or task.result() is is_right
            assert login.waiters == 0
            assert not passwords._waiting
            await until(lambda: passwords._hashing is None, "the thread has nothing to do")
            again = passwords.login(b"u", password)
            assert (await passwords.check(again, 5.0) if again is not None else True) is is_right

    assert run(lambda: count_steps(scenario, with_result), loop) >= 1


@pytest.mark.parametrize("loop", LOOPS)
def test_the_scraper_leaves_at_any_turn_of_a_handshake_that_hangs(loop: str, tmp_path: Path) -> None:
    """The exporter takes the connection and never says a word."""

    async def leave_after(turns: int) -> None:
        before, tasks = open_descriptors(), asyncio.all_tasks()
        async with Origin(hang) as origin:
            entry = {"url": origin.url(scheme="https"), "insecure_skip_verify": True, "max_concurrent": 1}
            async with parts(tmp_path / "log", {"x": entry}) as made:
                answered = made.request()
                answered.exchange.client_gone = True
                cancellation = Cancellation(1, turns=turns)
                await asyncio.wait([asyncio.ensure_future(cancellation.drive(made.scrape(answered)))])
                assert answered.status == 0
                assert (made.route.record.in_flight, made.route.slots.free) == (0, 1)
                await until(lambda: not origin.tasks, "the connection is gone", GONE_SECONDS)
        await until(lambda: asyncio.all_tasks() == tasks, "no task is left", GONE_SECONDS)
        await until_closed(before, str(tmp_path / "log"))

    async def scenario() -> None:
        async with Origin(hang):
            pass
        for turns in range(30):
            await leave_after(turns)

    run(scenario, loop)


# Stops


async def request_over(port: int, path: bytes, tls: ssl.SSLContext | None) -> bytes:
    """All that comes back; nothing where the connection was cut first."""
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls, server_hostname="127.0.0.1" if tls else None
        )
        writer.write(b"GET %b HTTP/1.1\r\nHost: proxy.test\r\n\r\n" % path)
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
    except (ConnectionError, ssl.SSLError):
        return b""
    return received


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("seconds", [5.0, 0.0], ids=["that finishes what is under way", "that cuts it off"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_stop_at_any_turn_of_a_scrape(loop: str, seconds: float, is_tls: bool, tmp_path: Path) -> None:
    """The answer is whole, or says that the daemon stops, or none came; and nothing is left of it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)

    async def stop_after(turns: int) -> None:
        before, tasks = open_descriptors(), asyncio.all_tasks()
        async with (
            Origin(say(response(PAGE))) as origin,
            parts(tmp_path / "log", {"x": {"url": origin.url()}}) as made,
            made.listening() as listener,
        ):
            made.front.ssl_context = server if is_tls else None
            port = listener.socket.getsockname()[1]
            client_task = asyncio.ensure_future(
                request_over(port, made.route.path, client if is_tls else None)
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            made.proxy.is_draining = made.front.is_draining = True
            listener.stop()
            await drain(made.front, [listener], seconds, asyncio.Event())
            received = await client_task
            if received:
                head, _, body = received.partition(b"\r\n\r\n")
                is_whole = head.startswith(b"HTTP/1.1 200 ") and body == PAGE
                assert is_whole or head.startswith(b"HTTP/1.1 503 ")
                assert is_whole or b"\r\nconnection: close" in head.lower()
            await until(lambda: not made.front.connections, "the connection is gone")
            await until(lambda: not made.front.uvicorn_state.tasks, "nothing is being answered")
            assert made.route.record.in_flight == 0
            assert made.route.slots.free == made.route.exporter.max_concurrent
        await until(lambda: asyncio.all_tasks() == tasks, "no task is left", GONE_SECONDS)
        await until_closed(before, str(tmp_path / "log"))

    async def scenario() -> None:
        async with Origin(hang):
            pass
        for turns in range(0, 40, 2):
            await stop_after(turns)

    run(scenario, loop)


@TIMINGS
@pytest.mark.parametrize("loop", LOOPS)
def test_a_stop_that_is_itself_given_up(loop: str, with_result: bool, tmp_path: Path) -> None:
    """At each of its steps, while a scrape hangs; the next one has nothing left to do."""

    async def scenario(cancellation: Cancellation) -> None:
        before, tasks = open_descriptors(), asyncio.all_tasks()
        async with (
            Origin(hang) as origin,
            parts(tmp_path / "log", {"x": {"url": origin.url()}}) as made,
            made.listening() as listener,
        ):
            port = listener.socket.getsockname()[1]
            client_task = asyncio.ensure_future(request_over(port, made.route.path, None))
            await until(lambda: made.route.record.in_flight == 1, "the scrape is under way")
            listener.stop()
            first = drain(made.front, [listener], 0.02, asyncio.Event())
            await asyncio.wait([asyncio.ensure_future(cancellation.drive(first))])
            await drain(made.front, [listener], 0.0, asyncio.Event())
            assert (await client_task).startswith(b"HTTP/1.1 503 ")
            await until(lambda: not made.front.connections, "the connection is gone")
            assert not made.front.uvicorn_state.tasks
            assert made.route.record.in_flight == 0
        await until(lambda: asyncio.all_tasks() == tasks, "no task is left", GONE_SECONDS)
        await until_closed(before, str(tmp_path / "log"))

    assert run(lambda: count_steps(scenario, with_result), loop) >= 2
