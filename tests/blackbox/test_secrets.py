"""Secrets of exporters never show: not in a page, an answer, a log, the output of a command or a ``repr``.

Each row of ``tests/planted.py`` is put in place, everything that can go well or wrong is made to happen,
and then all that was written anywhere is searched. The daemon's own are ``test_own_secrets.py``'s.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from exporter_proxy.config import ConfigError, parse_config
from exporter_proxy.config.schema import ACCESS_LOG_FIELDS
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.upstreams import make_upstream
from tests.daemon import REPOSITORY, Daemon
from tests.e2e.processes import MODULE
from tests.fakes.exporter import PAGE, FakeExporter, Script, close, head, respond, send, stall
from tests.fakes.ports import refusing_port
from tests.inprocess import parts, run
from tests.planted import AUTHORITY, CLIENT, ROWS, Keys, forms, marker, search, secrets

SITUATIONS: dict[str, Script] = {
    "ok": respond(),
    "unauthorized": respond(status=401, headers=[("WWW-Authenticate", "Basic")], body=b"no\n"),
    "garbage": [send(b"?\r\n\r\n"), close()],
    "closed": [close()],
    "redirected": [send(head(302, [("Location", "/"), ("Content-Length", "0")]))],
    "truncated": [send(head(200, [("Content-Length", "1000")]) + PAGE), close()],
    "malformed": respond(body=b"no exposition\n"),
    "too_large": respond(body=PAGE * 100),
    "hung": [stall()],
}
FURTHER: dict[str, Keys] = {
    "malformed": {"verify": True},
    "too_large": {"max_response_bytes": 100},
    "hung": {"timeout": "300ms"},
}
ON = pytest.mark.parametrize("site", ["uvloop"], indirect=True)


@pytest.mark.parametrize("name", secrets())
def test_the_search_finds_what_it_looks_for(name: str) -> None:
    secret = secrets()[name]
    for text in (
        secret,
        f"x {secret} y",
        base64.b64encode(f"u:{secret}".encode()).decode(),
        repr({"a": [secret]}),
    ):
        with pytest.raises(AssertionError, match="shows in"):
            search(text, "a text")


def merged(url: str, entry: Keys, further: Keys) -> Keys:
    """``entry`` at ``url``; an https exporter's certificate is known."""
    result = {"url": url, **entry, **further}
    if url.startswith("https:"):
        result["tls"] = {"ca_file": "ca.crt", **result.get("tls", {})}
    return result


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    exporters: dict[str, FakeExporter]
    config: Keys

    @property
    def directory(self) -> Path:
        return self.daemon.directory


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An exporter for each row in each situation; "asyncio" in its debug mode, which logs what runs."""
    directory = tmp_path_factory.mktemp("secrets")
    AUTHORITY.cert_pem.write_to_path(directory / "ca.crt")
    CLIENT.cert_chain_pems[0].write_to_path(directory / "client.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    exporters: dict[str, FakeExporter] = {}
    entries: Keys = {}
    access_log = {"format": "json", "fields": list(ACCESS_LOG_FIELDS)}
    with ExitStack() as stack:
        refusing = stack.enter_context(refusing_port())
        for name, row in ROWS.items():
            entry = row.plant(directory, row.make(name))
            for situation, script in SITUATIONS.items():
                exporter = FakeExporter(script, tls=context if row.needs_tls else None)
                exporters[f"{name}.{situation}"] = stack.enter_context(exporter)
                further = FURTHER.get(situation, {})
                entries[f"{name}.{situation}"] = merged(exporter.url(), entry, further)
            scheme = "https" if row.needs_tls else "http"
            plain = stack.enter_context(FakeExporter(greeting=[send(b"HTTP/1.1 400 No\r\n\r\n"), close()]))
            entries[f"{name}.refused"] = merged(f"{scheme}://127.0.0.1:{refusing}/", entry, {})
            entries[f"{name}.no_tls"] = merged(f"https://{plain.authority}/", entry, {})
            if not row.needs_tls:
                entries[f"{name}.no_socket"] = merged(f"http+unix://{directory}/none:/", entry, {})
        for entry in entries.values():
            if "tls" in entry:
                entry["tls"]["ca_file"] = str(directory / "ca.crt")
        config = {"access_log": access_log, "exporters": entries}
        environment = {"EXPORTER_PROXY_LOOP": request.param, "PYTHONFAULTHANDLER": "1"}
        if request.param == "asyncio":
            environment["PYTHONASYNCIODEBUG"] = "1"
        flags = ("--log.level=debug", "--web.enable-lifecycle")
        with Daemon(config, *flags, environment=environment) as daemon:
            yield Site(daemon, exporters, config)


def mistaken(directory: Path) -> Keys:
    """A configuration with every mistake of every row."""
    AUTHORITY.cert_pem.write_to_path(directory / "ca.crt")
    CLIENT.cert_chain_pems[0].write_to_path(directory / "client.crt")
    exporters = {
        f"{name}_{number}": {"url": "https://127.0.0.1:9100/metrics", **mistake(directory, row.make(name))}
        for name, row in ROWS.items()
        for number, mistake in enumerate(row.mistakes.values())
    }
    return {"exporters": exporters}


@pytest.mark.parametrize("site", ["uvloop", "asyncio"], indirect=True)
def test_no_secret_shows_while_the_daemon_runs(site: Site, tmp_path: Path) -> None:
    daemon = site.daemon
    for name in site.config["exporters"]:
        for method in ("GET", "HEAD"):
            search(
                daemon.get(f"/{name}/metrics", method=method).raw.decode("latin-1"), f"the answer of {name}"
            )
    for name, row in ROWS.items():
        sent = site.exporters[f"{name}.ok"].requests[0].head.decode("latin-1")
        shown = any(form in sent for form in forms(row.make(name)))
        assert shown == row.is_sent, f"{name} is planted"
    statuses = {
        name: daemon.get(f"/{name}/metrics").status for name in (f"{row}.unauthorized" for row in ROWS)
    }
    assert set(statuses.values()) == {401}

    assert "config reloaded" in daemon.reload()
    good = (site.directory / "config.yml").read_text()
    daemon.write_config(mistaken(tmp_path))
    daemon.reload()
    answer = daemon.exchange(b"POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert answer.status == 500
    search(answer.raw.decode("latin-1"), "/-/reload")
    (site.directory / "config.yml").write_text(good)

    for path in ("/", "/-/exporters", "/metrics", "/-/healthy", "/-/ready", "/nowhere"):
        for accepted in (
            "text/html",
            "application/json",
            "text/plain",
            "application/openmetrics-text",
            "*/*",
        ):
            page = daemon.get(path, ("Accept", accepted)).raw.decode("latin-1")
            search(page, f"{path} as {accepted}")
    daemon.wait_for_output('"path": "/nowhere"')
    search("\n".join(daemon.log_lines), "the log")
    search("\n".join(daemon.output_lines), "the access log")
    search(" ".join(map(str, daemon.process.args)), "the command line")  # type: ignore[arg-type]  # a list


def run_command(directory: Path, *arguments: str) -> tuple[int, str]:
    result = subprocess.run(
        [*MODULE, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


@ON
def test_check_shows_no_secret(site: Site) -> None:
    status, output = run_command(site.directory, "check")
    assert status == 0
    search(output, "check")


def test_check_of_all_mistakes_shows_no_secret(tmp_path: Path) -> None:
    config = mistaken(tmp_path)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config, width=10_000))
    status, output = run_command(tmp_path, "check")
    assert status == 1
    assert not [name for name in config["exporters"] if f": exporters.{name}." not in output]
    search(output, "check")


@ON
@pytest.mark.parametrize("name", ROWS)
def test_scrape_shows_no_secret(site: Site, name: str) -> None:
    for situation, expected in (("ok", 0), ("no_tls", 1)):
        status, output = run_command(site.directory, "scrape", f"{name}.{situation}")
        assert status == expected, output
        search(output, f"scrape {situation}")


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name, row in ROWS.items() for mistake in row.mistakes]
)
def test_each_mistake_is_told_without_the_secret(name: str, mistake: str, tmp_path: Path) -> None:
    CLIENT.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    keys = ROWS[name].mistakes[mistake](tmp_path, ROWS[name].make(name))
    entry = {"url": "https://127.0.0.1/", **keys}
    data = yaml.safe_dump({"exporters": {"x": entry}}, width=10_000).encode()
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "config.yml")
    search(f"{caught.value} {caught.value!r} {caught.value.args}", mistake)


@ON
def test_no_repr_shows_a_secret(site: Site) -> None:
    config = parse_config((site.directory / "config.yml").read_bytes(), "config.yml")
    routes = build_routes(config, make_upstream)
    shown = [config, config.exporters, routes, routes.routes]
    for route in routes.routes:
        shown += [
            route,
            route.exporter,
            route.credentials,
            route.transport,
            route.shares,
            route.record,
            route.url,
        ]
    for value in shown:
        search(f"{value!r} {value}", type(value).__name__)


def test_no_repr_shows_the_query_of_a_url() -> None:
    """Some exporters take a token there."""
    for name, url in (("tcp", "http://127.0.0.1:1/metrics"), ("unix", "http+unix:///run/x.sock:/metrics")):
        text = f"exporters: {{x: {{url: '{url}?token={marker(name)}'}}}}\n"
        config = parse_config(text.encode(), "config.yml")
        for value in (config, *config.exporters, *(one.url for one in config.exporters)):
            assert marker(name) not in repr(value)


class _Defective(httpx.AsyncBaseTransport):
    """Fails in a way that nobody expects, naming what it was asked as careless code would."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise RuntimeError(f"cannot ask {request!r} of {asyncio.current_task()!r}")


@pytest.mark.parametrize("name", ROWS)
def test_a_defect_shows_no_secret(name: str, tmp_path: Path) -> None:
    """The one line of a traceback that the log has, and the answer."""
    CLIENT.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    entry = {"url": "https://127.0.0.1/", **ROWS[name].plant(tmp_path, ROWS[name].make(name))}

    async def scenario() -> str:
        async with parts(tmp_path / "log", {"x": entry}) as made:
            made.route.transport = _Defective()
            answered = await made.scrape(made.request())
            assert answered.status == 500
            return answered.body.decode()

    answer = run(scenario)
    log = (tmp_path / "log").read_text()
    assert "cannot ask <ScrapeRequest" in log
    search(answer, "the answer")
    search(log, "the log")
