"""What the daemon tells systemd, read from a notification socket as systemd has one."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.fakes.exporter import FakeExporter, reset, respond, wait_for
from tests.stalls import stalled_since
from tests.wire import Wire, request

EXPORTERS = {"x": {"url": "http://127.0.0.1:1/metrics"}, "y": {"url": "http://127.0.0.1:1/metrics"}}
WATCHDOG_SECONDS = 0.8


class Systemd:
    """The service manager's end: messages as they come."""

    def __init__(self, listening: socket.socket, address: str) -> None:
        self._socket = listening
        self.environment = {"NOTIFY_SOCKET": address}

    def next(self, timeout_seconds: float = 5.0) -> dict[str, str]:
        """The next message. Raises TimeoutError where none comes."""
        began = time.monotonic()
        self._socket.settimeout(timeout_seconds)
        try:
            message = self._socket.recv(4096)
        except TimeoutError:
            self._socket.settimeout(max(0.001, stalled_since(began)))  # it may not have run either
            message = self._socket.recv(4096)
        lines = message.decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def next_but(self, ignored: str, timeout_seconds: float = 5.0) -> dict[str, str]:
        """The next message that is not about ``ignored`` alone."""
        end = time.monotonic() + timeout_seconds
        while set(message := self.next(max(0.01, end - time.monotonic()))) == {ignored}:
            pass
        return message

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        try:
            self.next(seconds)
        except TimeoutError:
            return True
        return False


@contextmanager
def notification_socket(path: Path | None = None) -> Iterator[Systemd]:
    """At ``path``, or at an abstract address that the kernel picks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("" if path is None else str(path))
        name = listening.getsockname()
        yield Systemd(listening, f"@{name[1:].decode()}" if path is None else str(path))


@pytest.fixture
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    with notification_socket(tmp_path_factory.mktemp("n") / "notify") as systemd:
        yield systemd


def started(systemd: Systemd, config: Mapping[str, Any] | None = None, **environment: str) -> Daemon:
    return Daemon(config or {"exporters": EXPORTERS}, environment={**systemd.environment, **environment})


def test_ready_comes_once_it_answers(systemd: Systemd, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("r") / "s")
    daemon = started(systemd, {"listen": f"unix:{path}", "exporters": EXPORTERS})
    answers: list[int] = []

    def ask_when_ready() -> None:
        assert systemd.next(15.0) == {"READY": "1", "STATUS": "2 exporters, 0 failing"}
        with Wire(path) as wire:
            answers.append(wire.exchange(request("/-/ready")).status)

    asking = threading.Thread(target=ask_when_ready)
    asking.start()
    with daemon:
        asking.join()
    assert answers == [200]


def test_abstract_notification_socket() -> None:
    with notification_socket() as systemd, started(systemd):
        assert systemd.environment["NOTIFY_SOCKET"].startswith("@")
        assert systemd.next()["READY"] == "1"


def test_no_ready_from_a_daemon_that_cannot_listen(systemd: Systemd) -> None:
    with (
        pytest.raises(Exception, match="did not start"),
        started(systemd, {"listen": "192.0.2.1:9099", "exporters": EXPORTERS}),
    ):
        pass
    assert systemd.is_silent(0.1)


def test_reload_is_between_reloading_and_ready(systemd: Systemd) -> None:
    with started(systemd) as daemon:
        systemd.next()
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        daemon.write_config({"exporters": {"x": EXPORTERS["x"]}})
        daemon.reload()
        reloading = systemd.next()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert list(reloading) == ["RELOADING", "MONOTONIC_USEC"]
        assert before <= int(reloading["MONOTONIC_USEC"]) <= after
        assert systemd.next() == {"READY": "1", "STATUS": "1 exporter, 0 failing"}


def test_failed_reload_ends_with_ready_too(systemd: Systemd) -> None:
    with started(systemd) as daemon:
        systemd.next()
        daemon.write_config("exporters: []")
        daemon.reload()
        assert systemd.next()["RELOADING"] == "1"
        message = systemd.next()
        assert message["READY"] == "1"
        assert message["STATUS"] == (
            "2 exporters, 0 failing; the last reload failed, the old configuration is in force"
        )


def test_stopping_comes_as_draining_begins_and_is_the_last_word(systemd: Systemd) -> None:
    go_on = threading.Event()
    with FakeExporter([wait_for(go_on), *respond()]) as exporter:
        config = {"exporters": {"x": {"url": exporter.url()}}}
        with started(systemd, config) as daemon, daemon.connect() as wire:
            systemd.next()
            wire.send(request("/x/metrics"))
            exporter.wait_for_requests()
            daemon.process.send_signal(signal.SIGTERM)
            assert systemd.next() == {"STOPPING": "1", "STATUS": "stopping; scrapes under way: 1"}
            assert daemon.running
            daemon.reload()
            go_on.set()
            wire.read_reply().expect_ok()
            assert daemon.process.wait(5) == 0
    assert systemd.is_silent(0.1), "a reload while it stops would tell systemd that it is ready again"


def test_watchdog_is_fed_twice_in_its_time_and_while_draining(systemd: Systemd) -> None:
    go_on = threading.Event()
    microseconds = str(int(WATCHDOG_SECONDS * 1e6))
    with FakeExporter([wait_for(go_on), *respond()]) as exporter:
        config = {"exporters": {"x": {"url": exporter.url()}}}
        with started(systemd, config, WATCHDOG_USEC=microseconds) as daemon, daemon.connect() as wire:
            assert "WATCHDOG" not in systemd.next()
            began = time.monotonic()
            for _ in range(8):
                assert systemd.next(WATCHDOG_SECONDS) == {"WATCHDOG": "1"}
            # Twice as often would be 8 in 2 * WATCHDOG_SECONDS; we may have been late to look at the clock.
            assert time.monotonic() - began > 2.2 * WATCHDOG_SECONDS, "no more often than that"
            wire.send(request("/x/metrics"))
            exporter.wait_for_requests()
            daemon.process.send_signal(signal.SIGTERM)
            assert systemd.next_but("WATCHDOG")["STOPPING"] == "1"
            for _ in range(2):
                assert systemd.next(WATCHDOG_SECONDS) == {"WATCHDOG": "1"}
            go_on.set()


def test_status_counts_who_fails(systemd: Systemd) -> None:
    with FakeExporter([reset()]) as exporter:
        config = {"exporters": {"x": {"url": exporter.url()}}}
        with started(systemd, config, WATCHDOG_USEC="200000") as daemon:
            assert systemd.next()["STATUS"] == "1 exporter, 0 failing"
            daemon.get("/x/metrics").expect_refusal(502, "connect", "x")
            assert systemd.next_but("WATCHDOG") == {"WATCHDOG": "1", "STATUS": "1 exporter, 1 failing"}
            exporter.play()
            daemon.get("/x/metrics").expect_ok()
            assert systemd.next_but("WATCHDOG") == {"WATCHDOG": "1", "STATUS": "1 exporter, 0 failing"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
    ],
)
def test_no_watchdog_of_ours(systemd: Systemd, environment: dict[str, str]) -> None:
    with started(systemd, None, **environment):
        assert systemd.next()["READY"] == "1"
        assert systemd.is_silent(0.5)


def test_watchdog_that_is_ours_by_its_pid(systemd: Systemd) -> None:
    launcher = ["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh"]
    environment = {**systemd.environment, "WATCHDOG_USEC": "200000"}
    with Daemon({"exporters": EXPORTERS}, environment=environment, launcher=launcher):
        assert systemd.next()["READY"] == "1"
        assert systemd.next() == {"WATCHDOG": "1"}


@pytest.mark.parametrize("address", ["/nowhere/notify", "vsock:2:1234", "relative", ""])
def test_unreachable_systemd_is_no_reason_to_fail(address: str) -> None:
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
    with Daemon({"exporters": EXPORTERS}, environment=environment) as daemon:
        daemon.reload()
        daemon.get("/-/ready").expect_ok()
        assert daemon.stop() == 0
        complaints = [line for line in daemon.log_lines if "cannot notify systemd" in line]
        assert len(complaints) == (1 if address.startswith("/") else 0)


def test_without_systemd_no_socket_is_made() -> None:
    with Daemon({"exporters": EXPORTERS}, environment={"NOTIFY_SOCKET": ""}) as daemon:
        daemon.get("/-/ready").expect_ok()
        table = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        datagram_sockets = {f"socket:[{fields[6]}]" for fields in table if fields[4] == "0002"}
        assert datagram_sockets.isdisjoint(daemon.descriptors())
