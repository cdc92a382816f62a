"""Scraped through PushProx: the same answers as on the port, for configured paths and nothing else.

The proxy's side is the stand-in, a process of its own.
"""

from __future__ import annotations

import gzip
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from exporter_proxy.pushprox.scrape import MAX_BODY_BYTES, MAX_HELD_BYTES
from tests.daemon import REPOSITORY, Daemon, proxied, wait_until
from tests.fakes.exporter import (
    EXPOSITION,
    PAGE,
    FakeExporter,
    Script,
    close,
    head,
    respond,
    send,
    stall,
    wait_for,
)
from tests.fakes.ports import refusing_port
from tests.standin import FQDN, StandIn
from tests.wire import Reply


class Site:
    """A daemon that polls a stand-in, with an exporter ``x``, asked by way of the proxy."""

    def __init__(self, proxy: StandIn, daemon: Daemon, exporter: FakeExporter) -> None:
        self.proxy, self.daemon, self.exporter = proxy, daemon, exporter

    def get(self, target: str = "/x/metrics", *headers: tuple[str, str], **options: Any) -> Reply:
        return self.proxy.get(f"http://{FQDN}:{self.daemon.port}{target}", *headers, **options)

    def play(self, *scripts: Script) -> None:
        self.exporter.drop_connections()
        self.exporter.play(*scripts)


@pytest.fixture(scope="module")
def standing() -> Iterator[Site]:
    """For all tests that leave it as it was."""
    with StandIn() as proxy:
        pushprox = {"proxy_url": proxy.url, "fqdn": FQDN}
        patient = {"timeout_offset": "2s"}  # so long an answer may take from the daemon to the scraper
        log = {"format": "logfmt"}
        with proxied(pushprox=pushprox, defaults=patient, access_log=log) as (daemon, exporter):
            yield Site(proxy, daemon, exporter)


@pytest.fixture
def site(standing: Site) -> Iterator[Site]:
    standing.play(respond())
    yield standing
    standing.exporter.drop_connections()


# What passes


def test_a_scrape_is_that_of_the_port(site: Site) -> None:
    body = gzip.compress(PAGE * 3000)
    site.play(
        respond(headers=[EXPOSITION, ("Content-Encoding", "gzip"), ("X-A", "1"), ("X-A", "2")], body=body)
    )
    through = site.get("/x/metrics?a=1&a=%zz;b").expect_ok(body)
    direct = site.daemon.get("/x/metrics?a=1&a=%zz;b").expect_ok(body)
    assert sorted(through.headers) == sorted(pair for pair in direct.headers if pair[0] != "connection")
    first, second = site.exporter.requests
    assert first.target == second.target == b"/metrics?a=1&a=%zz;b"


def test_the_exporter_sees_what_it_sees_on_the_port(site: Site) -> None:
    site.get(
        "/x/metrics",
        ("User-Agent", "Prometheus/2.42.0"),
        ("Accept", "text/plain"),
        ("Accept-Encoding", "gzip"),
        ("Authorization", "Bearer of-the-scraper"),
        ("Cookie", "a=b"),
        ("Id", "forged"),
        ("Connection", "X-Named"),
        ("Proxy-Authorization", "x"),
        timeout=5,
    ).expect_ok(PAGE)
    (request,) = site.exporter.requests
    assert sorted(request.header_names) == [
        *("accept", "accept-encoding", "host", "user-agent", "x-prometheus-scrape-timeout-seconds"),
    ]
    assert 2.0 < float(request.header("x-prometheus-scrape-timeout-seconds") or 0) <= 3.0


def test_an_exporters_headers_for_its_connection_or_for_the_proxy_stay_behind(site: Site) -> None:
    extra = [
        ("Id", "x"),
        ("X-Prometheus-Scrape-Timeout-Seconds", "1"),
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
    ]
    site.play(respond(headers=[EXPOSITION, *extra, ("Set-Cookie", "a=b")]))
    reply = site.get().expect_ok(PAGE)
    assert sorted(name for name, _ in reply.headers) == ["content-length", "content-type"]


@pytest.mark.parametrize(
    ("script", "body"),
    [
        (
            [send(head(headers=[EXPOSITION, ("Transfer-Encoding", "chunked")]) + b"4\r\na 1\n\r\n0\r\n\r\n")],
            b"a 1\n",
        ),
        ([send(head(headers=[EXPOSITION, ("Connection", "close")]) + b"a 1\n"), close()], b"a 1\n"),
        (respond(body=b"a 1\n" * 500_000), b"a 1\n" * 500_000),
    ],
    ids=["chunked", "to the end", "large"],
)
def test_bodies_have_a_length_of_their_own(site: Site, script: Script, body: bytes) -> None:
    site.play(script)
    reply = site.get().expect_ok(body)
    assert reply.header("content-length") == str(len(body))
    assert reply.header("transfer-encoding") is None


def test_own_metrics_are_there_and_clean(site: Site) -> None:
    before = site.daemon.metric("exporter_proxy_pushprox_pushes_total", result="ok")
    page = site.get("/metrics", ("Accept-Encoding", "gzip")).expect_ok()
    assert page.header("content-encoding") == "gzip"
    assert b"exporter_proxy_pushprox_connected 1.0\n" in gzip.decompress(page.body)
    site.daemon.wait_for_metric(before + 1, "exporter_proxy_pushprox_pushes_total", result="ok")
    assert site.daemon.metric("exporter_proxy_pushprox_polls_total", result="ok") == before + 1
    assert abs(site.daemon.metric("exporter_proxy_pushprox_last_poll_timestamp_seconds") - time.time()) < 60


def test_it_is_logged_and_counted_like_any_scrape(site: Site) -> None:
    before = site.daemon.metric("exporter_proxy_scrapes_total", exporter="x", code="200")
    site.get("/x/metrics?seen=here").expect_ok()
    line = site.daemon.wait_for_output("seen=here")
    assert "status=200" in line
    assert "remote=pushprox" in line
    assert "path=/x/metrics" in line
    assert site.daemon.metric("exporter_proxy_scrapes_total", exporter="x", code="200") == before + 1


def test_scrapes_run_side_by_side(site: Site) -> None:
    everyone_in = threading.Event()
    site.play([wait_for(everyone_in), *respond()])
    with ThreadPoolExecutor(8) as pool:
        pending = [pool.submit(site.get) for _ in range(8)]
        site.exporter.wait_for_requests(8)
        everyone_in.set()
        for one in pending:
            one.result().expect_ok(PAGE)


def test_head_is_answered_without_a_body(site: Site) -> None:
    reply = site.get(method="HEAD")
    assert (reply.status, reply.body, reply.header("content-length")) == (200, b"", "0")


# What does not


REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "unknown path": ("/nowhere", {}, 404, "not_found"),
    "landing page": ("/", {}, 404, "not_found"),
    "exporters": ("/-/exporters", {}, 404, "not_found"),
    "health": ("/-/healthy", {}, 404, "not_found"),
    "reload": ("/-/reload", {"method": "POST"}, 404, "not_found"),
    "trailing slash": ("/x/metrics/", {}, 404, "not_found"),
    "encoded": ("/x%2fmetrics", {}, 404, "not_found"),
    "dots": ("/x/../x/metrics", {}, 404, "not_found"),
    "method": ("/x/metrics", {"method": "POST"}, 405, "method"),
    "delete": ("/metrics", {"method": "DELETE"}, 405, "method"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_configured_is_refused_and_counted(site: Site, case: str) -> None:
    target, options, status, reason = REFUSED[case]
    before = site.daemon.metric("exporter_proxy_requests_denied_total", reason=reason)
    site.get(target, **options).expect_refusal(status, reason)
    site.daemon.wait_for_metric(before + 1, "exporter_proxy_requests_denied_total", reason=reason)
    assert site.exporter.requests == []


def test_other_ports_and_hosts_of_this_machine_are_refused(site: Site) -> None:
    """The hole that PushProx's README warns of: its client would connect to all of these."""
    before = site.daemon.metric("exporter_proxy_requests_denied_total", reason="not_found")
    for authority in (f"{FQDN}:22", FQDN, f"{FQDN}:{site.exporter.authority.rpartition(':')[2]}"):
        site.proxy.get(f"http://{authority}/metrics").expect_refusal(404, "not_found")
    site.daemon.wait_for_metric(before + 3, "exporter_proxy_requests_denied_total", reason="not_found")
    assert site.exporter.requests == []
    # To the proxy a name with other letters is another host; a Host header may still name one.
    reply = site.get("/x/metrics", ("Host", "127.0.0.1"))
    reply.expect_refusal(400, "bad_request")


def test_the_404_names_what_there_is(site: Site) -> None:
    assert site.get("/nowhere").body == b"exporter_proxy: no such path; there is: /x/metrics\n"


def test_a_request_larger_than_headers_may_be_is_a_431(site: Site) -> None:
    site.get("/x/metrics", ("X-Large", "x" * 40_000)).expect_refusal(431, "bad_request")


# Failures


FAILURES: dict[str, tuple[Script, int, str]] = {
    "hung": ([stall()], 504, "timeout"),
    "hung body": ([send(head(headers=[("Content-Length", "9")]) + b"a 1\n"), stall()], 504, "timeout"),
    "cut body": ([send(head(headers=[("Content-Length", "9")]) + b"a 1\n"), close()], 502, "truncated"),
    "garbage": ([send(b"?\r\n\r\n"), close()], 502, "protocol"),
    "redirect": (respond(302, headers=[("Location", "http://127.0.0.1:9090/")]), 502, "redirect"),
    "too large": (respond(body=b"a 1\n" * (MAX_BODY_BYTES // 4 + 1)), 502, "too_large"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_a_status_half_way_too(site: Site, case: str) -> None:
    script, status, reason = FAILURES[case]
    site.play(script)
    before = site.daemon.metric("exporter_proxy_scrape_errors_total", exporter="x", reason=reason)
    reply = site.get(timeout=4 if status == 504 else 10)
    reply.expect_refusal(status, reason, "x")
    if status == 504:
        assert reply.took_seconds < 4, "before the scraper gives up"
    site.daemon.wait_for_metric(before + 1, "exporter_proxy_scrape_errors_total", exporter="x", reason=reason)
    site.daemon.wait_for_output(f"reason={reason}")
    assert (
        f"status={status} " in [line for line in site.daemon.output_lines if f"reason={reason}" in line][-1]
    )
    site.play(respond())
    site.get().expect_ok(PAGE)


def test_an_exporters_own_error_passes(site: Site) -> None:
    site.play(respond(503, body=b"busy\n"))
    reply = site.get()
    assert (reply.status, reply.error, reply.body) == (503, "upstream_status", b"busy\n")


@pytest.mark.parametrize(
    "header", [(), (("X-Prometheus-Scrape-Timeout-Seconds", "soon"),)], ids=["none", "bad"]
)
def test_without_a_timeout_there_is_the_usual_one(site: Site, header: tuple[tuple[str, str], ...]) -> None:
    site.get("/x/metrics?late=no", *header, timeout=None).expect_ok(PAGE)
    assert site.exporter.request.header("x-prometheus-scrape-timeout-seconds") is None
    assert "timeout=10" in site.daemon.wait_for_output("late=no")


def test_what_is_held_of_all_answers_is_bounded_and_given_back(site: Site) -> None:
    body = b"a 1\n" * (MAX_BODY_BYTES // 4)
    at_once = MAX_HELD_BYTES // MAX_BODY_BYTES + 1
    everyone_in = threading.Event()
    almost = head(headers=[EXPOSITION, ("Content-Length", str(len(body)))]) + body[:-4]
    site.play([send(almost), wait_for(everyone_in), send(b"a 1\n")])
    with ThreadPoolExecutor(at_once) as pool:
        pending = [pool.submit(site.get, timeout=20, timeout_seconds=20) for _ in range(at_once)]
        failed = (
            "exporter_proxy_scrape_errors_total",
            frozenset({("exporter", "x"), ("reason", "too_large")}),
        )
        before = site.daemon.metrics()[failed]
        wait_until(lambda: site.daemon.metrics()[failed] > before, "one was too many", 15)
        everyone_in.set()
        replies = [one.result() for one in pending]
    assert sorted(reply.status for reply in replies) == [200] * (at_once - 1) + [502]
    for _ in range(at_once):
        site.get(timeout=20).expect_ok(body)


# Configurations


def test_ports_of_exporters_are_mapped(site: Site) -> None:
    port = site.exporter.authority.rpartition(":")[2]
    with StandIn() as proxy:
        pushprox = {"proxy_url": proxy.url, "fqdn": FQDN, "map_ports": True}
        with Daemon({"pushprox": pushprox, "exporters": {"x": {"url": site.exporter.url()}}}) as daemon:
            proxy.get(f"http://{FQDN}:{port}/metrics?_scheme=https&a=1").expect_ok(PAGE)
            assert site.exporter.request.target == b"/metrics?a=1"
            proxy.get(f"http://{FQDN}:{daemon.port}/x/metrics").expect_ok(PAGE)
            proxy.get(f"http://{FQDN}:{port}/debug/pprof").expect_refusal(404, "not_found")
            proxy.get(f"http://{FQDN}:{port}/x/metrics").expect_refusal(404, "not_found")


ALLOWED: dict[str, tuple[list[str] | None, tuple[int, int]]] = {
    "absent": (None, (200, 403)),
    "named": (["closed"], (403, 200)),
    "none": ([], (403, 403)),
    "both": (["open", "closed"], (200, 200)),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_exporters_with_an_address_list_have_to_be_named(site: Site, case: str) -> None:
    names, statuses = ALLOWED[case]
    with StandIn() as proxy:
        pushprox: dict[str, Any] = {"proxy_url": proxy.url, "fqdn": FQDN}
        if names is not None:
            pushprox["allow_exporters"] = names
        entries = {
            "open": {"url": site.exporter.url()},
            "closed": {"url": site.exporter.url(), "allow_clients": ["10.0.0.1"]},
        }
        # The global list is about addresses, too.
        config = {"pushprox": pushprox, "exporters": entries, "allow_clients": ["127.0.0.1"]}
        with Daemon(config) as daemon:
            base = f"http://{FQDN}:{daemon.port}"
            replies = [proxy.get(f"{base}/{name}/metrics") for name in entries]
            assert tuple(reply.status for reply in replies) == statuses
            for reply in replies:
                if reply.status == 403:
                    assert b"allow_exporters" in reply.expect_refusal(403, "forbidden").body
            shown = proxy.get(f"{base}/nowhere").expect_refusal(404, "not_found").body.decode()
            assert [f"/{name}/metrics" in shown for name in entries] == [status == 200 for status in statuses]
            proxy.get(f"{base}/metrics").expect_ok()


def test_no_credentials_of_the_daemon_are_asked_for_but_the_rate_counts(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("t0ken\n")
    (tmp_path / "web.yml").write_text("rate_limit: {interval: 1h, burst: 2}\n")
    with StandIn() as proxy:
        own: dict[str, Any] = {
            "bearer_tokens_file": str(tmp_path / "tokens"),
            "web_config_file": str(tmp_path / "web.yml"),
            "pushprox": {"proxy_url": proxy.url, "fqdn": FQDN},
        }
        with proxied(**own) as (daemon, exporter):
            exporter.play(respond())
            url = f"http://{FQDN}:{daemon.port}/x/metrics"
            daemon.get("/x/metrics").expect_refusal(401, "unauthorized")
            proxy.get(url).expect_ok(PAGE)
            proxy.get(url).expect_refusal(429, "rate_limited")


def test_without_a_tcp_port_it_is_asked_for_at_the_usual_one(tmp_path: Path) -> None:
    with StandIn() as proxy:
        pushprox = {"proxy_url": proxy.url, "fqdn": FQDN}
        with proxied(listen=f"unix:{tmp_path}/sock", pushprox=pushprox) as (_, exporter):
            exporter.play(respond())
            proxy.get(f"http://{FQDN}:9099/x/metrics").expect_ok(PAGE)


def test_the_route_prefix_goes_before_every_path() -> None:
    with StandIn() as proxy:
        pushprox = {"proxy_url": proxy.url, "fqdn": FQDN}
        with proxied(route_prefix="/vm", pushprox=pushprox) as (daemon, exporter):
            exporter.play(respond())
            base = f"http://{FQDN}:{daemon.port}"
            proxy.get(f"{base}/vm/x/metrics").expect_ok(PAGE)
            proxy.get(f"{base}/vm/metrics").expect_ok()
            proxy.get(f"{base}/metrics").expect_refusal(404, "not_found")


def test_several_proxies_are_polled_each() -> None:
    with ExitStack() as stack:
        proxies = [stack.enter_context(StandIn("--prefix", f"/p{number}")) for number in range(2)]
        away = stack.enter_context(refusing_port())
        urls = [f"{proxy.url}p{number}/" for number, proxy in enumerate(proxies)]
        pushprox = {"proxy_url": [*urls, f"http://127.0.0.1:{away}/"], "fqdn": FQDN}
        daemon, exporter = stack.enter_context(proxied(pushprox=pushprox))
        exporter.play(respond())
        for proxy in proxies:
            proxy.get(f"http://{FQDN}:{daemon.port}/x/metrics").expect_ok(PAGE)
        daemon.wait_for_metric(2, "exporter_proxy_pushprox_connected")
        daemon.wait_for_log("pushprox failing")
        page = daemon.get("/").body.decode()
        for url in urls:
            assert f"pushprox {url.rstrip('/')} as {FQDN}: connected\n" in page
        assert "; polling a PushProx proxy fails\n" in page
        assert f"pushprox http://127.0.0.1:{away}/ as {FQDN}: failing: connection refused" in page


def test_the_name_is_the_hosts_where_none_is_given() -> None:
    with StandIn() as proxy, proxied(pushprox={"proxy_url": proxy.url}) as (daemon, exporter):
        exporter.play(respond())
        found = re.search(r"fqdn=(\S+)", daemon.wait_for_log("pushprox polling", 20))
        assert found is not None
        assert found[1] in (socket.getfqdn(), socket.gethostname())
        proxy.get(f"http://{found[1]}:{daemon.port}/x/metrics").expect_ok(PAGE)


def test_a_host_whose_name_no_resolver_takes_polls_by_it_all_the_same() -> None:
    """The longest that Linux lets a host have, one character more than a label of DNS."""
    name = "h" * 64
    renamed = ["unshare", "--map-root-user", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]
    if subprocess.run([*renamed, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not give a host another name")
    with StandIn() as proxy, FakeExporter(respond()) as exporter:
        config = {"exporters": {"x": {"url": exporter.url()}}, "pushprox": {"proxy_url": proxy.url}}
        with Daemon(config, launcher=renamed) as daemon:
            daemon.wait_for_log(f'"pushprox polling" proxy={proxy.url} fqdn={name}')
            proxy.get(f"http://{name}:{daemon.port}/x/metrics").expect_ok(PAGE)
            command = [sys.executable, "-m", "exporter_proxy", "prometheus-config", "--format=file-sd"]
            told = subprocess.run(
                [*renamed, *command, f"--config.file={daemon.directory / 'config.yml'}"],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            )
            assert f"{name}:" in told.stdout


def test_at_the_limit_of_scrapes_at_once_the_next_is_refused() -> None:
    with StandIn() as proxy:
        pushprox = {"proxy_url": proxy.url, "fqdn": FQDN}
        with proxied(max_connections=2, pushprox=pushprox) as (daemon, exporter):
            go_on = threading.Event()
            exporter.play([wait_for(go_on), *respond()])
            url = f"http://{FQDN}:{daemon.port}/x/metrics"
            with ThreadPoolExecutor(2) as pool:
                pending = [pool.submit(proxy.get, url, timeout=10) for _ in range(2)]
                exporter.wait_for_requests(2)
                proxy.get(url).expect_refusal(503, "connection_limit")
                go_on.set()
                for one in pending:
                    one.result().expect_ok(PAGE)


def test_a_daemon_that_polls_nobody_has_nothing_of_it() -> None:
    with proxied() as (daemon, _):
        assert not [name for name, _ in daemon.metrics() if "pushprox" in name]
        assert "pushprox" not in daemon.get("/").body.decode()
    code = "import sys, exporter_proxy.daemon; sys.exit('exporter_proxy.pushprox' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
