"""TLS on either side of the daemon."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.daemon import Daemon
from tests.fakes.exporter import (
    CHUNKED,
    EVENT_SECONDS,
    PAGE,
    FakeExporter,
    chunk,
    close,
    head,
    pause,
    respond,
    send,
)
from tests.stalls import stalled_since
from tests.wire import request


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secured(
    authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Daemon, FakeExporter]]:
    """TLS in front; ``blind`` and ``strict`` ask the same https exporter, whose CA nobody knows."""
    directory: Path = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    exporter_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(exporter_context)
    with FakeExporter(tls=exporter_context) as exporter:
        entries = {
            "blind": {"url": exporter.url(), "insecure_skip_verify": True},
            "strict": {"url": exporter.url()},
        }
        tls = {"certfile": str(directory / "cert.pem"), "keyfile": str(directory / "key.pem")}
        with Daemon({"tls": tls, "exporters": entries, "read_header_timeout": "400ms"}) as daemon:
            yield daemon, exporter


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_scrape_over_tls_of_an_exporter_over_tls(
    secured: tuple[Daemon, FakeExporter], trusting: ssl.SSLContext
) -> None:
    daemon, exporter = secured
    exporter.play(respond(body=PAGE * 10_000))
    with daemon.connect(tls=trusting) as wire:
        for _ in range(3):
            wire.exchange(request("/blind/metrics")).expect_ok(PAGE * 10_000)
    assert len(exporter.connections) == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_truncated_answer_is_cut_over_tls_too(
    secured: tuple[Daemon, FakeExporter], trusting: ssl.SSLContext, version: str
) -> None:
    """By reset or without close_notify: with it a body without framing would look whole."""
    daemon, exporter = secured
    chunked_head = head(200, [("Transfer-Encoding", "chunked")])
    exporter.play([send(chunked_head + chunk(PAGE)), pause(0.2), close()])
    with daemon.connect(tls=trusting) as wire:
        wire.send(request("/blind/metrics", version=version))
        wire.read_reply().expect_cut()


def test_whole_answer_without_framing_ends_with_close_notify(
    secured: tuple[Daemon, FakeExporter], trusting: ssl.SSLContext
) -> None:
    daemon, exporter = secured
    exporter.play(respond(framing=CHUNKED))
    daemon.exchange(request("/blind/metrics", version="1.0"), tls=trusting).expect_ok(PAGE)


def test_exporter_with_an_unknown_authority_is_not_trusted(
    secured: tuple[Daemon, FakeExporter], trusting: ssl.SSLContext
) -> None:
    daemon, exporter = secured
    exporter.play()
    reply = daemon.get("/strict/metrics", tls=trusting).expect_refusal(502, "connect", "strict")
    assert "certificate" in reply.body.decode()
    assert exporter.requests == []


def test_plain_http_to_a_tls_port_does_not_hang(secured: tuple[Daemon, FakeExporter]) -> None:
    daemon, _ = secured
    with daemon.connect() as wire:
        wire.send(request("/blind/metrics"))
        wire.sock.settimeout(EVENT_SECONDS)
        try:
            assert not wire.read_until_closed().startswith(b"HTTP/1.1 200")
        except ConnectionResetError:
            pass


def test_read_header_timeout_covers_the_handshake(secured: tuple[Daemon, FakeExporter]) -> None:
    daemon, _ = secured
    started = time.monotonic()
    with daemon.connect() as wire:
        assert wire.closes_within(2.0)
        assert 0.3 < time.monotonic() - started < 1.5 + stalled_since(started)
