"""Who may ask: bearer tokens and passwords, as a scraper meets them. Rates are test_rate_limit.py's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml

from tests.daemon import REPOSITORY, Daemon, proxied, wait_until
from tests.fakes.exporter import PAGE, FakeExporter
from tests.fakes.hashing import hash_of
from tests.stalls import stalled_since
from tests.wire import Reply, request

BASIC = 'Basic realm="exporter_proxy"'
BEARER = 'Bearer realm="exporter_proxy"'
TOKEN = "t0ken-1"
RIGHT = ("Authorization", f"Bearer {TOKEN}")
WRONG = ("Authorization", "Bearer t0ken-3")
ALL_FIELDS = ["path", "query", "status", "reason", "remote", "user_agent", "exporter", "backend", "method"]


def basic(user: str, password: str) -> tuple[str, str]:
    return "Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def expect_unauthorized(reply: Reply, *challenges: str) -> Reply:
    reply.expect_refusal(401, "unauthorized")
    assert reply.get_all("www-authenticate") == list(challenges)
    return reply


def denied(daemon: Daemon, reason: str) -> float:
    return daemon.metric("exporter_proxy_requests_denied_total", reason=reason)


# -- bearer tokens

Site = tuple[Daemon, FakeExporter]


@pytest.fixture(scope="module")
def standing_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A daemon that wants one of two tokens."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# prometheus-1\n{TOKEN}\n# prometheus-2\nt0ken-2==\n")
    with proxied(bearer_tokens_file=str(path), access_log={"format": "json", "fields": ALL_FIELDS}) as (
        daemon,
        exporter,
    ):
        daemon.credentials = (RIGHT,)
        yield daemon, exporter


@pytest.fixture
def site(standing_site: Site) -> Site:
    standing_site[1].play()
    return standing_site


@pytest.mark.parametrize(
    "credentials", [f"Bearer {TOKEN}", "Bearer t0ken-2==", f"bearer {TOKEN}", f"BEARER   {TOKEN} "]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_token_of_the_file_lets_in_and_stays_here(site: Site, credentials: str, method: str) -> None:
    daemon, exporter = site
    headers = ("Authorization", credentials), ("Cookie", "session=t0ken")
    daemon.get("/x/metrics", *headers, method=method).expect_ok(PAGE if method == "GET" else b"")
    sent = exporter.requests[0].head.lower()
    assert b"authorization" not in sent
    assert b"cookie" not in sent
    assert b"t0ken" not in sent


BAD_HEADERS: list[list[tuple[str, str]]] = [
    [],
    [WRONG],
    [("Authorization", "Bearer")],
    [("Authorization", "Bearer ")],
    [("Authorization", f"Bearer {TOKEN[:-1]}")],
    [("Authorization", f"Bearer {TOKEN}1")],
    [("Authorization", f"Bearer {TOKEN.upper()}")],
    [("Authorization", TOKEN)],
    [("Authorization", f"Token {TOKEN}")],
    [basic("ann", TOKEN)],
    [basic(TOKEN, "")],
    [RIGHT, RIGHT],
    [RIGHT, WRONG],
    [("Proxy-Authorization", f"Bearer {TOKEN}")],
    [("Cookie", f"access_token={TOKEN}")],
    [("Authorization", "Bearer \xff\xfe")],
]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=str)
def test_anything_else_is_401_in_the_same_words(site: Site, headers: list[tuple[str, str]]) -> None:
    daemon, exporter = site
    missing = expect_unauthorized(daemon.get("/x/metrics"), BEARER)
    reply = expect_unauthorized(daemon.get("/x/metrics", *headers), BEARER)
    assert reply.body == missing.body
    assert b"bearer_tokens_file" in reply.body
    assert exporter.requests == []


@pytest.mark.parametrize(
    "query", [f"access_token={TOKEN}", f"token={TOKEN}", f"authorization=Bearer+{TOKEN}"]
)
def test_tokens_in_the_query_are_not_looked_at(site: Site, query: str) -> None:
    daemon, exporter = site
    expect_unauthorized(daemon.get(f"/x/metrics?{query}"), BEARER)
    assert exporter.requests == []


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/exporters", "/nowhere", "/x/metrics/", "/-/healthy/"])
def test_own_pages_and_paths_that_do_not_exist_need_it_too(site: Site, path: str) -> None:
    daemon, _ = site
    reply = expect_unauthorized(daemon.get(path), BEARER)
    assert b"/x/metrics" not in reply.body, "it tells a stranger which paths there are"
    assert daemon.get(path, RIGHT).status in (200, 404)


def test_reload_needs_it_too(site: Site) -> None:
    daemon, _ = site
    expect_unauthorized(daemon.get("/-/reload", method="POST"), BEARER)
    daemon.get("/-/reload", RIGHT, method="POST").expect_refusal(403, "forbidden")


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready"])
@pytest.mark.parametrize("headers", [[], [WRONG], [RIGHT]], ids=["none", "wrong", "right"])
def test_probes_need_none(site: Site, path: str, headers: list[tuple[str, str]]) -> None:
    site[0].get(path, *headers).expect_ok()


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD"])
def test_credentials_come_before_path_and_method(site: Site, method: str) -> None:
    daemon, _ = site
    reply = daemon.get("/x/metrics", method=method)
    assert (reply.status, reply.error) == (401, "unauthorized")
    assert bool(reply.body) is (method != "HEAD")
    if method != "HEAD":
        daemon.get("/x/metrics", RIGHT, method=method).expect_refusal(405, "method")


def test_the_address_comes_before_credentials(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with proxied(bearer_tokens_file=str(tmp_path / "tokens"), allow_clients=["127.0.0.2"]) as (daemon, _):
        for headers in ((), (WRONG,), (RIGHT,)):
            daemon.get("/x/metrics", *headers).expect_refusal(403, "forbidden")
            daemon.get("/-/healthy", *headers).expect_refusal(403, "forbidden")
        daemon.get("/x/metrics", RIGHT, source="127.0.0.2").expect_ok()
        expect_unauthorized(daemon.get("/x/metrics", source="127.0.0.2"), BEARER)
        daemon.get("/-/healthy", source="127.0.0.2").expect_ok()


def test_a_refused_request_keeps_its_connection(site: Site) -> None:
    daemon, _ = site
    with daemon.connect() as wire:
        for headers in ((), (WRONG,), (RIGHT,), ()):
            reply = wire.exchange(request("/x/metrics", *headers))
            assert reply.status == (200 if headers == (RIGHT,) else 401)
            assert reply.header("connection") is None


def test_a_refused_requests_body_is_not_read(site: Site) -> None:
    daemon, exporter = site
    head = request("/x/metrics", ("Content-Length", "1000000000"))
    reply = expect_unauthorized(daemon.exchange(head), BEARER)
    assert reply.header("connection") == "close"
    assert exporter.requests == []


def test_refusals_are_counted_and_logged_without_credentials(site: Site) -> None:
    daemon, _ = site
    before = denied(daemon, "unauthorized")
    marked = ("User-Agent", "marked")  # lines of the tests before may come as late as these
    expect_unauthorized(daemon.get("/x/metrics", marked, ("Authorization", "Bearer s3cr3t")), BEARER)
    expect_unauthorized(daemon.get("/-/exporters", marked, basic("s3cr3t", "s3cr3t")), BEARER)
    daemon.get("/x/metrics", marked, RIGHT).expect_ok()
    daemon.wait_for_metric(before + 2, "exporter_proxy_requests_denied_total", reason="unauthorized")

    def logged() -> list[str]:
        return [line for line in daemon.output_lines if "marked" in line]

    wait_until(lambda: len(logged()) == 3, "they were logged")
    entries = [json.loads(line) for line in logged()[:2]]
    assert [(one["status"], one["reason"], one["path"]) for one in entries] == [
        (401, "unauthorized", "/x/metrics"),
        (401, "unauthorized", "/-/exporters"),
    ]
    everything = "\n".join([*logged(), *daemon.log_lines])
    for page in ("/", "/metrics", "/-/exporters", "/nowhere"):
        everything += daemon.get(page, RIGHT).raw.decode()
    for secret in (TOKEN, "s3cr3t", b64encode(b"s3cr3t:s3cr3t").decode()):
        assert secret not in everything


def test_reload_takes_other_tokens_and_keeps_the_old_ones_where_the_file_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    with proxied(bearer_tokens_file=str(path)) as (daemon, _):
        path.write_text("other\n")
        assert "config reloaded" in daemon.reload()
        expect_unauthorized(daemon.get("/x/metrics", RIGHT), BEARER)
        other = ("Authorization", "Bearer other")
        daemon.get("/x/metrics", other).expect_ok()
        path.write_text("another\ns3cr3t s3cr3t\n")
        complaint = daemon.reload()
        assert "not reloaded" in complaint
        assert f"{path}:2:1: not a bearer token" in complaint
        assert "s3cr3t" not in complaint
        daemon.get("/x/metrics", other).expect_ok()
        path.unlink()
        assert "no such file" in daemon.reload()
        daemon.get("/x/metrics", other).expect_ok()


def test_check_names_key_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("good\nBearer s3cr3t\n")
    (tmp_path / "config.yml").write_text(
        "bearer_tokens_file: tokens\nexporters: {x: {url: 'http://127.0.0.1:9100/'}}\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "exporter_proxy", "check"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    output = result.stdout + result.stderr
    assert "config.yml:1:21: bearer_tokens_file: tokens:2:1: not a bearer token" in output
    assert "s3cr3t" not in output


# -- web_config_file: passwords


def write_web(directory: Path, **content: Any) -> str:
    (directory / "web.yml").write_text(yaml.safe_dump(content))
    return str(directory / "web.yml")


@pytest.fixture(scope="module")
def password_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A daemon that wants ann's password or a token."""
    directory = tmp_path_factory.mktemp("web")
    (directory / "tokens").write_text(TOKEN)
    web = write_web(directory, basic_auth_users={"ann": hash_of(b"of ann"), "slow": hash_of(b"of slow", 10)})
    with proxied(
        web_config_file=web,
        bearer_tokens_file=str(directory / "tokens"),
        access_log={"format": "json", "fields": ALL_FIELDS},
    ) as (daemon, exporter):
        daemon.credentials = (RIGHT,)
        yield daemon, exporter


@pytest.mark.parametrize("headers", [[basic("ann", "of ann")], [basic("slow", "of slow")], [RIGHT]], ids=str)
def test_a_password_or_a_token_lets_in_and_stays_here(
    password_site: Site, headers: list[tuple[str, str]]
) -> None:
    daemon, exporter = password_site
    exporter.play()
    for _ in range(2):
        daemon.get("/x/metrics", *headers).expect_ok(PAGE)
    assert all("authorization" not in one.header_names for one in exporter.requests)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [WRONG],
        [basic("ann", "of slow")],
        [basic("ann", "")],
        [basic("eve", "of ann")],
        [basic("", "")],
        [("Authorization", "Basic YW5u")],
        [("Authorization", "Basic !")],
        [("Authorization", "Digest username=ann")],
        [basic("ann", "of ann"), RIGHT],
    ],
    ids=str,
)
def test_both_are_asked_for_where_neither_is_right(
    password_site: Site, headers: list[tuple[str, str]]
) -> None:
    daemon, exporter = password_site
    exporter.play()
    missing = expect_unauthorized(daemon.get("/x/metrics"), BASIC, BEARER)
    reply = expect_unauthorized(daemon.get("/x/metrics", *headers), BASIC, BEARER)
    assert reply.body == missing.body
    assert exporter.requests == []


def test_a_flood_of_wrong_passwords_holds_up_neither_known_scrapers_nor_probes(password_site: Site) -> None:
    daemon, _ = password_site
    known = basic("slow", "of slow")
    daemon.get("/x/metrics", known).expect_ok()
    with ExitStack() as stack:
        flood = [stack.enter_context(daemon.connect(timeout_seconds=60)) for _ in range(130)]
        for number, wire in enumerate(flood):
            wire.send(request("/x/metrics", basic("slow", f"guess {number}")))
        for _ in range(5):
            started = time.monotonic()
            daemon.get("/x/metrics", known).expect_ok()
            daemon.get("/x/metrics", RIGHT).expect_ok()
            daemon.get("/-/ready").expect_ok()
            assert time.monotonic() - started < 2.0 + stalled_since(started)
        assert not flood[90].readable_within(0), "the flood was over too soon to show anything"
        replies = [wire.read_reply() for wire in flood]
    statuses = {reply.status for reply in replies}
    assert statuses == {401, 429}, "some were wrong, and some did not get their turn"
    for reply in replies:
        if reply.status == 429:
            reply.expect_refusal(429, "rate_limited")
            assert int(reply.header("retry-after") or 0) >= 1
    daemon.get("/x/metrics", basic("ann", "of ann")).expect_ok()


def test_many_identical_logins_at_once_all_get_in(tmp_path: Path) -> None:
    """As when two Prometheus servers start to scrape some thirty jobs: not each is hashed."""
    hashed = hash_of(b"of ann", 12)
    began = time.thread_time()
    bcrypt.checkpw(b"of ann", hashed.encode())
    one_seconds = time.thread_time() - began
    web = write_web(tmp_path, basic_auth_users={"ann": hashed})
    with proxied(web_config_file=web) as (daemon, _), ThreadPoolExecutor(30) as pool:
        before = daemon.cpu_seconds()
        replies = list(pool.map(lambda _: daemon.get("/x/metrics", basic("ann", "of ann")), range(30)))
        assert [reply.status for reply in replies] == [200] * 30
        assert daemon.cpu_seconds() - before < 8 * one_seconds


def test_reload_with_other_users_forgets_who_was_let_in(tmp_path: Path) -> None:
    web = write_web(tmp_path, basic_auth_users={"ann": hash_of(b"old")})
    with proxied(web_config_file=web) as (daemon, _):
        daemon.get("/x/metrics", basic("ann", "old")).expect_ok()
        write_web(tmp_path, basic_auth_users={"ann": hash_of(b"new")})
        assert "config reloaded" in daemon.reload()
        expect_unauthorized(daemon.get("/x/metrics", basic("ann", "old")), BASIC)
        daemon.get("/x/metrics", basic("ann", "new")).expect_ok()
        write_web(tmp_path)
        assert "config reloaded" in daemon.reload()
        daemon.get("/x/metrics").expect_ok()


def test_no_exporter_may_be_passed_the_password(tmp_path: Path) -> None:
    web = write_web(tmp_path, basic_auth_users={"ann": hash_of(b"of ann")})
    with proxied(web_config_file=web) as (daemon, exporter):
        entry = {"url": exporter.url(), "pass_headers": ["authorization"]}
        daemon.write_config({"web_config_file": web, "exporters": {"x": entry}})
        assert "exporters.x.pass_headers: Authorization" in daemon.reload()
