"""What systemd passes, read from the environment; and a watchdog that only a running loop feeds."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import pytest

from exporter_proxy.systemd import Notifier, PassedDescriptor, passed_descriptors, why_nothing_was_passed

MINE = {"LISTEN_PID": str(os.getpid())}


@pytest.mark.parametrize(
    ("environ", "passed"),
    [
        ({}, []),
        ({"LISTEN_FDS": "1"}, []),
        (MINE, []),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, []),
        ({**MINE, "LISTEN_FDS": "0"}, []),
        ({**MINE, "LISTEN_FDS": "-1"}, []),
        ({**MINE, "LISTEN_FDS": "x"}, []),
        ({**MINE, "LISTEN_FDS": "1"}, [("unknown", 3)]),
        ({**MINE, "LISTEN_FDS": "1", "LISTEN_FDNAMES": ""}, [("unknown", 3)]),
        ({**MINE, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:a.socket"}, [("http", 3), ("a.socket", 4)]),
        ({**MINE, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a::a"}, [("a", 3), ("unknown", 4), ("a", 5)]),
        ({**MINE, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, [("a", 3), ("unknown", 4)]),
    ],
)
def test_passed_descriptors(environ: dict[str, str], passed: list[tuple[str, int]]) -> None:
    assert list(passed_descriptors(environ)) == [PassedDescriptor(name, fd) for name, fd in passed]


def test_why_nothing_was_passed() -> None:
    assert "start the socket unit" in why_nothing_was_passed({})
    assert "start the socket unit" in why_nothing_was_passed(MINE)
    assert "process 1 and this is" in why_nothing_was_passed({"LISTEN_PID": "1"})


def test_a_stuck_loop_feeds_the_watchdog_no_more() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("")
        systemd.setblocking(False)
        name = systemd.getsockname()[1:].decode()

        def received() -> list[str]:
            messages = []
            try:
                while True:
                    messages.append(systemd.recv(4096).decode())
            except BlockingIOError:
                return messages

        async def scenario() -> None:
            environ = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "1000000"}
            notifier = Notifier(pytest.fail, environ)
            notifier.ready(lambda: "well")
            assert received() == ["READY=1\nSTATUS=well"]
            await asyncio.sleep(0.7)
            assert "WATCHDOG=1" in received()
            time.sleep(1.5)  # noqa: ASYNC251 - that is the point
            assert received() == []
            for _ in range(3):
                await asyncio.sleep(0)
            assert received() == ["WATCHDOG=1"], "one, and not those that were missed"
            notifier.close()
            await asyncio.sleep(0.7)
            assert received() == []

        asyncio.run(scenario())
