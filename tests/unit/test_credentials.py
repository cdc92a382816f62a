"""Passwords, tokens and TLS files: read as they are now, refused unshown, equal when unchanged."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from exporter_proxy.config import Config, ConfigError, parse_config
from exporter_proxy.config.secrets import read_password, read_token
from exporter_proxy.config.values import BadValue
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.upstreams import credentials as module
from exporter_proxy.upstreams import make_upstream
from exporter_proxy.upstreams.credentials import client_context, read_credentials

Read = Callable[[str], str]


def config(directory: Path, **entry: Any) -> Config:
    text = yaml.safe_dump({"exporters": {"x": {"url": "https://127.0.0.1:9100/metrics", **entry}}})
    return parse_config(text.encode(), "config.yml", base_dir=directory)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with ca.crt, the pairs ``a`` and ``b``, ``password`` and ``token``."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    for name in ("a", "b"):
        issued = authority.issue_cert("prometheus.test")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    (tmp_path / "password").write_text("s3cr3t\n")
    (tmp_path / "token").write_text("t0k3n\n")
    return tmp_path


TLS = {"ca_file": "ca.crt", "cert_file": "a.crt", "key_file": "a.key", "server_name": "exporter.test"}


@pytest.mark.parametrize("read", [read_password, read_token])
@pytest.mark.parametrize("content", [b"s3cr3t", b"s3cr3t\n", b"s3cr3t\r\n"])
def test_one_line_break_at_the_end_is_not_part_of_it(tmp_path: Path, read: Read, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    assert read(str(tmp_path / "secret")) == "s3cr3t"


@pytest.mark.parametrize("password", ["pass word", 'a:b"c\\d', "pässwörd", "!@#%&*{}[]"])
def test_a_password_may_have_what_prints(tmp_path: Path, password: str) -> None:
    (tmp_path / "secret").write_text(password, encoding="utf-8")
    assert read_password(str(tmp_path / "secret")) == password


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"s3cr3t\n\n", "empty line"),
        (b"s3cr3t \n", "blank"),
        (b"\ts3cr3t", "blank"),
        (b"s3cr3t\nmore\n", "print"),
        (b"s3\0cr3t\n", "print"),
        (b"s3\x1bcr3t\n", "print"),
        ("\ufeffs3cr3t\n".encode(), "print"),
        (b"s3cr3t\xff\n", "UTF-8"),
        (b"s3cr3t" * 20_000, "KiB"),
    ],
)
@pytest.mark.parametrize("read", [read_password, read_token])
def test_what_is_no_secret_is_refused_without_being_shown(
    tmp_path: Path, read: Read, content: bytes, why: str
) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(BadValue, match=why) as caught:
        read(str(tmp_path / "secret"))
    assert caught.value.secret
    assert "s3" not in f"{caught.value} {caught.value.why}"


@pytest.mark.parametrize("token", ["two words", "Bearer t0k3n", "tökén"])
def test_a_token_is_one_word(tmp_path: Path, token: str) -> None:
    (tmp_path / "secret").write_text(token, encoding="utf-8")
    with pytest.raises(BadValue, match="one word"):
        read_token(str(tmp_path / "secret"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadValue, match="not a regular file"):
        read_password(str(tmp_path / "pipe"))


@pytest.mark.parametrize(
    ("auth", "pair"),
    [
        ({"username": "u", "password": "s3cr3t"}, "u:s3cr3t"),
        ({"username": "u", "password": ""}, "u:"),
        ({"username": "u", "password": 123}, "u:123"),
        ({"username": "", "password": "s3:cr3t"}, ":s3:cr3t"),
        ({"username": "ü", "password": "pä ss"}, "ü:pä ss"),
        ({"username": "u", "password_file": "password"}, "u:s3cr3t"),
    ],
)
def test_basic_auth_is_sent_in_utf_8(files: Path, auth: dict[str, Any], pair: str) -> None:
    (exporter,) = config(files, basic_auth=auth).exporters
    authorization = read_credentials(exporter).authorization
    assert authorization is not None
    assert authorization.startswith(b"Basic ")
    assert base64.b64decode(authorization[6:]).decode() == pair


def test_a_token_is_sent_as_it_is(files: Path) -> None:
    (exporter,) = config(files, bearer_token_file="token").exporters
    assert read_credentials(exporter).authorization == b"Bearer t0k3n"


def test_the_header_goes_to_the_exporter_in_place_of_the_scrapers(files: Path) -> None:
    made = config(files, bearer_token_file="token", pass_headers=["Authorization"])
    (route,) = build_routes(made, make_upstream).routes
    assert route.configured_headers == [(b"Host", b"127.0.0.1:9100"), (b"Authorization", b"Bearer t0k3n")]
    assert b"authorization" not in route.allowed_headers


def test_reprs_show_no_secret(files: Path) -> None:
    made = config(files, basic_auth={"username": "u", "password": "s3cr3t"}, headers={"X-Key": "s3cr3t"})
    (route,) = build_routes(made, make_upstream).routes
    pair = base64.b64encode(b"u:s3cr3t").decode()
    for value in (
        made,
        made.exporters,
        route.credentials,
        route,
        route.transport,
        vars(route.credentials.__class__),
    ):
        assert "s3cr3t" not in repr(value)
        assert pair not in repr(value)


# What a change of the files does to a route.


def replaced_by(files: Path, old: str, new: str) -> None:
    (files / old).write_bytes((files / new).read_bytes())


def new_password(files: Path) -> None:
    (files / "password").write_text("other\n")


def new_pair(files: Path) -> None:
    replaced_by(files, "a.crt", "b.crt")
    replaced_by(files, "a.key", "b.key")


def new_authority(files: Path) -> None:
    trustme.CA().cert_pem.write_to_path(files / "ca.crt")


BASIC = {"username": "u", "password_file": "password"}


def test_routes_are_taken_over_while_the_files_say_the_same(files: Path) -> None:
    made = config(files, tls=TLS, basic_auth=BASIC)
    before = build_routes(made, make_upstream)
    for name in ("password", "a.crt", "a.key", "ca.crt"):
        (files / name).write_bytes((files / name).read_bytes())
    (files / "password").write_text("s3cr3t")  # the line break was not part of it
    assert build_routes(made, make_upstream, before).routes[0] is before.routes[0]


@pytest.mark.parametrize("change", [new_password, new_pair, new_authority])
def test_a_changed_file_gives_a_new_route_with_the_same_record(
    files: Path, change: Callable[[Path], None]
) -> None:
    made = config(files, tls=TLS, basic_auth=BASIC)
    before = build_routes(made, make_upstream)
    change(files)
    after = build_routes(made, make_upstream, before)
    assert after.routes[0].credentials != before.routes[0].credentials
    assert after.routes[0].transport is not before.routes[0].transport
    assert after.routes[0].record is before.routes[0].record
    assert build_routes(made, make_upstream, after).routes[0] is after.routes[0]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("password", b"", "config.yml: exporters.x.basic_auth.password_file: the file is empty"),
        ("ca.crt", b"", "config.yml: exporters.x.tls.ca_file: no PEM certificate in this file"),
        ("a.crt", b"", "config.yml: exporters.x.tls.cert_file: no PEM certificate in this file"),
        ("a.key", b"", "config.yml: exporters.x.tls.key_file: no PEM private key in this file"),
        ("a.key", None, "config.yml: exporters.x.tls.key_file: no such file"),
        ("password", None, "config.yml: exporters.x.basic_auth.password_file: no such file"),
    ],
)
def test_a_file_that_became_useless_is_named(
    files: Path, name: str, content: bytes | None, problem: str
) -> None:
    made = config(files, tls=TLS, basic_auth=BASIC)
    if content is None:
        (files / name).unlink()
    else:
        (files / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        build_routes(made, make_upstream)
    assert str(caught.value).startswith(problem)


def test_all_useless_files_are_named_at_once(files: Path) -> None:
    entries = {
        "a": {"url": "https://127.0.0.1", "tls": TLS},
        "b": {"url": "https://127.0.0.1", "bearer_token_file": "token"},
        "c": {"url": "https://127.0.0.1"},
    }
    made = parse_config(yaml.safe_dump({"exporters": entries}).encode(), "config.yml", base_dir=files)
    replaced_by(files, "a.key", "b.key")
    (files / "token").unlink()
    with pytest.raises(ConfigError) as caught:
        build_routes(made, make_upstream)
    assert [problem.key_path for problem in caught.value.problems] == [
        "exporters.a.tls.key_file",
        "exporters.b.bearer_token_file",
    ]


# The sections as the file has them.


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        (
            {**TLS, "key_file": "b.key"},
            "tls.key_file: this key does not belong to the certificate in tls.cert_file",
        ),
        ({**TLS, "key_file": "password"}, "tls.key_file: no PEM private key in this file"),
        ({**TLS, "cert_file": "password"}, "tls.cert_file: no PEM certificate in this file"),
        ({**TLS, "ca_file": "a.key"}, "tls.ca_file: no PEM certificate in this file"),
        ({**TLS, "ca_file": "."}, 'tls.ca_file: ".": not a regular file'),
    ],
)
def test_unusable_tls_files(files: Path, tls: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(files, tls=tls)
    (only,) = caught.value.problems
    assert f"exporters.x.{problem}" in str(only)
    assert only.line is not None


@pytest.mark.parametrize("key", ["bearer_token_file", "password_file"])
def test_unusable_secret_files(files: Path, key: str) -> None:
    (files / "token").write_text("t0k3n\nt0k3n\n")
    entry = {key: "token"} if key == "bearer_token_file" else {"basic_auth": {"username": "u", key: "token"}}
    with pytest.raises(ConfigError) as caught:
        config(files, **entry)
    (only,) = caught.value.problems
    assert only.key_path.endswith(key)
    assert "t0k3n" not in str(only)


# Contexts


def test_exporters_with_the_same_files_share_a_context(files: Path) -> None:
    (first,) = config(files, tls=TLS).exporters
    (second,) = config(files, tls={**TLS, "server_name": "other.test"}, timeout="5s").exporters
    context = client_context(first, read_credentials(first))
    assert client_context(second, read_credentials(second)) is context
    (other,) = config(files, tls={**TLS, "cert_file": "b.crt", "key_file": "b.key"}).exporters
    assert client_context(other, read_credentials(other)) is not context
    (blind,) = config(files, tls=TLS, insecure_skip_verify=True).exporters
    assert client_context(blind, read_credentials(blind)) is not context


def test_a_ca_file_is_trusted_alone(files: Path) -> None:
    (exporter,) = config(files, tls={"ca_file": "ca.crt"}).exporters
    context = client_context(exporter, read_credentials(exporter))
    assert context.cert_store_stats()["x509_ca"] == 1
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_the_environment_adds_no_authority(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenSSL's own defaults would load, and the log of keys that Python's would write."""
    monkeypatch.setenv("SSL_CERT_FILE", str(files / "ca.crt"))
    monkeypatch.setenv("SSL_CERT_DIR", str(files))
    monkeypatch.setenv("SSLKEYLOGFILE", str(files / "keys"))
    monkeypatch.setattr(module, "_contexts", module._Contexts())
    assert ssl.create_default_context().cert_store_stats()["x509_ca"] == 1, "the trap is set"
    (exporter,) = config(files).exporters
    context = client_context(exporter, read_credentials(exporter))
    subjects = [str(one["subject"]) for one in context.get_ca_certs()]
    assert not any("trustme" in subject for subject in subjects)
    assert context.keylog_filename is None


def test_contexts_are_not_kept_without_end(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_contexts", module._Contexts())
    monkeypatch.setattr(module, "_MAX_CONTEXTS", 2)
    for name in ("ca.crt", "a.crt", "b.crt"):
        (exporter,) = config(files, tls={"ca_file": name}).exporters
        context = client_context(exporter, read_credentials(exporter))
        assert client_context(exporter, read_credentials(exporter)) is context
    assert len(module._contexts._kept) == 2
