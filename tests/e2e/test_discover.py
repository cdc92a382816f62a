"""Discovery on this very host: real exporters, and listeners that must be left alone.

Discovery leaves out its own children, so it runs in a process of its own beside what it is to
find. Other tests have exporters on this host too: only what a test has started is looked at.
"""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from exporter_proxy.discover.recognise import known_ports
from tests.e2e.processes import listening_port

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
PATIENCE_SECONDS = 20
DISCOVER = """
import asyncio, dataclasses, json, os, sys, time
from exporter_proxy.discover import discover_exporters
deadline_seconds, user = float(sys.argv[1]), int(sys.argv[2])
if user != os.getuid():
    asyncio.run(discover_exporters(1))  # imports what the other user may not be able to read
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
started = time.monotonic()
discovery = asyncio.run(discover_exporters(deadline_seconds))
seconds = time.monotonic() - started
print(json.dumps({"seconds": seconds, **dataclasses.asdict(discovery)}))
"""
DEBIAN_EXPORTERS = {
    "node_exporter": ["prometheus-node-exporter"],
    "mysqld_exporter": ["prometheus-mysqld-exporter"],
    "redis_exporter": ["prometheus-redis-exporter", "--redis.addr=redis://127.0.0.1:1"],
    "postgres_exporter": ["prometheus-postgres-exporter"],
    "blackbox_exporter": ["prometheus-blackbox-exporter", "--config.file=/etc/prometheus/blackbox.yml"],
    "process_exporter": ["prometheus-process-exporter", "-procnames", "python"],
    "exporter_exporter": [
        "prometheus-exporter-exporter",
        "-config.file=/etc/prometheus/exporter-exporter.yml",
    ],
}
DATA_SOURCES = {
    "mysqld_exporter": "u:p@(127.0.0.1:1)/",
    "postgres_exporter": "postgresql://u:p@127.0.0.1:1/x?sslmode=disable",
}
"""Databases that are down: the exporters answer all the same."""

Found = dict[str, Any]


def run_discovery(deadline_seconds: float, user: int = os.getuid()) -> tuple[float, list[Found]]:
    """Give the seconds it took and what it found."""
    answer = discovery(deadline_seconds, user)
    return answer["seconds"], answer["found"]


def discovery(deadline_seconds: float, user: int = os.getuid()) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", DISCOVER, str(deadline_seconds), str(user)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=deadline_seconds + PATIENCE_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@contextmanager
def exporter_process(command: list[str], data_source: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, **({"DATA_SOURCE_NAME": data_source} if data_source else {})}
    try:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{command[0]} is not installed")
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def by_pid(found: list[Found], pid: int) -> Found:
    matching = [one for one in found if one["pid"] == pid]
    assert len(matching) == 1, f"pid {pid} is not once in {found}"
    return matching[0]


def assert_named(one: Found, name: str) -> None:
    """Another test may have an exporter of that name, which makes them both carry their ports."""
    assert one["name"] in (name, f"{name}_{one['port']}")


def test_debians_exporters_are_found_on_any_port_and_named() -> None:
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                exporter_process([*command, "--web.listen-address=127.0.0.1:0"], DATA_SOURCES.get(name))
            )
            for name, command in DEBIAN_EXPORTERS.items()
        }
        ports = {name: listening_port(process) for name, process in processes.items()}
        _, found = run_discovery(10)
        assert [one["port"] for one in found] == sorted(one["port"] for one in found)
        for name, process in processes.items():
            one = by_pid(found, process.pid)
            assert_named(one, name)
            assert one["port"] == ports[name]
            assert one["process_name"] == f"prometheus-{name.replace('_', '-')}"
            assert one["url"] == f"http://127.0.0.1:{one['port']}/metrics"
            with urllib.request.urlopen(one["url"], timeout=PATIENCE_SECONDS) as response:
                assert response.status == 200


def has_ipv6_loopback() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="this host has no ::1")


@needs_ipv6
@pytest.mark.parametrize(
    ("listen", "host"), [("[::1]:0", "[::1]"), ("[::]:0", "127.0.0.1"), (":0", "127.0.0.1")]
)
def test_ipv6_and_wildcard_sockets_are_found_once(listen: str, host: str) -> None:
    command = [*DEBIAN_EXPORTERS["blackbox_exporter"], f"--web.listen-address={listen}"]
    with exporter_process(command) as process:
        port = listening_port(process)
        _, found = run_discovery(10)
        one = by_pid(found, process.pid)
        assert_named(one, "blackbox_exporter")
        assert one["url"] == f"http://{host}:{port}/metrics"


SCRIPT = """#!{python}
import http.server
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"magrathea_planets 1\\n")
http.server.HTTPServer(("127.0.0.1", 0), Page).serve_forever()
"""


def test_a_script_is_named_after_its_file(tmp_path: Path) -> None:
    script = tmp_path / "magrathea-planet-exporter"  # longer than the kernel's 15 characters
    script.write_text(SCRIPT.format(python=sys.executable))
    script.chmod(stat.S_IRWXU)
    with exporter_process([str(script)]) as process:
        port = listening_port(process)
        _, found = run_discovery(10)
        one = by_pid(found, process.pid)
        assert_named(one, "magrathea_planet_exporter")
        assert (one["process_name"], one["url"]) == (script.name, f"http://127.0.0.1:{port}/metrics")


@contextmanager
def listeners_in_range(*hosts: str) -> Iterator[list[socket.socket]]:
    """Listeners on one free port of 9100 to 9999 that is no exporter's default; IPv6 ones are IPv6 only."""
    for port in random.sample(sorted(set(range(9100, 10000)) - known_ports().keys()), 500):
        with ExitStack() as stack:
            try:
                listeners = [
                    stack.enter_context(
                        socket.create_server(
                            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
                        )
                    )
                    for host in hosts
                ]
            except OSError:
                continue
            yield listeners
            return
    raise AssertionError("every port from 9100 to 9999 is taken")


Play = Callable[[socket.socket, bytes], None]
"""What a server does with a connection on which it has received these bytes."""

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"


def answer(data: bytes) -> Play:
    """Send ``data`` and close."""
    return lambda connection, _: connection.sendall(data)


def flood(connection: socket.socket, _: bytes) -> None:
    """A page without an end, as fast as it is read."""
    connection.sendall(OK)
    while True:
        connection.sendall(b'numbers{of="many"} 1\n' * 1000)


def drip(connection: socket.socket, _: bytes) -> None:
    """A page without an end, slow enough that no single read takes long."""
    connection.sendall(OK)
    while True:
        connection.sendall(b"a 1\n")
        time.sleep(0.05)


@contextmanager
def serving(play: Play, *hosts: str) -> Iterator[int]:
    """Give the port, from 9100 to 9999, of a server that plays the same on every connection.

    At the end every connection is ended as well: discoveries of other tests must not wait here.
    """
    connections: list[socket.socket] = []
    ending = threading.Event()

    def converse(connection: socket.socket) -> None:
        with connection:
            try:
                play(connection, connection.recv(65536))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass  # the client has seen enough, or this is the end

    def accept(listener: socket.socket) -> None:
        while not ending.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=converse, args=(connection,), daemon=True).start()

    with listeners_in_range(*(hosts or ["127.0.0.1"])) as listeners:
        acceptors = [threading.Thread(target=accept, args=(one,), daemon=True) for one in listeners]
        for acceptor in acceptors:
            acceptor.start()
        try:
            yield listeners[0].getsockname()[1]
        finally:
            ending.set()
            for listener, acceptor in zip(listeners, acceptors, strict=True):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
                acceptor.join(PATIENCE_SECONDS)
            for connection in connections:
                with suppress(OSError):  # most have ended themselves
                    connection.shutdown(socket.SHUT_RDWR)


def connections_made(listener: socket.socket) -> int:
    """How many clients wait to be accepted."""
    listener.setblocking(False)
    made = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return made
        made += 1


def test_a_listener_outside_the_rules_is_never_connected_to() -> None:
    requests: list[bytes] = []
    with ExitStack() as stack:
        outside = [
            stack.enter_context(socket.create_server((host, 0), family=family))
            for host, family in [
                ("127.0.0.1", socket.AF_INET),
                ("0.0.0.0", socket.AF_INET),
                *([("::1", socket.AF_INET6), ("::", socket.AF_INET6)] if has_ipv6_loopback() else []),
            ]
        ]
        # This process is asked where the rules allow it: it is the sockets that are left out.
        inside = stack.enter_context(serving(lambda _, received: requests.append(received)))
        run_discovery(5)
        assert [connections_made(listener) for listener in outside] == [0 for _ in outside]
        assert requests[0].startswith(b"GET /metrics HTTP/1.1\r\n")
        assert f"\r\nHost: 127.0.0.1:{inside}\r\n".encode() in requests[0]


def test_only_exposition_text_with_status_200_counts() -> None:
    with ExitStack() as stack:
        elsewhere = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        location = f"Location: http://127.0.0.1:{elsewhere.getsockname()[1]}/metrics"
        others = {
            "not found": answer(b"HTTP/1.1 404 Not Found\r\n\r\na 1\n"),
            "unauthorized": answer(b"HTTP/1.1 401 Unauthorized\r\n\r\na 1\n"),
            "redirect": answer(f"HTTP/1.1 302 Found\r\n{location}\r\n\r\na 1\n".encode()),
            "html": answer(OK + b"<!doctype html><title>It works</title>"),
            "empty": answer(OK),
            "not HTTP": answer(b"-ERR unknown command 'GET'\r\n"),
            "closed at once": answer(b""),
            "cut short": answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na 1\n"),
            "another exporter_proxy": answer(OK + b'exporter_proxy_build_info{version="1"} 1\n'),
        }
        exporters = {
            "small": answer(OK + b"a 1"),
            "endless": flood,
            "with metrics of another port": answer(OK + b"redis_up 1\n"),
            "with build info": answer(OK + b'zaphod_exporter_build_info{version="2"} 1\n'),
        }
        ports = {what: stack.enter_context(serving(play)) for what, play in (others | exporters).items()}
        _, found = run_discovery(5)
        names = {one["port"]: one["name"] for one in found if one["pid"] == os.getpid()}
        what = {port: what for what, port in ports.items()}
        assert {what[port] for port in names} == exporters.keys()
        assert names[ports["small"]] == f"port_{ports['small']}"
        assert names[ports["endless"]] == f"port_{ports['endless']}"
        assert names[ports["with metrics of another port"]].startswith("redis_exporter")
        assert names[ports["with build info"]].startswith("zaphod_exporter")
        assert connections_made(elsewhere) == 0


@needs_ipv6
@pytest.mark.parametrize(
    ("hosts", "host"),
    [
        (["::"], "[::1]"),
        (["::1"], "[::1]"),
        (["127.0.0.1", "::1"], "127.0.0.1"),
        (["0.0.0.0", "::"], "127.0.0.1"),
    ],
)
def test_sockets_of_one_process_on_one_port_are_one_exporter(hosts: list[str], host: str) -> None:
    with serving(answer(OK + b"a 1\n"), *hosts) as port:
        _, found = run_discovery(5)
        assert [one["url"] for one in found if one["port"] == port] == [f"http://{host}:{port}/metrics"]


def test_hanging_listeners_neither_pass_the_deadline_nor_hide_the_others() -> None:
    with ExitStack() as stack:
        listeners = [stack.enter_context(listeners_in_range("127.0.0.1"))[0] for _ in range(20)]
        silent = [listener.getsockname()[1] for listener in listeners]
        dripping = stack.enter_context(serving(drip))
        good = stack.enter_context(serving(answer(OK + b"a 1\n")))
        looked = discovery(4)
        ports = {one["port"] for one in looked["found"]}
        assert good in ports
        assert ports.isdisjoint([*silent, dripping])
        assert 4 <= looked["seconds"] < 14
        # Whose they are may not be found out in time.
        told = {line.split()[0]: line.split(" did ")[1] for line in looked["silent"]}
        for port in (*silent, dripping):
            assert told[f"http://127.0.0.1:{port}/metrics"] == "not answer within 4 s"
        assert f"http://127.0.0.1:{good}/metrics" not in told


def test_two_exporters_of_one_name_carry_their_ports() -> None:
    page = answer(OK + b'trillian_exporter_build_info{version="2"} 1\n')
    with serving(page) as one, serving(page) as other:
        _, found = run_discovery(5)
        names = {found_one["port"]: found_one["name"] for found_one in found}
        assert names[one] == f"trillian_exporter_{one}"
        assert names[other] == f"trillian_exporter_{other}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_sockets_of_other_users_are_asked_by_port_with_their_owner_unknown() -> None:
    command = [*DEBIAN_EXPORTERS["blackbox_exporter"], "--web.listen-address=127.0.0.1:0"]
    with serving(answer(OK + b"a 1\n")) as port, exporter_process(command) as process:
        unknown_port = listening_port(process)
        _, found = run_discovery(5, user=NOBODY)
        owners = {one["port"]: (one["pid"], one["process_name"]) for one in found}
        assert owners[port] == (None, None)
        assert unknown_port not in owners
