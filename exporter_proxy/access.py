"""Which addresses are meant by a rule: for scrapers who come in, and for exporters connected to.

Only the address of the connection itself counts; no header is believed and no name trusted.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address


def unmapped(address: Address) -> Address:
    """IPv4 where it is IPv4-mapped IPv6.

    A dual-stack socket shows an IPv4 peer as ``::ffff:192.0.2.1``; a rule for 192.0.2.0/24 means that
    peer too.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def plain_address(host: str) -> Address:
    """A socket's address without its zone, and unmapped. Raises ValueError where ``host`` is a name."""
    return unmapped(ip_address(host.partition("%")[0]))


def address_of(text: str) -> Address | None:
    """The address that ``text`` is, unmapped; ``None`` for a name."""
    try:
        return unmapped(ip_address(text))
    except ValueError:
        return None


def is_allowed(address: Address | None, networks: tuple[IPv4Network | IPv6Network, ...] | None) -> bool:
    """Whether ``address`` is in one of ``networks``; ``None`` for the list means everyone.

    ``None`` for the address is a unix socket's peer, for whom the socket's mode has decided.
    """
    if networks is None or address is None:
        return True
    for network in networks:  # noqa: SIM110 - a generator would cost more than the comparison
        if address in network:
            return True
    return False
