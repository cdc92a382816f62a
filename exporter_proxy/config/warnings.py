"""What is allowed and yet worth a word: doors left open, certificates not checked, lost names.

``config_warnings`` looks at the configuration alone and is for every start; ``host_warnings`` asks
the resolver, which may take seconds, and the host's groups, and is for ``check``.
"""

from __future__ import annotations

import functools
import grp
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from exporter_proxy.access import Address, address_of, is_allowed, plain_address
from exporter_proxy.config.addresses import is_loopback
from exporter_proxy.config.schema import (
    Config,
    Exporter,
    Listen,
    ListenAddress,
    ServerTls,
    UnixListen,
)

DESCRIPTORS_PER_CONNECTION = 2
"""The scraper's and the exporter's."""
_RESOLVER_THREADS = 16


def config_warnings(
    config: Config, passed: Sequence[Listen] = (), max_descriptors: int | None = None
) -> list[str]:
    """One line for each thing to reconsider, each with what to do. Asks no one else, reads nothing.

    Known once it runs: ``passed`` is where the sockets listen that systemd or start_server passed,
    ``max_descriptors`` the limit of this process.
    """
    warnings: list[str] = []
    exposed = [
        str(address)
        for address in (*config.listen, *passed)
        if isinstance(address, ListenAddress) and not is_loopback(address.host)
    ]
    if config.allow_clients is None and exposed:
        warnings.append(
            f"everyone who reaches {', '.join(exposed)} can scrape: set allow_clients to the addresses "
            "of your Prometheus servers, or listen on 127.0.0.1"
        )
    needed = DESCRIPTORS_PER_CONNECTION * config.max_connections
    if max_descriptors is not None and needed > max_descriptors:
        warnings.append(
            f"max_connections {config.max_connections} can take {needed} file descriptors, this process may "
            f"have {max_descriptors}: raise its limit (LimitNOFILE, ulimit -n) or lower max_connections"
        )
    warnings += _client_certificate_warnings(config.server_tls)
    is_here = functools.cache(_is_here)  # the same for most; a reload asks while all scrapes wait
    for exporter in config.exporters:
        url = exporter.url
        is_elsewhere = url is not None and url.socket_path is None and not is_here(url.host)
        if config.allow_upstreams is None and is_elsewhere:
            warnings.append(
                f"exporter {exporter.name} is not on this host ({exporter.source.backend}): set "
                "allow_upstreams to the networks that may be asked, or use its loopback address"
            )
        if exporter.insecure_skip_verify:
            warnings.append(_skip_verify_warning(exporter))
    return warnings


def _client_certificate_warnings(tls: ServerTls | None) -> list[str]:
    if tls is None or tls.client_auth_type == "NoClientCert":
        return []
    if tls.client_auth_type == "RequestClientCert":
        return [
            "client_auth_type RequestClientCert does nothing, no client is asked: use "
            "VerifyClientCertIfGiven or RequireAndVerifyClientCert"
        ]
    if tls.client_ca is None:
        return [
            f"client_auth_type {tls.client_auth_type} takes certificates of every CA that this host trusts: "
            "set client_ca_file to your own CA"
        ]
    return []


def _skip_verify_warning(exporter: Exporter) -> str:
    scheme, backend = exporter.source.scheme, exporter.source.backend
    if scheme != "https":
        url = f"an {scheme} URL"
        return f"exporter {exporter.name}: insecure_skip_verify does nothing for {url}, remove it"
    return (
        f"exporter {exporter.name}: the certificate of {backend} is not checked, anyone can "
        "pose as it: give it one that this host trusts and remove insecure_skip_verify"
    )


def host_warnings(config: Config) -> list[str]:
    """One line for each name that this host does not know, or that allow_upstreams would refuse."""
    return _group_warnings(config.listen) + _resolve_warnings(config)


def _group_warnings(addresses: Sequence[Listen]) -> list[str]:
    names = {one.group for one in addresses if isinstance(one, UnixListen) and one.group is not None}
    return [
        f'listen: there is no group "{name}" on this host, and no start without it: create it or name another'
        for name in sorted(names)
        if not _is_group(name)
    ]


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _resolve_warnings(config: Config) -> list[str]:
    """Asks the resolver, for each name once and for several at a time."""
    hosts_of = {
        exporter.name: exporter.url.host
        for exporter in config.exporters
        if exporter.url is not None and exporter.url.socket_path is None
    }
    hosts = list(dict.fromkeys(hosts_of.values()))
    with ThreadPoolExecutor(max_workers=_RESOLVER_THREADS) as pool:
        resolved = dict(zip(hosts, pool.map(_resolve, hosts), strict=True))
    warnings: list[str] = []
    for name, host in hosts_of.items():
        answer = resolved[host]
        if isinstance(answer, str):
            warnings.append(
                f"exporter {name}: {host} does not resolve ({answer}): correct its "
                "url, or the name in DNS or /etc/hosts"
            )
            continue
        outside = [address for address in answer if not is_allowed(address, config.allow_upstreams)]
        if outside:
            shown = ", ".join(str(address) for address in outside)
            subject = shown if shown == host else f"{host} resolves to {shown}, which"
            warnings.append(
                f"exporter {name}: {subject} is outside allow_upstreams and would be refused: "
                "add its network there, or correct the url"
            )
    return warnings


def _resolve(host: str) -> list[Address] | str:
    """The addresses of ``host``, or the resolver's words for why there are none."""
    literal = address_of(host)
    if literal is not None:
        return [literal]
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error.strerror or str(error)
    return list(dict.fromkeys(plain_address(str(answer[4][0])) for answer in answers))


def _is_here(host: str) -> bool:
    """Whether ``host`` is an address of this host, or a name that can be nothing else."""
    address = address_of(host)
    if is_loopback(host) or address is None:
        return is_loopback(host)
    # Only an own address can be bound to; UDP leaves nothing behind, and is sent nothing.
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as bound:
            bound.bind((str(address), 0))
    except OSError:
        return False
    return True
