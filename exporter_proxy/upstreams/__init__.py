"""Where metrics come from: one httpx transport per exporter, by kind.

Adding a kind is a module with an ``httpx.AsyncBaseTransport`` and a row in ``UPSTREAM_KINDS``.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import lru_cache

import httpx

from exporter_proxy.config.schema import Exporter, Network
from exporter_proxy.upstreams.http import HttpUpstream
from exporter_proxy.upstreams.messages import ScrapeRequest

__all__ = ["UPSTREAM_KINDS", "ScrapeRequest", "make_upstream"]

AllowedUpstreams = tuple[Network, ...] | None


def _http(exporter: Exporter, allowed: AllowedUpstreams) -> httpx.AsyncBaseTransport:
    return HttpUpstream(exporter, allowed, None)


def _https(exporter: Exporter, allowed: AllowedUpstreams) -> httpx.AsyncBaseTransport:
    return HttpUpstream(exporter, allowed, _tls_context(exporter.insecure_skip_verify))


@lru_cache(maxsize=2)
def _tls_context(skip_verify: bool) -> ssl.SSLContext:
    """One context for all exporters with the same rules: loading the system's CAs takes 20 ms."""
    context = ssl.create_default_context()
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


UPSTREAM_KINDS: dict[str, Callable[[Exporter, AllowedUpstreams], httpx.AsyncBaseTransport]] = {
    "http": _http,
    "https": _https,
}


def make_upstream(exporter: Exporter, allowed: AllowedUpstreams) -> httpx.AsyncBaseTransport:
    """The transport that ``exporter`` is asked through."""
    return UPSTREAM_KINDS[exporter.url.scheme](exporter, allowed)
