"""A scraper's bytes, whatever they are and however they are cut: answered or refused, never left hanging."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.front.protocol import ScraperProtocol
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import DENIAL_STATUS
from tests.inprocess import LOOPS, Parts, parts, until

BODY = b"x 1\n"
SHORT_SECONDS = 0.05
"""The front's patience with the rest of a request's headers, and with the next request."""
MAX_HEADER_BYTES = 2048
PATIENT_SECONDS = 20.0
"""The same where only a busy machine could make it run out."""
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
ANSWER = re.compile(rb"HTTP/1\.1 200 OK\r\n(?s:.*?)\r\n\r\n(x 1\n)?(?=HTTP|\Z)")

fuzz = settings(max_examples=60, deadline=None)


@dataclass
class Front:
    """Connections of a front whose application notes what it is asked."""

    runner: asyncio.Runner
    made: Parts
    asked: list[Exchange] = field(default_factory=list)
    denied: list[Exchange] = field(default_factory=list)
    troubles: list[object] = field(default_factory=list)

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.asked.append(scope["exchange"])
        await asyncio.sleep(0)
        scope["exchange"].user_agent = dict(scope["headers"]).get(b"user-agent", b"")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"4")]})
        await send({"type": "http.response.body", "body": BODY})

    def converse(
        self, pieces: Sequence[bytes], is_paced: bool = False, until_answered: int | None = None
    ) -> Conversation:
        """Give the pieces to a connection; read so many answers, or until the front closes it."""
        return self.converse_at_once([pieces], is_paced, until_answered)[0]

    def converse_at_once(
        self,
        conversations: Sequence[Sequence[bytes]],
        is_paced: bool = False,
        until_answered: int | None = None,
    ) -> list[Conversation]:
        async def all_of_them() -> list[Conversation]:
            # However busy the machine is, nobody is late before having been given a word to say.
            self._be_patient_for(PATIENT_SECONDS)
            connected = [await self._connect() for _ in conversations]
            self._be_patient_for(SHORT_SECONDS if until_answered is None else PATIENT_SECONDS)
            return await asyncio.gather(
                *(
                    self._converse(*pair, one, is_paced, until_answered)
                    for pair, one in zip(connected, conversations, strict=True)
                )
            )

        self.asked.clear()
        self.denied.clear()
        result = self.runner.run(all_of_them())
        assert not self.troubles
        assert not self.made.front.connections
        log = Path(self.made.proxy.log.writer.path).read_text()
        assert not log, log
        return result

    def _be_patient_for(self, seconds: float) -> None:
        self.made.front.limits = replace(
            self.made.front.limits, read_header_timeout_seconds=seconds, keep_alive_timeout_seconds=seconds
        )

    async def _connect(self) -> tuple[ScraperProtocol, socket.socket]:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        _, connection = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: ScraperProtocol(self.made.front, None, time.monotonic()), ours
        )
        return connection, theirs

    async def _converse(
        self,
        connection: ScraperProtocol,
        theirs: socket.socket,
        pieces: Sequence[bytes],
        is_paced: bool,
        until_answered: int | None,
    ) -> Conversation:
        loop = asyncio.get_running_loop()
        with theirs:
            for piece in pieces:
                if not connection.transport.is_closing():
                    connection.data_received(piece)
                if is_paced:
                    await asyncio.sleep(0)
            received = b""
            async with asyncio.timeout(10):
                while len(ANSWER.findall(received)) != until_answered:
                    part = await loop.sock_recv(theirs, 65536)
                    if not part:
                        break
                    received += part
        await until(lambda: connection not in self.made.front.connections, "the connection is gone", 10)
        return Conversation(received, [int(status) for status in STATUS.findall(received)])


@dataclass(frozen=True)
class Conversation:
    received: bytes
    statuses: list[int]


@pytest.fixture(scope="module", params=LOOPS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    log = tmp_path_factory.mktemp("front") / "log"
    made = parts(log, {"x": {"url": "http://127.0.0.1:9/"}}, max_header_bytes=MAX_HEADER_BYTES)
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        front = Front(runner, runner.run(made.__aenter__()))
        runner.get_loop().set_exception_handler(lambda _, context: front.troubles.append(context))
        front.made.front.app = front.app  # type: ignore[assignment]  # messages are plain dicts here
        front.made.front.record = front.denied.append
        yield front
        runner.run(made.__aexit__(None, None, None))


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """``data`` in the pieces between these places, none of them empty."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


PLACES = st.lists(st.integers(0, 1 << 20), max_size=6)
PATH = st.text("abz/._~!$&'()*+,;=:@%-", max_size=20).map(lambda text: "/" + text)
QUERY = st.text("abz/?._~!$&'()*+,;=:@%[]{}|^\"-", max_size=20)
VALUE = st.text('abz ,;=*/()"\t-é', max_size=20).map(lambda text: text.encode("latin-1").strip(b" \t"))


@dataclass(frozen=True)
class Sent:
    raw: bytes
    method: str
    path: bytes
    query: bytes
    user_agent: bytes
    stays: bool


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A valid request and what the application should be told of it."""
    method, version = draw(st.sampled_from(["GET", "HEAD"])), draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    path, query, agent = draw(PATH).encode(), draw(QUERY).encode(), draw(VALUE)
    headers = [
        b"Host: proxy.test:9099",
        b"user-AGENT:%b%b" % (draw(st.sampled_from([b"", b" ", b"\t "])), agent),
    ]
    is_closed = draw(st.booleans())
    if is_closed:
        headers.append(b"Connection: close")
    if draw(st.booleans()):
        headers.append(b"Content-Length: 0")
    headers = draw(st.permutations(headers))
    target = path + (b"?" + query if query else b"")
    line = b"%b %b HTTP/%b" % (method.encode(), target, version)
    raw = draw(st.sampled_from([b"", b"\r\n"])) + b"\r\n".join([line, *headers, b"", b""])
    return Sent(raw, method, path, query, agent, version == b"1.1" and not is_closed)


def told(exchange: Exchange) -> tuple[str, bytes, bytes, bytes]:
    return exchange.method, exchange.path, exchange.query, exchange.user_agent


@fuzz
@given(sent=requests(), places=PLACES, is_paced=st.booleans())
def test_a_valid_request_is_one_request_however_it_is_cut(
    front: Front, sent: Sent, places: list[int], is_paced: bool
) -> None:
    conversation = front.converse(cut(sent.raw, places), is_paced, until_answered=1)
    assert conversation.statuses == [200]
    assert conversation.received.endswith(BODY if sent.method == "GET" else b"\r\n\r\n")
    assert (b"Connection: close" in conversation.received) == (not sent.stays)
    assert [told(exchange) for exchange in front.asked] == [
        (sent.method, sent.path, sent.query, sent.user_agent)
    ]
    assert not front.denied


@fuzz
@given(several=st.lists(requests(), min_size=2, max_size=4), places=PLACES, is_paced=st.booleans())
def test_requests_sent_ahead_are_answered_in_order_until_one_closes(
    front: Front, several: list[Sent], places: list[int], is_paced: bool
) -> None:
    raw = b"".join(sent.raw for sent in several)
    stay = [sent.stays for sent in several]
    expected = several[: stay.index(False) + 1] if False in stay else several
    conversation = front.converse(cut(raw, places), is_paced, until_answered=len(expected))
    assert conversation.statuses == [200] * len(expected)
    assert [told(exchange) for exchange in front.asked] == [
        (sent.method, sent.path, sent.query, sent.user_agent) for sent in expected
    ]


EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),
        st.integers(0, 3),
        st.one_of(
            st.binary(max_size=3),
            st.sampled_from(
                [
                    *(b"\r\n", b"\n", b"\r", b" ", b"\0", b":", b"#", b"http://a", b"a" * 2048),
                    *(b"Host: b\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n"),
                    *(b"Upgrade: x\r\n", b"5\r\nhello"),
                ]
            ),
        ),
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    raw = draw(requests()).raw * draw(st.integers(1, 2))
    for place, removed, added in draw(EDITS):
        at = place % (len(raw) + 1)
        raw = raw[:at] + added + raw[at + removed :]
    return raw


ANYTHING = st.one_of(damaged(), damaged(), st.binary(min_size=1, max_size=200))


def check_statuses(front: Front, conversations: Sequence[Conversation]) -> None:
    """Every answer is either the application's or a refusal that was recorded, and the other way round."""
    statuses = sorted(status for conversation in conversations for status in conversation.statuses)
    refusals = [exchange for exchange in front.denied if exchange.message != "no request came"]
    assert len(refusals) == sum(status != 200 for status in statuses)
    for exchange in refusals:
        assert exchange.reason in DENIAL_STATUS
        assert exchange.status in statuses
        assert exchange.message.isprintable()


@settings(max_examples=15, deadline=None)
@given(inputs=st.lists(st.tuples(ANYTHING, PLACES), min_size=8, max_size=16), is_paced=st.booleans())
def test_anything_ends_in_time_and_leaves_no_trouble(
    front: Front, inputs: list[tuple[bytes, list[int]]], is_paced: bool
) -> None:
    started = time.monotonic()
    conversations = front.converse_at_once([cut(raw, places) for raw, places in inputs], is_paced)
    assert time.monotonic() - started < 5
    for conversation in conversations:
        assert set(conversation.statuses) <= {200, 400, 405, 408, 431}
        assert conversation.statuses.count(200) == len(conversation.statuses) or (
            conversation.statuses[-1] != 200 and set(conversation.statuses[:-1]) <= {200}
        ), "something was answered after a refusal"
    check_statuses(front, conversations)


@settings(max_examples=15, deadline=None)
@given(inputs=st.lists(st.tuples(damaged(), PLACES), min_size=8, max_size=16))
def test_a_damaged_request_is_judged_the_same_however_it_is_cut(
    front: Front, inputs: list[tuple[bytes, list[int]]]
) -> None:
    at_once = front.converse_at_once([[raw] for raw, _ in inputs])
    in_pieces = front.converse_at_once([cut(raw, places) for raw, places in inputs])

    for (raw, _), one, other in zip(inputs, at_once, in_pieces, strict=True):
        # Where a method breaks off it cannot be told whether it was one, and what is too large and
        # malformed is refused for what is seen first.
        same = {400, 405, 431} if len(raw) > MAX_HEADER_BYTES else {400, 405}

        def judged(conversation: Conversation, same: Collection[int] = same) -> list[int]:
            return [400 if status in same else status for status in conversation.statuses]

        assert judged(one) == judged(other), raw


def test_garbage_behind_a_request_is_malformed_and_no_unknown_method(front: Front) -> None:
    good = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
    for garbage in (b"\0\1 garbage\r\n\r\n", b"BAD\0 /x HTTP/1.1\r\n\r\n"):
        assert front.converse([good + garbage]).statuses == [200, 400]
        assert front.converse([good, garbage]).statuses == [200, 400]


@pytest.mark.parametrize(
    "protocol", [b"RTSP/1.0", b"ICE/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTPS/1.1"]
)
def test_another_protocol_is_no_request(front: Front, protocol: bytes) -> None:
    assert front.converse([b"GET /x %b\r\nHost: a\r\n\r\n" % protocol]).statuses == [400]
    assert not front.asked
