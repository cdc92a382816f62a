"""The transport to an exporter: which connections are kept and used again, and what goes out on them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx
import pytest
import yaml

from exporter_proxy.config import Exporter, parse_config
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.upstreams import ScrapeRequest, make_upstream
from exporter_proxy.upstreams import http as upstream_http
from exporter_proxy.upstreams.credentials import Credentials
from exporter_proxy.upstreams.http import HttpUpstream
from tests.fakes.origin import Answer, Origin, Visit, chunked, response, say, say_and_close
from tests.inprocess import LOOPS, run, until

PAGE = b"x 1\n"


def exporter_at(url: str, **options: str) -> Exporter:
    text = yaml.safe_dump({"exporters": {"x": {"url": url, **options}}})
    return parse_config(text.encode(), "config.yml").exporters[0]


@contextlib.asynccontextmanager
async def upstream_of(*answers: Answer, **options: str) -> AsyncIterator[tuple[HttpUpstream, Origin]]:
    async with Origin(*answers) as origin:
        upstream = make_upstream(exporter_at(origin.url(), **options), None, Credentials())
        assert isinstance(upstream, HttpUpstream)
        try:
            yield upstream, origin
        finally:
            await upstream.aclose()


def question(origin: Origin, method: str = "GET", target: bytes = b"/metrics") -> ScrapeRequest:
    headers = [(b"Host", b"exporter.test"), (b"Accept", b"text/plain")]
    exchange = Exchange("127.0.0.1", method, b"/x/metrics", b"", time.monotonic())
    return ScrapeRequest(method, httpx.URL(origin.url()), target, headers, exchange)


async def ask(upstream: httpx.AsyncBaseTransport, request: httpx.Request) -> tuple[int, bytes]:
    """Ask, read to the end and give the connection back, as a scrape does."""
    answer = await upstream.handle_async_request(request)
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    try:
        return answer.status_code, b"".join([part async for part in answer.stream])
    finally:
        await answer.aclose()


async def asked_times(count: int, *answers: Answer, method: str = "GET") -> list[int]:
    """Ask ``count`` times one after the other; the requests on each connection."""
    async with upstream_of(*answers) as (upstream, origin):
        for _ in range(count):
            status, body = await ask(upstream, question(origin, method))
            assert (status, body) == (200, PAGE if method == "GET" else b"")
        return [len(visit.requests) for visit in origin.visits]


REUSED = {
    "length": say(response(PAGE)),
    "chunked": say(chunked(PAGE)),
    "in pieces": say(response(PAGE)[:20], response(PAGE)[20:]),
}


@pytest.mark.parametrize("case", REUSED)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_is_used_again(loop: str, case: str) -> None:
    assert run(lambda: asked_times(4, REUSED[case]), loop) == [4]


SPENT = {
    "closed": say_and_close(response(PAGE)),
    "Connection: close": say(response(PAGE, b"Connection: close")),
    "until closed": say_and_close(b"HTTP/1.1 200 OK\r\n\r\n" + PAGE),
    "more than asked": say(response(PAGE) + b"x"),
    "a second response": say(response(PAGE) + response(b"bad 1\n")),
}


@pytest.mark.parametrize("case", SPENT)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_spent_connection_is_not_used_again(loop: str, case: str) -> None:
    assert run(lambda: asked_times(3, SPENT[case]), loop) == [1, 1, 1]


def test_a_head_spends_the_connection() -> None:
    """An exporter that sends a body all the same must not have it taken for the next answer."""
    assert run(lambda: asked_times(2, say(response(PAGE)), method="HEAD")) == [1, 1]


def test_concurrent_scrapes_have_a_connection_each_and_leave_them_for_later() -> None:
    async def scenario() -> list[int]:
        async with upstream_of(say(response(PAGE))) as (upstream, origin):
            for _ in range(2):
                await asyncio.gather(*(ask(upstream, question(origin)) for _ in range(5)))
            return [len(visit.requests) for visit in origin.visits]

    assert run(scenario) == [2] * 5


@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_closed_meanwhile_is_replaced(loop: str) -> None:
    """The exporter closes kept connections when the second scrape comes, as at a restart; one retry each."""

    async def close_unanswered(visit: Visit) -> None:
        visit.close()

    async def scenario() -> list[int]:
        answers = say(response(PAGE)), close_unanswered, say(response(PAGE))
        async with upstream_of(*answers) as (upstream, origin):
            for _ in range(3):
                assert await ask(upstream, question(origin)) == (200, PAGE)
            return [len(visit.requests) for visit in origin.visits]

    assert run(scenario, loop) == [2, 2]


def test_a_fresh_connection_that_fails_is_not_retried() -> None:
    async def close_unanswered(visit: Visit) -> None:
        visit.close()

    async def scenario() -> None:
        async with upstream_of(close_unanswered) as (upstream, origin):
            with pytest.raises(ScrapeError) as caught:
                await ask(upstream, question(origin))
            assert caught.value.reason is Reason.CONNECT
            assert len(origin.requests) == 1

    run(scenario)


def test_several_stale_connections_cost_one_retry() -> None:
    """However many are kept, what follows a failed one is a fresh one."""
    kept = 4

    async def close_unanswered(visit: Visit) -> None:
        visit.close()

    async def scenario() -> None:
        answers = [say(response(PAGE))] * kept
        async with upstream_of(*answers, close_unanswered) as (upstream, origin):
            await asyncio.gather(*(ask(upstream, question(origin)) for _ in range(kept)))
            with pytest.raises(ScrapeError) as caught:
                await ask(upstream, question(origin))
            assert caught.value.reason is Reason.CONNECT
            assert len(origin.requests) == kept + 2

    run(scenario)


@pytest.mark.parametrize(
    "begun", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n", b"garbage\r\n"]
)
def test_no_retry_once_an_answer_has_begun(begun: bytes) -> None:
    async def scenario() -> None:
        async with upstream_of(say(response(PAGE)), say_and_close(begun), say(response(PAGE))) as (
            upstream,
            origin,
        ):
            assert await ask(upstream, question(origin)) == (200, PAGE)
            with pytest.raises(ScrapeError) as caught:
                await ask(upstream, question(origin))
            assert caught.value.reason is Reason.PROTOCOL
            assert len(origin.requests) == 2

    run(scenario)


@pytest.mark.parametrize("status", [b"302 Found", b"500 Oops"])
@pytest.mark.parametrize("loop", LOOPS)
def test_an_answer_that_nobody_reads_does_not_reach_the_next_scrape(loop: str, status: bytes) -> None:
    """As where a redirect is refused, or the scraper leaves: its body stays unread."""

    async def scenario() -> None:
        unread = response(b"secret 1\n" * 50, status=status)
        async with upstream_of(say(unread), say(response(PAGE))) as (upstream, origin):
            answer = await upstream.handle_async_request(question(origin))
            await asyncio.sleep(0)
            await answer.aclose()
            assert await ask(upstream, question(origin)) == (200, PAGE)

    run(scenario, loop)


@pytest.mark.parametrize("is_kept", [False, True], ids=["fresh", "kept"])
def test_a_connection_that_speaks_nonsense_is_closed(is_kept: bool) -> None:
    """The exporter leaves it open; it is of no use to anyone."""

    async def scenario() -> None:
        answers = [say(response(PAGE))] * is_kept + [say(b"garbage\r\n")]
        async with upstream_of(*answers) as (upstream, origin):
            if is_kept:
                await ask(upstream, question(origin))
            with pytest.raises(ScrapeError) as caught:
                await ask(upstream, question(origin))
            assert caught.value.reason is Reason.PROTOCOL
            await until(lambda: not origin.tasks, "it is closed", 1.0)

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        say(response(b"x" * 2000)),
        say(response(length=1 << 62)),
        say(chunked(b"x" * 1000, b"x" * 25, end=b"")),
        say_and_close(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1025),
    ],
    ids=["announced", "announced, never sent", "chunked", "until closed"],
)
def test_a_body_over_the_limit(answer: Answer) -> None:
    """The connection goes with it, whatever of the body is still on its way."""

    async def scenario() -> None:
        async with upstream_of(answer, max_response_bytes="1KiB") as (upstream, origin):
            with pytest.raises(ScrapeError) as caught:
                await ask(upstream, question(origin))
            assert caught.value.reason is Reason.TOO_LARGE
            await until(lambda: not origin.tasks, "it is closed", 1.0)

    run(scenario)


def test_a_body_of_just_the_limit_and_a_head_of_more() -> None:
    async def scenario() -> None:
        full = b"x" * 1024
        async with upstream_of(say(response(full)), say(chunked(full)), max_response_bytes="1KiB") as (
            upstream,
            origin,
        ):
            assert await ask(upstream, question(origin)) == (200, full)
            assert await ask(upstream, question(origin)) == (200, full)
        async with upstream_of(say(response(length=5000)), max_response_bytes="1KiB") as (upstream, origin):
            assert await ask(upstream, question(origin, "HEAD")) == (200, b"")

    run(scenario)


def test_a_response_given_up_half_way_closes_its_connection() -> None:
    async def scenario() -> None:
        async with upstream_of(say(response(PAGE, length=100))) as (upstream, origin):
            answer = await upstream.handle_async_request(question(origin))
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            assert await anext(aiter(answer.stream)) == PAGE
            await answer.aclose()
            await until(origin.visits[0].ended.is_set, "the exporter sees the close", 1.0)

    run(scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_idle_connections_expire(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest idle first; one that is used in between starts anew."""
    monkeypatch.setattr(upstream_http, "KEEP_IDLE_SECONDS", 2.0)

    async def scenario() -> None:
        async with upstream_of(say(response(PAGE))) as (upstream, origin):
            await asyncio.gather(ask(upstream, question(origin)), ask(upstream, question(origin)))
            await asyncio.sleep(1.0)
            used_at = time.monotonic()
            await ask(upstream, question(origin))
            left, used = sorted(origin.visits, key=lambda visit: len(visit.requests))
            await until(left.ended.is_set, "the unused one expires", 15)
            assert time.monotonic() - used_at < 2.0
            assert not used.ended.is_set()
            await until(used.ended.is_set, "the used one expires", 15)
            assert time.monotonic() - used_at >= 2.0
            assert await ask(upstream, question(origin)) == (200, PAGE)
            assert len(origin.visits) == 3

    run(scenario, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_aclose_retires_idle_connections_now_and_used_ones_when_they_come_back(loop: str) -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()

        async def two_parts(visit: Visit) -> None:
            await visit.send(response(PAGE * 2)[: -len(PAGE)])
            await go_on.wait()
            await visit.send(PAGE)

        async with upstream_of(say(response(PAGE)), two_parts) as (upstream, origin):
            both = await asyncio.gather(
                upstream.handle_async_request(question(origin)),
                upstream.handle_async_request(question(origin)),
            )
            used = next(answer for answer in both if answer.headers["content-length"] == "8")
            idle = next(answer for answer in both if answer is not used)
            assert isinstance(idle.stream, httpx.AsyncByteStream)
            assert [part async for part in idle.stream] == [PAGE]
            await idle.aclose()
            await upstream.aclose()
            await until(lambda: len(origin.tasks) == 1, "the idle one is closed")
            go_on.set()
            assert isinstance(used.stream, httpx.AsyncByteStream)
            assert b"".join([part async for part in used.stream]) == PAGE * 2
            assert origin.tasks
            await used.aclose()
            await until(lambda: not origin.tasks, "the other one is closed as well")

    run(scenario, loop)


# httpx's interface, from both sides


def test_the_request_goes_out_as_it_is_given() -> None:
    target = b"/metrics?collect[]=cpu&collect[]=a&x=%zz;b"

    async def scenario() -> bytes:
        async with upstream_of(say(response(PAGE))) as (upstream, origin):
            await ask(upstream, question(origin, target=target))
            return origin.requests[0]

    assert (
        run(scenario) == b"GET " + target + b" HTTP/1.1\r\nHost: exporter.test\r\nAccept: text/plain\r\n\r\n"
    )


def test_an_ordinary_httpx_request_passes_too() -> None:
    async def scenario() -> bytes:
        async with upstream_of(say(response(PAGE))) as (upstream, origin):
            request = httpx.Request("GET", origin.url() + "?a=1&b=%20", headers={"X-Own": "y"})
            assert await ask(upstream, request) == (200, PAGE)
            wanted = (
                b"GET /metrics?a=1&b=%%20 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nX-Own: y\r\n\r\n" % origin.port
            )
            assert origin.requests == [wanted]
            async with httpx.AsyncClient(transport=upstream) as client:
                answer = await client.get(origin.url(), headers={"Accept-Encoding": "identity"})
            assert (answer.status_code, answer.content) == (200, PAGE)
            return origin.requests[1]

    assert run(scenario).startswith(b"GET /metrics HTTP/1.1\r\n")


def test_httpx_own_transport_takes_a_scrape_request() -> None:
    target = b"/metrics?collect[]=cpu&x=%zz;b"

    async def scenario() -> bytes:
        async with Origin(say(response(PAGE))) as origin, httpx.AsyncHTTPTransport() as transport:
            assert await ask(transport, question(origin, target=target)) == (200, PAGE)
            return origin.requests[0]

    assert (
        run(scenario) == b"GET " + target + b" HTTP/1.1\r\nHost: exporter.test\r\nAccept: text/plain\r\n\r\n"
    )


def test_a_scrape_request_has_every_attribute_of_an_httpx_request() -> None:
    """``ScrapeRequest`` does not call ``httpx.Request.__init__``: what that sets is pinned here."""
    scrape = ScrapeRequest("GET", httpx.URL("http://h/"), b"/", [], Exchange("", "GET", b"", b"", 0.0))
    missing = {name for name in vars(httpx.Request("GET", "http://h/")) if not hasattr(scrape, name)}
    assert missing <= {"_content"}, f"httpx.Request of {httpx.__version__} sets {missing} as well"
    assert scrape.headers == httpx.Headers()
    assert repr(scrape) == "<ScrapeRequest('GET', 'http://h/')>"
