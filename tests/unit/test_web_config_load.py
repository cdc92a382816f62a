"""The web config file beside config.yml: flag and key, problems of both at once, one hash for both."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from exporter_proxy.cli import main
from exporter_proxy.config import ConfigError, Overrides, config_warnings, load_config, parse_config
from exporter_proxy.config.files import refreshed

GOOD = b'listen: "127.0.0.1:0"\nexporters: {a: {url: http://127.0.0.1:9100/metrics}}\n'
HEADERS = "http_server_config: {headers: {X-Frame-Options: deny}}\n"
USER = "basic_auth_users: {a: $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG}\n"


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything is in the working directory: config.yml, web.yml (headers), users.yml, a certificate."""
    monkeypatch.chdir(tmp_path)
    Path("config.yml").write_bytes(GOOD)
    Path("web.yml").write_text(HEADERS)
    Path("users.yml").write_text(USER)
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path("server.key")
    issued.cert_chain_pems[0].write_to_path("server.crt")
    return tmp_path


def problems(data: bytes, flag: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "config.yml", Overrides(web_config_file=flag))
    return [str(problem) for problem in caught.value.problems]


def test_the_flag_beats_the_key() -> None:
    by_key = parse_config(b"web_config_file: web.yml\n" + GOOD, "config.yml").web
    by_flag = parse_config(
        b"web_config_file: web.yml\n" + GOOD, "config.yml", Overrides(web_config_file="users.yml")
    ).web
    assert by_key is not None
    assert by_flag is not None
    assert (by_key.source, by_key.headers) == ("web.yml", (("X-Frame-Options", "deny"),))
    assert (by_flag.source, by_flag.headers, len(by_flag.basic_auth_users)) == ("users.yml", (), 1)


def test_a_file_that_the_flag_replaces_is_not_read() -> None:
    data = b"web_config_file: no-such-file.yml\n" + GOOD
    assert parse_config(data, "config.yml", Overrides(web_config_file="web.yml")).web is not None


def test_a_flags_file_is_found_from_the_working_directory_and_a_keys_from_the_base_directory(
    tmp_path: Path,
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "web.yml").write_text(USER)
    by_key = parse_config(b"web_config_file: web.yml\n" + GOOD, "config.yml", base_dir=base)
    by_flag = parse_config(GOOD, "config.yml", Overrides(web_config_file="web.yml"), base_dir=base)
    assert by_key.web is not None
    assert by_key.web.source == str(base / "web.yml")
    assert by_flag.web is not None
    assert by_flag.web.headers


def test_tls_and_a_web_config_file_exclude_each_other() -> None:
    data = b"tls: {certfile: server.crt, keyfile: server.key}\n" + GOOD
    assert parse_config(data, "config.yml").tls is not None
    message = "is given, too: remove tls, and set tls_server_config in that file"
    assert problems(data, "web.yml") == [f"config.yml:1:6: tls: --web.config.file {message}"]
    assert problems(b"web_config_file: web.yml\n" + data) == [
        f"config.yml:2:6: tls: web_config_file {message}"
    ]


@pytest.mark.parametrize("way", ["flag", "key"])
def test_the_problems_of_both_files_come_together_each_with_its_file(way: str) -> None:
    Path("web.yml").write_text("http2: true\nbasic_auth_users: {a: b}\n")
    key = b"web_config_file: web.yml\n" if way == "key" else b"# nothing here\n"
    found = problems(key + b"lissten: x\n" + GOOD, "web.yml" if way == "flag" else None)
    assert [problem.split(" ")[0] for problem in found] == [
        "config.yml:2:1:",
        "web.yml:1:1:",
        "web.yml:2:23:",
    ]


@pytest.mark.parametrize("data", [b"", b"- a", b"a: ["])
def test_the_flags_file_is_checked_even_if_the_other_is_no_configuration(data: bytes) -> None:
    Path("web.yml").write_text("http2: true\n")
    first, second = problems(data, "web.yml")
    assert first.startswith("config.yml")
    assert second.startswith("web.yml:1:1: http2: unknown key")


def test_a_flag_that_names_no_file() -> None:
    assert problems(GOOD, "gone/web.yml") == [
        "gone/web.yml: no such file; name the right one with --web.config.file"
    ]


def test_the_fingerprint_covers_both_files() -> None:
    plain = parse_config(GOOD, "config.yml")
    assert plain.fingerprint == plain.sha256 == hashlib.sha256(GOOD).hexdigest()
    fingerprints = {plain.fingerprint}
    for text in ("", HEADERS, USER):
        Path("web.yml").write_text(text)
        config = parse_config(GOOD, "config.yml", Overrides(web_config_file="web.yml"))
        assert config.sha256 == plain.sha256
        assert config.web is not None
        assert config.web.sha256 == hashlib.sha256(text.encode()).hexdigest()
        fingerprints.add(config.fingerprint)
        assert replace(config, web=None) == plain
    assert len(fingerprints) == 4


def test_a_refresh_reads_it_again_and_nothing_else() -> None:
    config = load_config("config.yml", Overrides(web_config_file="web.yml"))
    assert refreshed(config) == config
    Path("config.yml").write_text("no configuration any more")
    Path("web.yml").write_text(USER)
    fresh = refreshed(config)
    assert fresh.web is not None
    assert (fresh.web.headers, len(fresh.web.basic_auth_users)) == ((), 1)
    assert fresh.fingerprint != config.fingerprint
    assert replace(fresh, web=None) == replace(config, web=None)
    Path("web.yml").write_text("http3: true\n")
    with pytest.raises(ConfigError, match=r"^web.yml:1:1: http3: unknown key"):
        refreshed(config)


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        (["check", "--web.config.file=web.yml"], 0, "config.yml: OK (1 exporter)\n"),
        (["check", "--web.config.file", "users.yml"], 0, "config.yml: OK (1 exporter)\n"),
        (["check", "--web.config.file="], 0, "config.yml: OK (1 exporter)\n"),
        (["check", "-web.config.file=bad.yml"], 1, "bad.yml:1:1: tls: unknown key"),
    ],
)
def test_check_judges_it(
    arguments: list[str], status: int, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yml").write_text("tls: {}\n")
    assert main(arguments) == status
    shown = capsys.readouterr()
    assert (shown.out or shown.err).startswith(output)


@pytest.mark.parametrize(
    ("rules", "warning"),
    [
        ("client_auth_type: NoClientCert", None),
        (
            "client_auth_type: RequestClientCert",
            "client_auth_type RequestClientCert does nothing, no client is",
        ),
        (
            "client_auth_type: RequestClientCert, client_ca_file: server.crt",
            "client_auth_type RequestClientCert",
        ),
        ("client_auth_type: VerifyClientCertIfGiven", "client_auth_type VerifyClientCertIfGiven takes"),
        (
            "client_auth_type: RequireAndVerifyClientCert",
            "certificates of every CA that this host trusts: set",
        ),
        ("client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.crt", None),
    ],
)
def test_rules_for_clients_that_are_worth_a_word(rules: str, warning: str | None) -> None:
    Path("web.yml").write_text(
        f"tls_server_config: {{cert_file: server.crt, key_file: server.key, {rules}}}\n"
    )
    warnings = config_warnings(load_config("config.yml", Overrides(web_config_file="web.yml")))
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


def test_paths_stay_relative_to_the_web_config_file(tmp_path: Path) -> None:
    """Named from another working directory, it still finds its certificate."""
    Path("web.yml").write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n")
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    config = load_config("../config.yml", Overrides(web_config_file="../web.yml"))
    assert config.server_tls is not None
    assert str(config.server_tls.cert) == "../server.crt"
