"""What a request through PushProx asks for: one of this daemon's own paths, or nothing.

PushProx's own client scrapes any port and path of its host. Here host and port have to be this
daemon's, or with ``map_ports`` the port and path those of a configured exporter; everything else
about the request is for the pipeline in ``app.py`` to judge, as for any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.config.schema import DEFAULT_LISTEN, Config, Listen, ListenAddress
from exporter_proxy.front import target
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.pushprox.messages import PushedRequest
from exporter_proxy.reasons import Denied, Reason
from exporter_proxy.scrape.routing import Route, RouteTable

_AUTHORITY = re.compile(r"https?://(\[[^\]@]*\]|[^/?#:@]*)(?::([0-9]{1,5}))?(?=[/?]|\Z)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME_PARAM = b"_scheme=https"
_USUAL_PORT = int(DEFAULT_LISTEN.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Place:
    """Where this daemon is to be scraped: the name that it polls by, and the ports that it listens on."""

    fqdn: str
    ports: frozenset[int]


def ports_of(addresses: Sequence[Listen]) -> frozenset[int]:
    """The ports among what is listened on; where there are none, the one that is usual."""
    ports = frozenset(one.port for one in addresses if isinstance(one, ListenAddress))
    return ports or frozenset((_USUAL_PORT,))


def check_size(request: PushedRequest, config: Config) -> None:
    """The limits of a request's head, as on a connection. Raises Denied."""
    if request.head_bytes > config.max_header_bytes or len(request.headers) > target.MAX_HEADER_LINES:
        raise target.head_too_large(config.max_header_bytes)


def aim(
    exchange: Exchange, request: PushedRequest, place: Place, section: PushProx, routes: RouteTable
) -> None:
    """Set path and query of ``exchange`` to what is asked for here. Raises Denied."""
    hosts = [value for name, value in request.headers if name == b"host"]
    problem = Denied(Reason.BAD_REQUEST, "two Host headers; send one") if len(hosts) > 1 else None
    host = hosts[0] if hosts else None
    problem = problem or target.host_problem(host, "1.1")
    problem = problem or target.target_problem(exchange, request.target, host)
    if problem is not None:
        raise problem
    authority = _AUTHORITY.match(request.target.decode("ascii"))
    if authority is None:
        raise Denied(Reason.BAD_REQUEST, "the request target names no host and port")
    name = authority[1].strip("[]")
    if name.lower() != place.fqdn.lower():
        raise Denied(Reason.FORBIDDEN, f"this is {place.fqdn}; nothing is asked of {name!a} from here")
    scheme = authority[0].partition(":")[0].lower()
    port = int(authority[2]) if authority[2] is not None else _DEFAULT_PORTS[scheme]
    exchange.query = _without_scheme_param(exchange.query)
    if port not in place.ports:
        exchange.path = _mapped_path(exchange.path, port, place, section, routes)


def _without_scheme_param(query: bytes) -> bytes:
    """PushProx's way of asking for https, which the exporter's own ``url`` decides here."""
    if _SCHEME_PARAM not in query:
        return query
    return b"&".join(pair for pair in query.split(b"&") if pair != _SCHEME_PARAM)


def _mapped_path(path: bytes, port: int, place: Place, section: PushProx, routes: RouteTable) -> bytes:
    """The path of the exporter that is asked at this port and path."""
    if not section.map_ports:
        ports = " or ".join(map(str, sorted(place.ports)))
        raise Denied(
            Reason.NOT_FOUND,
            f"port {port} is not scraped through PushProx; use port {ports}, or set map_ports",
        )
    found = [route for route in routes.routes if _is_asked_at(route, port, path)]
    if not found:
        raise Denied(
            Reason.NOT_FOUND, f"no exporter of the configuration is at port {port} and path {_shown(path)}"
        )
    if len(found) > 1:
        paths = " ".join(route.path.decode() for route in found)
        raise Denied(
            Reason.NOT_FOUND,
            f"several exporters are at port {port} and path {_shown(path)}; use their own: {paths}",
        )
    return found[0].path


def _is_asked_at(route: Route, port: int, path: bytes) -> bool:
    url = route.exporter.url
    if url is None:
        return False  # a file or a command is at no port
    own_path = url.target.partition("?")[0].encode("ascii")
    return url.socket_path is None and url.port == port and own_path == path


def _shown(path: bytes) -> str:
    return path[:100].decode("latin-1")
