"""A start that fails for an address: status 1, and one line that says why and what to do about it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter_proxy.config.schema import ListenAddress, UnixListen
from exporter_proxy.front.bind_errors import tcp_bind_problem, unix_bind_problem
from tests.daemon import REPOSITORY, Daemon
from tests.fakes.ports import reserved_port

NOBODY = 65534
PYTHON = Path(sys.executable).name
"""What the tests and the daemons that they start are called."""
CONFIG = "exporters: {x: {url: http://127.0.0.1:1/metrics}}\n"
AS_SOMEONE_ELSE = """
import os, sys
# This Python may be root's alone: all that is needed of it is loaded before.
import encodings.ascii, encodings.idna, uvloop
from exporter_proxy import cli, daemon
from exporter_proxy.front import bind_errors
from exporter_proxy.config import load_config
load_config(sys.argv[3].partition("=")[2])
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.exit(cli.main(sys.argv[2:]))
"""
UNPRIVILEGED_FROM = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes another user, so root")


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose path leaves room for a unix socket's name."""
    return tmp_path_factory.mktemp("b")


def refused(directory: Path, *listens: str, user: int | None = None) -> str:
    """Why it cannot start, without the words that every such line begins with."""
    (directory / "config.yml").write_text(CONFIG)
    python = ["-m", "exporter_proxy"] if user is None else ["-c", AS_SOMEONE_ELSE, str(user)]
    # Read while it is still allowed to: pytest's directories are nobody else's business.
    with (directory / "config.yml").open() as config:
        result = subprocess.run(
            [
                *(sys.executable, *python, "serve", f"--config.file=/dev/fd/{config.fileno()}"),
                *(f"--web.listen-address={one}" for one in listens),
            ],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            pass_fds=[config.fileno()],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert (result.returncode, result.stdout) == (1, ""), result
    assert result.stderr.startswith("exporter_proxy: cannot listen on "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("exporter_proxy: cannot listen on ").rstrip("\n")


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", ""),
        ("127.0.0.1", "localhost"),
        ("::1", "[::1]"),
        ("::", "[::1]"),
        ("::", "127.0.0.1"),
        ("::1", "[::]"),
    ],
)
def test_whoever_holds_the_port_is_named(directory: Path, held: str, wanted: str) -> None:
    family = socket.AF_INET6 if ":" in held else socket.AF_INET
    both = held == "::"
    with socket.create_server((held, 0), family=family, dualstack_ipv6=both) as taken:
        port = taken.getsockname()[1]
        holder = f"{PYTHON} (pid {os.getpid()})"
        assert refused(directory, f"{wanted}:{port}") == (
            f"{wanted}:{port}: address already in use by {holder}; stop that, or listen on another port"
        )


def test_another_daemon_on_the_port_is_named(directory: Path) -> None:
    with Daemon(CONFIG) as daemon:
        line = refused(directory, f"127.0.0.1:{daemon.port}")
    assert f"address already in use by {PYTHON} (pid {daemon.process.pid}); " in line


@pytest.mark.parametrize("second", ["127.0.0.1:{}", "[::1]:{}", "0.0.0.0:{}"])
def test_an_address_that_another_of_its_own_covers(directory: Path, second: str) -> None:
    with reserved_port() as port:
        line = refused(directory, f":{port}", second.format(port))
    assert line.startswith(f"{second.format(port)}: address already in use by this daemon itself: another ")


@needs_root
def test_where_the_holder_may_not_be_known_there_is_a_command_to_find_out(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(directory, f"127.0.0.1:{port}", user=NOBODY) == (
            f"127.0.0.1:{port}: address already in use; see who holds it: ss -ltnp 'sport = :{port}'"
        )


@needs_root
@pytest.mark.skipif(UNPRIVILEGED_FROM < 2, reason="this kernel gives every port to everyone")
def test_port_for_root_alone(directory: Path) -> None:
    line = refused(directory, "127.0.0.1:1", user=NOBODY)
    assert line.startswith("127.0.0.1:1: permission denied for a port below 1024; use a higher one, or set ")
    assert line.endswith("AmbientCapabilities=CAP_NET_BIND_SERVICE in the service unit")


def test_address_of_another_host(directory: Path) -> None:
    assert refused(directory, "192.0.2.1:9099") == (
        "192.0.2.1:9099: no such address on this host; `ip address` shows those it has"
    )


def test_name_that_does_not_resolve() -> None:
    """Told to the one who puts it into words: a test asks no DNS server."""
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert tcp_bind_problem(ListenAddress("nowhere.example.org", 9099), error) == (
        "the name does not resolve (Name or service not known); correct it, here or in DNS or /etc/hosts, "
        "or give an IP address"
    )


# Unix sockets


def test_directory_that_is_missing(directory: Path) -> None:
    path = directory / "missing" / "s"
    assert refused(directory, f"unix:{path}") == (
        f"unix:{path}: there is no directory {path.parent}; create it, or have systemd do so with "
        "RuntimeDirectory= in the service unit"
    )
    under_a_file = directory / "config.yml" / "s"
    assert f"there is no directory {under_a_file.parent};" in refused(directory, f"unix:{under_a_file}")


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_link(path: Path) -> None:
    path.symlink_to("/nowhere")


@pytest.mark.parametrize("make", [a_file, Path.mkdir, a_link])
def test_what_is_no_socket_is_left_alone(directory: Path, make: Callable[[Path], None]) -> None:
    path = directory / "s"
    make(path)
    before = path.lstat()
    assert refused(directory, f"unix:{path}") == (
        f"unix:{path}: what has that name is no socket; remove it, or change the path"
    )
    assert path.lstat() == before


@pytest.mark.parametrize("backlog", [0, 16], ids=["queue full", "queue open"])
def test_unix_socket_that_another_process_listens_on(directory: Path, backlog: int) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as taken, socket.socket(socket.AF_UNIX) as waiting:
        taken.bind(str(path))
        taken.listen(backlog)
        if not backlog:
            waiting.connect(str(path))
        line = refused(directory, f"unix:{path}")
    assert line.startswith(f"unix:{path}: another process is listening there")
    assert line.endswith("; stop it, or change the path")
    assert not backlog or f", {PYTHON} (pid {os.getpid()});" in line
    assert path.exists()


def test_unix_socket_of_another_daemon(directory: Path) -> None:
    path = directory / "s"
    with Daemon(f"listen: unix:{path}\n{CONFIG}") as daemon:
        line = refused(directory, f"unix:{path}")
        assert f"another process is listening there, {PYTHON} (pid {daemon.process.pid}); " in line
        daemon.get("/-/ready").expect_ok()


def test_group_that_does_not_exist(directory: Path) -> None:
    path = directory / "s"
    assert refused(directory, f"unix:{path},group=no-such-group") == (
        f'unix:{path}: there is no group "no-such-group" on this host; create it or name another'
    )
    assert not path.exists()


@needs_root
def test_unix_socket_that_the_user_may_not_make(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as reachable:
        Path(reachable).chmod(0o755)
        path = Path(reachable) / "s"
        assert refused(directory, f"unix:{path}", user=NOBODY) == (
            f"unix:{path}: permission denied; the daemon's user must be able to write in {reachable}"
        )
        Path(reachable).chmod(0o777)
        line = refused(directory, f"unix:{path},group=root", user=NOBODY)
        assert line.startswith(f"unix:{path}: not permitted to give the socket to the group root; ")
        assert not path.exists(), "nothing half-made is left behind"


def test_any_other_trouble_is_said_in_the_systems_words() -> None:
    error = OSError(28, "No space left on device")
    assert unix_bind_problem(UnixListen("/s", None, None), error) == "No space left on device"
    assert tcp_bind_problem(ListenAddress("", 1), error) == "No space left on device"


def test_nothing_stays_behind_when_a_later_address_cannot_be_had(directory: Path) -> None:
    path = directory / "s"
    refused(directory, f"unix:{path}", "192.0.2.1:9099")
    assert not path.exists()
