"""One TLS connection to an exporter: only a close_notify makes its end an end, and nothing is lost before."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator

import pytest
import trustme

from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.upstreams.connection import READ_AHEAD_BYTES, UpstreamConnection
from exporter_proxy.upstreams.tls import Tls
from tests.fakes.exporter import CHUNKED, LAST_CHUNK, Action, FakeExporter, chunk, close, end, head, send
from tests.inprocess import LOOPS, run, until

QUESTION = b"GET /metrics HTTP/1.1\r\nHost: exporter\r\n\r\n"
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
PAUSING, FLOWING = READ_AHEAD_BYTES + 150_000, 2_000_000
SIZES = (0, 5, 70_000, PAUSING, FLOWING)
"""Of bodies. With ``PAUSING`` reading has paused when the end comes, with ``FLOWING`` it goes on before."""


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The exporter's and ours."""
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def tls(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], request: pytest.FixtureRequest
) -> Iterator[tuple[ssl.SSLContext, ssl.SSLContext]]:
    contexts[0].maximum_version = request.param
    yield contexts
    contexts[0].maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED


def scrape(
    answer: bytes, last: Action, size: int, tls: tuple[ssl.SSLContext, ssl.SSLContext], loop_name: str
) -> tuple[int, str]:
    """How many bytes come, and why no more: "" for a proper end.

    Nothing is taken before the connection has ended. Where reading is paused it may not: uvloop goes on
    reading beneath TLS, up to a limit of its own.
    """

    async def scenario() -> tuple[int, str]:
        loop = asyncio.get_running_loop()
        with FakeExporter([send(answer), last], tls=tls[0]) as exporter:
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(loop, "exporter:9", Tls(tls[1], "127.0.0.1")),
                exporter.host,
                exporter.port,
                ssl=tls[1],
                server_hostname="127.0.0.1",
            )
            await connection.ask(QUESTION, False)
            stays_open = loop_name == "asyncio" or size == FLOWING
            await until(
                lambda: connection.closed or (stays_open and connection._is_paused), "it has ended or paused"
            )
            n_bytes = 0
            try:
                while (part := await connection.next_chunk()) is not None:
                    n_bytes += len(part)
            except ScrapeError as error:
                assert error.reason is Reason.TRUNCATED
                return n_bytes, error.message
            finally:
                connection.abort()
            return n_bytes, ""

    return run(scenario, loop_name)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", SIZES)
def test_a_body_until_the_proper_end_is_whole(
    size: int, loop: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    assert scrape(head(200) + b"x" * size, end(), size, tls, loop) == (size, "")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", SIZES)
def test_a_body_until_a_cut_is_truncated(
    size: int, loop: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """Anybody on the way can cut a TCP connection: that is what a close_notify is for."""
    came, problem = scrape(head(200) + b"x" * size, close(), size, tls, loop)
    assert came == size
    assert f"closed the connection after {size} body bytes; without TLS's close_notify" in problem


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_with_an_end_of_its_own_needs_no_other(
    framing: str, size: int, loop: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    answer = {
        "length": head(200, [("Content-Length", str(size))]) + b"x" * size,
        "chunks": head(200, [("Transfer-Encoding", CHUNKED)]) + chunk(b"x" * size) * bool(size) + LAST_CHUNK,
    }
    assert scrape(answer[framing], close(), size, tls, loop) == (size, "")


@pytest.mark.parametrize("loop", LOOPS)
def test_what_comes_after_a_body_is_not_of_it(loop: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Not even where body and surplus are found together, after the connection's end."""
    answer = head(200, [("Content-Length", str(PAUSING))]) + b"x" * PAUSING + head(200) * 100
    assert scrape(answer, end(), PAUSING, tls, loop) == (PAUSING, "")
