"""Whole files: ``tests/testdata/config/good`` loads, ``bad`` gives exactly the text beside it.

A new key comes with a line in ``good/every-key.yml`` and one in a file of ``bad``.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme

from exporter_proxy.config import (
    AccessLog,
    Config,
    ConfigError,
    Exporter,
    ListenAddress,
    Pem,
    ServerTls,
    UpstreamUrl,
    WebConfig,
    parse_config,
)
from exporter_proxy.config.module_route import ModuleRoute
from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.config.schema import (
    BasicAuth,
    ClientTls,
    CommandSource,
    FileSource,
    StarterListen,
    SystemdListen,
    UnixListen,
)

TESTDATA = Path(__file__).parents[1] / "testdata" / "config"
BAD = sorted((TESTDATA / "bad").glob("*.yml"))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the pairs ``server`` and ``client``, their CA, a password and tokens."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    for name in ("server", "client"):
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.crt")
    authority.cert_pem.write_to_path(directory / "ca.crt")
    (directory / "password").write_text("s3cr3t\n")
    (directory / "token").write_text("s3cr3t\n")
    (directory / "tokens").write_text("s3cr3t\n")
    return directory


def load_good(name: str, base_dir: Path | str = "") -> Config:
    data = (TESTDATA / "good" / f"{name}.yml").read_bytes()
    config = parse_config(data, "config.yml", base_dir=base_dir)
    assert config.source == "config.yml"
    assert config.sha256 == hashlib.sha256(data).hexdigest()
    return config


def exporter(name: str, port: int = 9100, **changes: Any) -> Exporter:
    """An exporter on loopback with nothing but its URL configured, and ``changes``."""
    plain = Exporter(
        name=name,
        path=f"/{name}/metrics",
        url=UpstreamUrl("http", "127.0.0.1", port, "/metrics"),
        timeout_seconds=None,
        timeout_offset_seconds=0.5,
        max_response_bytes=64 * 1024 * 1024,
        max_concurrent=64,
        verify=False,
        share_for_seconds=0.0,
        share_max_bytes=8 * 1024 * 1024,
        allow_clients=None,
        allow_params=None,
        params=(),
        pass_headers=(),
        headers=(),
        basic_auth=None,
        bearer_token_file=None,
        tls=None,
        insecure_skip_verify=False,
        content_type=None,
        labels=(),
    )
    return replace(plain, **changes)


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_bad_file_gives_exactly_these_problems(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(file.read_bytes(), "config.yml")
    assert f"{caught.value}\n" == file.with_suffix(".txt").read_text()


def test_every_expectation_has_its_file() -> None:
    assert BAD
    assert {file.stem for file in BAD} == {file.stem for file in (TESTDATA / "bad").glob("*.txt")}


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_no_message_shows_a_secret(file: Path) -> None:
    """Each password and token in the bad files is ``s3cr3t``, some with a separator in the middle."""
    with pytest.raises(ConfigError) as caught:
        parse_config(file.read_bytes(), "config.yml")
    shown = f"{caught.value} {caught.value!r} {caught.value.args}"
    assert "s3" not in shown
    assert "cr3t" not in shown


def test_ten_mistakes_give_ten_lines_in_file_order() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config((TESTDATA / "bad" / "ten-mistakes.yml").read_bytes(), "config.yml")
    assert [problem.line for problem in caught.value.problems] == [2, 3, 4, 5, 9, 10, 12, 13, 14, 16]
    assert len(str(caught.value).splitlines()) == 10


def test_minimal_file_gets_every_default() -> None:
    config = load_good("minimal")
    assert config == Config(
        source="config.yml",
        sha256=config.sha256,
        listen=(ListenAddress("0.0.0.0", 9099),),
        route_prefix="",
        external_url=None,
        shutdown_timeout_seconds=10.0,
        keep_alive_timeout_seconds=150.0,
        read_header_timeout_seconds=10.0,
        max_header_bytes=32 * 1024,
        max_connections=512,
        tls=None,
        web=None,
        bearer_tokens_file=None,
        allow_clients=None,
        allow_upstreams=None,
        exporters=(exporter("node_exporter"),),
        access_log=None,
        error_log_path=None,
    )


def test_file_of_the_go_original_loads_unchanged(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its relative paths are taken from the working directory, and kept as they are written."""
    monkeypatch.chdir(certificates)
    config = load_good("go-original")
    assert config.listen == (ListenAddress("127.0.0.1", 8080),)
    assert config.tls == ServerTls(cert=Pem(file="./server.crt"), key=Pem(file="./server.key"))
    assert config.shutdown_timeout_seconds == 90.0
    assert config.error_log_path == "./logs/error.log"
    fields = ("time", "time_nsec", "status", "size", "reqtime_nsec", "backend", "path", "query", "method")
    assert config.access_log == AccessLog(format="ltsv", path="./logs/access.log", fields=fields)
    assert config.exporters == (
        exporter("redis", path="/redis", url=UpstreamUrl("http", "localhost", 9121, "/metrics")),
        exporter(
            "postgres",
            path="/db/postgres",
            url=UpstreamUrl("http", "127.0.0.1", 9187, "/metrics?collect=locks"),
        ),
        exporter(
            "appliance",
            path="/appliance/metrics",
            url=UpstreamUrl("https", "appliance.example.org", 443, "/"),
            insecure_skip_verify=True,
        ),
    )


def test_every_key_is_read(certificates: Path) -> None:
    config = load_good("every-key", base_dir=certificates)
    inherited: dict[str, Any] = {
        "timeout_seconds": 120.0,
        "timeout_offset_seconds": 0.0003,
        "max_response_bytes": 10_000_000,
        "max_concurrent": 1,
        "verify": True,
        "share_for_seconds": 5.0,
        "share_max_bytes": 1_000_000,
    }
    assert config == Config(
        source="config.yml",
        sha256=config.sha256,
        listen=(
            ListenAddress("127.0.0.1", 9099),
            ListenAddress("::1", 9099),
            ListenAddress("", 0),
            ListenAddress("localhost", 0),
            UnixListen("/run/exporter_proxy/http.sock", 0o666, "prometheus"),
            SystemdListen("http"),
            StarterListen("0.0.0.0:8080"),
        ),
        route_prefix="/vm",
        external_url=None,
        shutdown_timeout_seconds=0.0,
        keep_alive_timeout_seconds=3723.5,
        read_header_timeout_seconds=0.25,
        max_header_bytes=65536,
        max_connections=1024,
        tls=ServerTls(Pem(file=str(certificates / "server.crt")), Pem(file=str(certificates / "server.key"))),
        web=None,
        bearer_tokens_file=str(certificates / "tokens"),
        allow_clients=tuple(
            ip_network(network)
            for network in (
                "10.0.0.0/8",
                "192.0.2.7/32",
                "2001:db8::/32",
                "::1/128",
                "10.1.0.0/16",
                "192.0.2.9/32",
            )
        ),
        allow_upstreams=(),
        exporters=(
            exporter(
                "inherits",
                url=UpstreamUrl("http", "exporter.example.org", 80, "/?x=1"),
                **inherited,
            ),
            exporter(
                "sets",
                path="/probe/~a.b;c=d/",
                url=UpstreamUrl("https", "2001:db8::1", 9443, "/probe?module=%zz&a[]=1&a[]=2"),
                timeout_seconds=90.0,
                timeout_offset_seconds=0.0,
                max_response_bytes=32 * 1024,
                max_concurrent=2,
                verify=False,
                share_for_seconds=0.0,
                share_max_bytes=4 * 1024 * 1024,
                allow_clients=(ip_network("10.0.0.5/32"),),
                allow_params=frozenset(("collect[]", "7")),
                params=(
                    ("module", "http_2xx"),
                    ("module", "1.50"),
                    ("count", "010"),
                    ("debug", "yes"),
                    ("two words", "ä & b\n"),
                ),
                pass_headers=("x-request-id", "cookie"),
                headers=(
                    ("Host", "vm.example.org:8080"),
                    ("Authorization", "Bearer s3cr3t"),
                    ("X-Empty", ""),
                    ("X-Number", "5"),
                ),
                insecure_skip_verify=True,
                content_type="text/plain; version=0.0.4; charset=utf-8",
                labels=(("team", "infra"), ("_rack", "12"), ("job", 'n\xf6de: "x"'), ("on", "yes")),
            ),
            exporter(
                "named",
                url=UpstreamUrl("https", "exporter.example.org", 443, "/metrics"),
                basic_auth=BasicAuth("prometheus", None, str(certificates / "password")),
                tls=ClientTls(
                    ca_file=str(certificates / "ca.crt"),
                    cert_file=str(certificates / "client.crt"),
                    key_file=str(certificates / "client.key"),
                    server_name="node.example.org",
                ),
                **inherited,
            ),
            exporter(
                "inline",
                url=UpstreamUrl("http+unix", "localhost", 0, "/metrics?a=b:c", "/run/x.sock"),
                basic_auth=BasicAuth("\u00fcser", 's3cr3t: "p\\u00e4ss"', None),
                **inherited,
            ),
            exporter("token", bearer_token_file=str(certificates / "token"), **inherited),
            exporter(
                "files",
                url=None,
                file=FileSource(str(certificates / "*.prom"), 7200.0, follow_symlinks=False),
                allow_params=frozenset(),
                content_type="text/plain; version=1.0.0",
                **inherited,
            ),
            exporter(
                "runs",
                url=None,
                command=CommandSource(
                    "/bin/sh",
                    ("-c", "echo s3cr3t", "5", "on"),
                    (("LANG", "C"), ("PASSWORD", "s3cr3t"), ("EMPTY", ""), ("DEBUG", "1")),
                    f"{certificates}/.",
                ),
                allow_params=frozenset(),
                **{**inherited, "max_concurrent": 2},
            ),
        ),
        access_log=AccessLog("json", str(certificates / "access.log"), ("exporter", "user_agent")),
        error_log_path=str(certificates / "error.log"),
        pushprox=PushProx(
            proxies=(
                UpstreamUrl("https", "pushprox.example.org", 443, "/prefix"),
                UpstreamUrl("http", "192.0.2.1", 8080, "/"),
            ),
            fqdn="vm1.example.org",
            basic_auth=BasicAuth("vm1", None, str(certificates / "password")),
            bearer_token_file=None,
            tls=ClientTls(
                ca_file=str(certificates / "ca.crt"),
                cert_file=str(certificates / "client.crt"),
                key_file=str(certificates / "client.key"),
                server_name="proxy.example.org",
            ),
            map_ports=True,
            allow_exporters=frozenset(("sets", "named")),
        ),
        module_route=ModuleRoute("/proxy", "sets"),
    )
    assert "s3cr3t" not in repr(config)


def test_anchors_aliases_and_merges() -> None:
    """A mapping's own keys beat merged ones, and of a list of merges the first wins."""
    config = load_good("anchors")
    shared: dict[str, Any] = {"params": (("module", "x"),), "max_concurrent": 3}
    assert config.exporters == (
        exporter("a", path="/a", timeout_seconds=5.0, **shared),
        exporter("b", path="/b", timeout_seconds=6.0, **shared),
        exporter(
            "c",
            path="/c",
            timeout_seconds=1.0,
            params=(("module", "y"), ("target", "z")),
            max_concurrent=3,
        ),
        exporter("d", path="/d", timeout_seconds=7.0, max_concurrent=3),
        exporter("e", path="/e", timeout_seconds=5.0, **shared),
    )


def test_yaml_is_read_as_it_is_written() -> None:
    """Names that YAML 1.1 takes for booleans or null stay names; styles and plain tags do not matter."""
    config = load_good("yaml-odds")
    assert config.listen == (ListenAddress("", 9099),)
    assert config.access_log == AccessLog(
        format="ltsv",
        path=None,
        fields=(
            *("time", "time_nsec", "status", "size", "reqtime_nsec", "backend", "path", "query", "method"),
            *("reason", "remote", "timeout"),
        ),
    )
    assert config.error_log_path is None
    assert config.exporters == (
        exporter("on", 9100),
        exporter("null", 9101),
        exporter("_Aa.b-9", 9102),
        exporter("folded", 9103, timeout_seconds=5.0, max_concurrent=4),
    )


def test_web_config_file_is_read_with_it(certificates: Path) -> None:
    """The one key that is missing in every-key.yml: it excludes ``tls``."""
    web_file = certificates / "web.yml"
    web_file.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n")
    web_sha256 = hashlib.sha256(web_file.read_bytes()).hexdigest()
    config = load_good("web-config-file", base_dir=certificates)
    tls = ServerTls(Pem(file=f"{certificates}/./server.crt"), Pem(file=f"{certificates}/./server.key"))
    assert config == replace(
        load_good("minimal"),
        sha256=config.sha256,
        web=WebConfig(f"{certificates}/./web.yml", tls, (), (), None, sha256=web_sha256),
    )
    assert config.server_tls == tls


def test_every_good_file_is_tested() -> None:
    tested = {"minimal", "go-original", "every-key", "web-config-file", "anchors", "yaml-odds"}
    assert {file.stem for file in (TESTDATA / "good").glob("*.yml")} == tested
