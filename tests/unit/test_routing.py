"""From a path to an exporter: exact matches, targets byte for byte, and what a reload takes over."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import yaml

from exporter_proxy.config import Config, Exporter, Network, parse_config
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.scrape.routing import Route, RouteTable, build_routes
from exporter_proxy.upstreams import make_upstream
from exporter_proxy.upstreams.credentials import Credentials

URL = "http://127.0.0.1:9100/metrics"


def config(exporters: dict[str, dict[str, Any]], **top: Any) -> Config:
    entries = {name: {"url": URL, **entry} for name, entry in exporters.items()}
    text = yaml.safe_dump({**top, "exporters": entries}, sort_keys=False)
    return parse_config(text.encode(), "config.yml")


def table(exporters: dict[str, dict[str, Any]], previous: RouteTable | None = None, **top: Any) -> RouteTable:
    return build_routes(config(exporters, **top), make_upstream, previous)


def route(**entry: Any) -> Route:
    return table({"x": entry}).routes[0]


def test_a_path_is_matched_exactly() -> None:
    routes = table({"node_exporter": {}, "own": {"path": "/some/where"}})
    assert [found.exporter.name for found in routes.routes] == ["node_exporter", "own"]
    for name, path in (("node_exporter", b"/node_exporter/metrics"), ("own", b"/some/where")):
        found = routes.find(path)
        assert found is not None
        assert found.exporter.name == name


@pytest.mark.parametrize(
    "path",
    [
        *(
            b"",
            b"/",
            b"*",
            b"/node_exporter",
            b"/node_exporter/",
            b"/node_exporter/metrics/",
            b"node_exporter/metrics",
        ),
        *(b"/Node_exporter/metrics", b"//node_exporter/metrics", b"/node_exporter//metrics"),
        *(b"/./node_exporter/metrics", b"/a/../node_exporter/metrics", b"/node_exporter/metrics/."),
        *(b"/node_exporter%2fmetrics", b"/%6eode_exporter/metrics", b"/node_exporter/metrics%00"),
        *(b"/node_exporter/metrics;a", b"/node_exporter\\metrics", b"/node_exporter/metrics "),
    ],
)
def test_what_only_looks_like_it_is_not_found(path: bytes) -> None:
    assert table({"node_exporter": {}}).find(path) is None


def test_the_route_prefix_is_part_of_the_path() -> None:
    routes = table({"x": {}}, route_prefix="/proxy/")
    assert routes.find(b"/proxy/x/metrics") is routes.routes[0]
    assert routes.find(b"/x/metrics") is None
    assert routes.routes[0].path == b"/proxy/x/metrics"


@pytest.mark.parametrize(
    ("url", "params", "query", "target"),
    [
        ("", {}, b"", b"/metrics"),
        ("", {}, b"a=1", b"/metrics?a=1"),
        ("?own=1", {}, b"", b"/metrics?own=1"),
        ("?own=1", {}, b"a=1", b"/metrics?own=1&a=1"),
        ("?own=1", {"module": "http_2xx"}, b"a=1", b"/metrics?own=1&module=http_2xx&a=1"),
        ("", {"module": "http_2xx"}, b"", b"/metrics?module=http_2xx"),
        ("", {"collect[]": ["cpu", "a b&c"]}, b"", b"/metrics?collect%5B%5D=cpu&collect%5B%5D=a+b%26c"),
        ("", {}, b"collect[]=cpu&collect[]=meminfo", b"/metrics?collect[]=cpu&collect[]=meminfo"),
        ("", {}, b"a=1&a=2;b=3&%zz&=&&", b"/metrics?a=1&a=2;b=3&%zz&=&&"),
        ("", {}, b"?", b"/metrics??"),
    ],
)
def test_targets(url: str, params: dict[str, Any], query: bytes, target: bytes) -> None:
    assert route(url=URL + url, params=params).target(query) == target


@pytest.mark.parametrize(
    ("allowed", "query", "refused"),
    [
        (None, b"anything=1&else", None),
        (["collect[]"], b"", None),
        (["collect[]"], b"collect[]=cpu&collect[]=meminfo", None),
        (["collect[]"], b"collect%5B%5D=cpu", None),
        (["collect[]"], b"collect%5b]", None),
        (["collect[]"], b"&&collect[]=&", None),
        (["a b"], b"a+b=1&a%20b=2", None),
        (["collect[]"], b"collect[]=cpu&name=x", "name"),
        (["collect[]"], b"collect[]=cpu;name=x", "name"),
        (["collect[]"], b"Collect[]=cpu", "Collect[]"),
        (["collect[]"], b"collect[]%00=1", "collect[]\0"),
        (["collect[]"], b"%63ollect=1", "collect"),
        (["collect[]"], b"=value", ""),
        (["collect[]"], b"%ff=1", "\\xff"),
        (["collect[]"], b"%zz=1", "%zz"),
        (["a"], b"a%26b=1", "a&b"),
        (["a"], b"a%3Bb=1", "a;b"),
        ([], b"a=1", "a"),
        ([], b"", None),
    ],
)
def test_parameters(allowed: list[str] | None, query: bytes, refused: str | None) -> None:
    entry = {} if allowed is None else {"allow_params": allowed}
    assert route(**entry).refused_param(query) == refused


def test_configured_headers_replace_the_scrapers() -> None:
    made = route(headers={"Accept": "text/plain", "X-Scope": "vm"}, pass_headers=["X-Scope", "X-Passed"])
    assert made.configured_headers == [
        (b"Host", b"127.0.0.1:9100"),
        (b"Accept", b"text/plain"),
        (b"X-Scope", b"vm"),
    ]
    assert b"x-passed" in made.allowed_headers
    assert not made.allowed_headers & {b"accept", b"x-scope", b"host"}


def test_a_configured_host_is_the_only_one() -> None:
    made = route(headers={"host": "other.test"})
    assert made.configured_headers == [(b"host", b"other.test")]


@pytest.mark.parametrize(
    ("url", "host", "backend"),
    [
        ("http://127.0.0.1:9100/metrics", b"127.0.0.1:9100", "127.0.0.1:9100"),
        ("http://exporter.test/metrics", b"exporter.test", "exporter.test:80"),
        ("https://exporter.test/metrics", b"exporter.test", "exporter.test:443"),
        ("https://exporter.test:80/metrics", b"exporter.test:80", "exporter.test:80"),
        ("http://[::1]:9100/metrics", b"[::1]:9100", "[::1]:9100"),
    ],
)
def test_the_host_is_the_exporters_own(url: str, host: bytes, backend: str) -> None:
    made = route(url=url)
    assert made.configured_headers == [(b"Host", host)]
    assert made.backend == backend


# Reload


def test_an_unchanged_exporter_keeps_its_route() -> None:
    before = table({"a": {}, "b": {"timeout": "5s"}})
    after = table({"b": {"timeout": "5s"}, "new": {}, "a": {}}, before)
    assert [made.exporter.name for made in after.routes] == ["b", "new", "a"]
    assert after.find(b"/a/metrics") is before.find(b"/a/metrics")
    assert after.find(b"/b/metrics") is before.find(b"/b/metrics")


@pytest.mark.parametrize(
    "change",
    [
        {"timeout": "3s"},
        {"url": "http://127.0.0.1:9101/metrics"},
        {"headers": {"X-Secret": "new"}},
        {"max_concurrent": 1},
        {"path": "/elsewhere"},
        {"verify": True},
        {"allow_params": []},
    ],
)
def test_a_changed_exporter_gets_a_new_route_but_keeps_its_counts(change: dict[str, Any]) -> None:
    before = table({"x": {}})
    old = before.routes[0]
    exchange = Exchange("127.0.0.1", "GET", b"/", b"", 0.0)
    exchange.status = 200
    old.record.add(exchange)
    (new,) = table({"x": change}, before).routes
    assert new is not old
    assert new.transport is not old.transport
    assert new.slots is not old.slots
    assert new.record is old.record


def test_a_removed_exporter_is_forgotten() -> None:
    """One that comes back later starts anew."""
    before = table({"x": {}, "y": {}})
    without = table({"y": {}}, before)
    assert without.find(b"/x/metrics") is None
    again = table({"x": {}, "y": {}}, without)
    assert again.routes[0].record is not before.routes[0].record


@pytest.mark.parametrize("top", [{"allow_upstreams": ["127.0.0.0/8"]}, {"route_prefix": "/p"}])
def test_what_concerns_every_route_changes_every_route(top: dict[str, Any]) -> None:
    before = table({"x": {}})
    (new,) = table({"x": {}}, before, **top).routes
    assert new is not before.routes[0]
    assert new.record is before.routes[0].record


def test_each_transport_is_made_for_its_exporter() -> None:
    asked: list[tuple[Exporter, tuple[Network, ...] | None]] = []

    def make(
        exporter: Exporter, allowed: tuple[Network, ...] | None, credentials: Credentials
    ) -> httpx.AsyncBaseTransport:
        asked.append((exporter, allowed))
        return make_upstream(exporter, allowed, credentials)

    made = config({"a": {}, "b": {}}, allow_upstreams=["127.0.0.0/8"])
    build_routes(made, make)
    assert asked == [(exporter, made.allow_upstreams) for exporter in made.exporters]


def test_slots_are_as_many_as_max_concurrent() -> None:
    slots = route(max_concurrent=2).slots
    assert [slots.take(), slots.take(), slots.take()] == [True, True, False]
    slots.give_back()
    assert slots.take()
