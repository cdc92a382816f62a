"""Points 1 to 5: which requests reach an exporter, and which of their headers."""

from __future__ import annotations

import pytest

from tests.daemon import Daemon, proxied
from tests.fakes.exporter import PAGE, FakeExporter
from tests.wire import request

PROMETHEUS_2_42 = (
    ("User-Agent", "Prometheus/2.42.0+ds"),
    (
        "Accept",
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    ),
    ("Accept-Encoding", "gzip"),
    ("X-Prometheus-Scrape-Timeout-Seconds", "3"),
)


# -- 1: methods


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_point_01_get_and_head_reach_the_exporter(
    daemon: Daemon, exporter: FakeExporter, method: str
) -> None:
    daemon.get("/x/metrics", method=method).expect_ok()
    assert exporter.request.method == method


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "PURGE", "BREW", "get"]
)
def test_point_01_other_methods_are_refused(daemon: Daemon, exporter: FakeExporter, method: str) -> None:
    reply = daemon.get("/x/metrics", method=method).expect_refusal(405, "method")
    assert reply.header("allow") == "GET, HEAD"
    assert exporter.requests == []


@pytest.mark.parametrize(
    ("method", "target"), [("CONNECT", "127.0.0.1:9100"), ("CONNECT", "proxy.test:443"), ("OPTIONS", "*")]
)
def test_point_01_methods_with_targets_of_their_own_are_refused(
    daemon: Daemon, exporter: FakeExporter, method: str, target: str
) -> None:
    reply = daemon.get(target, method=method).expect_refusal(405, "method")
    assert reply.header("allow") == "GET, HEAD"
    assert exporter.requests == []


def test_point_01_route_is_judged_before_the_method(daemon: Daemon, exporter: FakeExporter) -> None:
    daemon.get("/nobody/metrics", method="POST").expect_refusal(404, "not_found")


def test_point_01_refused_method_does_not_wait_for_the_body(daemon: Daemon, exporter: FakeExporter) -> None:
    unsent_body = ("Content-Length", "1000000")
    with daemon.connect() as wire:
        wire.exchange(request("/x/metrics", unsent_body, method="POST") + b"a=1").expect_refusal(
            405, "method"
        )
        assert wire.closes_within(3.0)
    assert exporter.requests == []


# -- 2: paths


@pytest.mark.parametrize(
    "target",
    [
        "/x/metrics/",
        "/X/metrics",
        "/x/Metrics",
        "//x/metrics",
        "/x//metrics",
        "/x/./metrics",
        "/a/../x/metrics",
        "/x/metrics/..",
        "/x/metrics/.",
        "/x%2fmetrics",
        "/x%2Fmetrics",
        "/%78/metrics",
        "/%2e%2e/x/metrics",
        "/x/metrics%20",
        "/x/metrics%00",
        "/x/metrics%3fa=1",
        "/x/metrics;a=1",
        "/x/metric",
        "/x/metricss",
        "/x",
        "/x/",
        r"/x\metrics",
        "/nobody/metrics?a=/x/metrics",
    ],
)
def test_point_02_only_the_exact_raw_path_is_an_exporter(
    daemon: Daemon, exporter: FakeExporter, target: str
) -> None:
    reply = daemon.get(target).expect_refusal(404, "not_found")
    assert reply.header("location") is None
    assert b"/x/metrics" in reply.body, "the line names the paths that exist"
    assert exporter.requests == []


def test_point_02_absolute_form_with_the_same_authority_is_served(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    daemon.get("http://proxy.test/x/metrics?collect[]=cpu").expect_ok(PAGE)
    assert exporter.request.target == b"/metrics?collect[]=cpu"
    assert exporter.request.header("host") == exporter.authority


@pytest.mark.parametrize(
    "authority",
    ["other.test", "proxy.test:81", "127.0.0.1", "proxy.test.", "me@proxy.test", "proxy.test@other.test", ""],
)
def test_point_02_absolute_form_with_another_authority_is_malformed(
    daemon: Daemon, exporter: FakeExporter, authority: str
) -> None:
    daemon.get(f"http://{authority}/x/metrics").expect_refusal(400, "bad_request")
    assert exporter.requests == []


# -- 3: hop-by-hop headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Connection", "keep-alive"),
        ("Connection", "close"),
        ("Proxy-Connection", "keep-alive"),
        ("Keep-Alive", "timeout=5, max=100"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Authorization", "Basic dTpw"),
        ("TE", "trailers"),
        ("Trailer", "X-Sum"),
        ("Upgrade", "websocket"),
        ("Upgrade", "h2c"),
    ],
)
def test_point_03_hop_by_hop_headers_stay_on_their_hop(
    daemon: Daemon, exporter: FakeExporter, name: str, value: str
) -> None:
    daemon.exchange(request("/x/metrics", ("Accept", "*/*"), (name, value))).expect_ok(PAGE)
    assert exporter.request.get_all(name) == []
    assert exporter.request.header("accept") == "*/*"


def test_point_03_an_upgrade_is_declined_by_answering(daemon: Daemon, exporter: FakeExporter) -> None:
    upgrade = (
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    )
    daemon.exchange(request("/x/metrics", *upgrade)).expect_ok(PAGE)
    assert exporter.request.header_names == ["host"]


@pytest.mark.parametrize(
    "connection_lines",
    [
        ["X-Passed"],
        ["x-passed"],
        ["keep-alive, X-Passed"],
        ["keep-alive ,\tX-Passed , , close"],
        ["keep-alive", "X-Passed"],
        ["", "X-Passed"],
        [" , ", "keep-alive", ",X-Passed,"],
    ],
)
def test_point_03_headers_named_by_connection_are_dropped(
    daemon: Daemon, exporter: FakeExporter, connection_lines: list[str]
) -> None:
    lines = [("Connection", line) for line in connection_lines]
    daemon.exchange(request("/x/metrics", *lines, ("X-Passed", "1"), ("Accept", "*/*"))).expect_ok(PAGE)
    assert exporter.request.get_all("x-passed") == []
    assert exporter.request.get_all("connection") in ([], ["keep-alive"])
    assert exporter.request.header("accept") == "*/*"


def test_point_03_connection_line_after_the_header_that_it_names(
    daemon: Daemon, exporter: FakeExporter
) -> None:
    headers = ("traceparent", "00-1-2-01"), ("Accept", "text/plain"), ("Connection", "traceparent, accept")
    daemon.exchange(request("/x/metrics", *headers)).expect_ok(PAGE)
    assert exporter.request.header_names == ["host"]


# -- 4: which headers are forwarded


def test_point_04_prometheus_is_recognisable_behind_the_proxy(daemon: Daemon, exporter: FakeExporter) -> None:
    daemon.exchange(request("/x/metrics", *PROMETHEUS_2_42)).expect_ok(PAGE)
    received = dict(exporter.request.headers)
    for name, value in PROMETHEUS_2_42[:3]:
        assert received.pop(name.lower()) == value
    assert 2.0 < float(received.pop("x-prometheus-scrape-timeout-seconds")) <= 2.5
    assert received == {"host": exporter.authority}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Accept", "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"),
        ("Accept-Encoding", "gzip;q=1.0, identity; q=0.5"),
        ("User-Agent", "curl/8 (a, b)"),
        ("User-Agent", "ag\xe9nt"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=1,b=2"),
        ("X-Passed", "one, two"),
        ("ACCEPT", "*/*"),
    ],
)
def test_point_04_forwarded_unchanged(daemon: Daemon, exporter: FakeExporter, name: str, value: str) -> None:
    daemon.get("/x/metrics", (name, value)).expect_ok(PAGE)
    assert exporter.request.header(name) == value
    assert sorted(exporter.request.header_names) == sorted(["host", name.lower()])


def test_point_04_repeated_headers_are_all_forwarded(daemon: Daemon, exporter: FakeExporter) -> None:
    daemon.get("/x/metrics", ("Accept", "text/plain"), ("Accept", "*/*;q=0.1")).expect_ok(PAGE)
    assert ",".join(exporter.request.get_all("accept")).replace(" ", "") == "text/plain,*/*;q=0.1"


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "Cookie",
        "Range",
        "If-Match",
        "If-None-Match",
        "If-Modified-Since",
        "If-Unmodified-Since",
        "If-Range",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Real-IP",
        "Via",
        "Origin",
        "Referer",
        "Accept-Language",
        "Cache-Control",
        "X-Exporter-Proxy-Error",
        "X-Anything",
    ],
)
def test_point_04_nothing_else_is_forwarded(daemon: Daemon, exporter: FakeExporter, name: str) -> None:
    daemon.get("/x/metrics", (name, "bytes=0-1"), ("Accept", "*/*")).expect_ok(PAGE)
    assert sorted(exporter.request.header_names) == ["accept", "host"]


def test_point_04_nothing_is_added_to_a_bare_request(daemon: Daemon, exporter: FakeExporter) -> None:
    daemon.exchange(request("/x/metrics")).expect_ok(PAGE)
    assert exporter.request.headers == [("host", exporter.authority)]


def test_point_04_configured_headers_replace_the_scrapers() -> None:
    own = {"X-Scope": "vm", "User-Agent": "probe", "Authorization": "Bearer of-the-exporter"}
    with proxied(route={"headers": own, "pass_headers": ["x-scope"]}) as (daemon, exporter):
        theirs = ("X-Scope", "theirs"), ("User-Agent", "theirs"), ("Authorization", "Bearer theirs")
        daemon.get("/x/metrics", *theirs).expect_ok(PAGE)
        received = exporter.request.headers
        assert sorted(received) == sorted(
            [("host", exporter.authority), *((name.lower(), value) for name, value in own.items())]
        )


# -- 5: Host


def test_point_05_host_is_the_upstreams_own(daemon: Daemon, exporter: FakeExporter) -> None:
    daemon.exchange(request("/x/metrics", host="monitoring.example:9099")).expect_ok(PAGE)
    assert exporter.request.header("host") == exporter.authority


def test_point_05_host_of_an_ipv6_upstream_is_bracketed() -> None:
    with (
        FakeExporter(host="::1") as exporter,
        Daemon({"exporters": {"x": {"url": exporter.url()}}}) as daemon,
    ):
        daemon.get("/x/metrics").expect_ok(PAGE)
        assert exporter.request.header("host") == f"[::1]:{exporter.port}"


def test_point_05_host_can_be_configured() -> None:
    with proxied(route={"headers": {"Host": "vault.local:8200"}}) as (daemon, exporter):
        daemon.get("/x/metrics").expect_ok(PAGE)
        assert exporter.request.header("host") == "vault.local:8200"
