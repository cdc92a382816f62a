"""What a configuration is once it has been read: frozen values, every default resolved.

Nothing here parses or checks; ``load.py`` does, and it is the only maker of these values
besides tests. ``None`` never means "default": where a field may be ``None`` the meaning is
written beside it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from exporter_proxy.config.module_route import ModuleRoute
    from exporter_proxy.config.pushprox import PushProx

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
class UnixListen:
    """A unix socket to listen on, made anew; its mode decides who may connect."""

    path: str
    mode: int | None
    """Permission bits; ``None``: what the umask leaves."""
    group: str | None
    """Name of the socket's group; ``None``: the process's own."""

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class SystemdListen:
    """Sockets that systemd passes: those called ``name`` (``FileDescriptorName=``), or all for ``None``."""

    name: str | None

    def __str__(self) -> str:
        return "systemd" if self.name is None else f"systemd:{self.name}"


@dataclass(frozen=True, slots=True)
class StarterListen:
    """The socket that a ``SERVER_STARTER_PORT`` supervisor holds under ``address``: host:port or a path."""

    address: str

    def __str__(self) -> str:
        return f"SERVER_STARTER:{self.address}"


Listen = ListenAddress | UnixListen | SystemdListen | StarterListen


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key: in a file, or written into the configuration. One of the two is set."""

    file: str | None = None
    text: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Where it is; never what it says."""
        return self.file or "the PEM text in the configuration"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How TLS is spoken with scrapers: ``tls``, or ``tls_server_config`` of a web.config.file."""

    cert: Pem
    key: Pem
    client_ca: Pem | None = None
    client_auth_type: str = "NoClientCert"
    """NoClientCert, RequestClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert."""
    client_allowed_sans: tuple[str, ...] = ()
    """DNS name, IP address, e-mail address or URI, one of which a client's certificate must have."""
    min_version: str = "TLS12"
    """TLS12 or TLS13."""
    max_version: str = "TLS13"
    ciphers: tuple[str, ...] = ()
    """OpenSSL's names, for TLS 1.2; empty: the defaults."""
    prefer_server_ciphers: bool = True
    curve: str | None = None
    """OpenSSL's name; ``None``: the defaults."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``burst`` requests at once, one more each ``interval_seconds``, for all clients together."""

    interval_seconds: float
    burst: int


@dataclass(frozen=True, slots=True)
class WebConfig:
    """A ``web.config.file`` as exporter-toolkit defines it."""

    source: str
    """The file as the user named it."""
    tls: ServerTls | None
    headers: tuple[tuple[str, str], ...]
    """Added to every response."""
    basic_auth_users: tuple[tuple[str, str], ...] = field(repr=False)
    """Name and bcrypt hash; empty: no basic authentication."""
    rate_limit: RateLimit | None
    sha256: str = ""
    """Hex digest of the file's bytes."""


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """Credentials for an exporter. Exactly one of ``password`` and ``password_file`` is set."""

    username: str
    password: str | None = field(repr=False)
    password_file: str | None


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How an https exporter is known, and what this daemon shows it. PEM files; ``None``: see each."""

    ca_file: str | None = None
    """``None``: the system's CAs."""
    cert_file: str | None = None
    """``None``, and ``key_file`` with it: no client certificate."""
    key_file: str | None = None
    server_name: str | None = None
    """The name in the exporter's certificate and in SNI; ``None``: the URL's host."""


@dataclass(frozen=True, slots=True)
class UpstreamUrl:
    """Where an exporter is asked. ``target`` is the origin-form (path and query) in wire bytes."""

    scheme: str
    """``http``, ``https`` or ``http+unix``."""
    host: str
    """A name or an IP address, IPv6 without brackets; ``localhost`` for a unix socket."""
    port: int
    """0 for a unix socket."""
    target: str = field(repr=False)
    """``/metrics``, ``/probe?module=x``; never empty, ASCII. Its query may hold secrets."""
    socket_path: str | None = None
    """Set for ``http+unix`` alone."""

    @property
    def authority(self) -> str:
        """The value of the Host header: the port only where it is not the scheme's own."""
        if self.socket_path is not None:
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"

    @property
    def backend(self) -> str:
        """``host:port`` as shown in messages and in the access log's ``backend`` field."""
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"http+unix://{self.socket_path}:{self.target}"
        return f"{self.scheme}://{self.authority}{self.target}"


@dataclass(frozen=True, slots=True)
class ExternalUrl:
    """Under which URL the daemon is reached from outside, as by a browser through another proxy."""

    scheme: str
    """``http`` or ``https``."""
    authority: str
    """The host, and the port where it is not the scheme's own."""
    path: str
    """"" or ``/path``, never with a trailing slash."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class FileSource:
    """Files in the text format that a job on this host writes, all in one directory."""

    scheme: ClassVar[str] = "file"
    path: str
    """Of the file; its name may have the wildcards ``*``, ``?`` and ``[...]``."""
    max_age_seconds: float | None
    """How long ago a file may have been written; ``None``: however long."""
    follow_symlinks: bool
    """Whether a symbolic link may lead out of the directory."""

    @property
    def directory(self) -> str:
        """Where the files are; ``.`` is the working directory."""
        return os.path.dirname(self.path) or "."  # noqa: PTH120 - a Path would drop "./"

    @property
    def name(self) -> str:
        """The file's name, wildcards included."""
        return os.path.basename(self.path)  # noqa: PTH119 - as above

    @property
    def has_wildcards(self) -> bool:
        """Whether it stands for as many files as there are."""
        return any(wildcard in self.name for wildcard in "*?[")

    @property
    def backend(self) -> str:
        """As shown in messages and in the access log's ``backend`` field."""
        return f"file:{self.path}"

    def __str__(self) -> str:
        return self.backend


@dataclass(frozen=True, slots=True)
class CommandSource:
    """A program on this host that prints the page, run for each scrape."""

    scheme: ClassVar[str] = "command"
    program: str
    """Absolute path."""
    arguments: tuple[str, ...] = field(repr=False)
    env: tuple[tuple[str, str], ...] = field(repr=False)
    """Its whole environment, in file order; may hold secrets, as the arguments may."""
    working_dir: str

    @property
    def backend(self) -> str:
        """As shown in messages and in the access log's ``backend`` field."""
        return f"command:{self.program}"

    def __str__(self) -> str:
        return self.backend


@dataclass(frozen=True, slots=True)
class Exporter:
    """One exporter: its path on this daemon, where it is asked, and the rules of a scrape.

    Exactly one of ``url``, ``file`` and ``command`` is set.
    """

    name: str
    path: str
    """Exact path on this daemon, without the route prefix."""
    url: UpstreamUrl | None
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
    params: tuple[tuple[str, str], ...] = field(repr=False)
    """Always added to the query, in file order, before the scraper's own; may hold secrets."""
    pass_headers: tuple[str, ...]
    """Lower-case names of further request headers that are let through."""
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """Added to each request to the exporter; may hold secrets, so it is kept out of ``repr``."""
    basic_auth: BasicAuth | None
    bearer_token_file: str | None
    tls: ClientTls | None
    insecure_skip_verify: bool
    content_type: str | None
    """Replaces the exporter's Content-Type; ``None``: the exporter's own passes."""
    labels: tuple[tuple[str, str], ...]
    """Given to Prometheus with its target, in file order; ``exporter`` is never among them."""
    file: FileSource | None = None
    command: CommandSource | None = None

    @property
    def source(self) -> UpstreamUrl | FileSource | CommandSource:
        """Where the metrics come from, whichever kind it is."""
        source = self.url or self.file or self.command
        assert source is not None, "one of them is set"
        return source

    @property
    def key_path(self) -> str:
        """Where in the configuration its keys are."""
        return f"exporters.{self.name}"


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
    """Hex digest of the file's bytes, and those of the files that it includes."""
    listen: tuple[Listen, ...]
    route_prefix: str
    """"" or ``/prefix``, never with a trailing slash."""
    external_url: ExternalUrl | None
    """``None``: not said."""
    shutdown_timeout_seconds: float
    keep_alive_timeout_seconds: float
    read_header_timeout_seconds: float
    max_header_bytes: int
    max_connections: int
    tls: ServerTls | None
    """``None``: see ``web``, which may have one; never both."""
    web: WebConfig | None
    bearer_tokens_file: str | None
    allow_clients: tuple[Network, ...] | None
    """``None``: everyone."""
    allow_upstreams: tuple[Network, ...] | None
    """Checked against the address connected to; ``None``: whatever the file names."""
    exporters: tuple[Exporter, ...]
    access_log: AccessLog | None
    """``None``: off."""
    error_log_path: str | None
    """``None``: stderr."""
    pushprox: PushProx | None = None
    """``None``: no PushProx proxy is polled."""
    module_route: ModuleRoute | None = None
    """``None``: exporters are at their own paths only."""

    @property
    def fingerprint(self) -> str:
        """Hex digest for ``exporter_proxy_config_hash``, to see drift over a fleet.

        ``sha256``; with a web config file, the SHA-256 of this and that file's digest. So it follows
        the web config file, which is read again on its own.
        """
        if self.web is None:
            return self.sha256
        return hashlib.sha256(f"{self.sha256} {self.web.sha256}".encode()).hexdigest()

    @property
    def server_tls(self) -> ServerTls | None:
        """How scrapers are spoken to, whichever section says it; ``None``: in plain HTTP."""
        return self.tls or (self.web.tls if self.web is not None else None)
