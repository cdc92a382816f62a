"""``/-/sd``: this host's exporters for Prometheus's http_sd, as ``prometheus_config.py`` writes them.

The target is the address that the list was asked for under, since that one evidently leads here. It
is the client's own word, and all it does is to come back to that client. ``--web.external-url``
beats it.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exporter_proxy.config.values import BadValue
from exporter_proxy.pages.visible import visible_routes
from exporter_proxy.prometheus_config import Entrance, Target, parse_target, target_list
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.reasons import Denied, Reason

INSTANCES = ("proxy", "exporter")


async def targets(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """JSON: the whole list, as http_sd wants it each time; ``?instance=exporter`` keeps ``instance``."""
    external = running.config.external_url
    if external is None:
        target, is_https = _asked_target(scope), running.tls is not None
        route_prefix = running.config.route_prefix
    else:
        is_https, route_prefix = external.scheme == "https", external.path
        target = parse_target(external.authority, default_port=443 if is_https else 80)
    entrance = Entrance(
        targets=(target,),
        is_https=is_https,
        route_prefix=route_prefix,
        keeps_instance=_asked_instance(scope["query_string"]) == "exporter",
    )
    body = target_list([route.exporter for route in visible_routes(scope, running)], entrance)
    await Response(body, media_type="application/json")(scope, receive, send)


def _asked_target(scope: Scope) -> Target:
    """From the Host header; the connection's own address for HTTP/1.0, which need not have one."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").strip()
    if not host and scope["server"] is not None and scope["server"][1] is not None:
        return Target(scope["server"][0], scope["server"][1])
    try:
        return parse_target(host, default_port=443 if scope["scheme"] == "https" else 80)
    except BadValue as bad:
        raise Denied(Reason.BAD_REQUEST, f"no target can be made of the Host header: {bad.why}") from None


def _asked_instance(query: bytes) -> str:
    parameters = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    for name, value in parameters:
        if name != "instance" or value not in INSTANCES or len(parameters) > 1:
            raise Denied(
                Reason.BAD_REQUEST, f"only instance={' or instance='.join(INSTANCES)} can be asked for"
            )
    return parameters[0][1] if parameters else INSTANCES[0]
