"""Sockets that systemd or start_server opened: found by name, served, and left to the next process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import REPOSITORY, Daemon, DaemonFailed, wait_until
from tests.fakes.exporter import PAGE, FakeExporter
from tests.launcher import activated, started_by_start_server
from tests.wire import CONNECTION_CLOSE, Wire, request

EXPORTERS = {"x": {"url": "http://127.0.0.1:1/metrics"}}
OPEN = "everyone who reaches"


def tcp(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)


@contextmanager
def unix(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        yield listening


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose path leaves room for a unix socket's name."""
    return tmp_path_factory.mktemp("p")


def ask(address: tuple[str, int] | str) -> None:
    with Wire(address) as wire:
        wire.exchange(request("/-/ready", CONNECTION_CLOSE)).expect_ok()


def complaint(start: Callable[[], Daemon]) -> str:
    """The one line that a daemon which cannot start leaves behind."""
    daemon = start()
    with pytest.raises(DaemonFailed), daemon:
        pass
    assert daemon.process.returncode == 1
    (line,) = daemon.log_lines
    return line


# systemd


def test_systemd_sockets_of_every_kind(short: Path) -> None:
    with tcp() as first, tcp("::1") as second, unix(short / "s") as third:
        with activated({"listen": "systemd", "exporters": EXPORTERS}, first, second, third) as daemon:
            daemon.wait_for_log("address=unix:")
            assert daemon.addresses == [first.getsockname(), second.getsockname()[:2]]
            assert daemon.unix_paths == [str(short / "s")]
            ask(first.getsockname())
            ask(second.getsockname()[:2])
            ask(str(short / "s"))
            assert OPEN not in daemon.log_tail()
            assert daemon.stop() == 0
        assert (short / "s").exists(), "the socket unit's file is not the daemon's to remove"


def test_abstract_unix_socket_of_systemd() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # the kernel picks an abstract name
        listening.listen()
        name = listening.getsockname()
        with activated({"listen": "systemd", "exporters": EXPORTERS}, listening) as daemon:
            assert daemon.listening == [f"unix:@{name[1:].decode()}"]
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(name)
                asking.sendall(request("/-/ready", CONNECTION_CLOSE))
                assert asking.recv(100).startswith(b"HTTP/1.1 200")


def test_systemd_sockets_by_name() -> None:
    with tcp() as first, tcp() as second, tcp() as third, ExitStack() as stack:
        config = {"listen": ["systemd:http", "127.0.0.1:0"], "exporters": EXPORTERS}
        daemon = stack.enter_context(activated(config, first, second, third, names="http:other:http"))
        daemon.wait_for_log(f":{third.getsockname()[1]}")
        wait_until(lambda: len(daemon.addresses) == 3, "all three were announced")
        assert daemon.addresses[:2] == [first.getsockname(), third.getsockname()]
        for address in daemon.addresses:
            ask(address)
        warned = daemon.wait_for_log("systemd passed sockets that listen does not name")
        assert "names=other" in warned


def test_unnamed_systemd_sockets_are_called_unknown() -> None:
    with tcp() as one, activated({"listen": "systemd:unknown", "exporters": EXPORTERS}, one) as daemon:
        ask(daemon.addresses[0])
        assert "does not name" not in daemon.log_tail()


def test_systemd_name_that_was_not_passed() -> None:
    config = {"listen": "systemd:https", "exporters": EXPORTERS}
    with tcp() as one, tcp() as two:
        assert complaint(lambda: activated(config, one, two, names="http:admin")) == (
            "exporter_proxy: cannot listen on systemd:https: systemd passed no socket of that name but http, "
            "admin; correct it here, or FileDescriptorName= in the socket unit"
        )


@pytest.mark.parametrize("environment", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}])
def test_no_socket_of_systemd(environment: dict[str, str]) -> None:
    config = {"listen": "systemd", "exporters": EXPORTERS}
    line = complaint(lambda: Daemon(config, environment=environment))
    assert line.startswith("exporter_proxy: cannot listen on systemd: systemd passed ")
    expected = "must do so with exec" if "LISTEN_PID" in environment else "start the socket unit"
    assert expected in line


@pytest.mark.parametrize("kind", ["datagram", "not listening", "a connection", "no socket"])
def test_what_systemd_passed_is_no_listening_stream_socket(kind: str) -> None:
    config = {"listen": ["127.0.0.1:0", "systemd"], "exporters": EXPORTERS}
    with ExitStack() as stack:
        if kind == "datagram":
            passed = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            passed.bind(("127.0.0.1", 0))
        elif kind == "not listening":
            passed = stack.enter_context(socket.socket())
            passed.bind(("127.0.0.1", 0))
        elif kind == "a connection":
            passed, other = socket.socketpair()
            stack.enter_context(passed)
            stack.enter_context(other)
        else:
            passed = stack.enter_context(Path("/dev/null").open())  # type: ignore[assignment]  # that is the point
        line = complaint(lambda: activated(config, passed, names="web"))
    assert line.startswith("exporter_proxy: cannot listen on systemd: what systemd passed as web is ")
    assert line.endswith("; it takes ListenStream= and Accept=no in the socket unit")


def test_one_warning_if_a_passed_socket_is_open_to_everyone() -> None:
    exposing = {"listen": ["systemd", "0.0.0.0:0"], "exporters": EXPORTERS}
    with tcp("0.0.0.0") as one, tcp() as local:
        with activated(exposing, one, local) as daemon:
            port = one.getsockname()[1]
            line = daemon.wait_for_log(OPEN)
            assert f"everyone who reaches 0.0.0.0:0, 0.0.0.0:{port} can scrape: set allow_clients" in line
            assert sum(OPEN in one for one in daemon.log_lines) == 1
        with activated({**exposing, "allow_clients": ["127.0.0.1"]}, one, local) as daemon:
            ask(("127.0.0.1", port))
            assert OPEN not in daemon.log_tail()


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None and os.environ.get("CI") != "true",
    reason="systemd-socket-activate is not installed",
)
def test_systemds_own_activation(short: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("listen: systemd:web\nexporters: {x: {url: http://127.0.0.1:1/}}\n")
    path = short / "s"
    command = ["systemd-socket-activate", "-E", f"PYTHONPATH={REPOSITORY}", "--fdname=web", "-l", str(path)]
    command += [sys.executable, "-m", "exporter_proxy", "--config.file=config.yml"]
    log = tmp_path / "log"
    with log.open("wb") as stderr, subprocess.Popen(command, cwd=tmp_path, stderr=stderr) as process:
        try:
            wait_until(lambda: "Listening on" in log.read_text(), "systemd-socket-activate listened")
            ask(str(path))
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert path.exists()
        finally:
            process.kill()


# start_server


def test_start_server_sockets_of_every_kind(short: Path) -> None:
    listen = ["SERVER_STARTER:127.0.0.1:80", "SERVER_STARTER:8080", f"SERVER_STARTER:{short}/s"]
    with tcp() as first, tcp() as second, tcp() as unwanted, unix(short / "s") as third:
        held = {"127.0.0.1:80": first, "8080": second, f"{short}/s": third, "[::1]:9": unwanted}
        with started_by_start_server({"listen": listen, "exporters": EXPORTERS}, held) as daemon:
            assert daemon.addresses == [first.getsockname(), second.getsockname()]
            for address in daemon.everywhere:
                ask(address)
            assert daemon.stop() == 0
        assert (short / "s").exists(), "the file is start_server's"


def test_start_server_holds_no_such_address(short: Path) -> None:
    config = {"listen": "SERVER_STARTER:127.0.0.1:8081", "exporters": EXPORTERS}
    with tcp() as one, tcp() as two:
        held = {"127.0.0.1:8080": one, "9000": two}
        assert complaint(lambda: started_by_start_server(config, held)) == (
            "exporter_proxy: cannot listen on SERVER_STARTER:127.0.0.1:8081: start_server holds no such "
            "address, only 127.0.0.1:8080, 0.0.0.0:9000"
        )


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (None, "SERVER_STARTER_PORT is not set; start exporter_proxy with start_server, or listen on the"),
        ("", "SERVER_STARTER_PORT is not set; "),
        ("8080", 'SERVER_STARTER_PORT is malformed at "8080"; '),
        ("8080=x", 'SERVER_STARTER_PORT is malformed at "8080=x"; '),
        ("8080=3;", 'SERVER_STARTER_PORT is malformed at ""; '),
        ("8080=77", "what start_server passed as 0.0.0.0:8080 is no socket (Bad file descriptor); "),
        ("8080=1", "what start_server passed as 0.0.0.0:8080 is no socket (Socket operation on non-"),
    ],
)
def test_start_server_variable_that_does_not_help(ports: str | None, expected: str) -> None:
    environment = {} if ports is None else {"SERVER_STARTER_PORT": ports}
    config = {"listen": "SERVER_STARTER:8080", "exporters": EXPORTERS}
    line = complaint(lambda: Daemon(config, environment=environment))
    assert line.startswith(f"exporter_proxy: cannot listen on SERVER_STARTER:0.0.0.0:8080: {expected}")


# Restarts that nobody notices


class Scrapers:
    """Several scrapers, each on a new connection every time, from ``with`` to the end of the block."""

    def __init__(self, address: tuple[str, int] | str, count: int = 4) -> None:
        self._address = address
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._scrape) for _ in range(count)]
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Scrapers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int = 40) -> None:
        wanted = self.answered + count
        wait_until(lambda: self.answered >= wanted or bool(self.failures), "scrapes went on", 15.0)

    def _scrape(self) -> None:
        while not self._is_over.is_set():
            try:
                with Wire(self._address) as wire:
                    wire.exchange(request("/x/metrics", CONNECTION_CLOSE)).expect_ok(PAGE)
                self.answered += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
                return


def test_start_server_restart_loses_no_scrape() -> None:
    """As start_server does it: the new one first, then SIGTERM for the old one."""
    with FakeExporter() as exporter, tcp() as held, ExitStack() as stack:
        config = {"listen": "SERVER_STARTER:80", "exporters": {"x": {"url": exporter.url()}}}
        running = stack.enter_context(started_by_start_server(config, {"80": held}))
        with Scrapers(held.getsockname()) as scrapers:
            for _ in range(4):
                scrapers.wait_for_more()
                new = stack.enter_context(started_by_start_server(config, {"80": held}))
                scrapers.wait_for_more()
                assert running.stop() == 0
                running = new
            scrapers.wait_for_more()
        assert scrapers.failures == []


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_restart_with_a_systemd_socket_loses_no_scrape(kind: str, short: Path) -> None:
    """As systemd does it: the old one is gone before the new one starts, and the queue waits."""
    with FakeExporter() as exporter, ExitStack() as stack:
        held = stack.enter_context(tcp() if kind == "tcp" else unix(short / "s"))
        config = {"listen": "systemd", "exporters": {"x": {"url": exporter.url()}}}
        running = stack.enter_context(activated(config, held))
        with Scrapers(held.getsockname()) as scrapers:
            for _ in range(3):
                scrapers.wait_for_more()
                assert running.stop() == 0
                running = stack.enter_context(activated(config, held))
            scrapers.wait_for_more()
        assert scrapers.failures == []


def test_whoever_waits_in_the_queue_of_a_passed_socket_is_answered_by_the_next() -> None:
    options: dict[str, Any] = {"listen": "systemd", "exporters": EXPORTERS}
    with tcp() as held:
        with activated(options, held) as first:
            assert first.stop() == 0
        with Wire(held.getsockname()) as waiting:
            waiting.send(request("/-/ready"))
            assert not waiting.readable_within(0.1)
            with activated(options, held):
                waiting.read_reply().expect_ok()
