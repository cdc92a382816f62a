"""Which TCP sockets listen on this host, and which processes hold them, read from /proc.

This module only reads; it connects to nothing. Which of the sockets may be asked for a page
is decided in ``candidates.py``.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

from exporter_proxy.access import Address, unmapped

PROC = Path("/proc")
OWN_NAME = "exporter_proxy"
EXPORTER_SUFFIXES = ("_exporter", "-exporter")
"""How the names of exporters' programs end; the second is Debian's spelling."""

_LISTEN = "0A"
"""TCP_LISTEN in the ``st`` column."""
_COMM_MAX_CHARS = 15
_NAME_MAX_CHARS = 64
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket. An IPv4-mapped IPv6 address is given as the IPv4 one it stands for."""

    address: Address
    port: int
    uid: int
    inode: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process that holds a listening socket. ``name`` is printable ASCII, whatever the process says."""

    pid: int
    parent_pid: int
    name: str

    @property
    def is_exporter(self) -> bool:
        """Its program is called ``something_exporter`` or ``something-exporter``."""
        return self.name.endswith(EXPORTER_SUFFIXES)


def parse_listeners(table: str, byteorder: Literal["little", "big"] = sys.byteorder) -> list[Listener]:
    """Read the text of /proc/net/tcp or tcp6 and keep the sockets in state LISTEN.

    The kernel prints an address as one (IPv4) or four (IPv6) 32-bit words, each as a number
    of this machine, so that on a little-endian one the bytes within a word stand reversed.
    """
    listeners = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[3] != _LISTEN:
            continue
        address, port = fields[1].split(":")
        listeners.append(
            Listener(_parse_address(address, byteorder), int(port, 16), int(fields[7]), int(fields[9]))
        )
    return listeners


def _parse_address(words: str, byteorder: Literal["little", "big"]) -> Address:
    packed = b"".join(
        int(words[start : start + 8], 16).to_bytes(4, byteorder) for start in range(0, len(words), 8)
    )
    return IPv4Address(packed) if len(packed) == 4 else unmapped(IPv6Address(packed))


def read_listeners(proc: Path = PROC) -> list[Listener]:
    """Read the listening TCP sockets of this network namespace, IPv4 first."""
    listeners = []
    for name in ("tcp", "tcp6"):
        try:
            table = (proc / "net" / name).read_text(encoding="ascii")
        except OSError:
            continue  # tcp6 is missing where IPv6 is switched off
        listeners += parse_listeners(table)
    return listeners


def find_owners(
    inodes: Collection[int], give_up_at: float, proc: Path = PROC
) -> dict[int, tuple[Process, ...]]:
    """Find the processes that hold the sockets ``inodes``, by their open files.

    A socket may have several: workers inherit it, and systemd keeps the one it passed on.
    Processes whose files may not be read are passed over, so without root a socket of another
    user has no entry. The search ends at ``give_up_at`` (``time.monotonic()``), because a host
    may have a million open files; what is unknown by then stays so.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[int, tuple[Process, ...]] = {}
    for directory in proc.iterdir():
        if time.monotonic() >= give_up_at:
            break
        if not directory.name.isdecimal():
            continue
        held = _held_sockets(directory / "fd", wanted)
        process = read_process(directory) if held else None
        if process is not None:
            for inode in held:
                owners[inode] = (*owners.get(inode, ()), process)
    return owners


def _held_sockets(fd_directory: Path, wanted: Mapping[str, int]) -> set[int]:
    held = set()
    try:
        for link in fd_directory.iterdir():
            try:
                inode = wanted.get(str(link.readlink()))
            except OSError:
                continue  # closed since the directory was listed
            if inode is not None:
                held.add(inode)
    except OSError:
        pass  # another user's process, or one that has ended
    return held


def read_process(directory: Path) -> Process | None:
    """Read the process whose directory under /proc this is; ``None`` once it has ended."""
    try:
        stat = (directory / "stat").read_text(encoding="utf-8", errors="replace")
        comm = (directory / "comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
        argv = (directory / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return None  # it has ended
    # "pid (comm) state ppid ...": comm may itself hold spaces and parentheses.
    parent_pid = int(stat.rpartition(")")[2].split()[1])
    return Process(int(directory.name), parent_pid, process_name(comm, argv))


def process_name(comm: str, argv: Sequence[str]) -> str:
    """Give the name of the program a process runs: printable ASCII, at most 64 characters.

    That is the last part of ``argv[0]``, unless that is an interpreter's and ``comm`` tells
    that it runs a script called like an exporter. The kernel cuts ``comm`` to 15 characters,
    so it is completed from the arguments.
    """
    basenames = [_NOT_PRINTABLE.sub("?", part.rpartition("/")[2])[:_NAME_MAX_CHARS] for part in argv[:3]]
    comm = _NOT_PRINTABLE.sub("?", comm)
    if len(comm) == _COMM_MAX_CHARS:
        comm = next((name for name in basenames if name.startswith(comm)), comm)
    program = (basenames[0] if basenames else "") or comm
    for name in (program, comm):
        if name.endswith(EXPORTER_SUFFIXES) or name == OWN_NAME:
            return name
    return program
