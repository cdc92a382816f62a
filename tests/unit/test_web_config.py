"""web.config.files: ``tests/testdata/web_config/good`` loads, ``bad`` gives exactly the text beside it."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from exporter_proxy.config import ConfigError, Pem, RateLimit, ServerTls, WebConfig, load_web_config
from exporter_proxy.config.ciphers import INSECURE_SUITES, OPENSSL_NAMES, TLS13_SUITES, is_available
from exporter_proxy.config.web import HTTP_SERVER_KEYS, RATE_LIMIT_KEYS, WEB_KEYS, parse_web_config
from exporter_proxy.config.web_tls import TLS_SERVER_KEYS
from tests.testdata.web_config_site import write_site

TESTDATA = Path(__file__).parents[1] / "testdata" / "web_config"
BAD = sorted((TESTDATA / "bad").glob("*.yml"))
HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"

NOTHING = WebConfig(source="web.yml", tls=None, headers=(), basic_auth_users=(), rate_limit=None)
TLS = ServerTls(cert=Pem(file="cert.pem"), key=Pem(file="key.pem"))
GOOD = {
    "empty": NOTHING,
    "only-comments": NOTHING,
    "nulls": NOTHING,
    "blanks": NOTHING,
    "minimal": replace(NOTHING, tls=TLS),
    "tls13-suites": replace(NOTHING, tls=replace(TLS, min_version="TLS13", curve="X25519")),
    "every-key": WebConfig(
        source="web.yml",
        tls=ServerTls(
            cert=Pem(file="./cert.pem"),
            key=Pem(file="tls/key.pem"),
            client_ca=Pem(file="ca.pem"),
            client_auth_type="RequireAndVerifyClientCert",
            client_allowed_sans=(
                "prometheus.example.org",
                "10.0.0.5",
                "2001:db8::5",
                "ops@example.org",
                "spiffe://example.org/prometheus",
                "7",
            ),
            min_version="TLS12",
            max_version="TLS12",
            ciphers=("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-GCM-SHA256", "AES256-SHA"),
            prefer_server_ciphers=False,
            curve="secp384r1",
        ),
        headers=(
            ("Content-Security-Policy", "default-src 'self'"),
            ("X-Frame-Options", "sameorigin"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-XSS-Protection", "0"),
            ("Strict-Transport-Security", "max-age=31536000; includeSubDomains"),
        ),
        basic_auth_users=(
            ("prometheus", HASH),
            ("", HASH.replace("$2y$10", "$2a$04")),
            ("5", HASH.replace("$2y$10", "$2b$31")),
        ),
        rate_limit=RateLimit(interval_seconds=90.0, burst=20),
    ),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


def problems_of(data: bytes, source: str = "web.yml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_web_config(data, source)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("name", GOOD)
def test_good_file(name: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    loaded = parse_web_config((TESTDATA / "good" / f"{name}.yml").read_bytes(), "web.yml")
    assert replace(loaded, sha256="") == GOOD[name]
    assert "s3cr3t" not in repr(loaded)
    assert HASH[7:] not in repr(loaded)


def test_every_good_file_is_tested() -> None:
    assert {file.stem for file in (TESTDATA / "good").glob("*.yml")} == set(GOOD)


def test_the_file_with_every_key_has_every_key() -> None:
    text = (TESTDATA / "good" / "every-key.yml").read_text()
    found = re.findall(r"^ {0,2}([a-z_0-9]+):", text, re.MULTILINE)
    keys = {*WEB_KEYS, *TLS_SERVER_KEYS, *HTTP_SERVER_KEYS, *RATE_LIMIT_KEYS}
    assert set(found) - {"prometheus", "5"} == keys


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_bad_file_gives_exactly_these_problems(
    file: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site)
    shown = "\n".join(problems_of(file.read_bytes()))
    assert f"{shown}\n" == file.with_suffix(".txt").read_text()


def test_every_expectation_has_its_file() -> None:
    assert BAD
    assert {file.stem for file in BAD} == {file.stem for file in (TESTDATA / "bad").glob("*.txt")}


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_no_message_shows_a_secret(file: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    with pytest.raises(ConfigError) as caught:
        parse_web_config(file.read_bytes(), "web.yml")
    shown = f"{caught.value} {caught.value!r} {caught.value.args}"
    assert "s3cr3t" not in shown
    assert "X0h1gDsPszWURQaxFh" not in shown
    assert "531947" not in shown


@pytest.mark.parametrize("working_directory", ["/", "elsewhere"])
def test_relative_paths_are_taken_from_the_files_own_directory(
    working_directory: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / working_directory)
    file = site / "web.yml"
    file.write_text("tls_server_config: {cert_file: cert.pem, key_file: tls/key.pem}\n")
    for path in (str(file), os.path.relpath(file)):
        directory = str(Path(path).parent)
        assert load_web_config(path).tls == ServerTls(
            Pem(file=f"{directory}/cert.pem"), Pem(file=f"{directory}/tls/key.pem")
        )


def test_inline_and_files_can_be_mixed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    cert, key, authority = ((site / name).read_text() for name in ("cert.pem", "key.pem", "ca.pem"))

    inline = yaml.safe_dump({"tls_server_config": {"cert": cert, "key": key}})
    loaded = parse_web_config(inline.encode(), "web.yml").tls
    assert loaded == ServerTls(Pem(text=cert), Pem(text=key))
    assert "BEGIN" not in f"{loaded!r} {loaded.cert} {loaded.key}"

    auth_type = "RequireAndVerifyClientCert"
    mixed = {"cert_file": "cert.pem", "key": key, "client_ca": authority, "client_auth_type": auth_type}
    assert parse_web_config(
        yaml.safe_dump({"tls_server_config": mixed}).encode(), "web.yml"
    ).tls == ServerTls(Pem(file="cert.pem"), Pem(text=key), Pem(text=authority), client_auth_type=auth_type)
    wrong = {"key": (site / "other.key").read_text(), "cert_file": "cert.pem"}
    (problem,) = problems_of(yaml.safe_dump({"tls_server_config": wrong}).encode())
    assert problem.startswith("web.yml:3:8: tls_server_config.key: this key does not belong to the")
    assert problem.endswith("certificate in tls_server_config.cert_file")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; name the right one with --web\.config\.file$"):
        load_web_config(str(tmp_path / "web.yml"))


@pytest.mark.parametrize(("name", "openssl_name"), OPENSSL_NAMES.items())
def test_each_suite_is_one_of_openssl_with_the_same_parts(name: str, openssl_name: str) -> None:
    """OpenSSL itself says what a suite is made of: compared with what Go's name says."""
    assert is_available(openssl_name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(openssl_name)
    (suite,) = [found for found in context.get_ciphers() if found["protocol"] != "TLSv1.3"]
    exchange, _, parts = name.removeprefix("TLS_").partition("_WITH_")
    description = str(suite["description"])
    assert ("Kx=ECDH" in description) == exchange.startswith("ECDHE")
    assert f"Au={exchange.rpartition('_')[2]}" in description
    if "CHACHA20" in parts:
        assert "Enc=CHACHA20/POLY1305(256)" in description
    else:
        algorithm, bits, mode = parts.split("_")[:3]
        assert f"Enc={algorithm}{'GCM' if mode == 'GCM' else ''}({bits})" in description


def test_suites_do_not_overlap() -> None:
    assert not {*OPENSSL_NAMES} & TLS13_SUITES
    assert not ({*OPENSSL_NAMES} | TLS13_SUITES) & INSECURE_SUITES
    assert not is_available("NO-SUCH-SUITE")


def test_a_suite_that_this_openssl_lacks_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No build of OpenSSL lacks one of those above; RC4 stands for one."""
    monkeypatch.chdir(site)
    monkeypatch.setitem(OPENSSL_NAMES, "TLS_RSA_WITH_AES_128_CBC_SHA", "RC4-SHA")
    (problem,) = problems_of(
        b"tls_server_config: {cert_file: cert.pem, key_file: key.pem, "
        b"cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]}"
    )
    assert problem.endswith(f"{ssl.OPENSSL_VERSION} of this host does not have it; remove it")
