"""A scrape that is cancelled, at whichever step, leaves nothing behind.

Each scrape is run again and again with the cancellation one suspension later, until it is so late that
the scrape completes. After each: no task, no connection in use, no descriptor, the slot free, nothing in
flight, one record, and the next scrape gets its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import pytest
import trustme

from exporter_proxy.reasons import Reason
from exporter_proxy.upstreams import connect
from tests.cancelling import GONE_SECONDS, TIMINGS, Cancellation, count_steps, until_closed
from tests.fakes.origin import Answer, Origin, Visit, chunked, hang, response, say, unanswering
from tests.inprocess import LOOPS, Answered, Parts, open_descriptors, parts, run, until

PAGE = b"# TYPE x gauge\nx 1\n"
BIG = b"x_total 12345678\n" * 30_000


async def slow_big_answer(visit: Visit) -> None:
    """Most of it is still to come when the proxy stops reading."""
    await visit.send(response(BIG, length=4 * len(BIG)), BIG, BIG, BIG)


@dataclass(frozen=True)
class Variant:
    answer: Answer
    body: bytes
    host: str = "127.0.0.1"
    is_slow_reader: bool = False
    is_tls: bool = False
    is_waiting: bool = False
    is_kept_connection: bool = False
    least_steps: int = 3
    """Connecting, waiting for the transport, waiting for the answer; more where there is more to do."""
    options: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "plain": Variant(say(response(PAGE)), PAGE),
    "in pieces": Variant(say(response(PAGE)[:9], response(PAGE)[9:60], response(PAGE)[60:]), PAGE),
    "kept connection": Variant(say(response(PAGE)), PAGE, is_kept_connection=True, least_steps=1),
    "chunked": Variant(say(chunked(PAGE, PAGE)), PAGE * 2),
    "slow reader": Variant(slow_big_answer, BIG * 4, is_slow_reader=True),
    "https": Variant(say(response(PAGE)), PAGE, is_tls=True, options={"insecure_skip_verify": True}),
    "second address": Variant(say(response(PAGE)), PAGE, host="three.test"),
    "waiting for a slot": Variant(say(response(PAGE)), PAGE, is_waiting=True),
    "verified": Variant(say(response(PAGE, b"Content-Type: text/plain")), PAGE, options={"verify": True}),
    "shared": Variant(say(response(PAGE)), PAGE, least_steps=1, options={"share_for": "1ms"}),
    "shared, too large": Variant(
        say(response(BIG)), BIG, least_steps=1, options={"share_for": "1ms", "share_max_bytes": "1KiB"}
    ),
}


@pytest.fixture(scope="module")
def certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@contextlib.asynccontextmanager
async def scraped(
    variant: Variant, log: Path, certificate: ssl.SSLContext
) -> AsyncIterator[tuple[Parts, Origin]]:
    async with Origin(variant.answer, tls=certificate if variant.is_tls else None) as origin:
        url = origin.url(variant.host, "https" if variant.is_tls else "http")
        entry = {"url": url, "max_concurrent": 1, "timeout": "20s", **variant.options}
        async with parts(log, {"x": entry}) as made:
            yield made, origin


async def with_pauses(answered: Answered, message: dict[str, Any]) -> None:
    """A reader that lets the loop turn before it takes the next part."""
    await asyncio.sleep(0)
    await answered.send(message)
    await asyncio.sleep(0)


async def check_nothing_is_left(made: Parts, origin: Origin, before: set[asyncio.Task[Any]]) -> None:
    """All but a kept connection is gone within a second."""

    def others() -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - before - origin.tasks

    await until(lambda: not others(), "no task is left", GONE_SECONDS)
    await until(lambda: len(origin.tasks) <= 1, "no connection is left but a kept one", GONE_SECONDS)
    assert made.route.record.in_flight == 0
    assert made.route.slots.free > 0


async def check_next_scrape(made: Parts, variant: Variant) -> None:
    answered = await made.scrape(made.request())
    assert (answered.status, answered.exchange.message) == (200, "")
    assert answered.is_complete
    body, size = answered.body, len(answered.body)  # apart, since pytest would print the megabytes
    assert size == len(variant.body)
    is_same = body == variant.body
    assert is_same


async def cancelled_scrape(made: Parts, variant: Variant, cancellation: Cancellation) -> Answered:
    """One scrape that is cancelled as its task would be when the scraper leaves."""
    answered = made.request()
    answered.exchange.client_gone = True

    async def send(message: dict[str, Any]) -> None:
        await with_pauses(answered, message)

    scrape = made.scrape(answered, send=send if variant.is_slow_reader else None)
    task = asyncio.ensure_future(cancellation.drive(scrape))
    await asyncio.wait([task])
    assert task.exception() is None
    return answered


async def cancel_one(
    variant: Variant, log: Path, certificate: ssl.SSLContext, cancellation: Cancellation
) -> None:
    descriptors = open_descriptors()
    tasks = asyncio.all_tasks()
    async with scraped(variant, log, certificate) as (made, origin):
        if variant.is_kept_connection:
            await check_next_scrape(made, variant)
        if variant.is_waiting:
            assert made.route.slots.take()
            asyncio.get_running_loop().call_later(0.02, made.route.slots.give_back)
        record = made.route.record
        recorded = sum(record.scrapes_by_code.values())
        answered = await cancelled_scrape(made, variant, cancellation)
        assert sum(record.scrapes_by_code.values()) == recorded + 1
        if not answered.is_complete:
            assert answered.exchange.reason is Reason.CLIENT_GONE
        if variant.is_waiting:
            await until(lambda: made.route.slots.free > 0, "the other scrape's slot is free")
        await check_nothing_is_left(made, origin, tasks)
        await check_next_scrape(made, variant)
        await check_nothing_is_left(made, origin, tasks)
    await until(lambda: asyncio.all_tasks() == tasks, "no task is left", GONE_SECONDS)
    await until_closed(descriptors, str(log))


@TIMINGS
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("loop", LOOPS)
def test_the_scraper_leaves_at_any_step(
    loop: str, name: str, with_result: bool, tmp_path: Path, certificate: ssl.SSLContext
) -> None:
    async def leave(cancellation: Cancellation) -> None:
        await cancel_one(VARIANTS[name], tmp_path / "log", certificate, cancellation)

    steps = run(lambda: count_steps(leave, with_result), loop)
    assert steps >= VARIANTS[name].least_steps


@TIMINGS
@pytest.mark.parametrize("loop", LOOPS)
def test_the_scraper_leaves_while_an_address_does_not_answer(
    loop: str, with_result: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two addresses is still being tried when the second is, and when the scrape ends."""
    monkeypatch.setattr(connect, "ATTEMPT_DELAY_SECONDS", 0.02)

    async def leave(cancellation: Cancellation) -> None:
        before, tasks = open_descriptors(), asyncio.all_tasks()
        async with Origin(say(response(PAGE))) as origin:
            with unanswering("127.0.0.2", origin.port):
                async with parts(tmp_path / "log", {"x": {"url": origin.url("two.test")}}) as made:
                    variant = Variant(say(response(PAGE)), PAGE)
                    await cancelled_scrape(made, variant, cancellation)
                    await check_nothing_is_left(made, origin, tasks)
                    await check_next_scrape(made, variant)
        await until_closed(before, str(tmp_path / "log"))

    assert run(lambda: count_steps(leave, with_result), loop) >= 4


@pytest.mark.parametrize("name", ["https", "second address", "kept connection"])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_scraper_leaves_at_any_turn_of_the_loop(
    loop: str, name: str, tmp_path: Path, certificate: ssl.SSLContext
) -> None:
    """A handshake is one suspension but many turns of the loop."""
    turns_tried = 25

    async def scenario() -> None:
        async with Origin(hang):
            pass
        for turns in range(turns_tried):
            cancellation = Cancellation(at=1, turns=turns)
            await cancel_one(VARIANTS[name], tmp_path / "log", certificate, cancellation)

    run(scenario, loop)


async def answer_over_a_socket(port: int, path: bytes) -> tuple[int, bytes, bool]:
    """A scrape of a real listener: status (0: none came), body and whether it was ended properly."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %b HTTP/1.1\r\nHost: proxy.test\r\nConnection: close\r\n\r\n" % path)
    scraper = h11.Connection(h11.CLIENT)
    scraper.send(h11.Request(method="GET", target="/", headers=[("Host", "proxy.test")]))
    scraper.send(h11.EndOfMessage())
    status, body, is_complete = 0, bytearray(), False
    with contextlib.suppress(ConnectionError, h11.RemoteProtocolError):
        while not is_complete:
            event = scraper.next_event()
            if event is h11.NEED_DATA:
                scraper.receive_data(await reader.read(16384))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                is_complete = isinstance(event, h11.EndOfMessage)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return status, bytes(body), is_complete


@TIMINGS
@pytest.mark.parametrize("name", ["plain", "chunked", "slow reader", "https", "verified"])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_daemon_stops_waiting_at_any_step(
    loop: str, name: str, with_result: bool, tmp_path: Path, certificate: ssl.SSLContext
) -> None:
    """Over a real connection: the answer is whole, or a 503, or visibly cut."""
    variant = VARIANTS[name]

    async def stop(cancellation: Cancellation) -> None:
        before, tasks = open_descriptors(), asyncio.all_tasks()
        async with scraped(variant, tmp_path / "log", certificate) as (made, origin):

            async def app(scope: Any, receive: Any, send: Any) -> None:
                await cancellation.drive(made.app(scope, receive, send))

            made.front.app = app
            async with made.listening() as listener:
                port = listener.socket.getsockname()[1]
                status, body, is_complete = await answer_over_a_socket(port, made.route.path)
                size = len(body)
                if status == 200 and is_complete:
                    assert size == len(variant.body)
                elif is_complete:
                    assert (status, cancellation.happened) == (503, True)
                else:
                    assert (status, cancellation.happened) == (200, True)
                await check_nothing_is_left(made, origin, tasks)
                made.front.app = made.app  # type: ignore[assignment]  # messages are plain dicts here
                assert (await answer_over_a_socket(port, made.route.path))[::2] == (200, True)
        await until_closed(before, str(tmp_path / "log"))

    assert run(lambda: count_steps(stop, with_result), loop) >= variant.least_steps


@pytest.mark.parametrize("name", ["plain", "https", "second address", "slow reader"])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_scrapers_connection_ends_at_any_turn_of_the_loop(
    loop: str, name: str, tmp_path: Path, certificate: ssl.SSLContext
) -> None:
    """The whole way from a socket that is reset to an exporter that is asked no more."""
    variant = VARIANTS[name]

    async def leave_after(turns: int) -> None:
        before, tasks = open_descriptors(), asyncio.all_tasks()
        async with (
            scraped(variant, tmp_path / "log", certificate) as (made, origin),
            made.listening() as front,
        ):
            port = front.socket.getsockname()[1]
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET %b HTTP/1.1\r\nHost: proxy.test\r\n\r\n" % made.route.path)
            for _ in range(turns):
                await asyncio.sleep(0)
            writer.transport.abort()
            await until(lambda: not made.front.connections, "the connection is gone", GONE_SECONDS)
            await check_nothing_is_left(made, origin, tasks)
            await until(lambda: not made.front.uvicorn_state.tasks, "nothing is being answered")
            assert (await answer_over_a_socket(port, made.route.path))[::2] == (200, True)
        await until_closed(before, str(tmp_path / "log"))

    async def scenario() -> None:
        async with Origin(hang):
            pass
        for turns in range(0, 60, 4):
            await leave_after(turns)

    run(scenario, loop)
