"""The paths that the daemon answers itself, and who answers each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from exporter_proxy.pages.exporters import exporters_json
from exporter_proxy.pages.landing import landing
from exporter_proxy.pages.management import healthy, ready, reload
from exporter_proxy.pages.metrics import own_metrics
from exporter_proxy.pages.sd import targets
from exporter_proxy.proxy import Proxy, Running

Scope = MutableMapping[str, Any]
Answer = Callable[[Proxy, Running, Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Page:
    """One built-in path: the methods it takes and the coroutine that answers."""

    answer: Answer
    methods: tuple[str, ...] = ("GET", "HEAD")
    needs_credentials: bool = True
    """Where any are configured. Kubernetes' probes have none to send."""
    is_for_pushprox: bool = False
    """Whether it is answered to who comes through a PushProx proxy, too."""


PAGES: dict[str, Page] = {
    "/": Page(landing),
    "/metrics": Page(own_metrics, is_for_pushprox=True),
    "/-/healthy": Page(healthy, needs_credentials=False),
    "/-/ready": Page(ready, needs_credentials=False),
    "/-/reload": Page(reload, ("POST", "PUT")),
    "/-/exporters": Page(exporters_json),
    "/-/sd": Page(targets),
}


def find_page(path: str, route_prefix: str) -> Page | None:
    """The page at ``path``, which has to begin with the prefix where there is one."""
    return PAGES.get(path[len(route_prefix) :]) if path.startswith(route_prefix) else None


def needs_credentials(path: str, route_prefix: str) -> bool:
    """Whether ``path``, be there something or not, is for those with credentials alone."""
    page = find_page(path, route_prefix)
    return page is None or page.needs_credentials
