"""Who may scrape which exporter, and so is shown it; and which details are shown.

What exporters, files or PushProx proxies say is shown on this host only.
"""

from __future__ import annotations

from starlette.types import Scope

from exporter_proxy.access import is_allowed
from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.observe.pushprox import ProxyState
from exporter_proxy.observe.recent import ScrapeOutcome
from exporter_proxy.proxy import Running
from exporter_proxy.scrape.routing import Route

PUSHPROX = "pushprox"
"""In the scope of a request that came through a PushProx proxy: the section that lets it in."""


def may_scrape(scope: Scope, route: Route) -> bool:
    """Whether the exporter's own list lets the client in; through PushProx, whether the section does."""
    pushprox: PushProx | None = scope.get(PUSHPROX)
    if pushprox is not None:
        return pushprox.allows(route.exporter)
    return is_allowed(scope["address"], route.exporter.allow_clients)


def visible_routes(scope: Scope, running: Running) -> list[Route]:
    """The routes that the client may scrape."""
    return [route for route in running.routes.routes if may_scrape(scope, route)]


def is_local(scope: Scope) -> bool:
    """Whether the client is on this host: only there are details shown."""
    address = scope["address"]
    return address is None or address.is_loopback


def visible_excerpt(outcome: ScrapeOutcome, shows_details: bool) -> str:
    """The piece of a body that explains a failure. It is the exporter's."""
    return outcome.excerpt if shows_details else ""


def visible_problem(state: ProxyState, shows_details: bool) -> str:
    """What keeps a PushProx proxy from being polled. It names addresses of the network around this host."""
    return state.problem if shows_details else ""
