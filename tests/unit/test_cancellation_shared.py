"""Scrapes that share an answer, files and commands: whoever leaves, at whichever step, leaves nothing behind.

What asks the exporter is a task of its own there, which the others may still want. Those who stay get
their answer, and once nobody waits any more, slot, bytes, connection, process and pipes are given back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from exporter_proxy.reasons import Reason
from exporter_proxy.upstreams import command
from tests.cancelling import GONE_SECONDS, TIMINGS, Cancellation, count_steps, until_closed
from tests.fakes.origin import Answer, Origin, hang, response, say, say_and_close
from tests.inprocess import LOOPS, Answered, Parts, open_descriptors, parts, run, until

PAGE = b"# TYPE x gauge\nx 1\n"
BIG = b"x_total 12345678\n" * 3_000
MUCH = b"".join(b"a_%d 1\n" % number for number in range(1, 3001))


@dataclass(frozen=True)
class Shared:
    """What three scrapes at once ask for."""

    answer: Answer | None = None
    """Of an exporter over HTTP."""
    entry: dict[str, Any] = field(default_factory=dict)
    """The exporter's entry; "DIR" in it is the test's directory, with two files."""
    body: bytes = PAGE
    status: int = 200


def shell(script: str) -> dict[str, Any]:
    return {"command": ["/bin/sh", "-c", script]}


CASES = {
    "http": Shared(say(response(PAGE)[:9], response(PAGE)[9:]), {"share_for": "1ms"}),
    "too large": Shared(say(response(BIG)), {"share_for": "1ms", "share_max_bytes": "1KiB"}, BIG),
    "too large, one slot": Shared(
        say(response(BIG)), {"share_for": "1ms", "share_max_bytes": "1KiB", "max_concurrent": 1}, BIG
    ),
    "fails": Shared(say_and_close(response(PAGE, length=99)), {"share_for": "1ms"}, b"", 502),
    "file": Shared(None, {"file": "DIR/a.prom"}, b"a 1\n"),
    "files": Shared(None, {"file": "DIR/*.prom", "verify": True}, b"a 1\nb 2\n"),
    "no file": Shared(None, {"file": "DIR/none.prom"}, b"", 502),
    "command": Shared(None, shell("echo a 1; echo b 2"), b"a 1\nb 2\n"),
    "slow command": Shared(None, shell("echo a 1; sleep 0.01; echo b 2"), b"a 1\nb 2\n"),
    "command that prints much": Shared(
        None, {**shell("seq -f 'a_%g 1' 3000"), "share_max_bytes": "1KiB"}, MUCH
    ),
    "command that fails": Shared(None, shell("echo no >&2; exit 3"), b"", 502),
    "no such command": Shared(None, {"command": ["/bin/sh"], "working_dir": "DIR/gone"}, b"", 502),
}
WHO = {"first": (0,), "follower": (1,), "first and last": (0, 2), "all": (0, 1, 2)}


def children() -> set[int]:
    """Of this process, zombies included."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(status.parent.name))
    return found


def filled(entry: Any, directory: Path) -> Any:
    if isinstance(entry, str):
        return entry.replace("DIR", str(directory))
    return (
        {key: filled(value, directory) for key, value in entry.items()} if isinstance(entry, dict) else entry
    )


@asynccontextmanager
async def exporting(case: Shared, directory: Path) -> AsyncIterator[Parts]:
    """The case's exporter; afterwards no task, descriptor or process of it is left."""
    descriptors, tasks, processes = open_descriptors(), asyncio.all_tasks(), children()
    (directory / "gone").mkdir(exist_ok=True)
    for name, content in {"a": "a 1\n", "b": "b 2\n"}.items():
        (directory / f"{name}.prom").write_text(content)
    async with Origin(case.answer or hang) as origin:
        entry = filled(case.entry, directory)
        if case.answer is not None:
            entry["url"] = origin.url()
        async with parts(directory / "log", {"x": {"timeout": "20s", **entry}}) as made:
            (directory / "gone").rmdir()
            yield made
            if made.route.shares is not None:
                await until(lambda: not made.route.shares._flights, "nothing is kept or in flight")  # type: ignore[union-attr]
                assert (made.route.shares._in_use_bytes, made.route.shares._kept_bytes) == (0, 0)
            assert made.route.record.in_flight == 0
            assert made.route.slots.free == made.route.exporter.max_concurrent
    await until(lambda: asyncio.all_tasks() == tasks, "no task is left", GONE_SECONDS)
    await until(lambda: children() <= processes, "no process is left", command.STOP_SECONDS)
    await until_closed(descriptors, str(directory / "log"))


def check_answer(answered: Answered, case: Shared) -> None:
    assert answered.is_complete
    assert answered.status == case.status
    if case.status == 200:
        body = answered.body
        assert len(body) == len(case.body)
        is_same = body == case.body
        assert is_same


async def three_scrapes(made: Parts, case: Shared, who: tuple[int, ...], cancellation: Cancellation) -> None:
    """Three at once, of which some leave; then one more."""
    leaving = {who[0]: cancellation}
    for other in who[1:]:
        leaving[other] = Cancellation(cancellation.at, cancellation.with_result, cancellation.turns)
    scrapes: list[tuple[Answered, asyncio.Task[Any]]] = []
    for number in range(3):
        answered = made.request()
        scrape: Any = made.scrape(answered)
        if number in leaving:
            answered.exchange.client_gone = True
            scrape = leaving[number].drive(scrape)
        scrapes.append((answered, asyncio.ensure_future(scrape)))
    await asyncio.wait([task for _, task in scrapes])
    for number, (answered, task) in enumerate(scrapes):
        assert task.exception() is None
        if number not in leaving or answered.is_complete:
            check_answer(answered, case)
        else:
            assert answered.exchange.reason is Reason.CLIENT_GONE
    answered = made.request()
    await made.scrape(answered)
    check_answer(answered, case)
    assert sum(made.route.record.scrapes_by_code.values()) == 4


@TIMINGS
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loop", LOOPS)
def test_some_of_three_leave_at_any_step(
    loop: str, name: str, who: str, with_result: bool, tmp_path: Path
) -> None:
    async def scenario(cancellation: Cancellation) -> None:
        async with exporting(CASES[name], tmp_path) as made:
            await three_scrapes(made, CASES[name], WHO[who], cancellation)

    assert run(lambda: count_steps(scenario, with_result), loop) >= 1


@pytest.mark.parametrize("who", ["first", "all"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loop", LOOPS)
def test_some_of_three_leave_at_any_turn_of_the_loop(loop: str, name: str, who: str, tmp_path: Path) -> None:
    """Wherever the task is that asks on behalf of them."""

    async def scenario() -> None:
        async with Origin(hang):
            pass
        for turns in range(0, 24, 2):
            async with exporting(CASES[name], tmp_path) as made:
                await three_scrapes(made, CASES[name], WHO[who], Cancellation(1, turns=turns))

    run(scenario, loop)


async def ask(transport: httpx.AsyncBaseTransport, method: str = "GET") -> bytes:
    response = await transport.handle_async_request(httpx.Request(method, "http://localhost/"))
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        return b"".join([part async for part in response.stream])
    finally:
        await response.aclose()


@TIMINGS
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", ["file", "files", "command", "slow command", "command that prints much"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_question_to_files_and_commands_ends_at_any_step(
    loop: str, name: str, method: str, with_result: bool, tmp_path: Path
) -> None:
    """The transport by itself: every step of it is the cancelled task's own."""
    case = CASES[name]

    async def scenario(cancellation: Cancellation) -> None:
        async with exporting(case, tmp_path) as made:
            transport = made.route.transport
            task = asyncio.ensure_future(cancellation.drive(ask(transport, method)))
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
            assert len(await ask(transport)) == len(case.body)

    assert run(lambda: count_steps(scenario, with_result), loop) >= 1
