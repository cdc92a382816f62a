"""Where the daemon listens: TCP addresses and unix sockets, one or several, in plain HTTP and TLS."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.daemon import Daemon, wait_until
from tests.fakes.exporter import PAGE, FakeExporter, respond
from tests.fakes.ports import reserved_port
from tests.stalls import stalled_since
from tests.wire import Wire, request

EXPORTERS = {"x": {"url": "http://127.0.0.1:1/metrics"}}


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where to make a unix socket; pytest's own directories may be too deep for one."""
    return str(tmp_path_factory.mktemp("l") / "http.sock")


def ask(address: tuple[str, int] | str, target: str = "/-/ready", **options: Any) -> None:
    with Wire(address, **options) as wire:
        wire.exchange(request(target)).expect_ok()


def mode_of(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


# Unix sockets


def test_scrapes_over_a_unix_socket_keep_their_connection(path: str) -> None:
    log = {"format": "json", "fields": ["remote", "status", "path"]}
    with (
        FakeExporter() as exporter,
        Daemon(
            {"listen": f"unix:{path}", "access_log": log, "exporters": {"x": {"url": exporter.url()}}}
        ) as daemon,
        daemon.connect() as wire,
    ):
        assert daemon.listening == [f"unix:{path}"]
        for _ in range(3):
            wire.exchange(request("/x/metrics")).expect_ok(PAGE)
        wire.exchange(b"nonsense\r\n\r\n").expect_refusal(400, "bad_request")
        assert len(exporter.connections) == 1
        line = json.loads(daemon.wait_for_output("/x/metrics"))
        assert line == {"remote": "unix", "status": 200, "path": "/x/metrics"}
        assert "warn" not in daemon.log_tail(), "a unix socket is open to nobody but its mode's"


def test_unix_peers_pass_every_list_of_addresses_and_see_excerpts(path: str) -> None:
    with FakeExporter(respond(body=b"not an exposition\n")) as exporter:
        entry = {"url": exporter.url(), "allow_clients": [], "verify": True}
        config = {"listen": [f"unix:{path}", "127.0.0.1:0"], "allow_clients": [], "exporters": {"x": entry}}
        with Daemon(config) as daemon:
            daemon.get("/x/metrics").expect_refusal(403, "forbidden")
            with daemon.connect(path) as wire:
                wire.exchange(request("/x/metrics")).expect_refusal(502, "malformed", "x")
                shown = json.loads(wire.exchange(request("/-/exporters")).expect_ok().body)
        assert "not an exposition" in shown["exporters"][0]["recent"][0]["excerpt"]


def test_max_connections_counts_unix_peers_too(path: str) -> None:
    config = {"listen": f"unix:{path}", "max_connections": 1, "exporters": EXPORTERS}
    with Daemon(config) as daemon, daemon.connect() as first:
        first.exchange(request("/-/ready")).expect_ok()
        with daemon.connect() as second:
            second.exchange(request("/-/ready")).expect_ok()
        assert first.closes_within(2.0)


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("mode", ["0600", "666", "0770"])
def test_mode_is_as_configured_whatever_the_umask(path: str, mode: str, umask: int) -> None:
    launcher = ["sh", "-c", f'umask {umask:o}; exec "$@"', "sh"]
    with Daemon({"listen": f"unix:{path},mode={mode}", "exporters": EXPORTERS}, launcher=launcher) as daemon:
        assert mode_of(path) == int(mode, 8)
        ask(path)
        assert daemon.listening == [f"unix:{path}"]


def test_group_gets_the_socket_and_may_connect(path: str) -> None:
    mine = {os.getgid(), *os.getgroups()}
    # Root can give a file to any group, others to those they are in.
    group = next(one for one in reversed(grp.getgrall()) if os.geteuid() == 0 or one.gr_gid in mine)
    with Daemon({"listen": f"unix:{path},group={group.gr_name}", "exporters": EXPORTERS}):
        assert Path(path).stat().st_gid == group.gr_gid
        assert mode_of(path) == 0o660


def test_without_a_mode_the_umask_decides(path: str) -> None:
    launcher = ["sh", "-c", 'umask 027; exec "$@"', "sh"]
    with Daemon({"listen": f"unix:{path}", "exporters": EXPORTERS}, launcher=launcher):
        assert mode_of(path) == 0o750


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_clean_stop_removes_the_socket_file(path: str, number: signal.Signals) -> None:
    with Daemon({"listen": f"unix:{path}", "exporters": EXPORTERS}) as daemon:
        assert daemon.stop(number) == 0
        assert not Path(path).exists()


def test_socket_of_a_killed_daemon_is_replaced(path: str) -> None:
    config = {"listen": f"unix:{path},mode=0600", "exporters": EXPORTERS}
    with Daemon(config) as first:
        first.stop(signal.SIGKILL)
    assert stat.S_ISSOCK(Path(path).stat().st_mode)
    with pytest.raises(ConnectionRefusedError):
        Wire(path)
    with Daemon(config) as second:
        ask(path)
        assert second.stop() == 0
    assert not Path(path).exists()


def test_socket_that_someone_else_put_there_meanwhile_stays(path: str) -> None:
    with (
        Daemon({"listen": f"unix:{path}", "exporters": EXPORTERS}) as daemon,
        socket.socket(socket.AF_UNIX) as other,
    ):
        Path(path).unlink()
        other.bind(path)
        assert daemon.stop() == 0
        assert Path(path).exists()


def test_discover_on_a_unix_socket_shows_how_to_ask(path: str) -> None:
    with (
        Daemon(
            "exporters: {}",
            f"--web.listen-address=unix:{path}",
            launcher=["sh", "-c", 'exec "$1" -m exporter_proxy serve --discover "$6"', "sh"],
        ) as daemon,
    ):
        line = daemon.wait_for_output("curl")
        assert line.strip().startswith(f"curl --unix-socket {path} http://localhost/")
        ask(path)


# Several at once


def test_ipv4_ipv6_and_unix_at_once(path: str) -> None:
    config = {"listen": ["127.0.0.1:0", "[::1]:0", f"unix:{path}"], "exporters": EXPORTERS}
    with Daemon(config) as daemon, ExitStack() as stack:
        (_, first), (_, second) = daemon.addresses
        assert daemon.listening == [f"127.0.0.1:{first}", f"[::1]:{second}", f"unix:{path}"]
        for address in daemon.everywhere:
            ask(address)
        for address in daemon.everywhere:
            stack.enter_context(Wire(address)).exchange(request("/-/ready")).expect_ok()
        assert daemon.metric("exporter_proxy_connections") == 4  # this very question is the fourth
        assert daemon.stop() == 0
        for address in daemon.everywhere:
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                Wire(address)


def test_flag_takes_every_kind_and_beats_the_key(path: str) -> None:
    flags = [f"--web.listen-address={one}" for one in (f"unix:{path}", "127.0.0.1:0")]
    with Daemon({"listen": "127.0.0.1:1", "exporters": EXPORTERS}, *flags) as daemon:
        daemon.wait_for_log("address=127.0.0.1:")
        assert daemon.listening == [f"unix:{path}", f"127.0.0.1:{daemon.port}"]
        ask(path)
        ask(("127.0.0.1", daemon.port))


@pytest.mark.parametrize("wildcards", [["0.0.0.0", "[::]"], ["[::]", "0.0.0.0"]])
def test_both_wildcards_on_one_port_share_it(wildcards: list[str]) -> None:
    """The IPv6 one alone would take IPv4 too, and the two would be in each other's way."""
    with reserved_port() as port:
        config = {"listen": [f"{host}:{port}" for host in wildcards], "exporters": EXPORTERS}
        with Daemon(config):
            ask(("127.0.0.1", port))
            ask(("::1", port))


@pytest.mark.parametrize("listen", [":{}", "[::]:{}"])
def test_ipv6_wildcard_alone_takes_ipv4_too(listen: str) -> None:
    with reserved_port() as port, Daemon({"listen": listen.format(port), "exporters": EXPORTERS}):
        ask(("127.0.0.1", port))
        ask(("::1", port))


def test_reload_with_other_listeners_says_that_it_takes_a_restart(path: str) -> None:
    config: dict[str, Any] = {"listen": ["127.0.0.1:0"], "exporters": EXPORTERS}
    with Daemon(config) as daemon:
        for listen in (
            f"unix:{path}",
            "systemd",
            "systemd:http",
            "SERVER_STARTER:8080",
            ["127.0.0.1:0", ":0"],
        ):
            seen = len(daemon.log_lines)
            daemon.write_config({**config, "listen": listen})
            assert "config reloaded" in daemon.reload()
            assert any("listen changed: restart" in line for line in daemon.log_lines[seen:]), listen
            ask(("127.0.0.1", daemon.port))
        assert not Path(path).exists()


# TLS

HANDSHAKE_SECONDS = 0.5


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secured(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """TLS on two addresses and a unix socket."""
    directory = tmp_path_factory.mktemp("t")
    certificate = authority.issue_cert("127.0.0.1", "::1", "localhost")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    config = {
        "listen": ["127.0.0.1:0", "[::1]:0", f"unix:{directory}/http.sock"],
        "read_header_timeout": f"{HANDSHAKE_SECONDS}s",
        "tls": {"certfile": str(directory / "cert.pem"), "keyfile": str(directory / "key.pem")},
        "exporters": EXPORTERS,
    }
    with Daemon(config) as daemon:
        yield daemon


@pytest.mark.parametrize("index", [0, 1, 2], ids=["IPv4", "IPv6", "unix"])
def test_tls_on_every_listener(secured: Daemon, authority: trustme.CA, index: int) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    ask(secured.everywhere[index], tls=trusting)


@pytest.mark.parametrize("greeting", [b"", b"\x16\x03\x01"], ids=["silent", "half a record"])
@pytest.mark.parametrize("index", [0, 1, 2], ids=["IPv4", "IPv6", "unix"])
def test_handshake_that_does_not_come_is_cut_in_time(secured: Daemon, index: int, greeting: bytes) -> None:
    started = time.monotonic()
    with secured.connect(secured.everywhere[index]) as wire:
        if greeting:
            wire.send(greeting)
        assert wire.closes_within(HANDSHAKE_SECONDS + 2.0)
        took = time.monotonic() - started
        assert HANDSHAKE_SECONDS * 0.8 < took < HANDSHAKE_SECONDS + 1.0 + stalled_since(started)


# Stopping


def test_whoever_was_let_in_just_before_a_stop_is_answered(path: str) -> None:
    """A connection that was accepted is in no queue any more: no other process can answer it."""
    with (
        Daemon({"listen": ["127.0.0.1:0", f"unix:{path}"], "exporters": EXPORTERS}) as daemon,
        ExitStack() as stack,
    ):
        count = int(daemon.metric("exporter_proxy_connections"))
        wires = [stack.enter_context(Wire(address)) for address in daemon.everywhere]
        wait_until(lambda: daemon.metric("exporter_proxy_connections") == count + 2, "both were accepted")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("msg=stopping")
        for wire in wires:
            reply = wire.exchange(request("/-/healthy")).expect_ok()
            assert reply.header("connection") == "close"
        assert daemon.process.wait(5) == 0
