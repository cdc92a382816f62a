"""The daemon's own secrets never show, nor what scrapers send: not in a page, an answer, a log or a ``repr``.

As ``test_secrets.py`` has it for exporters: ``OWN_ROWS`` of ``tests/planted.py`` are put in place, scrapers
come with everything that ``SENT`` has, and then all that was written anywhere is searched.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from exporter_proxy.config import ConfigError, parse_config
from exporter_proxy.config.schema import ACCESS_LOG_FIELDS
from exporter_proxy.front.passwords import Passwords
from exporter_proxy.observe.daemonlog import DaemonLog
from exporter_proxy.observe.logwriter import LogWriter
from exporter_proxy.reload import build_running
from tests.blackbox.test_secrets import run_command
from tests.daemon import Daemon, wait_until
from tests.fakes.exporter import PAGE, FakeExporter
from tests.planted import AUTHORITY, CLIENT, OWN_CERT, OWN_ROWS, SENT, Keys, file, search, web
from tests.wire import request

BEARER = OWN_ROWS["bearer_tokens_file"].make("bearer_tokens_file")
HASH = OWN_ROWS["basic_auth_users"].make("basic_auth_users")
KEY = OWN_ROWS["key"].make("key")
NOTICED_SECONDS = 15.0
COMPLAINT = "changed files not used, what was read before stays in use"
PAGES = ("/", "/-/exporters", "/metrics", "/-/healthy", "/-/ready", "/nowhere")
TYPES = ("text/html", "application/json", "text/plain", "application/openmetrics-text")
Header = tuple[str, str]


def basic(user: str, password: str) -> Header:
    return "Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode()


RIGHT: list[Header] = [basic("ann", SENT["right password"]), ("Authorization", f"Bearer {BEARER}")]
WRONG: list[list[Header]] = [
    [basic("ann", SENT["wrong password"])],
    [basic("eve", SENT["password of a stranger"])],
    [basic(SENT["user name"], "")],
    [("Authorization", f"Basic ann:{SENT['password in base']}")],
    [("Authorization", f"Bearer {SENT['wrong token']}")],
    [("Authorization", f"Digest username=ann, response={SENT['scheme']}")],
    [("Authorization", SENT["bare"])],
    [("Cookie", f"session={SENT['cookie']}")],
    [("Proxy-Authorization", f"Bearer {SENT['proxy']}")],
    [("X-Api-Key", SENT["own header"])],
    [RIGHT[0], ("Authorization", f"Bearer {SENT['repeated']}")],
]
TARGET = f"http://ann:{SENT['in the target']}@127.0.0.1/x/metrics"
MALFORMED: list[bytes] = [
    request("/x/metrics", ("Authorization ", f"Bearer {SENT['malformed']}")),
    request("/x/metrics", ("Authorization", f"Bearer\r\n {SENT['folded']}")),
    request("/x/metrics", ("Authorization", f"Bearer {SENT['with nul']}\x00")),
    request("/x/metrics", ("Authorization", f"Bearer {SENT['long']}"), ("X-Long", "x" * 40_000)),
    request("/x/metrics", ("Authorization", f"Bearer {SENT['garbage']}"), ("Host", "again")),
    request("/x/metrics", ("Authorization", f"Bearer {SENT['garbage']}"), ("Transfer-Encoding", "gzip")),
    request("/x/metrics", ("Authorization", f"Bearer {SENT['garbage']}"), version="2.0"),
    request("/x/metrics", host=f"ann:{SENT['in the host']}@127.0.0.1"),
    *(request(TARGET, host=host) for host in ("127.0.0.1", f"ann:{SENT['in the target']}@127.0.0.1", None)),
    request(TARGET, host="127.0.0.1", version="1.0"),
    request(TARGET, host="127.0.0.1", method="OPTIONS"),
    request(f"ann:{SENT['in the target']}@127.0.0.1:443", method="CONNECT"),
    f"Authorization: Bearer {SENT['garbage']}\r\n\r\n".encode(),
    f"{SENT['garbage']}\r\n\r\n".encode(),
]


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    exporter: FakeExporter
    tls: ssl.SSLContext
    right: list[Header]
    directory: Path


SITES = {
    "web": lambda directory: web(
        directory,
        {"tls_server_config": {"cert": OWN_CERT + KEY, "key": KEY}, "basic_auth_users": {"ann": HASH}},
    ),
    "tls": lambda directory: OWN_ROWS["keyfile"].plant(directory, KEY),
}
"""What does not go together in one configuration."""


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """An exporter behind TLS, tokens and users; "asyncio" in its debug mode, which logs what runs."""
    kind, loop = request.param
    tls = ssl.create_default_context()
    AUTHORITY.configure_trust(tls)
    environment = {"EXPORTER_PROXY_LOOP": loop, "PYTHONFAULTHANDLER": "1"}
    if loop == "asyncio":
        environment["PYTHONASYNCIODEBUG"] = "1"
    with FakeExporter() as exporter:
        config: Keys = {
            **SITES[kind](tmp_path),
            **OWN_ROWS["bearer_tokens_file"].plant(tmp_path, BEARER),
            "read_header_timeout": "1s",
            "access_log": {"format": "json", "fields": list(ACCESS_LOG_FIELDS)},
            "exporters": {"x": {"url": exporter.url()}},
        }
        flags = ("--log.level=debug", "--web.enable-lifecycle")
        with Daemon(config, *flags, environment=environment) as daemon:
            yield Site(daemon, exporter, tls, RIGHT if kind == "web" else RIGHT[1:], tmp_path)


def everything_sent(site: Site) -> None:
    daemon, tls = site.daemon, site.tls
    for right in site.right:
        for _ in range(2):  # a password is hashed, then remembered
            daemon.get("/x/metrics", right, ("Cookie", SENT["cookie"]), tls=tls).expect_ok(PAGE)
        for path in PAGES:
            for accepted in TYPES:
                page = daemon.get(path, right, ("Accept", accepted), tls=tls).raw.decode("latin-1")
                search(page, f"{path} as {accepted}")
    for wrong in WRONG:
        for path in ("/x/metrics", "/", "/-/reload", "/nowhere"):
            for method in ("GET", "HEAD", "POST"):
                reply = daemon.get(path, *wrong, method=method, tls=tls)
                assert reply.status == 401, wrong
                search(reply.raw.decode("latin-1"), f"the answer to {wrong}")
    for data in MALFORMED:
        search(daemon.exchange(data, tls=tls).raw.decode("latin-1"), f"the answer to {data!r}")
    with daemon.connect(tls=tls) as wire:
        wire.send(f"GET /x/metrics HTTP/1.1\r\nAuthorization: Bearer {SENT['unfinished']}".encode())
        search(wire.read_until_closed().decode("latin-1"), "the answer to an unfinished request")
    with daemon.connect() as wire, contextlib.suppress(ConnectionResetError):
        wire.send(request("/x/metrics", ("Authorization", f"Bearer {SENT['plain']}")))
        search(wire.read_until_closed().decode("latin-1"), "the answer to plain HTTP")
    daemon.wait_for_log("TLS handshake failed")


def mistakes_reloaded(site: Site) -> None:
    """Every mistake of every row, by SIGHUP and over HTTP."""
    good = (site.directory / "good.yml").read_bytes()
    for name, row in OWN_ROWS.items():
        for mistake, plant in row.mistakes.items():
            keys = {
                "exporters": {"x": {"url": "http://127.0.0.1:1/"}},
                **plant(site.directory, row.make(name)),
            }
            site.daemon.write_config(yaml.safe_dump(keys, width=10_000))
            answer = site.daemon.get("/-/reload", site.right[0], method="POST", tls=site.tls)
            assert answer.status == 500, (name, mistake)
            search(answer.raw.decode("latin-1"), f"/-/reload with {mistake} of {name}")
    assert "not reloaded" in site.daemon.reload()
    (site.daemon.directory / "config.yml").write_bytes(good)
    site.daemon.get("/-/reload", site.right[0], method="POST", tls=site.tls).expect_ok()


def files_spoilt(site: Site) -> None:
    """What the configuration names goes bad while it is in use; each time there is a line."""
    config = yaml.safe_load((site.directory / "good.yml").read_text())
    spoilt = {config["bearer_tokens_file"]: f"Bearer {BEARER}\n"}
    if "tls" in config:
        spoilt[config["tls"]["keyfile"]] = KEY[:150]
        spoilt[config["tls"]["certfile"]] = CLIENT.cert_chain_pems[0].bytes().decode() + KEY
    else:
        spoilt[config["web_config_file"]] = f"ann:{HASH}\neve:{HASH}\n"

    def complaints() -> int:
        return len(site.daemon.logged(COMPLAINT))

    for path, content in spoilt.items():
        before = complaints()
        good = Path(path).read_text()
        Path(path).write_text(content)
        wait_until(lambda: complaints() > before, f"it complains of {path}", NOTICED_SECONDS)  # noqa: B023
        Path(path).write_text(good)


@pytest.mark.parametrize(
    "site", [("web", "uvloop"), ("web", "asyncio"), ("tls", "asyncio")], indirect=True, ids="-".join
)
def test_no_secret_of_its_own_shows_while_the_daemon_runs(site: Site) -> None:
    daemon = site.daemon
    (site.directory / "good.yml").write_bytes((daemon.directory / "config.yml").read_bytes())
    everything_sent(site)
    mistakes_reloaded(site)
    files_spoilt(site)
    daemon.get("/last", site.right[0], tls=site.tls)
    daemon.wait_for_output('"path": "/last"')
    search("\n".join(daemon.log_lines), "the log")
    search("\n".join(daemon.output_lines), "the access log")
    search("\n".join(str(one) for one in site.exporter.requests), "what the exporter saw")
    assert site.exporter.requests


MISTAKES = [(name, mistake) for name, row in OWN_ROWS.items() for mistake in row.mistakes]


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_each_mistake_is_told_without_the_secret(name: str, mistake: str, tmp_path: Path) -> None:
    keys = OWN_ROWS[name].mistakes[mistake](tmp_path, OWN_ROWS[name].make(name))
    data = yaml.safe_dump({**keys, "exporters": {"x": {"url": "http://127.0.0.1/"}}}, width=10_000).encode()
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "config.yml")
    search(f"{caught.value} {caught.value!r} {caught.value.args}", mistake)


@pytest.mark.parametrize("name", OWN_ROWS)
def test_check_shows_no_secret(name: str, tmp_path: Path) -> None:
    row = OWN_ROWS[name]
    exporters = {"exporters": {"x": {"url": "http://127.0.0.1/"}}}
    for plant, expected in ((row.plant, 0), (next(iter(row.mistakes.values())), 1)):
        config = {**exporters, **plant(tmp_path, row.make(name))}
        (tmp_path / "config.yml").write_text(yaml.safe_dump(config, width=10_000))
        status, output = run_command(tmp_path, "check")
        assert status == expected, output
        search(output, "check")


@pytest.mark.parametrize("kind", SITES)
def test_no_repr_shows_a_secret_of_its_own(kind: str, tmp_path: Path) -> None:
    keys = {**SITES[kind](tmp_path), **OWN_ROWS["bearer_tokens_file"].plant(tmp_path, BEARER)}
    keys |= OWN_ROWS["pushprox password"].plant(
        tmp_path, OWN_ROWS["pushprox password"].make("pushprox password")
    )
    data = yaml.safe_dump({**keys, "exporters": {"x": {"url": "http://127.0.0.1/"}}}, width=10_000).encode()
    log = LogWriter(file(tmp_path, ""))
    log.open()
    running = build_running(parse_config(data, "config.yml"), DaemonLog(log))
    log.close()
    guard = running.guard
    assert guard is not None
    shown: list[object] = [running, running.config, running.config.web, running.config.server_tls]
    assert running.pushprox is not None
    shown += [running.pushprox, running.pushprox.credentials]
    shown += [running.tls, guard, guard.passwords, *vars(guard).values()]
    if guard.passwords is not None:
        shown += asyncio.run(logins(guard.passwords))
    for value in shown:
        search(f"{value!r} {value} {[value]}", type(value).__name__)


async def logins(passwords: Passwords) -> list[object]:
    """One as it is hashed, what waits for it, and a refusal."""
    login = passwords.login(b"ann", SENT["wrong password"].encode())
    assert login is not None
    check = asyncio.ensure_future(passwords.check(login, 5.0))
    await asyncio.sleep(0)
    shown: list[object] = [login, repr(check), repr(asyncio.all_tasks())]
    assert await check is False
    return shown
