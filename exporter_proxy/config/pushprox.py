"""The ``pushprox`` section: which proxies are polled for scrapes, under which name, and for what."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from exporter_proxy.config.addresses import EXPORTER_NAME, PROXY_URL, SERVER_NAME
from exporter_proxy.config.credentials import (
    check_one_authorization,
    read_basic_auth,
    read_bearer_token_file,
    read_client_tls,
)
from exporter_proxy.config.exporters import report_unknown_exporters
from exporter_proxy.config.schema import BasicAuth, ClientTls, Exporter, UpstreamUrl
from exporter_proxy.config.sections import Section
from exporter_proxy.config.values import BOOLEAN

PUSHPROX_KEYS = (
    "proxy_url",
    "fqdn",
    "tls",
    "basic_auth",
    "bearer_token_file",
    "map_ports",
    "allow_exporters",
)


@dataclass(frozen=True, slots=True)
class PushProx:
    """``pushprox``: the proxies that are polled for scrapes, and what may be scraped through them."""

    proxies: tuple[UpstreamUrl, ...]
    """``target`` is the path before ``/poll`` and ``/push``: ``/`` or ``/prefix``."""
    fqdn: str | None
    """The name to be scraped by; ``None``: the host's own."""
    basic_auth: BasicAuth | None
    bearer_token_file: str | None
    tls: ClientTls | None
    map_ports: bool
    """Whether the port and path of an exporter's own stand for its path here."""
    allow_exporters: frozenset[str] | None
    """Names of exporters; ``None``: all but those with ``allow_clients`` of their own."""

    @property
    def key_path(self) -> str:
        """Where in the configuration its keys are."""
        return "pushprox"

    @property
    def insecure_skip_verify(self) -> bool:
        """Never: a proxy that anyone can pose as is asked for by nobody."""
        return False

    def allows(self, exporter: Exporter) -> bool:
        """Whether ``exporter`` may be scraped through PushProx.

        Who scrapes has no address there, so that an exporter with a list of addresses of its own
        has to be named.
        """
        if self.allow_exporters is None:
            return exporter.allow_clients is None
        return exporter.name in self.allow_exporters


def read_pushprox(top: Section, included: Sequence[Section], base_dir: str) -> PushProx | None:
    """The section, ``None`` where it is absent.

    ``included`` are the further files with exporters. Relative paths are taken from ``base_dir``.
    """
    section = top.section("pushprox", PUSHPROX_KEYS, 'a mapping with at least "proxy_url"')
    if section is None:
        return None
    proxies = _read_proxies(section)
    if "tls" in section and proxies and not any(url.scheme == "https" for url in proxies):
        section.report("tls", "no proxy_url begins with https://, so it has no effect: remove it")
    check_one_authorization(section, ())
    return PushProx(
        proxies=proxies,
        fqdn=section.get("fqdn", SERVER_NAME, None),
        basic_auth=read_basic_auth(section, base_dir),
        bearer_token_file=read_bearer_token_file(section, base_dir),
        tls=read_client_tls(section, None, base_dir),
        map_ports=section.get("map_ports", BOOLEAN, False),
        allow_exporters=_read_allow_exporters(section, (top, *included)),
    )


def host_fqdn() -> str:
    """The name that is polled by where none is configured: this host's. May take seconds.

    With its domain where the resolver knows one.
    """
    try:
        name = socket.getfqdn()
    except UnicodeError:  # no name for a resolver: a label of 64 characters, or an empty one
        return socket.gethostname()
    # What a hosts file makes of it on many machines: every host would poll by that name.
    return socket.gethostname() if name.partition(".")[0] == "localhost" else name


def _read_proxies(section: Section) -> tuple[UpstreamUrl, ...]:
    if "proxy_url" not in section:
        section.report_missing(
            "proxy_url", 'missing, add a line such as "proxy_url: http://pushprox.example.org:8080/"'
        )
    proxies = section.get_list("proxy_url", PROXY_URL, (), one_will_do=True)
    if section.is_empty_list("proxy_url"):
        section.report("proxy_url", "the list is empty, it needs at least one URL")
    for url in dict.fromkeys(url for url in proxies if proxies.count(url) > 1):
        section.report("proxy_url", f"{url} is listed twice")
    return proxies


def _read_allow_exporters(section: Section, tops: Sequence[Section]) -> frozenset[str] | None:
    names = section.get_list("allow_exporters", EXPORTER_NAME, None)
    if names is None:
        return None
    report_unknown_exporters(section, "allow_exporters", names, tops)
    return frozenset(names)
