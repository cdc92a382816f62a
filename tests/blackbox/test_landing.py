"""``/`` as JSON, as a table and as the bytes of a page: what it says, to whom, and what it never does.

How the page looks and behaves in a browser is in tests/e2e/test_landing_page.py.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import EXPOSITION, PAGE, FakeExporter, head, pause, respond, send
from tests.fakes.ports import refusing_port
from tests.second_address import with_second_address
from tests.wire import Reply, request

AS_JSON = ("Accept", "application/json")
AS_HTML = ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
FORMS = {"json": (AS_JSON,), "html": (AS_HTML,), "text": ()}
HOSTILE = b"<img src=x onerror=alert(1)>\x1b]0;owned\x07\x1b[2J\xe2\x80\xae\xc2\x9b31m\x00 many\n"


def told(daemon: Daemon) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(daemon.get("/", AS_JSON).expect_ok().body)
    return values


def text(daemon: Daemon, **options: Any) -> str:
    return daemon.get("/", **options).expect_ok().body.decode()


def wait_for_scrapes(daemon: Daemon, count: int) -> dict[str, Any]:
    """A scrape is accounted for just after its last byte."""

    def scrapes() -> int:
        return sum(one["last_hour"]["scrapes"] for one in told(daemon)["exporters"])

    wait_until(lambda: scrapes() == count, f"{count} scrapes were counted")
    return told(daemon)


@pytest.fixture(scope="module")
def mixed() -> Iterator[Daemon]:
    """Exporters that are up, down, slow, hostile and never scraped, each of the others scraped once."""
    with ExitStack() as stack:
        up = stack.enter_context(FakeExporter(respond(body=PAGE * 100)))
        slow = stack.enter_context(FakeExporter([pause(2.6), *respond()]))
        hostile = stack.enter_context(FakeExporter(respond(body=HOSTILE)))
        port = stack.enter_context(refusing_port())
        exporters = {
            "up": {"url": up.url()},
            "down": {"url": f"http://127.0.0.1:{port}/metrics"},
            "slow": {"url": slow.url(), "timeout": "5s"},
            "hostile": {"url": hostile.url(), "verify": True},
            "never": {"url": up.url(), "path": "/elsewhere"},
        }
        daemon = stack.enter_context(Daemon({"exporters": exporters}))
        for name in ("up", "down", "slow", "hostile"):
            daemon.get(f"/{name}/metrics")
        wait_for_scrapes(daemon, 4)
        yield daemon


# -- What is said


def test_the_first_line_says_what_is_wrong(mixed: Daemon) -> None:
    first, second, *_ = text(mixed).splitlines()
    assert first == (
        "2 of 5 exporters fail: down (connect), hostile (malformed); slow: slow; 1 never scraped so far"
    )
    assert second == ""
    assert told(mixed)["summary"] == first


def test_the_table_is_aligned(mixed: Daemon) -> None:
    lines = text(mixed).splitlines()[2:8]
    titles = ("EXPORTER", "STATE", "LAST SCRAPE", "DURATION", "SIZE", "LAST HOUR", "PATH")
    assert re.split(r"  +", lines[0]) == list(titles)
    for title in ("STATE", "PATH"):  # aligned to the left
        at = lines[0].index(title)
        assert all(line[at - 1] == " " != line[at] for line in lines), title
    for title in titles[2:-1]:
        end = lines[0].index(title) + len(title)
        assert all(line[end - 1] != " " == line[end] for line in lines[:-1]), title
    up, down, slow, _, never = lines[1:]
    assert re.fullmatch(r"up +up +\d+ s ago +[\d.]+ ms +7\.7 KiB +100 % of 1  /up/metrics", up)
    assert re.fullmatch(r"down +down +\d+ s ago +[\d.]+ ms +0 B +0 % of 1  /down/metrics", down)
    assert re.fullmatch(r"slow +slow +\d+ s ago +[2-4]\.\d s +79 B +100 % of 1  /slow/metrics", slow)
    assert re.fullmatch(r"never +never scraped +/elsewhere", never)


def test_a_failure_is_explained(mixed: Daemon) -> None:
    lines = text(mixed).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("down: "))
    assert re.match(r"down: connect: connection refused by 127\.0\.0\.1:\d+ after", lines[at])
    advice = "start the exporter, or correct its url, file, tls or allow_upstreams"
    assert lines[at + 1] == f"  {advice}; never succeeded"
    failure = told(mixed)["exporters"][1]["failure"]
    assert (failure["reason"], failure["advice"]) == ("connect", advice)
    assert lines[at] == f"down: connect: {failure['message']}"


def test_the_json_has_all_of_it(mixed: Daemon) -> None:
    values = told(mixed)
    up, _, slow, _, never = values["exporters"]
    assert (up["state"], up["is_slow"], up["failure"]) == ("up", False, None)
    assert up["last_hour"] == {"scrapes": 1, "succeeded": 1}
    assert up["last_scrape"]["bytes"] == len(PAGE) * 100
    assert up["last_scrape"]["at"] == up["last_success"] <= values["now"]
    (recent,) = up["recent"]
    assert (recent["status"], recent["reason"]) == (200, None)
    assert recent["seconds"] == round(up["last_scrape"]["seconds"], 4)
    assert (slow["state"], slow["is_slow"], slow["last_scrape"]["timeout_seconds"]) == ("up", True, 5)
    assert (never["state"], never["last_scrape"], never["recent"]) == ("never scraped", None, [])
    daemon = values["daemon"]
    config = (mixed.directory / "config.yml").read_bytes()
    assert daemon["config"]["source"] == "config.yml"
    assert daemon["config"]["hash"] == hashlib.sha256(config).hexdigest()
    assert daemon["last_reload"] == {"is_successful": True, "problem_count": 0, "problems": []}
    assert 1 <= daemon["connections"] <= daemon["max_connections"] == 512
    assert daemon["certificates"] == []


def test_a_healthy_host_is_one_line() -> None:
    with proxied() as (daemon, _):
        assert text(daemon).startswith("1 exporter, never scraped so far\n")
        daemon.get("/x/metrics").expect_ok()
        wait_for_scrapes(daemon, 1)
        assert text(daemon).startswith("the exporter answers\n")


def test_recovery_and_what_is_not_the_exporters_doing() -> None:
    """A status that Prometheus does not take; a good one again; then a scrape whose scraper leaves."""
    with proxied(respond(204), respond(), [send(head(200, [EXPOSITION])), pause(5)]) as (daemon, exporter):
        daemon.get("/x/metrics")
        (one,) = wait_for_scrapes(daemon, 1)["exporters"]
        assert (one["state"], one["last_success"]) == ("down", None)
        assert one["failure"]["reason"] == "upstream_status"
        assert " answered 204, which is no success to Prometheus" in one["failure"]["message"]
        assert text(daemon).startswith("the exporter fails: x (upstream_status)\n")
        daemon.get("/x/metrics").expect_ok()
        (one,) = wait_for_scrapes(daemon, 2)["exporters"]
        assert (one["state"], one["failure"]) == ("up", None)
        with daemon.connect() as wire:
            wire.send(request("/x/metrics"))
            exporter.wait_for_requests(3)
        (one,) = wait_for_scrapes(daemon, 3)["exporters"]
        assert (one["state"], one["failure"]["reason"]) == ("up", "client_gone")
        assert one["last_hour"] == {"scrapes": 3, "succeeded": 1}
        assert text(daemon).startswith("the exporter answers\n")


def test_an_answer_that_was_shared_has_its_size() -> None:
    with proxied(route={"share_for": "1m"}) as (daemon, exporter):
        for _ in range(2):
            daemon.get("/x/metrics").expect_ok(PAGE)
        (one,) = wait_for_scrapes(daemon, 2)["exporters"]
        assert len(exporter.requests) == 1
        assert one["last_scrape"]["bytes"] == len(PAGE)


def test_a_failed_reload_is_told_until_one_succeeds() -> None:
    with proxied() as (daemon, _):
        good = (daemon.directory / "config.yml").read_text()
        (daemon.directory / "config.yml").write_text("exporters: {y: {}}\n")
        daemon.reload()
        shown = text(daemon)
        assert shown.startswith("1 exporter, never scraped so far; the last reload failed\n")
        assert (
            "\nlast reload: failed, 1 problem; what was loaded before stays in use\n  config.yml:1:" in shown
        )
        (daemon.directory / "config.yml").write_text(good)
        daemon.reload()
        assert "reload" not in text(daemon)


@pytest.mark.parametrize(
    ("days", "wrong"), [(2.5, "; a certificate (server) expires within 3 d"), (30.5, "")]
)
def test_a_certificate_is_shown_and_its_end_announced(tmp_path: Path, days: float, wrong: str) -> None:
    authority = trustme.CA()
    not_after = datetime.now(UTC) + timedelta(days=days)
    issued = authority.issue_cert("127.0.0.1", not_after=not_after)
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    both = str(tmp_path / "both.pem")

    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with proxied(tls={"certfile": both, "keyfile": both}) as (daemon, _):
        shown = text(daemon, tls=trusting)
    assert shown.splitlines()[0] == f"1 exporter, never scraped so far{wrong}"
    assert f"certificate (server): until {not_after:%Y-%m-%dT%H:%M:%S}.000Z, {int(days)} d left" in shown


# -- To whom


@pytest.mark.parametrize("form", FORMS)
def test_exporters_that_the_client_may_not_scrape_are_not_there(form: str) -> None:
    entry = {"url": "http://127.0.0.1:1/metrics"}
    hidden = {**entry, "allow_clients": ["127.0.0.2"]}
    with Daemon({"exporters": {"open": entry, "hidden": hidden}}) as daemon:
        daemon.get("/hidden/metrics", source="127.0.0.2")
        for source, sees in (("127.0.0.1", False), ("127.0.0.2", True)):
            body = daemon.get("/", *FORMS[form], source=source).expect_ok().body
            assert b"/open/metrics" in body
            assert (b"/hidden/metrics" in body) == sees
    with Daemon({"exporters": {"hidden": hidden}}) as daemon:
        assert text(daemon).startswith("no exporter that you may scrape\n")


def test_what_a_file_says_is_shown_to_loopback_clients_only() -> None:
    def test(address: str) -> None:
        with proxied(listen=["127.0.0.1:0", f"{address}:0"]) as (daemon, _):
            (daemon.directory / "config.yml").write_text("exporters: {hidden: {}}\n")
            daemon.reload()
            for at in daemon.addresses:
                for accept in FORMS.values():
                    with daemon.connect(at, source=at[0]) as wire:
                        body = wire.exchange(request("/", *accept)).expect_ok().body
                    assert b"the last reload failed" in body
                    assert (b"exporters.hidden" in body) == at[0].startswith("127.")

    with_second_address(test)


# -- What it never does


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_an_exporter_acts_on_a_terminal_or_a_page(mixed: Daemon, form: str) -> None:
    body = mixed.get("/", *FORMS[form]).expect_ok().body
    assert b"onerror=alert(1)" in body, "the excerpt was to be seen"
    assert not re.search(rb"[^\n\x20-\x7e]", body), "only printable ASCII, whatever came from where"
    if form == "html":
        assert b"<img" not in body
        assert b"&lt;img src=x onerror=alert(1)&gt;" in body
    else:
        shown = json.loads(body)["exporters"][3]["failure"]["excerpt"] if form == "json" else body.decode()
        assert r"<img src=x onerror=alert(1)>\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\x00 many" in shown


def test_a_long_line_is_cut() -> None:
    redirect = respond(302, [("Location", "/" + "\x1b[31m" * 2000)])
    long = respond(body=b"x" * 100_000 + b" many\n")
    with proxied(long, redirect, route={"verify": True}) as (daemon, _):
        for scrapes in (1, 2):
            daemon.get("/x/metrics")
            wait_for_scrapes(daemon, scrapes)
            assert max(map(len, text(daemon).splitlines())) < 600


@pytest.mark.parametrize("form", FORMS)
def test_headers_of_each_form(mixed: Daemon, form: str) -> None:
    reply = mixed.get("/", *FORMS[form]).expect_ok()
    kind = {"json": "application/json", "html": "text/html; charset=utf-8"}
    assert reply.header("content-type") == kind.get(form, "text/plain; charset=utf-8")
    assert reply.header("vary") == "Accept"
    assert reply.header("cache-control") == "no-store"
    assert reply.header("x-content-type-options") == "nosniff"
    head_only = mixed.get("/", *FORMS[form], method="HEAD").expect_ok(b"")
    assert head_only.header("content-type") == reply.header("content-type")


def test_the_policy_lets_run_what_the_page_brings_and_nothing_else(mixed: Daemon) -> None:
    reply = mixed.get("/", AS_HTML).expect_ok()
    policy = dict(part.split(" ", 1) for part in (reply.header("content-security-policy") or "").split("; "))
    page = reply.body.decode()
    for directive, element in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(directive) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert reply.header("referrer-policy") == "no-referrer"


def test_the_page_has_the_table_for_those_without_scripts(mixed: Daemon) -> None:
    page = mixed.get("/", AS_HTML).expect_ok().body.decode()
    (table,) = re.findall(r"<noscript><pre>(.*?)</pre></noscript>", page, re.DOTALL)
    first = text(mixed).splitlines()[0]
    assert html.unescape(table).startswith(first)


# -- Where it is


def links_of(reply: Reply) -> list[str]:
    values = json.loads(reply.expect_ok().body)
    return [values["exporters"][0]["link"], *values["daemon"]["links"].values()]


@pytest.mark.parametrize(
    ("flags", "page", "links"),
    [
        ([], "/", ["./x/metrics", "./metrics", "./-/exporters", "./-/sd"]),
        (["--web.route-prefix=/p"], "/p/", ["./x/metrics", "./metrics", "./-/exporters", "./-/sd"]),
        (
            ["--web.external-url=https://example.org/vm1/"],
            "/vm1/",
            ["/vm1/x/metrics", "/vm1/metrics", "/vm1/-/exporters", "/vm1/-/sd"],
        ),
        (
            ["--web.external-url=https://example.org/vm1", "--web.route-prefix=/"],
            "/",
            ["/vm1/x/metrics", "/vm1/metrics", "/vm1/-/exporters", "/vm1/-/sd"],
        ),
        (
            ["--web.external-url=https://example.org:8443", "--web.route-prefix=/p"],
            "/p/",
            ["/x/metrics", "/metrics", "/-/exporters", "/-/sd"],
        ),
    ],
)
def test_links_are_below_the_external_url_or_relative(flags: list[str], page: str, links: list[str]) -> None:
    with FakeExporter() as exporter, Daemon({"exporters": {"x": {"url": exporter.url()}}}, *flags) as daemon:
        assert links_of(daemon.get(page, AS_JSON)) == links
        prefix = page.removesuffix("/")
        daemon.get(f"{prefix}/x/metrics").expect_ok(PAGE)
        table = daemon.get(page).expect_ok().body.decode()
        assert f"  {prefix}/x/metrics\n" in table
        assert table.splitlines()[-1] == (
            f"own metrics: {prefix}/metrics; recent scrapes: {prefix}/-/exporters; "
            f"targets for Prometheus: {prefix}/-/sd"
        )
