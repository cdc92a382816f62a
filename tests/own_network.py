"""A network of its own for a test that wants the usual ports, or a host where nothing else listens.

It is a network namespace in which there is the loopback interface and no other. Not every system lets every
user have one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_NEW_NETWORK = ("unshare", "--map-root-user", "--net")
# A new namespace has its loopback interface down: SIOCSIFFLAGS with IFF_UP, then what was asked for.
_LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Files in place of others, for this command alone; and the socket of a name server, which nobody reads from.
_SILENT_NAME_SERVER = """
import os, socket, subprocess, sys
directory, *command = sys.argv[1:]
for name in ("resolv.conf", "nsswitch.conf"):
    subprocess.run(["mount", "--bind", f"{directory}/{name}", f"/etc/{name}"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.set_inheritable(True)
os.execvp(command[0], command)
"""


def can_have_own_network() -> bool:
    """Whether this user may have one here."""
    try:
        return subprocess.run([*_NEW_NETWORK, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def skip_without_own_network() -> None:
    if not can_have_own_network():
        pytest.skip("this user may not have a network namespace")


def alone(*command: str) -> list[str]:
    """The command, in a new network; the process keeps its id."""
    return [*_NEW_NETWORK, sys.executable, "-c", _LOOPBACK_UP, *command]


def beside(pid: int, *command: str) -> list[str]:
    """The command, in the network of a process that ``alone`` has started."""
    enter = ("nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials")
    return [*enter, *command]


def unanswered(directory: Path) -> list[str]:
    """Goes before a command, which is then alone as well, with a name server that never answers it.

    Names of ``/etc/hosts`` it knows. ``directory`` is the test's own.
    """
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (directory / "nsswitch.conf").write_text("hosts: files dns\n")
    up = [sys.executable, "-c", _LOOPBACK_UP]
    return [*_NEW_NETWORK, "--mount", *up, sys.executable, "-c", _SILENT_NAME_SERVER, str(directory)]
