"""Connecting to an exporter: which address, how long until the next is tried, which are allowed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

from exporter_proxy.config import Network, UpstreamUrl
from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.upstreams import connect
from exporter_proxy.upstreams.connect import Dialer
from exporter_proxy.upstreams.connection import UpstreamConnection
from exporter_proxy.upstreams.tls import Tls
from tests.fakes.origin import Origin, Visit, hang, unanswering
from tests.fakes.ports import refusing_port
from tests.inprocess import LOOPS, open_descriptors, opened_since, run, until

LOOP = pytest.mark.parametrize("loop", LOOPS)
DELAY_SECONDS = 2.0
"""Where it is measured: long beside what a busy machine may hold a test up for."""


def url(host: str, port: int, scheme: str = "http") -> UpstreamUrl:
    return UpstreamUrl(scheme, host, port, "/metrics")


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


async def dial(
    where: UpstreamUrl,
    allowed: tuple[Network, ...] | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[str, float]:
    """The address that was connected to and the seconds it took; the connection is closed again."""
    loop = asyncio.get_running_loop()
    started = time.monotonic()
    dialer = Dialer(where, allowed, Tls(tls, where.host) if tls is not None else None)
    connection = await dialer.connect(lambda: UpstreamConnection(loop, where.backend))
    took = time.monotonic() - started
    peer: str = connection._transport.get_extra_info("peername")[0]
    connection.abort()
    await until(lambda: connection.closed, "it is closed")
    return peer, took


async def refused(
    where: UpstreamUrl,
    allowed: tuple[Network, ...] | None = None,
    tls: ssl.SSLContext | None = None,
) -> str:
    """The message of a connection that cannot be made."""
    with pytest.raises(ScrapeError) as caught:
        await dial(where, allowed, tls)
    assert caught.value.reason is Reason.CONNECT
    return caught.value.message


@LOOP
@pytest.mark.parametrize("host", ["127.0.0.1", "two.test", "three.test"])
def test_an_address_that_refuses_is_followed_by_the_next_at_once(
    loop: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "ATTEMPT_DELAY_SECONDS", 10.0)

    async def scenario() -> tuple[str, float]:
        async with Origin(hang) as origin:
            return await dial(url(host, origin.port))

    peer, took = run(scenario, loop)
    assert peer == "127.0.0.1"
    assert took < 10


@LOOP
def test_the_first_address_is_the_one_that_is_used(loop: str) -> None:
    async def scenario() -> None:
        async with Origin(hang) as last, Origin(hang, host="127.0.0.2", port=last.port) as first:
            assert (await dial(url("two.test", last.port)))[0] == "127.0.0.2"
            await until(lambda: len(first.visits) == 1, "the first address is visited")
            assert not last.visits

    run(scenario, loop)


@LOOP
def test_an_address_that_does_not_answer_is_joined_by_the_next_after_a_while(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "ATTEMPT_DELAY_SECONDS", DELAY_SECONDS)

    async def scenario() -> tuple[str, float]:
        async with Origin(hang) as origin:
            with unanswering("127.0.0.2", origin.port):
                return await dial(url("two.test", origin.port))

    peer, took = run(scenario, loop)
    assert peer == "127.0.0.1"
    assert DELAY_SECONDS * 0.9 <= took < DELAY_SECONDS + 5


@LOOP
def test_an_address_that_refuses_does_not_end_the_wait_for_a_slower_one(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of three hangs, the second, tried after a while, refuses: the third follows at once."""
    monkeypatch.setattr(connect, "ATTEMPT_DELAY_SECONDS", DELAY_SECONDS)

    async def scenario() -> tuple[str, float]:
        async with Origin(hang) as origin:
            with unanswering("127.0.0.3", origin.port):
                return await dial(url("three.test", origin.port))

    peer, took = run(scenario, loop)
    assert peer == "127.0.0.1"
    assert DELAY_SECONDS * 0.9 <= took < DELAY_SECONDS * 1.95


@LOOP
def test_attempts_that_lost_are_closed(loop: str) -> None:
    """Two addresses are still being tried when the third answers."""

    async def scenario() -> None:
        async with Origin(hang) as origin:
            with unanswering("127.0.0.3", origin.port), unanswering("127.0.0.2", origin.port):
                before = open_descriptors()
                assert (await dial(url("three.test", origin.port)))[0] == "127.0.0.1"
                await until(lambda: not origin.tasks, "the origin's end is closed")
                await until(lambda: not opened_since(before), "all are closed")
                assert asyncio.all_tasks() == {asyncio.current_task()}

    run(scenario, loop)


@LOOP
def test_all_addresses_refuse(loop: str) -> None:
    with refusing_port() as port:
        message = run(lambda: refused(url("three.test", port)), loop)
    assert message.startswith(f"connection refused by three.test:{port} after ")
    assert f"ss -ltn | grep {port}" in message


@LOOP
def test_only_allowed_addresses_are_connected_to(loop: str) -> None:
    """The rule is applied after the name is resolved, to each address."""

    async def scenario() -> None:
        async with Origin(hang) as allowed, Origin(hang, host="127.0.0.2", port=allowed.port) as denied:
            where = url("two.test", allowed.port)
            assert (await dial(where, networks("127.0.0.1/32")))[0] == "127.0.0.1"
            message = await refused(where, networks("10.0.0.0/8", "::1/128"))
            assert message.startswith("two.test is 127.0.0.1, 127.0.0.2, not in allow_upstreams")
            assert not denied.visits
            await refused(url("127.0.0.1", allowed.port), networks("127.0.0.2/32"))
            assert len(allowed.visits) == 1
            assert await refused(url("127.0.0.1", allowed.port), ())

    run(scenario, loop)


def ipv6_available() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not ipv6_available(), reason="this machine has no IPv6 loopback")


@LOOP
@needs_ipv6
def test_ipv6(loop: str) -> None:
    async def scenario() -> None:
        async with Origin(hang, host="::1") as origin:
            assert (await dial(url("::1", origin.port), networks("::1/128")))[0] == "::1"
            assert "::1 is ::1, not in" in await refused(url("::1", origin.port), networks("127.0.0.0/8"))

    run(scenario, loop)


@LOOP
@needs_ipv6
def test_an_ipv4_rule_means_an_ipv4_mapped_address_too(loop: str) -> None:
    """``[::ffff:127.0.0.1]`` connects to 127.0.0.1, so that is what is judged."""

    async def scenario() -> None:
        async with Origin(hang) as origin:
            await dial(url("::ffff:127.0.0.1", origin.port), networks("127.0.0.1/32"))

    run(scenario, loop)


@LOOP
def test_a_name_that_does_not_resolve(loop: str) -> None:
    message = run(lambda: refused(url("nowhere.test", 9100)), loop)
    assert message.startswith("cannot resolve nowhere.test: ")
    assert "getent hosts nowhere.test" in message


# Unix sockets


@pytest.fixture
def locked_socket(tmp_path: Path) -> Iterator[Path]:
    """A socket that the test may not connect to; root may to all, so root becomes nobody for a while."""
    path = tmp_path / "x.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0)
        if os.geteuid() != 0:
            yield path
            return
        os.seteuid(65534)
        try:
            yield path
        finally:
            os.seteuid(0)


@LOOP
def test_a_socket_without_permission(loop: str, locked_socket: Path) -> None:
    where = UpstreamUrl("http+unix", "localhost", 0, "/metrics", str(locked_socket))
    message = run(lambda: refused(where), loop)
    assert message.startswith(f"no permission to connect to {where.backend}; put exporter_proxy's user into")


@LOOP
def test_a_socket_that_refuses_leaves_no_descriptor(loop: str, tmp_path: Path) -> None:
    where = UpstreamUrl("http+unix", "localhost", 0, "/metrics", str(tmp_path / "x.sock"))

    async def scenario() -> None:
        before = open_descriptors()
        assert (await refused(where)).startswith(f"there is no socket at {where.socket_path}")
        assert not opened_since(before)

    run(scenario, loop)


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certificate(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_context(authority: trustme.CA | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if authority is not None:
        authority.configure_trust(context)
    return context


@LOOP
def test_tls_checks_the_name_and_the_issuer(loop: str, authority: trustme.CA) -> None:
    async def scenario() -> None:
        async with Origin(hang, tls=certificate(authority, "127.0.0.1")) as origin:
            where = url("127.0.0.1", origin.port, "https")
            assert (await dial(where, tls=client_context(authority)))[0] == "127.0.0.1"
            message = await refused(where, tls=client_context(None))
            assert message.startswith(f"the certificate of {where.backend} is not accepted: ")
            assert message.endswith("set tls.ca_file to the CA that issued it")
        async with Origin(hang, tls=certificate(authority, "other.test")) as origin:
            message = await refused(url("127.0.0.1", origin.port, "https"), tls=client_context(authority))
            assert message.endswith("it is not for 127.0.0.1; set tls.server_name to a name that it is for")

    run(scenario, loop)


async def refused_after(what: Callable[[Visit], Awaitable[None]]) -> str:
    """The message where a TLS handshake is answered like this."""
    async with Origin(hang) as origin:
        where = url("127.0.0.1", origin.port, "https")
        dialing = asyncio.ensure_future(refused(where, tls=client_context(None)))
        await until(lambda: bool(origin.visits), "it is connected to")
        await what(origin.visits[0])
        return await dialing


async def answer_in_plain_http(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def close(visit: Visit) -> None:
    visit.close()


async def reset(visit: Visit) -> None:
    visit.reset()


@LOOP
@pytest.mark.parametrize("what", [close, reset])
def test_a_handshake_that_fails(loop: str, what: Callable[[Visit], Awaitable[None]]) -> None:
    message = run(lambda: refused_after(what), loop)
    assert message.startswith("TLS handshake with 127.0.0.1:")
    assert message.endswith("does it speak https?")


@LOOP
def test_a_handshake_that_is_answered_in_plain_http(loop: str) -> None:
    message = run(lambda: refused_after(answer_in_plain_http), loop)
    assert message.endswith(" does not speak TLS; is it an http exporter? use http:// in url")


@LOOP
def test_a_handshake_that_takes_too_long(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "HANDSHAKE_SECONDS", 0.1)

    async def scenario() -> str:
        async with Origin(hang) as origin:
            return await refused(url("127.0.0.1", origin.port, "https"), tls=client_context(None))

    message = run(scenario, loop)
    assert message.startswith("TLS handshake with 127.0.0.1:")
    assert "not complete after" in message


@LOOP
def test_a_handshake_that_hangs_ends_with_the_scrape(loop: str) -> None:
    async def scenario() -> None:
        async with Origin(hang) as origin:
            before = open_descriptors()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await dial(url("127.0.0.1", origin.port, "https"), tls=client_context(None))
            await until(lambda: not origin.tasks, "the exporter sees the close", 1.0)
            await until(lambda: not opened_since(before), "it is closed", 1.0)

    run(scenario, loop)
