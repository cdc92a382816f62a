"""An exporter's bytes through the whole of it, front to back: what a scraper is told is complete, is.

h11 reads what the exporter sent and what the scraper got; it knows nothing of this program.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fakes.origin import Origin, Visit
from tests.inprocess import LOOPS, Parts, parts
from tests.properties.test_upstream_response_fuzz import MUTATIONS, PLACES, cut, responses

fuzz = settings(max_examples=60, deadline=None)
PATHS = ("plain", "shared", "verified")
MALFORMED, CUT, NOTHING = -1, -2, -3

LINES = st.lists(
    st.sampled_from(
        [
            *(b"Age: 5", b"Age: 99999999999", b"Age: " + b"9" * 5000, b"age: -1", b"Age: 5, 6", b"aGe:"),
            *(b"Connection: close", b"Connection: x-a, content-type", b"Connection: content-length"),
            *(b"X-A: 1", b"X-A: 2", b"Set-Cookie: a=b", b"Keep-Alive: timeout=5", b"Trailer: X-Sum"),
            *(
                b"Content-Encoding: gzip",
                b"Content-Type: text/plain",
                b"Content-Type: application/openmetrics-text",
            ),
            *(
                b"X-Exporter-Proxy-Error: connect",
                b"Upgrade: h2c",
                b"Date: today",
                b"X-B: caf\xe9",
                b"Location: /",
            ),
        ]
    ),
    max_size=4,
)


@dataclass(frozen=True)
class Got:
    """What h11 makes of some bytes after which the connection closes: a status, or one of those above."""

    status: int
    body: bytes = b""
    error: bytes = b""
    header_names: tuple[bytes, ...] = ()


def read(raw: bytes, method: str) -> Got:
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    if not raw:
        return Got(NOTHING)
    parser.receive_data(raw)
    parser.receive_data(b"")
    status, body, headers = NOTHING, b"", []
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Response):
                status, headers = event.status_code, list(event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                error = dict(headers).get(b"x-exporter-proxy-error", b"")
                return Got(status, body, error, tuple(name for name, _ in headers))
            elif not isinstance(event, h11.InformationalResponse):
                return Got(CUT if status != NOTHING else NOTHING, body)
    except h11.RemoteProtocolError:
        return Got(MALFORMED if status == NOTHING else CUT, body)


@dataclass
class Through:
    """The program between an exporter that says what a test wants and a scraper that reads it."""

    runner: asyncio.Runner
    made: Parts
    origin: Origin
    port: int
    log: Path
    pieces: Sequence[bytes] = ()
    count: Iterator[int] = field(default_factory=itertools.count)

    def scrape(self, pieces: Sequence[bytes], path: str, method: str, times: int = 1) -> list[bytes]:
        """All that a scraper gets, each time; the exporter sends the pieces and closes."""
        self.pieces = pieces
        return self.runner.run(self._scrape(f"/{path}/metrics?n={next(self.count)}", method, times))

    async def _scrape(self, target: str, method: str, times: int) -> list[bytes]:
        got = []
        for _ in range(times):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
            writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            async with asyncio.timeout(20):
                try:
                    got.append(await reader.read(-1))
                except ConnectionError:
                    got.append(b"")
            writer.close()
        assert not self.log.read_text().count("defect")
        return got

    async def answer(self, visit: Visit) -> None:
        for piece in self.pieces:
            await visit.send(piece)
            if len(self.pieces) > 1:
                await asyncio.sleep(0)
        visit.close()


@pytest.fixture(scope="module", params=LOOPS)
def through(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Through]:
    log = tmp_path_factory.mktemp("relay") / "log"
    answers: list[Any] = []

    async def answer(visit: Visit) -> None:
        await answers[0](visit)

    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        origin = runner.run(Origin(answer).__aenter__())
        url = origin.url()
        exporters = {
            "plain": {"url": url},
            "shared": {"url": url, "share_for": "1m"},
            "verified": {"url": url, "verify": True},
        }
        context = parts(log, exporters)
        made = runner.run(context.__aenter__())
        listening = made.listening()
        listener = runner.run(listening.__aenter__())
        through = Through(runner, made, origin, int(listener.address.rpartition(":")[2]), log)
        answers.append(through.answer)
        yield through
        runner.run(listening.__aexit__(None, None, None))
        runner.run(context.__aexit__(None, None, None))
        runner.run(origin.__aexit__(None, None, None))


def with_lines(raw: bytes, lines: list[bytes]) -> bytes:
    """The final response's head with these lines at its end."""
    start = raw.rindex(b"HTTP/1.1 ") if raw.startswith(b"HTTP/1.1 1") else 0
    at = raw.index(b"\r\n\r\n", start) + 2
    return raw[:at] + b"".join(line + b"\r\n" for line in lines) + raw[at:]


@fuzz
@given(response=responses(), lines=LINES, places=PLACES, path=st.sampled_from(PATHS[:2]))
def test_a_valid_answer_arrives_as_it_was_sent(
    through: Through, response: tuple[bytes, int, bytes], lines: list[bytes], places: list[int], path: str
) -> None:
    raw, status, body = response
    raw = with_lines(raw, lines)
    for got in through.scrape(cut(raw, places), path, "GET", times=2):
        reply = read(got, "GET")
        assert (reply.status, reply.body) == (status, body)
        assert reply.error == (b"" if status == 200 else b"upstream_status")
        assert not {b"set-cookie", b"keep-alive", b"trailer", b"upgrade"} & set(reply.header_names)
        assert reply.header_names.count(b"age") <= max(1, raw.lower().count(b"\r\nage:"))


@fuzz
@given(
    response=responses(),
    lines=LINES,
    mutations=MUTATIONS,
    places=PLACES,
    path=st.sampled_from(PATHS),
    method=st.sampled_from(["GET", "GET", "HEAD"]),
)
@example(  # a framing of its own, which the exporter's Connection line names
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc"),
    [b"Connection: content-length"],
    [],
    [],
    "plain",
    "GET",
)
def test_what_is_told_to_be_complete_is_complete_to_another_reader(
    through: Through,
    response: tuple[bytes, int, bytes],
    lines: list[bytes],
    mutations: list[tuple[int, int, bytes]],
    places: list[int],
    path: str,
    method: str,
) -> None:
    raw = with_lines(response[0], lines)
    for place, removed, added in mutations:
        at = place % (len(raw) + 1)
        raw = raw[:at] + added + raw[at + removed :]
    sent = read(raw, method)
    for got in through.scrape(cut(raw, places), path, method, times=2 if path == "shared" else 1):
        reply = read(got, method)
        assert reply.status != MALFORMED, got
        if reply.status > 0 and reply.error in (b"", b"upstream_status"):
            if sent.status > 0:  # else it is one that llhttp reads and h11 does not, or the other way round
                assert (reply.status, reply.body) == (sent.status, sent.body)
            assert sent.status != CUT, (raw, got)
        elif reply.status > 0:
            assert reply.status in (502, 504)
            assert method == "HEAD" or reply.body.decode().strip().isprintable()


@fuzz
@given(raw=st.binary(max_size=200), places=PLACES, path=st.sampled_from(PATHS))
def test_arbitrary_bytes_are_a_502(through: Through, raw: bytes, places: list[int], path: str) -> None:
    (got,) = through.scrape(cut(raw, places), path, "GET")
    reply = read(got, "GET")
    assert (reply.status, reply.error) in ((502, b"protocol"), (502, b"connect"))
