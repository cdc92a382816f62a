"""An exporter's bytes, whatever they are and however they are cut, give one outcome and no surprise."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.upstreams.connection import UpstreamConnection

QUESTION = b"GET / HTTP/1.1\r\nHost: exporter\r\n\r\n"
REASONS = {Reason.CONNECT, Reason.PROTOCOL, Reason.TOO_LARGE, Reason.TRUNCATED}

fuzz = settings(max_examples=150, deadline=None)
Run = Callable[[Sequence[bytes], bool], "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a scrape gets of an answer. ``reason`` is where it ends before its proper end."""

    reason: Reason | None
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@pytest.fixture(scope="module")
def outcome_of() -> Iterator[Run]:
    """Gives the pieces to a connection, then the end of the connection; says what came of it."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        yield lambda pieces, is_head: runner.run(_outcome(pieces, is_head))


async def _outcome(pieces: Sequence[bytes], is_head: bool) -> Outcome:
    loop = asyncio.get_running_loop()
    troubles: list[object] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    ours, theirs = socket.socketpair()
    _, connection = await loop.create_connection(lambda: UpstreamConnection(loop, "exporter:9"), sock=ours)
    reading = asyncio.ensure_future(_read(connection, is_head))
    await asyncio.sleep(0)
    assert theirs.recv(4096) == QUESTION
    for piece in pieces:
        if not connection.closed:
            connection.data_received(piece)
    theirs.close()
    async with asyncio.timeout(30):
        outcome = await reading
    connection.abort()
    await asyncio.sleep(0)
    assert connection.closed
    assert not connection.is_reusable
    assert not troubles
    return outcome


async def _read(connection: UpstreamConnection, is_head: bool) -> Outcome:
    body = b""
    try:
        await connection.ask(QUESTION, is_head)
        while (part := await connection.next_chunk()) is not None:
            assert part, "an empty part"
            body += part
    except ScrapeError as error:
        assert error.reason in REASONS
        assert "exporter:9" in error.message
        assert error.message.isprintable()
        return Outcome(error.reason, 0, (), b"")
    return Outcome(None, connection.status, tuple(connection.headers), body)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """``data`` in the pieces between these places, none of them empty."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


PLACES = st.lists(st.integers(0, 1 << 20), max_size=8)
TOKEN = st.text("ABCxyz-", min_size=1, max_size=8).map(str.encode)
VALUE = st.binary(max_size=12).map(lambda raw: bytes(byte for byte in raw if byte > 32 and byte != 127))
BLANKS = st.sampled_from([b"", b" ", b"\t", b"  "])


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, int, bytes]:
    """A valid response, its status and its body; interim ones may come first."""
    status = draw(st.sampled_from([200, 200, 200, 206, 404, 500, 503]))
    body = draw(st.binary(max_size=200))
    headers = [b"X-%b: %b" % pair for pair in draw(st.lists(st.tuples(TOKEN, VALUE), max_size=4))]
    interim = draw(
        st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: </x>\r\n\r\n"])
    )
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    wire = body
    if framing == "length":
        headers.append(b"Content-Length:%b%d%b" % (draw(BLANKS), len(body), draw(BLANKS)))
    elif framing == "chunked":
        # No tab after it: llhttp would not know it for chunked, so that is refused.
        headers.append(b"Transfer-Encoding:%bchunked%b" % (draw(BLANKS), draw(st.sampled_from([b"", b" "]))))
        extension = draw(st.sampled_from([b"", b";a", b";a=b"]))
        chunks = [
            b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in cut(body, draw(PLACES)) if part
        ]
        trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
        wire = b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"
    phrase = draw(st.sampled_from([b" OK", b" ", b" Not Really Fine"]))
    order = draw(st.permutations(headers))
    head = b"\r\n".join([b"HTTP/1.1 %d%b" % (status, phrase), *order, b"", b""])
    return interim + head + wire, status, body


@fuzz
@given(response=responses(), places=PLACES)
def test_a_valid_response_is_read_however_it_is_cut(
    outcome_of: Run, response: tuple[bytes, int, bytes], places: list[int]
) -> None:
    raw, status, body = response
    outcome = outcome_of(cut(raw, places), False)
    assert (outcome.reason, outcome.status, outcome.body) == (None, status, body)


@fuzz
@given(response=responses(), places=PLACES, further=st.binary(min_size=1, max_size=40))
def test_what_follows_a_response_does_not_change_it(
    outcome_of: Run, response: tuple[bytes, int, bytes], places: list[int], further: bytes
) -> None:
    raw, status, body = response
    is_delimited = b"Content-Length:" in raw or b"Transfer-Encoding:" in raw
    outcome = outcome_of(cut(raw + further, places), False)
    wanted = body if is_delimited else body + further
    assert (outcome.reason, outcome.status, outcome.body) == (None, status, wanted)


@fuzz
@given(response=responses(), places=PLACES, end=st.integers(0, 1 << 20))
def test_a_response_that_breaks_off_is_never_taken_for_complete(
    outcome_of: Run, response: tuple[bytes, int, bytes], places: list[int], end: int
) -> None:
    raw, _, body = response
    outcome = outcome_of(cut(raw[: end % len(raw)], places), False)
    if b"Content-Length:" in raw or b"Transfer-Encoding:" in raw:
        assert outcome.reason is not None
    elif outcome.reason is None:
        assert body.startswith(outcome.body)  # only the end of the connection ends such a body


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),
        st.integers(0, 3),
        st.one_of(
            st.binary(max_size=3),
            st.sampled_from(
                [b"\r\n", b"\n", b"\r", b" ", b"\0", b":", b"Content-Length: 3\r\n", b"HTTP/1.1 200 OK\r\n"]
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


@fuzz
@given(response=responses(), mutations=MUTATIONS, places=PLACES, is_head=st.booleans())
def test_a_damaged_response_gives_the_same_outcome_however_it_is_cut(
    outcome_of: Run,
    response: tuple[bytes, int, bytes],
    mutations: list[tuple[int, int, bytes]],
    places: list[int],
    is_head: bool,
) -> None:
    raw = response[0]
    for place, removed, added in mutations:
        at = place % (len(raw) + 1)
        raw = raw[:at] + added + raw[at + removed :]
    assert outcome_of([raw], is_head) == outcome_of(cut(raw, places), is_head)


@fuzz
@given(raw=st.binary(min_size=1, max_size=300), places=PLACES)
def test_arbitrary_bytes_are_an_error_and_nothing_else(
    outcome_of: Run, raw: bytes, places: list[int]
) -> None:
    outcome = outcome_of(cut(raw, places), False)
    assert outcome.reason in (Reason.PROTOCOL, Reason.CONNECT)
