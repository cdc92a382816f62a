"""The scripted exporter ends its connections whatever they are at, and hides no mistake of a script."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from tests.daemon import wait_until
from tests.fakes.exporter import EVENT_SECONDS, Connection, FakeExporter
from tests.wire import Wire, request

ASKED = request("/metrics")


class Overtaken(ssl.SSLSocket):
    """Once it is being read, it goes on when another thread has shut it down: recv() has seen TLS by then."""

    is_read: threading.Event
    is_shut: threading.Event

    def read(self, size: int = 1024, buffer: Any = None) -> Any:
        self.is_read.set()
        assert self.is_shut.wait(EVENT_SECONDS)
        return super().read(size, buffer)

    def shutdown(self, how: int) -> None:
        super().shutdown(how)
        self.is_shut.set()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextlib.contextmanager
def failures_of_threads() -> Iterator[list[threading.ExceptHookArgs]]:
    """What has ended threads meanwhile."""
    before, found = threading.excepthook, list[threading.ExceptHookArgs]()
    threading.excepthook = found.append
    try:
        yield found
    finally:
        threading.excepthook = before


def test_tls_that_is_shut_down_while_it_is_read(tls: ssl.SSLContext, client: ssl.SSLContext) -> None:
    class Once(Overtaken):
        is_read, is_shut = threading.Event(), threading.Event()

    tls.sslsocket_class = Once
    with failures_of_threads() as failures, FakeExporter(tls=tls) as exporter:
        with Wire(("127.0.0.1", exporter.port), tls=client):
            assert Once.is_read.wait(EVENT_SECONDS)
            (connection,) = exporter.connections
            exporter.drop_connections()
        assert connection.ended.is_set()
        assert not connection.closed_by_peer.is_set()
    assert failures == []


def test_a_handshake_is_dropped(tls: ssl.SSLContext) -> None:
    with FakeExporter(tls=tls) as exporter, socket.create_connection(("127.0.0.1", exporter.port)):
        wait_until(lambda: len(exporter.connections) == 1, "it was accepted")
        (connection,) = exporter.connections
        exporter.drop_connections(patience_seconds=0.01)
        assert connection.ended.is_set()


@pytest.mark.parametrize("is_dropped", [False, True], ids=["living", "dropped"])
def test_what_is_a_scripts_own_mistake(is_dropped: bool) -> None:
    def mistake(connection: Connection) -> None:
        connection.is_dropped = is_dropped
        raise ValueError("of the script's own")

    with failures_of_threads() as failures:
        with FakeExporter([mistake]) as exporter, Wire(("127.0.0.1", exporter.port)) as wire:
            wire.send(ASKED)
            (request_,) = exporter.wait_for_requests()
            assert request_.target == b"/metrics"
        wait_until(lambda: len(failures) == 1, "the script ended")
    assert str(failures[0].exc_value) == "of the script's own"


def test_a_script_that_does_not_end_is_told_of() -> None:
    go_on = threading.Event()
    with FakeExporter([lambda connection: go_on.wait()]) as exporter:
        with Wire(("127.0.0.1", exporter.port)) as wire:
            wire.send(ASKED)
            exporter.wait_for_requests()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.fakes.exporter.EVENT_SECONDS", 0.01)
            with pytest.raises(AssertionError, match="a script goes on"):
                exporter.drop_connections(patience_seconds=0.01)
        go_on.set()
