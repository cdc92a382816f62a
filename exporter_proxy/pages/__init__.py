"""The paths that the daemon answers itself, and who answers each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from exporter_proxy.pages.exporters import exporters_json, landing
from exporter_proxy.pages.management import healthy, ready, reload
from exporter_proxy.pages.metrics import own_metrics
from exporter_proxy.proxy import Proxy, Running

Scope = MutableMapping[str, Any]
Answer = Callable[[Proxy, Running, Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Page:
    """One built-in path: the methods it takes and the coroutine that answers."""

    answer: Answer
    methods: tuple[str, ...] = ("GET", "HEAD")


PAGES: dict[str, Page] = {
    "/": Page(landing),
    "/metrics": Page(own_metrics),
    "/-/healthy": Page(healthy),
    "/-/ready": Page(ready),
    "/-/reload": Page(reload, ("POST", "PUT")),
    "/-/exporters": Page(exporters_json),
}


def find_page(path: str, route_prefix: str) -> Page | None:
    """The page at ``path``, which has to begin with the prefix where there is one."""
    return PAGES.get(path[len(route_prefix) :]) if path.startswith(route_prefix) else None
