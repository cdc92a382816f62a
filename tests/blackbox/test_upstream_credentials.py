"""Credentials for exporters, as a real node_exporter judges them, and as they change under way."""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
import yaml

from tests.daemon import REPOSITORY, Daemon
from tests.e2e.processes import MODULE, Exporter
from tests.fakes.exporter import PAGE, FakeExporter, head, respond, send, wait_for

PASSWORD = "right s3cr3t"
PASSWORD_HASH = "$2b$04$KvNy8UI2UEtHpsrd5FxMzeZPTrKotHLs27Zf/P1/0RPJsXkRTkeKC"


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A node_exporter that wants TLS, a client certificate and a password, asked in several ways."""
    directory = tmp_path_factory.mktemp("real")
    authority, stranger = trustme.CA(), trustme.CA()
    node = Exporter("node_exporter", f"--web.config.file={directory}/web.yml", "--collector.disable-defaults")
    host = str(urlsplit(node.url()).hostname)
    authority.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    for name, issuer in (("ca", authority), ("stranger", stranger)):
        issuer.cert_pem.write_to_path(directory / f"{name}.crt")
        client = issuer.issue_cert("prometheus.test")
        client.private_key_and_cert_chain_pem.write_to_path(directory / f"{name}.pem")
    (directory / "password").write_text(f"{PASSWORD}\n")
    web = {
        "tls_server_config": {
            "cert_file": "server.pem",
            "key_file": "server.pem",
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_ca_file": "ca.crt",
        },
        "basic_auth_users": {"prometheus": PASSWORD_HASH},
    }
    (directory / "web.yml").write_text(yaml.safe_dump(web))
    with node:
        right: dict[str, Any] = {
            "url": node.url().replace("http:", "https:"),
            "basic_auth": {"username": "prometheus", "password_file": str(directory / "password")},
            "tls": {key: str(directory / f"ca.{end}") for key, end in TLS_FILES.items()},
        }
        wrong_ca = {**right["tls"], "ca_file": str(directory / "stranger.crt")}
        no_client = {"ca_file": right["tls"]["ca_file"]}
        strange = {
            **right["tls"],
            **{key: str(directory / "stranger.pem") for key in ("cert_file", "key_file")},
        }
        entries = {
            "right": right,
            "wrong_password": {**right, "basic_auth": {"username": "prometheus", "password": "wrong"}},
            "no_password": {key: right[key] for key in ("url", "tls")},
            "wrong_ca": {**right, "tls": wrong_ca},
            "wrong_name": {**right, "tls": {**right["tls"], "server_name": "node.test"}},
            "no_client": {**right, "tls": no_client},
            "strange_client": {**right, "tls": strange},
            "plain": {"url": node.url()},
        }
        with Daemon({"exporters": entries}) as daemon:
            yield daemon


TLS_FILES = {"ca_file": "crt", "cert_file": "pem", "key_file": "pem"}


def test_the_right_credentials(real: Daemon) -> None:
    for _ in range(2):
        assert b"node_exporter_build_info" in real.get("/right/metrics").expect_ok().body


@pytest.mark.parametrize("name", ["wrong_password", "no_password"])
def test_an_exporters_401_passes_as_the_exporters(real: Daemon, name: str) -> None:
    reply = real.get(f"/{name}/metrics")
    assert (reply.status, reply.error, reply.ended) == (401, "upstream_status", "complete")
    assert reply.header("www-authenticate") == "Basic"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wrong_ca", "set tls.ca_file to the CA that issued it"),
        ("wrong_name", "it is not for node.test; set tls.server_name"),
        ("no_client", "wants a client certificate; set tls.cert_file and tls.key_file"),
        ("strange_client", "does not accept the client certificate in tls.cert_file"),
    ],
)
def test_what_a_real_exporter_does_not_take(real: Daemon, name: str, says: str) -> None:
    """The last two are told only after a handshake that looked complete (TLS 1.3)."""
    assert says in real.get(f"/{name}/metrics").expect_refusal(502, "connect", name).body.decode()


def test_a_plain_request_to_it(real: Daemon) -> None:
    """Go's server answers that in plain HTTP."""
    reply = real.get("/plain/metrics")
    assert (reply.status, reply.error) == (400, "upstream_status")
    assert b"HTTP request to an HTTPS server" in reply.body


@pytest.mark.parametrize(("name", "status"), [("right", 0), ("wrong_password", 1), ("no_client", 1)])
def test_one_scrape_from_the_command_line(real: Daemon, name: str, status: int) -> None:
    result = subprocess.run(
        [*MODULE, "scrape", name],
        cwd=real.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == status, result.stderr
    says = {"right": "it succeeded", "wrong_password": "401", "no_client": "wants a client certificate"}
    assert says[name] in result.stdout


# What an exporter gets to see.


def test_credentials_go_out_with_each_request(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0k3n\n")
    with FakeExporter() as exporter:
        url = exporter.url()
        entries = {
            "inline": {"url": url, "basic_auth": {"username": "ü", "password": "p:ä"}},
            "token": {
                "url": url,
                "bearer_token_file": str(tmp_path / "token"),
                "pass_headers": ["Authorization"],
            },
            "none": {"url": url},
        }
        with Daemon({"exporters": entries}) as daemon:
            for name in ("inline", "inline", "token", "none"):
                daemon.get(f"/{name}/metrics", ("Authorization", "Basic c2NyYXBlcg==")).expect_ok(PAGE)
        sent = [request.header("authorization") for request in exporter.requests]
    assert sent == [basic("ü", "p:ä"), basic("ü", "p:ä"), "Bearer t0k3n", None]


def test_the_environment_has_no_say(tmp_path: Path) -> None:
    """Not over proxies, passwords or authorities; a shell's variables must not change what a scrape does."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login netrc password s3cr3t\n")
    (tmp_path / ".netrc").chmod(0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FakeExporter() as trap, FakeExporter() as exporter, FakeExporter(tls=context) as secured:
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        environment = {
            **dict.fromkeys(proxies, trap.url("")),
            "NO_PROXY": "",
            "no_proxy": "",
            "HOME": str(tmp_path),
            "NETRC": str(tmp_path / ".netrc"),
            "SSL_CERT_FILE": str(tmp_path / "ca.crt"),
            "SSL_CERT_DIR": str(tmp_path),
            "SSLKEYLOGFILE": str(tmp_path / "keys"),
        }
        trusting = {"url": secured.url(), "tls": {"ca_file": str(tmp_path / "ca.crt")}}
        entries = {"plain": {"url": exporter.url()}, "tls": {"url": secured.url()}, "trusting": trusting}
        with Daemon({"exporters": entries}, environment=environment) as daemon:
            daemon.get("/plain/metrics").expect_ok(PAGE)
            daemon.get("/trusting/metrics").expect_ok(PAGE)
            line = daemon.get("/tls/metrics").expect_refusal(502, "connect", "tls").body.decode()
            assert "set tls.ca_file" in line
        assert exporter.request.header("authorization") is None
        assert not trap.connections
        assert not (tmp_path / "keys").exists()


# Reload


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("first\n")
    return file


def test_a_reload_reads_the_password_anew(secret: Path) -> None:
    with FakeExporter() as exporter:
        auth = {"username": "u", "password_file": str(secret)}
        with Daemon({"exporters": {"x": {"url": exporter.url(), "basic_auth": auth}}}) as daemon:
            daemon.get("/x/metrics").expect_ok()
            assert "config reloaded" in daemon.reload()
            daemon.get("/x/metrics").expect_ok()
            assert len(exporter.connections) == 1, "nothing changed, so the connection lived on"
            secret.write_text("second\n")
            assert "config reloaded" in daemon.reload()
            daemon.get("/x/metrics").expect_ok()
            daemon.wait_for_metric(3, "exporter_proxy_scrapes_total", exporter="x", code="200")
        sent = [request.header("authorization") for request in exporter.requests]
    assert sent == [basic("u", "first"), basic("u", "first"), basic("u", "second")]


def test_a_changed_password_is_used_without_a_reload(secret: Path) -> None:
    """Counters go on; an empty file in between changes nothing."""
    with FakeExporter() as exporter:
        auth = {"username": "u", "password_file": str(secret)}
        with Daemon({"exporters": {"x": {"url": exporter.url(), "basic_auth": auth}}}) as daemon:
            daemon.get("/x/metrics").expect_ok()
            secret.write_text("")
            line = daemon.wait_for_log("changed files not used", timeout_seconds=15)
            assert "exporters.x.basic_auth.password_file: the file is empty" in line
            daemon.get("/x/metrics").expect_ok()
            secret.write_text("second\n")
            daemon.wait_for_log("changed files are in use", timeout_seconds=15)
            daemon.get("/x/metrics").expect_ok()
            daemon.wait_for_metric(3, "exporter_proxy_scrapes_total", exporter="x", code="200")
        sent = [request.header("authorization") for request in exporter.requests]
    assert sent == [basic("u", "first"), basic("u", "first"), basic("u", "second")]


def test_a_scrape_under_way_ends_with_the_credentials_it_began_with(secret: Path) -> None:
    go_on = threading.Event()
    slow = [send(head(200, [("Content-Length", str(len(PAGE)))])), wait_for(go_on), send(PAGE)]
    with FakeExporter(slow, respond()) as exporter:
        auth = {"username": "u", "password_file": str(secret)}
        with Daemon({"exporters": {"x": {"url": exporter.url(), "basic_auth": auth}}}) as daemon:
            with daemon.connect() as wire:
                wire.send(b"GET /x/metrics HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
                exporter.wait_for_requests()
                secret.write_text("second\n")
                assert "config reloaded" in daemon.reload()
                go_on.set()
                wire.read_reply().expect_ok(PAGE)
            daemon.get("/x/metrics").expect_ok(PAGE)
        assert exporter.requests[1].header("authorization") == basic("u", "second")


@pytest.mark.parametrize("content", [None, "", "two\nlines\n"])
def test_a_useless_password_file_keeps_the_old_password(secret: Path, content: str | None) -> None:
    with FakeExporter() as exporter:
        auth = {"username": "u", "password_file": str(secret)}
        with Daemon({"exporters": {"x": {"url": exporter.url(), "basic_auth": auth}}}) as daemon:
            if content is None:
                secret.unlink()
            else:
                secret.write_text(content)
            line = daemon.reload()
            assert "config not reloaded" in line
            assert "basic_auth.password_file" in line
            daemon.get("/x/metrics").expect_ok()
        assert exporter.request.header("authorization") == basic("u", "first")
