"""Ports where no exporter answers, each in its own way."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

LOWEST_GIVEN = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
"""The lowest port that the kernel gives to whoever asks for any."""


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port that is taken but not listened on: every connection to it is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port free on every address that nobody is given by chance; who sets SO_REUSEADDR can listen on it.

    Below those that the kernel gives to connections: one of these, on any address, would be in the way.
    """
    taken = None
    while taken is None:
        taken = _reserved(random.randrange(LOWEST_GIVEN // 2, LOWEST_GIVEN))
    with taken:
        yield taken.getsockname()[1]


def _reserved(port: int) -> socket.socket | None:
    """Without listening; ``None`` where somebody has this port."""
    with socket.socket() as exclusive:
        try:
            exclusive.bind(("", port))  # without SO_REUSEADDR, so that it fails where another has reserved it
        except OSError:
            return None
    taken = socket.socket(socket.AF_INET6)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        taken.bind(("::", port))
    except OSError:
        taken.close()
        return None
    return taken


@contextlib.contextmanager
def unanswering_port() -> Iterator[int]:
    """A port whose accept queue is full: connecting to it hangs, as behind a dropping firewall."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
