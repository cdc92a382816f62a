"""Whatever a web.config.file holds, loading it gives a sane ``WebConfig`` or a ``ConfigError``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.config import ConfigError, WebConfig
from exporter_proxy.config.ciphers import OPENSSL_NAMES
from exporter_proxy.config.schema import ServerTls
from exporter_proxy.config.web import (
    HEADER_KINDS,
    HTTP_SERVER_KEYS,
    RATE_LIMIT_KEYS,
    WEB_KEYS,
    parse_web_config,
)
from exporter_proxy.config.web_tls import CLIENT_AUTH_TYPES, TLS_SERVER_KEYS
from exporter_proxy.front.answers import AddedHeaders
from exporter_proxy.front.tls import server_context
from tests.testdata.web_config_site import write_site

GOOD = Path(__file__).parents[1] / "testdata" / "web_config" / "good"
HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
fuzz = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


def load(site: Path, data: bytes) -> WebConfig | None:
    """The configuration if ``data`` is one. Anything raised but a ``ConfigError`` fails the test."""
    source = str(site / "web.yml")
    try:
        config = parse_web_config(data, source)
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.source == source
            assert str(problem).isprintable()
        assert len(str(error).splitlines()) == len(error.problems)
        return None
    if config.tls is not None:
        check_tls(config.tls)
    for name, value in config.headers:
        assert name in HEADER_KINDS
        assert re.fullmatch(r"[\t -~]+", value)
    AddedHeaders.of(config.headers)
    assert all(re.fullmatch(r"\$2[aby]\$[0-9]{2}\$.{53}", one) for _, one in config.basic_auth_users)
    assert config.rate_limit is None or config.rate_limit.burst > 0
    assert HASH[7:] not in repr(config)
    return config


def check_tls(tls: ServerTls) -> None:
    assert tls.client_auth_type in CLIENT_AUTH_TYPES
    assert tls.min_version <= tls.max_version
    assert not tls.client_allowed_sans or tls.client_auth_type == "RequireAndVerifyClientCert"
    assert set(tls.ciphers) <= set(OPENSSL_NAMES.values())
    server_context(tls)  # what was checked can be used


@fuzz
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_arbitrary_bytes(site: Path, data: bytes) -> None:
    load(site, data)


PEM = st.sampled_from(
    ["cert.pem", "key.pem", "tls/key.pem", "ca.pem", "other.key", "half.pem", "garbage.pem"]
)
WORDS = st.one_of(
    PEM,
    st.sampled_from(
        [
            *(*CLIENT_AUTH_TYPES, "RequireAnyClientCert", "TLS12", "TLS13", "TLS10", "CurveP256", "X25519"),
            *(
                "TLS_AES_128_GCM_SHA256",
                "TLS_RSA_WITH_AES_256_CBC_SHA",
                "nosniff",
                "deny",
                "1s",
                "0s",
                "",
                "tls",
            ),
            *(
                HASH,
                HASH[:-1],
                "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n",
                "a\0b",
                "x" * 300,
            ),
        ]
    ),
)
SCALARS = WORDS | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def section(keys: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(keys), VALUES, max_size=4) | VALUES


@fuzz
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "tls_server_config": section(TLS_SERVER_KEYS),
            "http_server_config": section(HTTP_SERVER_KEYS)
            | st.fixed_dictionaries({"headers": section(tuple(HEADER_KINDS))}),
            "basic_auth_users": st.dictionaries(st.text(max_size=6), st.just(HASH) | SCALARS, max_size=3)
            | VALUES,
            "rate_limit": section(RATE_LIMIT_KEYS),
            "other": VALUES,
        },
    )
)
def test_arbitrary_values_under_known_keys(site: Path, structure: dict[str, Any]) -> None:
    load(site, yaml.safe_dump(structure, allow_unicode=True).encode("utf-8"))
    assert set(structure) - {"other"} <= set(WEB_KEYS)


@fuzz
@given(
    cert=PEM,
    key=PEM,
    more=st.fixed_dictionaries(
        {},
        optional={
            "client_ca_file": PEM,
            "client_auth_type": st.sampled_from(CLIENT_AUTH_TYPES),
            "client_allowed_sans": st.lists(
                st.text(max_size=6) | st.sampled_from(["::1", "a@b"]), max_size=2
            ),
            "min_version": st.sampled_from(["TLS12", "TLS13"]),
            "max_version": st.sampled_from(["TLS12", "TLS13"]),
            "cipher_suites": st.lists(st.sampled_from(sorted(OPENSSL_NAMES)), max_size=3),
            "curve_preferences": st.lists(st.sampled_from(["CurveP256", "CurveP384", "X25519"]), max_size=2),
            "prefer_server_cipher_suites": st.booleans(),
        },
    ),
)
def test_what_is_taken_for_good_makes_a_context(
    site: Path, cert: str, key: str, more: dict[str, Any]
) -> None:
    section = {"cert_file": cert, "key_file": key, **more}
    loaded = load(site, yaml.safe_dump({"tls_server_config": section}, allow_unicode=True).encode())
    if (cert, key) not in (("cert.pem", "key.pem"), ("cert.pem", "tls/key.pem")):
        assert loaded is None


@fuzz
@given(st.data())
def test_mutations_of_good_files(site: Path, data: st.DataObject) -> None:
    """Some characters of a file that loads are cut, doubled or replaced."""
    text = data.draw(st.sampled_from(sorted(GOOD.glob("*.yml")))).read_text()
    assert load(site, text.encode()) is not None
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        piece = data.draw(
            st.just(text[start:end] * 2)
            | st.sampled_from(["", "\n", " ", "  ", ":", "&a ", "*a", "<<: *a", "!!int ", "[", "}", "0", "%"])
            | st.text(max_size=3)
        )
        text = text[:start] + piece + text[end:]
    load(site, text.encode("utf-8", "replace"))
