"""What all connections from scrapers share: the limits in force and who is connected."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uvicorn.config import Config as UvicornConfig
from uvicorn.server import ServerState

from exporter_proxy.config.schema import Config, Listen, Network
from exporter_proxy.front.admitted import Admitted
from exporter_proxy.front.answers import AddedHeaders, error_body
from exporter_proxy.front.tls import wants_certificates
from exporter_proxy.observe.daemonlog import DaemonLog
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import Denied

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

    from exporter_proxy.front.protocol import ScraperProtocol


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """The part of a configuration that concerns connections; swapped whole on reload."""

    max_connections: int
    max_header_bytes: int
    read_header_timeout_seconds: float
    keep_alive_timeout_seconds: float
    allow_clients: tuple[Network, ...] | None
    wants_certificates: bool
    """Whether a client has to have one."""
    client_allowed_sans: tuple[str, ...]
    """Names, one of which a client's certificate must have; empty: any certificate, or none."""
    added_headers: AddedHeaders | None
    """For every response; ``None``: there are none."""

    @classmethod
    def of(cls, config: Config) -> FrontLimits:
        """The limits that ``config`` sets."""
        tls = config.server_tls
        return cls(
            config.max_connections,
            config.max_header_bytes,
            config.read_header_timeout_seconds,
            config.keep_alive_timeout_seconds,
            config.allow_clients,
            wants_certificates(tls),
            tls.client_allowed_sans if tls is not None else (),
            AddedHeaders.of(config.web.headers if config.web is not None else ()),
        )


class FrontState:
    """Shared by listeners and connections.

    ``app`` answers requests. ``record`` is given the exchanges that the front answers itself:
    malformed requests, slow headers, refused connections.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        app: ASGI3Application,
        record: Callable[[Exchange], None],
        limits: FrontLimits,
        log: DaemonLog,
    ) -> None:
        self.loop = loop
        self.app = app
        self.record = record
        self.limits = limits
        self.log = log
        self.ssl_context: ssl.SSLContext | None = None
        """For handshakes from now on; replaced whole, never changed."""
        self.is_draining = False
        self.passed_addresses: Sequence[Listen] = ()
        """Where sockets listen that someone else bound, who alone decided on the address."""
        self.uvicorn_state = ServerState()
        # uvicorn's own registry: its protocol class adds and discards.
        self.connections: set[ScraperProtocol] = self.uvicorn_state.connections  # type: ignore[assignment]
        self.admitted = Admitted(self.connections)
        self.detached: set[asyncio.Task[None]] = set()
        """Those among ``uvicorn_state.tasks`` that no connection here waits for: scrapes through PushProx."""
        self.refusals_open = 0
        self.uvicorn_config = UvicornConfig(
            app,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # it fires at response start and cannot know bytes or duration
            proxy_headers=False,  # True would let a loopback client spoof its address
            server_header=False,
            date_header=False,
        )
        self.uvicorn_config.load()

    def record_denial(self, denied: Denied, exchange: Exchange) -> None:
        """Record an exchange that the front answered itself."""
        exchange.status = denied.status
        exchange.reason = denied.reason
        exchange.message = denied.message
        exchange.sent_bytes = len(error_body(denied.message)) if exchange.method != "HEAD" else 0
        self.record(exchange)
