"""A second address of this host, beside 127.0.0.1: what is shown to clients from elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable

import pytest

NEW_NETWORK = 0x40000000
"""CLONE_NEWNET: Python 3.11 has neither the name nor the call."""


def with_second_address(test: Callable[[str], None]) -> None:
    """Call ``test`` with an address of this host that is not a loopback one; skip where none can be had."""
    address = own_outward_address()
    if address is None:
        in_a_network_of_its_own(test)
    else:
        test(address)


def own_outward_address() -> str | None:
    """This host's address as others see it, if it has one: nothing is sent for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
        asked.connect(("198.51.100.1", 9))
        address: str = asked.getsockname()[0]
        return None if address.startswith("127.") else address
    return None


def in_a_network_of_its_own(test: Callable[[str], None]) -> None:
    """Call ``test`` where another address is this host's; only root can do that."""
    failures: list[BaseException] = []

    def enter_and_test() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK):
                pytest.skip(f"no second address and no new network: {os.strerror(ctypes.get_errno())}")
            for arguments in ("link set lo up", "address add 192.0.2.9/32 dev lo"):
                subprocess.run(["ip", *arguments.split()], check=True)
            test("192.0.2.9")
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=enter_and_test)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
