"""Which of the listening sockets may be asked for a page, and at which URLs.

A stray HTTP request is not harmless everywhere (Redis logs it as an attack), so a socket is
asked only where an exporter is to be expected, unless the user wants all asked. Nothing here
touches the network or /proc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from exporter_proxy.access import Address
from exporter_proxy.discover.recognise import KnownPort
from exporter_proxy.discover.sockets import OWN_NAME, Listener, Process

EXPORTER_PORTS = range(9100, 10000)
"""Where Prometheus's list of default ports places exporters."""

_IPV4_LOOPBACK = IPv4Address("127.0.0.1")
_IPV6_LOOPBACK = IPv6Address("::1")
_NEEDS_A_TARGET = frozenset({"/probe", "/snmp", "/pve"})
"""Pages about another host, which the scraper has to name; of these exporters the page about
themselves is asked."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may be an exporter: one process's sockets on one port."""

    port: int
    urls: tuple[str, ...]
    """Tried in this order until one connects."""
    owner: Process | None
    """``None``: not allowed to know."""


def find_candidates(
    listeners: Iterable[Listener],
    owners: Mapping[int, tuple[Process, ...]],
    ports: Mapping[int, KnownPort],
    own_pid: int,
    ask_all: bool = False,
) -> list[Candidate]:
    """Select the sockets that may be asked, in the order of their ports.

    Those are the ones on a port of ``ports``, on 9100 to 9999, or held by a process called like
    an exporter, or all with ``ask_all``; never those of ``own_pid``, its children and any exporter_proxy.
    Sockets of one process on one port (IPv4 and IPv6, or several addresses) are one candidate;
    where the process is unknown, its user stands for it.
    """
    groups: dict[tuple[int, str], list[Address]] = {}
    group_owners: dict[tuple[int, str], Process | None] = {}
    for listener in listeners:
        holders = owners.get(listener.inode, ())
        if any(_is_own(process, own_pid) for process in holders):
            continue
        owner = min(holders, key=_owner_rank, default=None)
        expected = ask_all or listener.port in ports or listener.port in EXPORTER_PORTS
        if not expected and not (owner and owner.is_exporter):
            continue
        key = (listener.port, f"pid {owner.pid}" if owner else f"uid {listener.uid}")
        groups.setdefault(key, []).append(listener.address)
        group_owners[key] = owner
    candidates = []
    for key, addresses in _addresses_to_ask(groups).items():
        port, owner = key[0], group_owners[key]
        path = _path(ports.get(port), owner)
        urls = tuple(f"http://{_url_host(address)}:{port}{path}" for address in addresses)
        candidates.append(Candidate(port, urls, owner))
    return sorted(candidates, key=lambda candidate: (candidate.port, candidate.urls))


def _is_own(process: Process, own_pid: int) -> bool:
    return own_pid in (process.pid, process.parent_pid) or process.name == OWN_NAME


def _owner_rank(process: Process) -> tuple[bool, bool, int]:
    """Of several holders of a socket: the exporter, never systemd if avoidable, the oldest."""
    return (not process.is_exporter, process.pid == 1, process.pid)


def _addresses_to_ask(
    groups: Mapping[tuple[int, str], list[Address]],
) -> dict[tuple[int, str], list[Address]]:
    """Turn the addresses listened on into those to connect to, each one asked for one group only."""
    claimed: dict[tuple[int, Address], tuple[int, str]] = {}
    for key, addresses in groups.items():
        for address in addresses:
            if not address.is_link_local:  # needs an interface, which a URL cannot name
                claimed.setdefault((key[0], _reachable(address)), key)
    for key, addresses in groups.items():
        if IPv6Address("::") in addresses:
            # It takes IPv4 too, unless the socket is IPv6 only: another one may then have the port.
            claimed.setdefault((key[0], _IPV4_LOOPBACK), key)
    result: dict[tuple[int, str], list[Address]] = {}
    for (_, address), key in claimed.items():
        result.setdefault(key, []).append(address)
    for reachable in result.values():
        reachable.sort(key=lambda address: (not address.is_loopback, address.version, int(address)))
    return result


def _reachable(address: Address) -> Address:
    if not address.is_unspecified:
        return address
    return _IPV4_LOOPBACK if address.version == 4 else _IPV6_LOOPBACK


def _path(known: KnownPort | None, owner: Process | None) -> str:
    if known is None or known.path in _NEEDS_A_TARGET or (owner and owner.is_exporter):
        return "/metrics"
    return known.path


def _url_host(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)
