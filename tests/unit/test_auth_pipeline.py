"""The guard's place in the pipeline: what comes before it and after, and scrapers that leave meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from exporter_proxy.config.schema import RateLimit
from exporter_proxy.front.auth import Guard
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.pages import PAGES
from exporter_proxy.reasons import Reason
from tests.fakes.hashing import Hashing
from tests.fakes.origin import Origin, response, say
from tests.inprocess import LOOPS, Answered, Parts, parts, run, until
from tests.unit.test_auth import USERS, Pair, basic, config, guard_of


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    (tmp_path / "tokens").write_text("t0ken-1\n")
    return tmp_path / "tokens"


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashing]:
    observed = Hashing()
    monkeypatch.setattr(bcrypt, "checkpw", observed)
    yield observed
    observed.free.set()


@asynccontextmanager
async def site(tmp_path: Path, guard: Guard, **top: Any) -> AsyncIterator[Parts]:
    """One exporter ``a`` behind the application, and this guard before it."""
    async with (
        Origin(say(response(b"x 1\n"))) as origin,
        parts(tmp_path / "log", {"a": {"url": origin.url()}}, **top) as made,
    ):
        made.proxy.running = replace(made.proxy.running, guard=guard)
        yield made


async def ask(made: Parts, path: str, *headers: Pair, method: str = "GET") -> tuple[int, str]:
    """Status and reason."""
    exchange = Exchange("127.0.0.1", method, path.encode(), b"", time.monotonic())
    answered = await made.scrape(Answered(exchange), headers)
    return answered.status, (answered.header(b"x-exporter-proxy-error") or b"").decode()


RIGHT = (b"authorization", b"Bearer t0ken-1")
WRONG = (b"authorization", b"Bearer t0ken-3")


def test_the_order_is_address_rate_credentials_route_method(tmp_path: Path, tokens: Path) -> None:
    async def scenario() -> None:
        guard = guard_of(config(tokens, limit=RateLimit(3600.0, 6)))
        async with site(tmp_path, guard) as made:
            everyone = made.proxy.running
            nobody = replace(everyone.config, allow_clients=(ip_network("10.0.0.0/8"),))
            made.proxy.running = replace(everyone, config=nobody)
            for _ in range(9):
                assert await ask(made, "/-/healthy", WRONG) == (403, "forbidden")
            made.proxy.running = everyone
            assert await ask(made, "/nowhere", WRONG) == (401, "unauthorized")
            assert await ask(made, "/a/metrics", WRONG, method="POST") == (401, "unauthorized")
            assert await ask(made, "/nowhere", RIGHT, method="POST") == (404, "not_found")
            assert await ask(made, "/a/metrics", RIGHT, method="POST") == (405, "method")
            assert await ask(made, "/-/healthy") == (200, "")
            assert await ask(made, "/a/metrics", RIGHT) == (200, "")
            for headers in ((), (WRONG,), (RIGHT,)):
                assert await ask(made, "/a/metrics", *headers) == (429, "rate_limited")
                assert await ask(made, "/-/healthy", *headers) == (429, "rate_limited")
            denied = {reason.value: count for reason, count in made.proxy.denied.items() if count}
            assert denied == {
                "forbidden": 9,
                "unauthorized": 2,
                "not_found": 1,
                "method": 1,
                "rate_limited": 6,
            }

    run(scenario)


@pytest.mark.parametrize("prefix", ["", "/vm"])
def test_only_the_probes_need_no_credentials(tmp_path: Path, tokens: Path, prefix: str) -> None:
    async def scenario() -> None:
        async with site(tmp_path, guard_of(config(tokens)), route_prefix=prefix or "/") as made:
            for path in PAGES:
                expected = 200 if path in ("/-/healthy", "/-/ready") else 401
                assert (await ask(made, prefix + path))[0] == expected, path
                assert (await ask(made, prefix + path, RIGHT))[0] != 401, path
            for path in ("/-/healthy/", "/-/Healthy", "//-/healthy", "/-/healthy/../..", "/-/ready%20"):
                assert (await ask(made, prefix + path))[0] == 401, path
            if prefix:
                assert (await ask(made, "/-/healthy"))[0] == 401

    run(scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_scraper_that_leaves_while_its_password_waits(loop: str, tmp_path: Path, hashing: Hashing) -> None:
    async def scenario() -> None:
        async with site(tmp_path, guard_of(config(users=USERS))) as made, made.listening() as listener:
            hashing.free.clear()
            tasks = made.front.uvicorn_state.tasks
            host, port = listener.address.split(":")
            for password in (b"held", b"waiting"):
                _, writer = await asyncio.open_connection(host, int(port))
                header = b": ".join(basic(b"ann:" + password))
                writer.write(b"GET /a/metrics HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\n")
                await until(lambda: bool(hashing.begun), "the first is being hashed")
                await until(lambda: len(tasks) == 1, "the request came")
                await asyncio.sleep(0)
                writer.close()
                await until(lambda: not made.front.connections, "it left")
            await until(lambda: made.proxy.denied[Reason.CLIENT_GONE] == 2, "both were recorded")
            hashing.free.set()
            assert await ask(made, "/a/metrics", basic(b"ann:of ann")) == (200, "")
            assert hashing.begun == [b"held", b"of ann"]
            assert sum(made.proxy.denied.values()) == 2

    run(scenario, loop)


def test_a_stop_does_not_wait_for_passwords(tmp_path: Path, hashing: Hashing) -> None:
    async def scenario() -> None:
        async with site(tmp_path, guard_of(config(users=USERS))) as made:
            hashing.free.clear()
            asking = asyncio.create_task(ask(made, "/a/metrics", basic(b"ann:of ann")))
            await until(lambda: bool(hashing.begun), "it is being hashed")
            asking.cancel()
            assert await asking == (503, "draining")

    run(scenario)
