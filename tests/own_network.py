"""A network of its own for a test that wants the usual ports, or a host where nothing else listens.

It is a network namespace in which there is the loopback interface and no other. Not every system lets every
user have one.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

_NEW_NETWORK = ("unshare", "--map-root-user", "--net")
# A new namespace has its loopback interface down: SIOCSIFFLAGS with IFF_UP, then what was asked for.
_LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
os.execvp(sys.argv[1], sys.argv[1:])
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
