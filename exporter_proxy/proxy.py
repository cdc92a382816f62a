"""The proxy as it runs: the configuration in force, its routes, and what has been counted.

Pipeline and pages read it, the daemon's lifecycle changes it. What a reload replaces is one
value, ``running``, swapped in one assignment.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from exporter_proxy.config.files import Stamp
from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.config.schema import Config
from exporter_proxy.front.auth import Guard
from exporter_proxy.front.state import FrontLimits, FrontState
from exporter_proxy.observe.accesslog import AccessLogFormatter
from exporter_proxy.observe.daemonlog import DaemonLog
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.observe.logwriter import LogWriter
from exporter_proxy.observe.pushprox import PushProxRecord
from exporter_proxy.reasons import DENIAL_STATUS, Reason
from exporter_proxy.scrape.deadline import Deadlines
from exporter_proxy.scrape.routing import Route, RouteTable
from exporter_proxy.upstreams.credentials import Credentials

AccessLogInForce = tuple[AccessLogFormatter, LogWriter] | None
"""How a line is made, and who writes it; ``None``: there is no access log."""


@dataclass(frozen=True, slots=True)
class PushProxInForce:
    """How PushProx proxies are polled. Two are equal where nothing changed, their files included."""

    section: PushProx
    credentials: Credentials
    tls_context: ssl.SSLContext | None
    """``None``: no proxy is polled by https."""


@dataclass(frozen=True, slots=True)
class Running:
    """One configuration and everything made from it."""

    config: Config
    routes: RouteTable
    access_log: AccessLogInForce
    tls: ssl.SSLContext | None = None
    """For handshakes with scrapers; ``None``: plain HTTP is spoken."""
    guard: Guard | None = None
    """``None``: no rate limit, and nobody needs credentials."""
    files: dict[str, Stamp | None] = field(default_factory=dict)
    """What was seen of the files that ``config`` names, just before they were read."""
    certificate_expiries: dict[str, float] = field(default_factory=dict)
    """Unix time by kind of certificate, see ``config/validity.py``."""
    pushprox: PushProxInForce | None = None


@dataclass(slots=True)
class ReloadState:
    """How the last attempt to load a configuration ended. Times are Unix times."""

    is_successful: bool = True
    last_success: float = field(default_factory=time.time)
    problems: tuple[str, ...] = ()


class Proxy:
    """Counters, logs and the configuration in force; one per process."""

    def __init__(self, running: Running, log: DaemonLog, is_lifecycle_enabled: bool) -> None:
        """Made where the event loop runs."""
        self.running = running
        self.log = log
        self.deadlines = Deadlines(asyncio.get_running_loop())
        self.is_lifecycle_enabled = is_lifecycle_enabled
        self.reload_state = ReloadState()
        self.refresh_problems: tuple[str, ...] = ()
        """What keeps changed certificates or credentials from being used; empty: nothing does."""
        self.denied: dict[Reason, int] = dict.fromkeys(DENIAL_STATUS, 0)
        self.pushprox: PushProxRecord | None = None
        """``None``: no PushProx proxy is polled."""
        self.is_draining = False
        self.loop_lag_seconds = 0.0
        self.front: FrontState
        self.reload: Callable[[], Awaitable[tuple[str, ...]]]
        """Load the configuration anew; the problems that kept the old one in force, if any."""
        self._closing_logs: list[LogWriter] = []
        self._lines_lost_by_closed_logs = 0

    def record(self, exchange: Exchange, route: Route | None = None) -> None:
        """Take down what a request became: metrics, history, access log, state changes."""
        exchange.total_seconds = time.monotonic() - exchange.started
        exchange.ended_nsec = time.time_ns()
        if route is not None:
            change = route.record.add(exchange)
            if change is not None:
                self._log_change(route, change.event, change.reason, exchange)
        elif exchange.reason is not None and exchange.reason in self.denied:
            self.denied[exchange.reason] += 1
        access_log = self.running.access_log
        if access_log is not None:
            line, writer = access_log
            writer.write_soon(line, exchange, self.deadlines.loop)

    def _log_change(self, route: Route, event: str, reason: Reason, exchange: Exchange) -> None:
        name = route.exporter.name
        if exchange.reason is None:
            self.log.info(event, exporter=name, after=reason)
        else:
            excerpt = {"excerpt": exchange.excerpt} if exchange.excerpt else {}
            self.log.warning(event, exporter=name, reason=reason, error=exchange.message, **excerpt)

    @property
    def log_lines_lost(self) -> int:
        """Lines of both logs, and of those that reloads have closed, that never reached their file."""
        access_log = self.running.access_log
        logs = [self.log.writer, *self._closing_logs, *([access_log[1]] if access_log else [])]
        return self._lines_lost_by_closed_logs + sum(log.lost_lines for log in logs)

    def close_log(self, log: LogWriter) -> None:
        """Have no more written to it, without waiting for what has been; what it lost stays counted."""
        log.close(timeout_seconds=0)
        self._closing_logs.append(log)
        for closed in [one for one in self._closing_logs if one.is_closed]:
            self._closing_logs.remove(closed)
            self._lines_lost_by_closed_logs += closed.lost_lines

    def replace(self, running: Running) -> None:
        """Swap the configuration in; requests under way finish on the one they began with."""
        self.running = running
        self.front.limits = FrontLimits.of(running.config)
        self.front.ssl_context = running.tls

    def close_log_of(self, old: Running) -> None:
        """Close the access log of what was in force, unless it is still in use."""
        if old.access_log is not None and (
            self.running.access_log is None or self.running.access_log[1] is not old.access_log[1]
        ):
            self.close_log(old.access_log[1])
