"""Where metrics come from: one httpx transport per exporter, by kind.

Adding a kind is a module with an ``httpx.AsyncBaseTransport`` and a row in ``UPSTREAM_KINDS``.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx

from exporter_proxy.config.schema import Exporter, Network
from exporter_proxy.upstreams.command import CommandUpstream
from exporter_proxy.upstreams.credentials import Credentials, client_context
from exporter_proxy.upstreams.file import FileUpstream
from exporter_proxy.upstreams.http import HttpUpstream
from exporter_proxy.upstreams.messages import ScrapeRequest
from exporter_proxy.upstreams.tls import Tls

__all__ = ["UPSTREAM_KINDS", "ScrapeRequest", "make_upstream"]

AllowedUpstreams = tuple[Network, ...] | None
MakeUpstream = Callable[[Exporter, AllowedUpstreams, Credentials], httpx.AsyncBaseTransport]


def _http(
    exporter: Exporter, allowed: AllowedUpstreams, credentials: Credentials
) -> httpx.AsyncBaseTransport:
    return HttpUpstream(exporter, allowed, None)


def _https(
    exporter: Exporter, allowed: AllowedUpstreams, credentials: Credentials
) -> httpx.AsyncBaseTransport:
    assert exporter.url is not None
    tls = exporter.tls
    name = (tls.server_name if tls is not None else None) or exporter.url.host.removesuffix(".")
    has_certificate = tls is not None and tls.cert_file is not None
    return HttpUpstream(exporter, allowed, Tls(client_context(exporter, credentials), name, has_certificate))


def _file(
    exporter: Exporter, allowed: AllowedUpstreams, credentials: Credentials
) -> httpx.AsyncBaseTransport:
    return FileUpstream(exporter)


def _command(
    exporter: Exporter, allowed: AllowedUpstreams, credentials: Credentials
) -> httpx.AsyncBaseTransport:
    return CommandUpstream(exporter)


UPSTREAM_KINDS: dict[str, MakeUpstream] = {
    "http": _http,
    "https": _https,
    "http+unix": _http,
    "file": _file,
    "command": _command,
}


def make_upstream(
    exporter: Exporter, allowed: AllowedUpstreams, credentials: Credentials
) -> httpx.AsyncBaseTransport:
    """The transport that ``exporter`` is asked through.

    Raises ConfigError where the files of its ``tls`` section cannot be used.
    """
    return UPSTREAM_KINDS[exporter.source.scheme](exporter, allowed, credentials)
