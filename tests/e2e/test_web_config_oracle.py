"""web.config.files judged by node_exporter 1.5.0 and by ``exporter_proxy check``: the same verdict.

What differs is in README's table. Each of its rows has an entry in ``DIFFERENCES``: files for which the
verdicts are known, or the test that shows what differs when both accept. node_exporter 1.5.0 does not
know every key of the format, so some rows can be seen on one side only.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter_proxy.cli import main
from exporter_proxy.config import load_web_config
from tests.blackbox import test_web_config as blackbox
from tests.daemon import Daemon
from tests.e2e.processes import listening_port, start_process
from tests.readme.document import table
from tests.wire import request

NODE_EXPORTER = "prometheus-node-exporter"
PATIENCE_SECONDS = 20.0
HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
HTTP2_SUITE = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that the files below name; ``none.pem`` does not exist."""
    directory = tmp_path_factory.mktemp("oracle")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("other").private_key_pem.write_to_path(directory / "other.pem")
    (directory / "garbage.pem").write_text("garbage\n")
    command = "openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=a -keyout weak.key -out weak.pem"
    subprocess.run(command.split(), cwd=directory, capture_output=True, timeout=20, check=True)
    (directory / "config.yml").write_text(
        'listen: "127.0.0.1:0"\nexporters: {a: {url: "http://127.0.0.1:1/"}}'
    )
    return directory


def is_accepted_by_node_exporter(path: Path) -> bool:
    """Whether it answers on its port, be it that it speaks TLS only, or ends with an error."""
    if shutil.which(NODE_EXPORTER) is None and os.environ.get("CI") != "true":
        pytest.skip(f"{NODE_EXPORTER} is not installed")
    command = [NODE_EXPORTER, "--collector.disable-defaults", "--web.listen-address=127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, f"--web.config.file={path}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            listening = re.search(r'msg="Listening on" address=\S+:(\d+)', line)
            if listening is not None:
                return answers(int(listening[1]), process)
        return process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def answers(port: int, process: subprocess.Popen[str]) -> bool:
    """It listens before it has judged the file, so the first connections may be lost."""
    end = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None:
        assert time.monotonic() < end, "it neither answers nor ends"
        try:
            with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if connection.recv(100):
                    return True
        except OSError:
            pass
        time.sleep(0.01)
    return False


def is_accepted_by_check(path: Path) -> bool:
    config = path.with_name("config.yml")
    status = main(["check", f"--config.file={config}", f"--web.config.file={path}"])
    assert status in (0, 1)
    return status == 0


def written(site: Path, content: str | Mapping[str, Any]) -> Path:
    path = site / "web.yml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def tls(**keys: Any) -> dict[str, Any]:
    return {"tls_server_config": {"cert_file": "cert.pem", "key_file": "key.pem", **keys}}


def headers(**values: Any) -> dict[str, Any]:
    return {"http_server_config": {"headers": {name.replace("_", "-"): v for name, v in values.items()}}}


def verified(**keys: Any) -> dict[str, Any]:
    return tls(client_auth_type="RequireAndVerifyClientCert", client_ca_file="ca.pem", **keys)


@dataclass(frozen=True)
class Verdicts:
    """A file, and who accepts it. ``go`` is ``None`` where node_exporter 1.5.0 does not know the key yet."""

    content: str | Mapping[str, Any]
    go: bool | None
    ours: bool


def refused_here(*contents: str | Mapping[str, Any]) -> list[Verdicts]:
    return [Verdicts(content, True, False) for content in contents]


# By the first cell of the row in README. A callable is the test that shows the difference.
DIFFERENCES: dict[str, list[Verdicts] | Any] = {
    "`RequireAnyClientCert`, `RequireClientCert`": refused_here(
        tls(client_auth_type="RequireAnyClientCert"), tls(client_auth_type="RequireClientCert")
    ),
    "`RequestClientCert`": blackbox.test_who_gets_in_by_client_auth_type,
    "a client without a name of `client_allowed_sans`": (
        blackbox.test_a_client_without_an_allowed_name_is_told_so_and_counted
    ),
    "addresses in `client_allowed_sans`": blackbox.test_a_client_with_an_allowed_name_is_served,
    "`client_allowed_sans: []`": [Verdicts(verified(client_allowed_sans=[]), None, False)],
    "`TLS10`, `TLS11`": refused_here(
        tls(min_version="TLS10"), tls(min_version="TLS11"), tls(min_version="TLS10", max_version="TLS11")
    ),
    "`max_version` below `min_version`": refused_here(tls(min_version="TLS13", max_version="TLS12")),
    "several `curve_preferences`": refused_here(tls(curve_preferences=["X25519", "CurveP256"])),
    "`cipher_suites` without one that HTTP/2 needs": [
        Verdicts(tls(cipher_suites=["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]), False, True),
        Verdicts(tls(cipher_suites=["TLS_AES_128_GCM_SHA256"]), False, True),
    ],
    "`TLS_RSA_WITH_AES_...` in `cipher_suites`": [
        # This node_exporter is made with Go 1.19.
        Verdicts(tls(cipher_suites=[HTTP2_SUITE, "TLS_RSA_WITH_AES_128_GCM_SHA256"]), True, True)
    ],
    "`prefer_server_cipher_suites`": blackbox.test_whose_order_of_suites_counts,
    "`http2: true`, the default": blackbox.test_a_client_that_would_rather_speak_http2_gets_http1,
    "`tls_server_config` with settings but no certificate": refused_here(
        {"tls_server_config": {"min_version": "TLS13"}},
        {"tls_server_config": {"cert_file": "", "cipher_suites": [HTTP2_SUITE]}},
    ),
    "a `client_ca_file` without a certificate in it": refused_here(
        tls(client_ca_file="garbage.pem", client_auth_type="RequireAndVerifyClientCert")
    ),
    "a certificate with a weak key (RSA, 1024 bits)": refused_here(
        {"tls_server_config": {"cert_file": "weak.pem", "key_file": "weak.key"}}
    ),
    "hashes that are not `$2a$`, `$2b$` or `$2y$` and 60 characters": refused_here(
        {"basic_auth_users": {"a": HASH.replace("$2y", "$2x")}},
        {"basic_auth_users": {"a": HASH + "x"}},
        {"basic_auth_users": {"a": HASH.replace("X", "*")}},
    ),
    "header values with line breaks or other than ASCII": refused_here(
        headers(Content_Security_Policy="a\nb"), headers(Strict_Transport_Security="max-age=5 \u00e9")
    ),
    "header values that are blank": [
        Verdicts(headers(Content_Security_Policy=""), True, True),
        Verdicts(headers(X_XSS_Protection=None), True, True),
    ],
    "`rate_limit` with an `interval` and no `burst`": [
        Verdicts({"rate_limit": {"interval": "1s"}}, None, False),
        Verdicts({"rate_limit": {"interval": "1s", "burst": 0}}, None, False),
    ],
    "an `interval` without a unit, or below zero": [
        Verdicts({"rate_limit": {"interval": 5, "burst": 1}}, None, False),
        Verdicts({"rate_limit": {"interval": "-1s", "burst": 1}}, None, False),
    ],
    "YAML tags, a second document, `y` for true, null in a list": refused_here(
        "http_server_config: !x {http2: true}\n",
        "{}\n---\n{}\n",
        "http_server_config: {http2: y}\n",
        tls(cipher_suites=[None, HTTP2_SUITE]),
    ),
    "a change of the file": (blackbox.test_a_change_is_in_use_without_a_reload_and_a_broken_file_is_not),
}


def test_every_row_of_the_table_is_tested() -> None:
    rows = [row[0] for row in table("web.config.file", "In the file").rows]
    assert rows == list(DIFFERENCES)
    assert all(DIFFERENCES.values())


@pytest.mark.parametrize(
    ("row", "verdicts"),
    [(row, one) for row, cases in DIFFERENCES.items() if isinstance(cases, list) for one in cases],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_each_difference_is_there(row: str, verdicts: Verdicts, site: Path) -> None:
    path = written(site, verdicts.content)
    assert is_accepted_by_check(path) is verdicts.ours
    if verdicts.go is not None:
        assert is_accepted_by_node_exporter(path) is verdicts.go


def test_blank_headers_are_left_out(site: Path) -> None:
    path = written(site, headers(Content_Security_Policy="", X_XSS_Protection=None, X_Frame_Options="deny"))
    assert load_web_config(str(path)).headers == (("X-Frame-Options", "deny"),)


# Values on which both should agree, whatever is combined with them.
PEM_FILES = st.sampled_from(["cert.pem"] * 6 + ["./cert.pem", "none.pem", "garbage.pem", "ca.pem", "", None])
KEY_FILES = st.sampled_from(["key.pem"] * 6 + ["none.pem", "garbage.pem", "other.pem", "cert.pem", ""])
SUITES = st.sampled_from(
    [
        *(
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "TLS_AES_128_GCM_SHA256",
            "TLS_RSA_WITH_AES_128_CBC_SHA",
        ),
        *("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"),
        *("TLS_RSA_WITH_RC4_128_SHA", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", "AES128-SHA", "", 5),
    ]
)
TLS_SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "client_ca_file": st.sampled_from(["ca.pem", "ca.pem", "none.pem", "", None]),
    "client_auth_type": st.sampled_from(
        [
            *("NoClientCert", "RequestClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"),
            *("", None, "Bogus", "noclientcert", 5),
        ]
    ),
    "min_version": st.sampled_from(["TLS12", "TLS12", None, "TLS14", "tls12", "", 12]),
    "max_version": st.sampled_from(["TLS12", "TLS13", "TLS13", "SSL30", "", 1.3]),
    "cipher_suites": st.one_of(
        st.lists(SUITES, max_size=3).map(lambda suites: [HTTP2_SUITE, *suites]),
        st.sampled_from([None, [], HTTP2_SUITE]),
    ),
    "prefer_server_cipher_suites": st.sampled_from([True, False, None, "true", 1, "no"]),
    "curve_preferences": st.sampled_from(
        [["X25519"], ["CurveP256"], ["CurveP521"], [], None, ["P256"], "CurveP256"]
    ),
    "certfile": st.just("cert.pem"),
}
WITH_CERTIFICATE = st.fixed_dictionaries(
    {"cert_file": PEM_FILES, "key_file": KEY_FILES}, optional=TLS_SETTINGS
)
WITHOUT = st.fixed_dictionaries(
    {},
    optional={
        "cert_file": st.sampled_from(["", None]),
        "key_file": st.sampled_from(["", None, "key.pem"]),
        "client_ca_file": st.sampled_from(["", None, "ca.pem"]),
        "client_auth_type": st.sampled_from(["", None, "NoClientCert"]),
    },
)
HTTP_SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "http2": st.sampled_from([True, False, None, "true", 1, "off"]),
    "headers": st.one_of(
        st.sampled_from([None, {}, [], "deny"]),
        st.fixed_dictionaries(
            {},
            optional={
                "X-Frame-Options": st.sampled_from(["deny", "sameorigin", "DENY", "", None]),
                "X-Content-Type-Options": st.sampled_from(["nosniff", "sniff", None]),
                "X-XSS-Protection": st.sampled_from([0, "1; mode=block", True, None]),
                "Strict-Transport-Security": st.sampled_from(["max-age=1", 5, [1]]),
                "Content-Security-Policy": st.sampled_from(["default-src 'self'\n", "", {}]),
                "x-frame-options": st.just("deny"),
                "Server": st.just("x"),
            },
        ),
    ),
}
HASHES = st.sampled_from(
    [HASH] * 5
    + [HASH.replace("$10$", cost) for cost in ("$04$", "$31$", "$03$", "$32$", "$xx$")]
    + [HASH.replace("$2y", "$2a"), HASH.replace("$2y", "$3y"), HASH[:50], "password", None, 5, "", [HASH]]
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "tls_server_config": st.one_of(
            WITH_CERTIFICATE, WITH_CERTIFICATE, WITHOUT, st.sampled_from([None, [], ""])
        ),
        "http_server_config": st.one_of(
            st.fixed_dictionaries({}, optional=HTTP_SETTINGS), st.sampled_from([None, "x"])
        ),
        "basic_auth_users": st.one_of(
            st.dictionaries(st.sampled_from(["a", "b c", "", 5, True]), HASHES, max_size=2),
            st.sampled_from([None, [], "a"]),
        ),
        "tls_config": st.just({}),
    },
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # each example is a process
)
@given(content=FILES)
def test_generated_files_get_the_same_verdict(content: dict[str, Any], site: Path) -> None:
    path = written(site, content)
    assert is_accepted_by_check(path) is is_accepted_by_node_exporter(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "# nothing\n", "null\n", "{}\n", "[]\n", "5\n", "text\n", "a: [\n", "\t\n", "a: b: c\n"),
        *(
            "http_server_config: {http2: true, http2: true}\n",
            "http_server_config: {}\nhttp_server_config: {}\n",
        ),
        *("&a {}\n", "http_server_config: &a {}\ntls_server_config: *a\n", "tls_server_config: *a\n"),
        "http_server_config: {<<: {http2: false}}\n",
        'basic_auth_users: {"a": "b", "a": "c"}\n',
        "http_server_config:\n\theaders: {}\n",
        "tls_server_config: {cert_file: cert.pem, key_file: key.pem",
    ],
)
def test_odd_texts_get_the_same_verdict(text: str, site: Path) -> None:
    path = written(site, text)
    assert is_accepted_by_check(path) is is_accepted_by_node_exporter(path)


def test_both_serve_with_the_same_file_from_another_directory(site: Path) -> None:
    """One file for the exporter and the proxy: client certificates, a suite, headers, relative paths."""
    suite = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
    content = {
        **verified(cipher_suites=[suite], max_version="TLS12", curve_preferences=["CurveP256"]),
        **headers(X_Frame_Options="deny"),
    }
    path = site / "both.yml"
    path.write_text(yaml.safe_dump(content))
    client = ssl.create_default_context(cafile=str(site / "ca.pem"))
    client.load_cert_chain(site / "cert.pem", site / "key.pem")
    node_exporter = start_process(
        [NODE_EXPORTER, "--web.listen-address=127.0.0.1:0", f"--web.config.file={path}"]
    )
    try:
        port = listening_port(node_exporter)
        config = {"exporters": {"x": {"url": "http://127.0.0.1:1/"}}}
        with Daemon(config, f"--web.config.file={path}") as daemon:
            for address in (("127.0.0.1", port), daemon.addresses[0]):
                with daemon.connect(address, tls=client) as wire:
                    reply = wire.exchange(request("/metrics")).expect_ok()
                    assert reply.header("x-frame-options") == "deny"
                    assert isinstance(wire.sock, ssl.SSLSocket)
                    assert wire.sock.cipher() == ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2", 128)
    finally:
        node_exporter.send_signal(signal.SIGTERM)
        node_exporter.wait(PATIENCE_SECONDS)
