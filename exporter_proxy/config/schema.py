"""What a configuration is once it has been read: frozen values, every default resolved.

Nothing here parses or checks; ``load.py`` does, and it is the only maker of these values
besides tests. ``None`` never means "default": where a field may be ``None`` the meaning is
written beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network

DEFAULT_LISTEN = "0.0.0.0:9099"
DEFAULT_TIMEOUT_SECONDS = 10.0
"""The deadline of a scrape that names none, on a route that sets none."""
MAX_TIMEOUT_SECONDS = 120.0
"""No scrape lasts longer than this, whatever its header or route says."""

ACCESS_LOG_FORMATS = ("ltsv", "json", "logfmt")
DEFAULT_ACCESS_LOG_FIELDS = (
    "time",
    "time_nsec",
    "status",
    "size",
    "reqtime_nsec",
    "backend",
    "path",
    "query",
    "method",
    "reason",
    "remote",
    "timeout",
)
"""The nine of the Go original, and what tells a failed scrape's story."""
ACCESS_LOG_FIELDS = (*DEFAULT_ACCESS_LOG_FIELDS, "exporter", "user_agent")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A TCP address to listen on. ``host`` is an IP address or name; "" is every address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The Go original's ``tls`` section: PEM files, relative to the working directory."""

    cert_file: str
    key_file: str


@dataclass(frozen=True, slots=True)
class UpstreamUrl:
    """Where an exporter is asked. ``target`` is the origin-form (path and query) in wire bytes."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """A name or an IP address, IPv6 without brackets."""
    port: int
    target: str
    """``/metrics``, ``/probe?module=x``; never empty, ASCII."""

    @property
    def authority(self) -> str:
        """The value of the Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"

    @property
    def backend(self) -> str:
        """``host:port`` as shown in messages and in the access log's ``backend`` field."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


@dataclass(frozen=True, slots=True)
class Exporter:
    """One exporter: its path on this daemon, where it is asked, and the rules of a scrape."""

    name: str
    path: str
    """Exact path on this daemon, without the route prefix."""
    url: UpstreamUrl
    timeout_seconds: float | None
    """``None``: from the scrape header minus the offset, see ``scrape/deadline.py``."""
    timeout_offset_seconds: float
    max_response_bytes: int
    max_concurrent: int
    verify: bool
    """Whether a body has to be an exposition that Prometheus takes in."""
    share_for_seconds: float
    """How long an answer serves further scrapes; 0: not even while it is in flight."""
    share_max_bytes: int
    allow_clients: tuple[Network, ...] | None
    """``None``: whoever the global list lets in."""
    allow_params: frozenset[str] | None
    """Names of query parameters that may pass; ``None``: all."""
    params: tuple[tuple[str, str], ...]
    """Always added to the query, in file order, before the scraper's own."""
    pass_headers: tuple[str, ...]
    """Lower-case names of further request headers that are let through."""
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """Added to each request to the exporter; may hold secrets, so it is kept out of ``repr``."""
    insecure_skip_verify: bool
    content_type: str | None
    """Replaces the exporter's Content-Type; ``None``: the exporter's own passes."""


@dataclass(frozen=True, slots=True)
class AccessLog:
    """``access_log``: ``format`` is ltsv, json or logfmt; ``path`` ``None`` is stdout."""

    format: str
    path: str | None
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. Two configs are equal when they say the same."""

    source: str
    """The file as the user named it."""
    sha256: str
    """Hex digest of the file's bytes: ``exporter_proxy_config_hash`` and drift over a fleet."""
    listen: tuple[ListenAddress, ...]
    route_prefix: str
    """"" or ``/prefix``, never with a trailing slash."""
    shutdown_timeout_seconds: float
    keep_alive_timeout_seconds: float
    read_header_timeout_seconds: float
    max_header_bytes: int
    max_connections: int
    tls: TlsFiles | None
    allow_clients: tuple[Network, ...] | None
    """``None``: everyone."""
    allow_upstreams: tuple[Network, ...] | None
    """Checked against the address connected to; ``None``: whatever the file names."""
    exporters: tuple[Exporter, ...]
    access_log: AccessLog | None
    """``None``: off."""
    error_log_path: str | None
    """``None``: stderr."""
