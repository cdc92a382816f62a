"""``module_route``: ``/proxy?module=NAME`` is another way to an exporter's own path, and nothing more.

How that compares with exporter_exporter itself is in tests/e2e/test_exporter_exporter_oracle.py.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bcrypt
import pytest

from tests.daemon import Daemon, parse_logfmt, wait_until
from tests.fakes.exporter import (
    EXPOSITION,
    PAGE,
    FakeExporter,
    Script,
    head,
    respond,
    send,
    stall,
)
from tests.standin import FQDN, StandIn
from tests.wire import CONNECTION_CLOSE, Reply, request

DENIED = "exporter_proxy_requests_denied_total"
ERRORS = "exporter_proxy_scrape_errors_total"
SCRAPES = "exporter_proxy_scrapes_total"
SHARED = "exporter_proxy_shared_scrapes_total"
ROUTE = {"path": "/proxy", "default_module": "node"}


class Site(NamedTuple):
    daemon: Daemon
    exporter: FakeExporter


def exporters(exporter: FakeExporter) -> dict[str, dict[str, Any]]:
    url = exporter.url()
    return {
        "node": {"url": url},
        "probe": {"url": f"{url}?own=1", "params": {"set": "2"}},
        "narrow": {"url": url, "allow_clients": ["127.0.0.2"]},
        "strict": {"url": url, "allow_params": ["collect[]", "module"]},
        "refused": {"url": "http://127.0.0.1:1/metrics"},
        "hurried": {"url": url, "timeout": "1500ms"},
        "small": {"url": url, "max_response_bytes": "10B"},
        "judged": {"url": url, "verify": True},
        "shared": {"url": url, "share_for": "60s"},
        "runs": {"command": ["/bin/sh", "-c", "echo 'a 1'"]},
        "fails": {"command": ["/bin/sh", "-c", "echo why >&2; exit 3"]},
        "gone": {"file": "/no-such-file.prom"},
    }


@pytest.fixture(scope="module")
def standing() -> Iterator[Site]:
    with FakeExporter() as exporter:
        config = {
            "module_route": "/proxy",
            "allow_clients": ["127.0.0.0/29"],
            "access_log": {"format": "logfmt"},
            "exporters": exporters(exporter),
        }
        with Daemon(config) as daemon:
            yield Site(daemon, exporter)


@pytest.fixture
def site(standing: Site) -> Iterator[Site]:
    standing.exporter.play()
    yield standing
    standing.exporter.drop_connections()


# What the exporter sees


@pytest.mark.parametrize(
    ("query", "target"),
    [
        ("module=node", b"/metrics"),
        ("module=node&", b"/metrics"),
        ("module=node&a=1&module=x", b"/metrics?a=1&module=x"),
        ("a=1&module=node", b"/metrics?a=1"),
        ("b=2&module=node&a=1", b"/metrics?b=2&a=1"),
        ("module=node&module=probe", b"/metrics?module=probe"),
        ("module=node&module=", b"/metrics?module="),
        ("module=probe", b"/metrics?own=1&set=2"),
        ("module=probe&module=icmp&target=x", b"/metrics?own=1&set=2&module=icmp&target=x"),
        ("%6dodule=n%6Fde&%61=%62", b"/metrics?%61=%62"),
        ("%6Dodule=node&module=probe", b"/metrics?module=probe"),
        ("module=node&collect[]=cpu&collect%5B%5D=mem", b"/metrics?collect[]=cpu&collect%5B%5D=mem"),
        ("module=node&a=%zz&b=%", b"/metrics?a=%zz&b=%"),
        ("module=node&a=1;b=2", b"/metrics?a=1;b=2"),
        ("module=node&&a=1&&", b"/metrics?&a=1&&"),
        ("module=node&a&=b&=", b"/metrics?a&=b&="),
        ("module=node&a=b+c%20d", b"/metrics?a=b+c%20d"),
        ("Module=x&module=node", b"/metrics?Module=x"),
        ("module[]=x&module=node", b"/metrics?module[]=x"),
        ("module=node&a=?/b?", b"/metrics?a=?/b?"),
    ],
)
def test_the_first_module_is_taken_out_and_the_rest_goes_on_byte_for_byte(
    site: Site, query: str, target: bytes
) -> None:
    site.daemon.get(f"/proxy?{query}").expect_ok(PAGE)
    assert site.exporter.request.target == target


def test_headers_are_those_of_the_own_path(site: Site) -> None:
    sent = [
        ("Authorization", "Bearer of-the-scraper"),
        ("Cookie", "a=b"),
        ("Accept", "text/plain"),
        ("X-Prometheus-Scrape-Timeout-Seconds", "3"),
        ("traceparent", "x"),
    ]
    for path in ("/node/metrics", "/proxy?module=node"):
        site.daemon.get(path, *sent).expect_ok(PAGE)
    own, by_module = site.exporter.requests
    assert own.header_names == by_module.header_names
    assert "authorization" not in by_module.header_names
    assert 2.0 < float(by_module.header("x-prometheus-scrape-timeout-seconds") or 0) <= 2.5


# What the scraper gets


def told(reply: Reply) -> tuple[object, ...]:
    """Everything of an answer but its times, which are in a line of the daemon's own, too."""
    varying = {"date", "age", *(["content-length"] if reply.error else [])}
    headers = sorted(pair for pair in reply.headers if pair[0] not in varying)
    return reply.status, reply.error, headers, re.sub(rb"\d+(\.\d+)? ms", b"", reply.body), reply.ended


LONG = [send(head(headers=[EXPOSITION, ("Content-Length", "100")]) + b"a 1\n"), stall()]
CASES: dict[str, tuple[str, str, Script, dict[str, Any]]] = {
    "a page": ("node", "", respond(), {}),
    "a HEAD": ("node", "", respond(), {"method": "HEAD"}),
    "a POST": ("node", "", respond(), {"method": "POST"}),
    "a DELETE": ("node", "a=1", respond(), {"method": "DELETE"}),
    "an error of the exporter": ("node", "", respond(500, body=b"why\n"), {}),
    "a redirect": ("node", "", respond(302, [("Location", "/elsewhere")]), {}),
    "no answer": ("hurried", "", [stall()], {}),
    "half an answer": ("hurried", "", LONG, {}),
    "no connection": ("refused", "", respond(), {}),
    "too much": ("small", "", respond(), {}),
    "no exposition": ("judged", "", respond(body=b"oh no\n"), {}),
    "an allowed parameter": ("strict", "collect[]=cpu", respond(), {}),
    "a parameter that is not": ("strict", "a=1", respond(), {}),
    "one behind a semicolon": ("strict", "collect[]=cpu;a=1", respond(), {}),
    "a further module": ("strict", "module=x", respond(), {}),
    "an allowed address": ("narrow", "", respond(), {"source": "127.0.0.2"}),
    "another address": ("narrow", "", respond(), {}),
    "a stranger": ("node", "", respond(), {"source": "127.0.0.8"}),
    "a command": ("runs", "", respond(), {}),
    "a command with a parameter": ("runs", "args=-x", respond(), {}),
    "a command that fails": ("fails", "", respond(), {}),
    "no file": ("gone", "", respond(), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_all_is_as_at_the_own_path(site: Site, case: str) -> None:
    name, query, script, options = CASES[case]
    answers, counts = [], []
    for target in (f"/{name}/metrics?{query}", f"/proxy?module={name}&{query}"):
        site.exporter.drop_connections()
        site.exporter.play(script)
        before = site.daemon.metrics()
        answers.append(told(site.daemon.get(target, **options)))

        def counted(before: dict[Any, float] = before) -> dict[Any, float]:
            """What was counted since, but for times and what the daemon's own pages count."""
            kinds = ("scrapes_total", "scrape_errors_total", "denied_total", "response_bytes_total")
            now = site.daemon.metrics()
            grown = {key: value - before.get(key, 0) for key, value in now.items() if key[0].endswith(kinds)}
            return {key: value for key, value in grown.items() if value}

        wait_until(lambda: bool(counted()), "it was counted")
        counts.append(counted())
    assert answers[0] == answers[1]
    assert counts[0] == counts[1]


def test_the_log_has_what_was_asked(site: Site) -> None:
    site.daemon.get("/proxy?a=1&module=node&logged=1").expect_ok(PAGE)
    fields = parse_logfmt(site.daemon.wait_for_output("logged=1"))
    assert (fields["path"], fields["query"]) == ("/proxy", "a=1&module=node&logged=1")
    assert (fields["status"], fields["backend"], fields["reason"]) == ("200", site.exporter.authority, "")
    site.daemon.get("/proxy?module=nowhere&logged=2").expect_refusal(404, "not_found")
    fields = parse_logfmt(site.daemon.wait_for_output("logged=2"))
    assert (fields["status"], fields["backend"], fields["reason"]) == ("404", "", "not_found")


def test_one_answer_is_shared_with_the_own_path(site: Site) -> None:
    before = site.daemon.metric(SHARED, exporter="shared")
    site.daemon.get("/shared/metrics?a=1").expect_ok(PAGE)
    for query in ("module=shared&a=1", "a=1&module=shared"):
        site.daemon.get(f"/proxy?{query}").expect_ok(PAGE)
    site.daemon.wait_for_metric(before + 2, SHARED, exporter="shared")
    assert len(site.exporter.requests) == 1
    site.daemon.get("/proxy?module=shared&a=2").expect_ok(PAGE)
    assert len(site.exporter.requests) == 2


# Who asks for nothing that there is

OWN_NAMES = "node probe strict refused hurried small judged shared runs fails gone"
NO_MODULE = ["", "?", "?a=1", "?Module=node", "?module%00=node", "?a=1;module=node", "?a=module", "?&&"]
NO_SUCH_MODULE = {
    "?module=nod": "nod",
    "?module=": "",
    "?module": "",
    "?module=&module=node": "",
    "?module=NODE": "NODE",
    "?module=node+": "node ",
    "?module=+node": " node",
    "?module=node%2fmetrics": "node/metrics",
    "?module=node;a=1": "node;a=1",
    "?module=%zz": "%zz",
    "?module=%ff%00": "\\xff\x00",
    "?module=/node/metrics": "/node/metrics",
    f"?module={'x' * 2000}": "x" * 100,
}


@pytest.mark.parametrize("query", NO_MODULE)
def test_no_module_is_a_400_that_lists_them(site: Site, query: str) -> None:
    before = site.daemon.metric(DENIED, reason="bad_request")
    for method in ("GET", "POST"):
        line = (
            site.daemon.get(f"/proxy{query}", method=method).expect_refusal(400, "bad_request").body.decode()
        )
        assert line == (
            f"exporter_proxy: no exporter is named; add module=NAME to the query; there is: {OWN_NAMES}\n"
        )
    site.daemon.wait_for_metric(before + 2, DENIED, reason="bad_request")
    assert site.exporter.requests == []


@pytest.mark.parametrize(("query", "name"), NO_SUCH_MODULE.items())
def test_an_unknown_module_is_a_404_that_lists_them(site: Site, query: str, name: str) -> None:
    before = site.daemon.metric(DENIED, reason="not_found")
    line = site.daemon.get(f"/proxy{query}").expect_refusal(404, "not_found").body.decode()
    assert line == f"exporter_proxy: no exporter is called {name!a}; there is: {OWN_NAMES}\n"
    site.daemon.wait_for_metric(before + 1, DENIED, reason="not_found")
    assert site.exporter.requests == []


def test_only_those_are_listed_that_the_client_may_scrape(site: Site) -> None:
    for query in ("", "?module=x"):
        line = site.daemon.get(f"/proxy{query}", source="127.0.0.2").body.decode()
        assert " narrow " in line


@pytest.mark.parametrize(
    "path", ["/prox", "/proxy/", "/proxy/metrics", "/Proxy", "//proxy", "/%70roxy", "/proxy%3f"]
)
def test_a_mistyped_path_is_a_404_in_plain_text(site: Site, path: str) -> None:
    line = site.daemon.get(f"{path}?module=node").expect_refusal(404, "not_found").body.decode()
    assert line.endswith("; and /proxy?module=NAME\n")


# The default


@pytest.mark.parametrize(
    ("query", "status", "target"),
    [
        ("", 200, b"/metrics"),
        ("?", 200, b"/metrics"),
        ("?a=1&b=%zz", 200, b"/metrics?a=1&b=%zz"),
        ("?a=1;module=probe", 200, b"/metrics?a=1;module=probe"),
        ("?module=probe&a=1", 200, b"/metrics?own=1&set=2&a=1"),
        ("?module=", 404, None),
        ("?module=&a=1", 404, None),
        ("?module=x", 404, None),
    ],
)
def test_the_default_is_for_requests_without_a_module(query: str, status: int, target: bytes | None) -> None:
    with (
        FakeExporter() as exporter,
        Daemon({"module_route": ROUTE, "exporters": exporters(exporter)}) as daemon,
    ):
        assert daemon.get(f"/proxy{query}").status == status
        assert [one.target for one in exporter.requests] == ([target] if target else [])


def test_the_default_may_be_one_that_a_client_may_not_scrape() -> None:
    with FakeExporter() as exporter:
        route = {"path": "/proxy", "default_module": "narrow"}
        with Daemon({"module_route": route, "exporters": exporters(exporter)}) as daemon:
            daemon.get("/proxy").expect_refusal(403, "forbidden")
            daemon.get("/proxy", source="127.0.0.2").expect_ok(PAGE)
            daemon.get("/proxy?module=x").expect_refusal(404, "not_found")


# What comes before the route


def test_credentials_come_first(tmp_path: Path) -> None:
    web_file = tmp_path / "web.yml"
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    right = ("Authorization", "Basic " + b64encode(b"ann:right").decode())
    web_file.write_text(f"basic_auth_users: {{ann: {hashed}}}\n")
    with FakeExporter() as exporter:
        config = {"module_route": ROUTE, "web_config_file": str(web_file), "exporters": exporters(exporter)}
        with Daemon(config) as daemon:
            for query in ("", "?module=node", "?module=x"):
                daemon.get(f"/proxy{query}").expect_refusal(401, "unauthorized")
            daemon.get("/proxy?module=node", right).expect_ok(PAGE)
            assert "authorization" not in exporter.request.header_names


def test_the_rate_limit_comes_first(tmp_path: Path) -> None:
    web_file = tmp_path / "web.yml"
    web_file.write_text("rate_limit: {interval: 1h, burst: 2}\n")
    with FakeExporter() as exporter:
        config = {
            "module_route": "/proxy",
            "web_config_file": str(web_file),
            "exporters": exporters(exporter),
        }
        with Daemon(config) as daemon:
            daemon.get("/proxy?module=node").expect_ok(PAGE)
            daemon.get("/proxy").expect_refusal(400, "bad_request")
            daemon.get("/proxy?module=node").expect_refusal(429, "rate_limited")


# Where it is


def test_the_route_prefix_is_before_it() -> None:
    with FakeExporter() as exporter:
        config = {"module_route": "/proxy", "route_prefix": "/vm1", "exporters": exporters(exporter)}
        with Daemon(config) as daemon:
            daemon.get("/vm1/proxy?module=node").expect_ok(PAGE)
            line = daemon.get("/proxy?module=node").expect_refusal(404, "not_found").body.decode()
            assert line.endswith("; and /vm1/proxy?module=NAME\n")


def test_without_the_key_there_is_no_such_path() -> None:
    with FakeExporter() as exporter, Daemon({"exporters": exporters(exporter)}) as daemon:
        for path in ("/proxy?module=node", "/proxy", "/?module=node"):
            reply = daemon.get(path)
            assert (reply.status == 200) == (path == "/?module=node")
            assert b"module=NAME" not in reply.body
        assert exporter.requests == []


def test_a_reload_brings_moves_and_removes_it() -> None:
    with FakeExporter() as exporter:
        config = {"listen": "127.0.0.1:0", "exporters": exporters(exporter)}
        with Daemon(config) as daemon:

            def served(path: str) -> int:
                return daemon.get(f"{path}?module=node").status

            assert served("/proxy") == 404
            for route, path in (("/proxy", "/proxy"), (ROUTE, "/proxy"), ("/other", "/other")):
                daemon.write_config({**config, "module_route": route})
                assert "config reloaded" in daemon.reload()
                assert served(path) == 200
                assert daemon.get(path).status == (200 if route is ROUTE else 400)
            assert served("/proxy") == 404
            daemon.write_config({**config, "module_route": "/node/metrics"})
            assert "already the path of exporters.node" in daemon.reload()
            assert served("/other") == 200
            daemon.write_config(config)
            daemon.reload()
            assert served("/other") == 404


def test_pages_and_lists_are_the_same_with_it() -> None:
    """Exporters stay at one place for Prometheus and for people: their own paths."""
    seen = []
    with FakeExporter() as exporter:
        for keys, path in (({}, "/node/metrics"), ({"module_route": "/proxy"}, "/proxy?module=node")):
            with Daemon({**keys, "exporters": exporters(exporter)}) as daemon:
                daemon.get(path).expect_ok(PAGE)
                daemon.wait_for_metric(1, SCRAPES, exporter="node", code="200")
                page = json.loads(daemon.get("/", ("Accept", "application/json")).expect_ok().body)
                listed = json.loads(daemon.get("/-/exporters").expect_ok().body)["exporters"]
                targets = daemon.exchange(request("/-/sd", CONNECTION_CLOSE, host="vm1:9099"))
            keys_of_page = ("name", "path", "link", "state")
            seen.append(
                (
                    page["summary"],
                    [[one[key] for key in keys_of_page] for one in page["exporters"]],
                    [(one["name"], one["path"], one["state"], len(one["recent"])) for one in listed],
                    targets.expect_ok().body,
                )
            )
    assert seen[0] == seen[1]


# Through PushProx


def test_it_is_the_same_through_pushprox() -> None:
    with FakeExporter() as exporter, StandIn() as proxy:
        config = {
            "module_route": ROUTE,
            "pushprox": {"proxy_url": proxy.url, "fqdn": FQDN, "map_ports": True},
            "exporters": {**exporters(exporter), "secure": {"url": exporter.url("/other")}},
        }
        with Daemon(config) as daemon:

            def ask(target: str, **options: Any) -> Reply:
                return proxy.get(f"http://{FQDN}:{daemon.port}{target}", **options)

            ask("/proxy?module=node&a=1&module=x").expect_ok(PAGE)
            ask("/proxy?_scheme=https&module=probe").expect_ok(PAGE)
            ask("/proxy").expect_ok(PAGE)
            head_of = ask("/proxy?module=node", method="HEAD")
            assert (head_of.status, head_of.body) == (200, b"")
            seen = [one.target for one in exporter.requests]
            assert seen == [b"/metrics?a=1&module=x", b"/metrics?own=1&set=2", b"/metrics", b"/metrics"]
            ask("/proxy?module=narrow").expect_refusal(403, "forbidden")
            line = ask("/proxy?module=x").expect_refusal(404, "not_found").body.decode()
            assert " narrow" not in line
            # At an exporter's own port the query is the exporter's alone.
            mapped = f"http://{FQDN}:{exporter.port}/other?module=node&a=1"
            proxy.get(mapped).expect_ok(PAGE)
            assert exporter.requests[-1].target == b"/other?module=node&a=1"
