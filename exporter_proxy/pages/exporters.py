"""``/`` and ``/-/exporters``: what each exporter's last scrapes became.

A client is shown the exporters that its address may scrape, and no others.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from exporter_proxy import __version__
from exporter_proxy.access import is_allowed
from exporter_proxy.observe.history import ExporterRecord, ScrapeOutcome
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.scrape.routing import Route


def visible_routes(scope: Scope, running: Running) -> list[Route]:
    """The routes that the client's address may scrape."""
    address = scope["address"]
    return [route for route in running.routes.routes if is_allowed(address, route.exporter.allow_clients)]


async def landing(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """A plain list: path, state, and what is wrong."""
    routes = visible_routes(scope, running)
    rows = [(route.path.decode(), _state(route.record), _problem(route.record)) for route in routes]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    own_metrics = f"{running.config.route_prefix}/metrics"
    lines = [f"exporter_proxy {__version__}, {_count(len(routes))}; own metrics: {own_metrics}", ""]
    lines += [f"{path:{widths[0]}}  {state:{widths[1]}}  {problem}".rstrip() for path, state, problem in rows]
    await PlainTextResponse("\n".join(lines) + "\n")(scope, receive, send)


async def exporters_json(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """JSON: each exporter with its last results and its last failures by reason."""
    address = scope["address"]
    shows_excerpts = address is None or address.is_loopback
    exporters = [_exporter(route, shows_excerpts) for route in visible_routes(scope, running)]
    body = json.dumps({"version": __version__, "exporters": exporters}, indent=2) + "\n"
    await Response(body, media_type="application/json")(scope, receive, send)


def _exporter(route: Route, shows_excerpts: bool) -> dict[str, Any]:
    record = route.record
    return {
        "name": route.exporter.name,
        "path": route.path.decode(),
        "state": _state(record),
        "last_success": _rfc3339(record.last_success) if record.last_success else None,
        "scrapes_in_flight": record.in_flight,
        "recent": [_outcome(outcome, shows_excerpts) for outcome in reversed(record.recent)],
        "last_failures": {
            reason.value: _outcome(outcome, shows_excerpts)
            for reason, outcome in record.last_failures.items()
        },
    }


def _outcome(outcome: ScrapeOutcome, shows_excerpts: bool) -> dict[str, Any]:
    return {
        "at": _rfc3339(outcome.at),
        "status": outcome.status,
        "reason": outcome.reason.value if outcome.reason else None,
        "message": outcome.message,
        "excerpt": outcome.excerpt if shows_excerpts else "",
        "connect_seconds": outcome.connect_seconds,
        "first_byte_seconds": outcome.first_byte_seconds,
        "total_seconds": outcome.total_seconds,
        "received_bytes": outcome.received_bytes,
    }


def _count(exporters: int) -> str:
    return "1 exporter" if exporters == 1 else f"{exporters} exporters"


def _state(record: ExporterRecord) -> str:
    return {None: "never scraped", True: "up", False: "down"}[record.up]


def _problem(record: ExporterRecord) -> str:
    if record.failing_reason is None:
        return ""
    return f"{record.failing_reason}: {record.last_failures[record.failing_reason].message}"


def _rfc3339(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
