"""Many connections at once, made by processes of their own so that each has its own descriptors.

``python -m tests.fakes.attacker PORT COUNT BEHAVIOUR SOURCES`` connects, says "connected" with the number,
holds what it has until its standard input ends, and leaves.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.daemon import REPOSITORY

PROCESSES = 4
REQUEST = b"GET /x/metrics HTTP/1.1\r\nHost: proxy.test\r\nUser-Agent: attacker\r\n\r\n"
SILENT, HALF_A_REQUEST, LEAVE, RESET = ("silent", "half-a-request", "leave", "reset")


@contextlib.contextmanager
def flood(port: int, count: int, behaviour: str, sources: int = 1) -> Iterator[None]:
    """``count`` connections to ``port``, from so many addresses of 127.0.0.0/8; held during the block."""
    each = count // PROCESSES
    arguments = [str(port), str(each), behaviour, str(sources)]
    with contextlib.ExitStack() as stack:
        attackers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.fakes.attacker", *arguments],
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(PROCESSES)
        ]
        try:
            for attacker in attackers:
                assert attacker.stdout is not None
                assert attacker.stdout.readline() == f"connected {each}\n"
            yield
        finally:
            for attacker in attackers:
                attacker.communicate()  # its standard input ends


def _attack(port: int, count: int, behaviour: str, sources: int) -> None:
    # A real one takes no time from the machine that it attacks. Not 19: on a busy one that is never a turn.
    os.nice(5)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    held = [_connect(port, behaviour, number % sources) for number in range(count)]
    print("connected", len(held), flush=True)
    sys.stdin.read()


def _connect(port: int, behaviour: str, source: int) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(60)
    # Not 127.0.0.1 and its neighbours: ten thousand ports of theirs would be missed by other tests.
    connection.bind((f"127.{source // 250 + 66}.0.{source % 250 + 1}", 0))
    while True:
        with contextlib.suppress(ConnectionResetError):  # evicted while the handshake was answered
            connection.connect(("127.0.0.1", port))
            break
        time.sleep(0.001)
    with contextlib.suppress(ConnectionError):  # evicted
        if behaviour == HALF_A_REQUEST:
            connection.send(REQUEST[:40])
        elif behaviour == RESET:
            connection.send(REQUEST[: random.randint(0, len(REQUEST))])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if behaviour in (LEAVE, RESET):
        connection.close()
    return connection


if __name__ == "__main__":
    _attack(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
