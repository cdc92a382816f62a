"""``/-/exporters``: what each exporter's last scrapes became."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.types import Receive, Scope, Send

from exporter_proxy import __version__
from exporter_proxy.observe.history import ExporterRecord
from exporter_proxy.observe.pushprox import PushProxRecord
from exporter_proxy.observe.recent import ScrapeOutcome
from exporter_proxy.pages.slices import json_slices, send_slices
from exporter_proxy.pages.visible import is_local, visible_excerpt, visible_problem, visible_routes
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.scrape.routing import Route

_EXPORTERS_PER_SLICE = 2
"""About a millisecond's work, with 40 scrapes each."""


def state_of(record: ExporterRecord) -> str:
    """``up``, ``down`` or ``never scraped``."""
    return {None: "never scraped", True: "up", False: "down"}[record.up]


def rfc3339(unix_seconds: float) -> str:
    """A time in UTC, with milliseconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def exporters_json(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """JSON: each exporter with its last results and its last failures by reason."""
    shows_details = is_local(scope)
    exporters = (_exporter(route, shows_details) for route in visible_routes(scope, running))
    values: dict[str, Any] = {"version": __version__, "exporters": None}
    if proxy.pushprox is not None:
        values["pushprox"] = _pushprox(proxy.pushprox, shows_details)
    slices = json_slices(values, exporters, _EXPORTERS_PER_SLICE, indent=2)
    await send_slices(slices, [(b"Content-Type", b"application/json")], scope, send)


def _pushprox(record: PushProxRecord, shows_details: bool) -> dict[str, Any]:
    return {
        "fqdn": record.fqdn,
        "last_poll": rfc3339(record.last_poll) if record.last_poll else None,
        "proxies": [
            {
                "url": url,
                "connected": state.is_connected,
                "problem": visible_problem(state, shows_details),
                "since": rfc3339(state.since),
            }
            for url, state in record.proxies.items()
        ],
    }


def _exporter(route: Route, shows_details: bool) -> dict[str, Any]:
    record = route.record
    return {
        "name": route.exporter.name,
        "path": route.path.decode(),
        "state": state_of(record),
        "last_success": rfc3339(record.last_success) if record.last_success else None,
        "scrapes_in_flight": record.in_flight,
        "recent": [_outcome(outcome, shows_details) for outcome in reversed(record.recent)],
        "last_failures": {
            reason.value: _outcome(outcome, shows_details) for reason, outcome in record.last_failures.items()
        },
    }


def _outcome(outcome: ScrapeOutcome, shows_details: bool) -> dict[str, Any]:
    return {
        "at": rfc3339(outcome.at),
        "status": outcome.status,
        "reason": outcome.reason.value if outcome.reason else None,
        "message": outcome.message,
        "excerpt": visible_excerpt(outcome, shows_details),
        "connect_seconds": outcome.connect_seconds,
        "first_byte_seconds": outcome.first_byte_seconds,
        "total_seconds": outcome.total_seconds,
        "received_bytes": outcome.received_bytes,
    }
