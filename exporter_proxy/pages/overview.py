"""What ``/`` has to tell, as plain values: every exporter's state, and the daemon's own.

``landing.py`` makes a page, JSON or a table of it. Whatever may have come from an exporter or
a file is made printable here, once for all three.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.types import Scope

from exporter_proxy import __version__
from exporter_proxy.observe.pushprox import PushProxRecord
from exporter_proxy.observe.recent import ScrapeOutcome
from exporter_proxy.pages.exporters import rfc3339, state_of
from exporter_proxy.pages.visible import is_local, visible_excerpt, visible_problem, visible_routes
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.reasons import ADVICE, printable
from exporter_proxy.scrape.routing import Route

ROUTES_PER_SLICE = 20
"""About a millisecond's work; scrapes go on between slices."""
SLOW_SHARE = 0.5
"""Slow is an exporter that took more than this part of the time that it had."""
EXPIRY_WARNING_DAYS = 7
MAX_TEXT_CHARS = 400
NAMES_IN_SUMMARY = 10

Values = dict[str, Any]


async def overview(proxy: Proxy, running: Running, scope: Scope) -> Values:
    """All but each exporter's recent scrapes, as far as this client may see it.

    Times are RFC 3339, durations in seconds.
    """
    now = time.time()
    shows_details = is_local(scope)
    routes = visible_routes(scope, running)
    exporters: list[Values] = []
    for start in range(0, len(routes), ROUTES_PER_SLICE):
        some = routes[start : start + ROUTES_PER_SLICE]
        exporters += [_exporter(route, running, shows_details, now) for route in some]
        await asyncio.sleep(0)
    daemon = _daemon(proxy, running, shows_details, now)
    return {
        "now": rfc3339(now),
        "summary": "; ".join([_exporters_summary(exporters), *_daemon_summary(daemon)]),
        "exporters": exporters,
        "daemon": daemon,
    }


def exporters_with_recent(running: Running, scope: Scope) -> Iterator[Values]:
    """The overview's exporters, each with its recent scrapes: they are long, and made when asked for."""
    shows_details = is_local(scope)
    for route in visible_routes(scope, running):
        recent = [
            {"status": one.status, "reason": one.reason, "seconds": round(one.total_seconds, 4)}
            for one in route.record.recent
        ]
        yield {**_exporter(route, running, shows_details, time.time()), "recent": recent}


def one_line(text: str) -> str:
    """``text`` of bounded length, with nothing in it that would act on a screen."""
    return printable(f"{text[:MAX_TEXT_CHARS]}..." if len(text) > MAX_TEXT_CHARS else text)


def _link(base: str, path: str) -> str:
    """Below the external URL where there is one, else relative to the page: right behind any proxy."""
    return f"{base or './'}{path.removeprefix('/')}"


def _exporter(route: Route, running: Running, shows_details: bool, now: float) -> Values:
    record = route.record
    external = running.config.external_url
    last = record.recent.newest if record.recent else None
    hour = record.last_hour(int(now * 1e9))
    failure = record.latest_failure
    if failure is None and last is not None and last.reason is not None:
        failure = last  # not the exporter's doing, and so it is up all the same
    return {
        "name": route.exporter.name,
        "path": route.path.decode(),
        "link": _link(f"{external.path}/" if external else "", route.exporter.path),
        "state": state_of(record),
        "is_slow": record.up is True and last is not None and _is_slow(last),
        "last_scrape": _last_scrape(last),
        "last_success": rfc3339(record.last_success) if record.last_success else None,
        "last_hour": {"scrapes": hour.scrapes, "succeeded": hour.succeeded},
        "failure": _failure(failure, shows_details) if failure is not None else None,
    }


def _is_slow(outcome: ScrapeOutcome) -> bool:
    return outcome.reason is None and outcome.total_seconds > SLOW_SHARE * outcome.timeout_seconds


def _last_scrape(outcome: ScrapeOutcome | None) -> Values | None:
    if outcome is None:
        return None
    is_complete = outcome.reason is None
    return {
        "at": rfc3339(outcome.at),
        "status": outcome.status,
        "seconds": outcome.total_seconds,
        "timeout_seconds": outcome.timeout_seconds,
        # A scrape that was answered with another one's answer received nothing itself.
        "bytes": outcome.received_bytes or (outcome.sent_bytes if is_complete else 0),
    }


def _failure(outcome: ScrapeOutcome, shows_details: bool) -> Values:
    assert outcome.reason is not None, "it failed"
    advice = ADVICE[outcome.reason]
    return {
        "reason": outcome.reason.value,
        "message": one_line(outcome.message),
        "advice": "" if advice in outcome.message else advice,
        "excerpt": one_line(visible_excerpt(outcome, shows_details)),
    }


def _daemon(proxy: Proxy, running: Running, shows_details: bool, now: float) -> Values:
    config, state = running.config, proxy.reload_state
    external = config.external_url
    base = f"{external.path}/" if external else ""
    problems = (*state.problems, *proxy.refresh_problems)
    return {
        "version": __version__,
        "is_stopping": proxy.is_draining,
        "config": {
            "source": one_line(config.source),
            "loaded": rfc3339(state.last_success),
            "hash": config.fingerprint,
        },
        "last_reload": {
            "is_successful": state.is_successful and not proxy.refresh_problems,
            "problem_count": len(problems),
            # They name exporters and files, which not everyone may know of.
            "problems": [one_line(problem) for problem in problems] if shows_details else [],
        },
        "connections": len(proxy.front.connections),
        "max_connections": config.max_connections,
        "certificates": [
            {
                "kind": kind,
                "not_after": rfc3339(not_after),
                "days_left": int((not_after - now) // 86400),
                "is_due": not_after - now < EXPIRY_WARNING_DAYS * 86400,
            }
            for kind, not_after in running.certificate_expiries.items()
        ],
        "pushprox": _pushprox(proxy.pushprox, shows_details) if proxy.pushprox is not None else [],
        "links": {
            "metrics": _link(base, "metrics"),
            "exporters": _link(base, "-/exporters"),
            "targets": _link(base, "-/sd"),
        },
        "metrics_path": f"{config.route_prefix}/metrics",
        "exporters_path": f"{config.route_prefix}/-/exporters",
        "targets_path": f"{config.route_prefix}/-/sd",
    }


def _pushprox(record: PushProxRecord, shows_details: bool) -> list[Values]:
    return [
        {
            "url": url,
            "fqdn": record.fqdn,
            "state": state.word,
            "since": rfc3339(state.since),
            "problem": one_line(visible_problem(state, shows_details)),
        }
        for url, state in record.proxies.items()
    ]


def _exporters_summary(exporters: Sequence[Values]) -> str:
    """What is wrong with the exporters, in a line."""
    total = len(exporters)
    if not total:
        return "no exporter that you may scrape"
    down = [f"{one['name']} ({one['failure']['reason']})" for one in exporters if one["state"] == "down"]
    never = sum(one["state"] == "never scraped" for one in exporters)
    slow = [one["name"] for one in exporters if one["is_slow"]]
    if down:
        who = "the exporter" if total == 1 else f"{len(down)} of {_count(total)}"
        said = f"{who} {'fails' if len(down) == 1 else 'fail'}: {_listed(down)}"
    elif never == total:
        said = f"{_count(total)}, never scraped so far"
    elif never:
        said = f"{total - never} of {_count(total)} answer"
    else:
        said = "the exporter answers" if total == 1 else f"all {_count(total)} answer"
    parts = [said]
    if slow:
        parts.append(f"slow: {_listed(slow)}")
    if 0 < never < total:
        parts.append(f"{never} never scraped so far")
    return "; ".join(parts)


def _daemon_summary(daemon: Values) -> list[str]:
    """What is wrong with the daemon itself; empty where nothing is."""
    wrong = []
    if daemon["is_stopping"]:
        wrong.append("exporter_proxy is stopping")
    if not daemon["last_reload"]["is_successful"]:
        wrong.append("the last reload failed")
    failing = sum(one["state"] == "failing" for one in daemon["pushprox"])
    if failing:
        wrong.append(
            f"polling {'a' if failing == 1 else failing} PushProx prox{'y' if failing == 1 else 'ies'} fails"
        )
    for certificate in daemon["certificates"]:
        if certificate["is_due"]:
            days = certificate["days_left"]
            when = "has expired" if days < 0 else f"expires within {days + 1} d"
            wrong.append(f"a certificate ({certificate['kind']}) {when}")
    return wrong


def _count(exporters: int) -> str:
    return "1 exporter" if exporters == 1 else f"{exporters} exporters"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_IN_SUMMARY])
    more = len(names) - NAMES_IN_SUMMARY
    return f"{shown} and {more} more" if more > 0 else shown
