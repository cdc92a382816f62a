"""What systemd and a service tell each other: sockets passed at start, and notifications back.

sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3), which are a few environment variables
and datagrams. What is done with a passed socket is ``front/sockets.py``'s business, and when
there is something to tell is known to ``daemon.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START."""
STATUS_SECONDS = 10.0
"""How often the status line is brought up to date where no watchdog sets the pace."""


@dataclass(frozen=True, slots=True)
class PassedDescriptor:
    """An open descriptor that systemd passed. Several may have one name."""

    name: str
    """``FileDescriptorName=`` of its socket unit, which is the unit's own name by default."""
    fd: int


def passed_descriptors(environ: Mapping[str, str] = os.environ) -> tuple[PassedDescriptor, ...]:
    """What systemd passed to this very process; empty where it passed nothing.

    A child of the process that was meant inherits the variables, not the descriptors, so
    LISTEN_PID has to be our own.
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return ()
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return tuple(
        PassedDescriptor(names[index] if index < len(names) and names[index] else "unknown", fd)
        for index, fd in enumerate(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)))
    )


def why_nothing_was_passed(environ: Mapping[str, str] = os.environ) -> str:
    """One line for someone who expected sockets, with what to do."""
    meant = environ.get("LISTEN_PID")
    if meant is not None and meant != str(os.getpid()):
        return (
            f"systemd passed its sockets to process {meant} and this is {os.getpid()}: a script that starts "
            "exporter_proxy must do so with exec"
        )
    return (
        "systemd passed no socket: start the socket unit (systemctl start exporter_proxy.socket) and let "
        "the service require it, or listen on an address"
    )


class Notifier:
    """Tells systemd how the daemon is doing. Without NOTIFY_SOCKET it does nothing.

    The watchdog is fed by the event loop itself: a loop that is stuck feeds it no more, and
    systemd restarts the daemon. ``on_trouble`` is told, once, why systemd cannot be reached.
    """

    def __init__(self, on_trouble: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> None:
        self._on_trouble: Callable[[str], None] | None = on_trouble
        self._address = _notify_address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self._watchdog_seconds = _watchdog_seconds(environ)
        self._status: Callable[[], str] | None = None
        """Set from ``ready`` to ``stopping``, where there is somebody to tell."""
        self._last_status = ""
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, status: Callable[[], str]) -> None:
        """Requests are answered from now on. ``status`` gives a short line for ``systemctl status``.

        Called by the event loop, whose timers then keep status and watchdog going until ``close``.
        """
        if self._socket is None:
            return
        self._status = status
        self._last_status = status()
        self._send("READY=1", f"STATUS={self._last_status}")
        self._arm(asyncio.get_running_loop())

    @contextlib.asynccontextmanager
    async def during_reload(self) -> AsyncIterator[None]:
        """A reload begins, and is over at the end of the block, whether it succeeded or not."""
        # Type=notify-reload wants to know that this is no older than its SIGHUP.
        now_microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        if self._status is not None:
            self._send("RELOADING=1", f"MONOTONIC_USEC={now_microseconds}")
        try:
            yield
        finally:
            if self._status is not None:
                self._last_status = self._status()
                self._send("READY=1", f"STATUS={self._last_status}")

    def stopping(self, status: str) -> None:
        """No new connections from now on; scrapes under way are finished."""
        if self._socket is None:
            return
        self._status = None
        self._send("STOPPING=1", f"STATUS={status}")

    def close(self) -> None:
        """Say nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        seconds = STATUS_SECONDS if self._watchdog_seconds is None else self._watchdog_seconds / 2
        self._timer = loop.call_later(seconds, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._arm(loop)
        lines = [] if self._watchdog_seconds is None else ["WATCHDOG=1"]
        status = self._last_status if self._status is None else self._status()
        if status != self._last_status:
            self._last_status = status
            lines.append(f"STATUS={status}")
        if lines:
            self._send(*lines)

    def _send(self, *lines: str) -> None:
        assert self._socket is not None
        assert self._address is not None
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if self._on_trouble is not None:
                self._on_trouble(f"{error.strerror} (NOTIFY_SOCKET is {os.fsdecode(self._address)!r})")
                self._on_trouble = None


def _notify_address(text: str) -> bytes | None:
    """The address for ``sendto``; ``@`` stands for the NUL of an abstract one."""
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    return os.fsencode(text) if text.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """How long systemd waits for a sign of life; ``None``: for ever, or not for ours."""
    text = environ.get("WATCHDOG_USEC", "")
    is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(text) / 1e6 if is_ours and text.isdecimal() and int(text) > 0 else None
