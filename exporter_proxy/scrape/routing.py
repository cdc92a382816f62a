"""From a path to the exporter behind it: everything about a scrape that can be known before it.

A route is made once per exporter and configuration; it holds what each scrape would
otherwise compute again. The table is an exact match on the raw path (no decoding, no
normalisation, no prefix), so that nothing in a URL can choose another upstream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import quote_plus, unquote_to_bytes

import httpx

from exporter_proxy.config.problems import ConfigError, Problem
from exporter_proxy.config.schema import Config, Exporter, Network, UpstreamUrl
from exporter_proxy.observe.history import ExporterRecord
from exporter_proxy.scrape.headers import FORWARDED
from exporter_proxy.scrape.modules import take_module
from exporter_proxy.scrape.share import Shares
from exporter_proxy.scrape.slots import Slots
from exporter_proxy.upstreams import MakeUpstream
from exporter_proxy.upstreams.credentials import Credentials, read_credentials
from exporter_proxy.upstreams.file import FileUpstream

Verify = Callable[[httpx.Response, Exporter, str], httpx.Response]

_NO_URL = UpstreamUrl("http", "localhost", 80, "/")
"""What those are asked with that are no servers; they look at nothing of it."""


class Route:
    """One exporter, ready to be scraped."""

    def __init__(
        self,
        exporter: Exporter,
        credentials: Credentials,
        path: bytes,
        transport: httpx.AsyncBaseTransport,
        record: ExporterRecord,
    ) -> None:
        self.exporter = exporter
        self.credentials = credentials
        self.path = path
        """With the route prefix."""
        self.transport = transport
        url = exporter.url or _NO_URL
        self.url = httpx.URL(f"{url.scheme}://{url.authority}/")
        self.backend = exporter.source.backend
        # Those that are asked once at a time would keep the others waiting, so that in flight they share.
        self.shares = (
            Shares(exporter.share_for_seconds, exporter.share_max_bytes)
            if exporter.share_for_seconds or exporter.url is None
            else None
        )
        self.verify = _load_verification(exporter) if exporter.verify else None
        """Judges an answer for this route; ``None``: answers are not judged."""
        self.slots = Slots(exporter.max_concurrent)
        configured = [(name.encode("ascii"), value.encode("latin-1")) for name, value in exporter.headers]
        if credentials.authorization is not None:
            configured.append((b"Authorization", credentials.authorization))
        replaced = {name.lower() for name, _ in configured}
        passed = {name.encode("ascii") for name in exporter.pass_headers}
        self.allowed_headers = (FORWARDED | passed) - replaced if exporter.url else frozenset[bytes]()
        """Lower-case names of the scraper's headers that pass; not those the configuration sets."""
        if b"host" not in replaced:
            configured.insert(0, (b"Host", url.authority.encode("ascii")))
        self.configured_headers = configured
        self.content_type = exporter.content_type.encode("latin-1") if exporter.content_type else None
        self.record = record

        own_path, _, own_query = url.target.partition("?")
        params = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in exporter.params)
        query = "&".join(part for part in (own_query, params) if part)
        self._target = (f"{own_path}?{query}" if query else own_path).encode("ascii")
        self._query_joiner = b"&" if query else b"?"

    @property
    def file_mtimes_seconds(self) -> Mapping[str, float]:
        """Unix times by file, as the last scrape found them; empty where there are no files."""
        return self.transport.mtimes_seconds if isinstance(self.transport, FileUpstream) else {}

    def target(self, query: bytes) -> bytes:
        """The origin-form to ask for: the URL's own query, then ``params``, then the scraper's.

        The scraper's query passes byte for byte, order, duplicates and bad escapes included.
        """
        return self._target + self._query_joiner + query if query else self._target

    def refused_param(self, query: bytes) -> str | None:
        """The first parameter name in ``query`` that ``allow_params`` does not list.

        Names are compared decoded. ``;`` separates parameters too: Go before 1.17 and others
        read it so, and an exporter must not find a parameter that was not looked at here.
        """
        allowed = self.exporter.allow_params
        if allowed is None or not query:
            return None
        for pair in query.replace(b";", b"&").split(b"&"):
            if pair:
                encoded_name = pair.partition(b"=")[0].replace(b"+", b" ")
                name = unquote_to_bytes(encoded_name).decode("utf-8", "backslashreplace")
                if name not in allowed:
                    return name
        return None


def _load_verification(exporter: Exporter) -> Verify:
    """The grammars take 20 ms and 2 MiB to compile, so that only those who want them pay."""
    if exporter.file is not None:
        from exporter_proxy.scrape.files import merged  # noqa: PLC0415

        return merged
    from exporter_proxy.scrape.verified import verified  # noqa: PLC0415

    return verified


class RouteTable:
    """The routes of one configuration, by raw path, and by name for ``module_route``."""

    def __init__(
        self,
        routes: tuple[Route, ...],
        allow_upstreams: tuple[Network, ...] | None,
        module_path: bytes | None = None,
        default_module: str | None = None,
    ) -> None:
        self.routes = routes
        self.allow_upstreams = allow_upstreams
        self.module_path = module_path
        """Of ``module_route``, with the route prefix; ``None``: there is none."""
        self._by_path = {route.path: route for route in routes}
        modules = routes if module_path is not None else ()
        self._by_module = {route.exporter.name.encode("ascii"): route for route in modules}
        self._default = default_module.encode("ascii") if default_module is not None else None

    def find(self, path: bytes) -> Route | None:
        """The route whose path is exactly ``path``."""
        return self._by_path.get(path)

    def find_module(self, query: bytes) -> tuple[Route | None, bytes | None, bytes]:
        """At ``module_path``: the route, the module that is meant, and the query that is the exporter's."""
        module, rest = take_module(query)
        module = self._default if module is None else module
        return (self._by_module.get(module) if module is not None else None), module, rest


def build_routes(
    config: Config, make_transport: MakeUpstream, previous: RouteTable | None = None
) -> RouteTable:
    """Routes for the exporters of ``config``; those that a reload did not change are taken over.

    A route taken over keeps its pool and its slots. One that changed, or whose files did, gets
    new ones but keeps the record: a reload must not look like a counter reset to Prometheus.
    Raises ConfigError with all the files that cannot be used as they are now.
    """
    old = {route.exporter.name: route for route in previous.routes} if previous else {}
    same_upstream_rule = previous is not None and previous.allow_upstreams == config.allow_upstreams
    routes: list[Route] = []
    problems: list[Problem] = []
    for exporter in config.exporters:
        before = old.get(exporter.name)
        path = (config.route_prefix + exporter.path).encode("ascii")
        try:
            credentials = read_credentials(exporter)
            if (
                before is not None
                and same_upstream_rule
                and before.exporter == exporter
                and before.credentials == credentials
                and before.path == path
            ):
                routes.append(before)
                continue
            transport = make_transport(exporter, config.allow_upstreams, credentials)
        except ConfigError as error:
            problems += [replace(problem, source=config.source) for problem in error.problems]
            continue
        record = before.record if before is not None else ExporterRecord(exporter.name)
        routes.append(Route(exporter, credentials, path, transport, record))
    if problems:
        raise ConfigError(problems)
    modules = config.module_route
    if modules is None:
        return RouteTable(tuple(routes), config.allow_upstreams)
    module_path = (config.route_prefix + modules.path).encode("ascii")
    return RouteTable(tuple(routes), config.allow_upstreams, module_path, modules.default_module)
