"""Whatever exporter_exporter's file holds: what is made of it can be loaded, and no secret is told."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exporter_proxy.config import ConfigError, parse_config
from exporter_proxy.import_once import read
from exporter_proxy.imported import Imported
from tests.properties.test_config_fuzz import check_config

SECRET = "S3CR3T"

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SECRETS = st.builds(lambda before, after: f"{before}{SECRET}{after}", TEXT, TEXT)
NAMES = st.one_of(st.sampled_from(["node", "a b", "9", "-", "metrics", "proxy", ""]), TEXT)
DURATIONS = st.one_of(
    st.integers(0, 10**12), st.sampled_from(["0", "1s", "1m30s", "1.5s", "3h", "100us", "300ms"])
)
HTTP = st.fixed_dictionaries(
    {"port": st.integers(1, 65535)},
    optional={
        "verify": st.booleans(),
        "scheme": st.sampled_from(["http", "https", ""]),
        "address": st.one_of(
            st.sampled_from(["localhost", "::1", "[::1]", "10.0.0.5", "a.example.org"]), TEXT
        ),
        "path": st.one_of(
            st.sampled_from(["/metrics", "probe", "/x?a=b&c", "?", "/a:"]),
            TEXT,
            SECRETS.map(lambda secret: f"/x?token={secret}"),
        ),
        "headers": st.dictionaries(
            st.sampled_from(["X-A", "Authorization", "host", "Connection", "a b"]), SECRETS
        ),
        "basic_auth_username": st.sampled_from(["", "u", "a:b"]),
        "basic_auth_password": SECRETS,
        "tls_insecure_skip_verify": st.booleans(),
        "tls_cert_file": st.just("/nowhere/client.crt"),
    },
)
EXEC = st.fixed_dictionaries(
    {"command": st.sampled_from(["/bin/true", "true", "/nowhere/x", "./x"])},
    optional={
        "args": st.lists(SECRETS, max_size=3),
        "env": st.dictionaries(st.sampled_from(["A", "b_1", "1", "A-B"]), SECRETS),
    },
)
FILE = st.fixed_dictionaries(
    {"path": st.sampled_from(["/x.prom", "x.prom", "/*.prom", "/nowhere/x.prom", "/bin", "/ x'y\".prom"])},
    optional={"use_mtime": st.booleans(), "allow": TEXT},
)
MODULES = st.one_of(
    *(
        st.fixed_dictionaries({"method": st.just(method), method: keys}, optional={"timeout": DURATIONS})
        for method, keys in (("http", HTTP), ("exec", EXEC), ("file", FILE))
    )
)


def result_of(text: str) -> Imported | ConfigError:
    """Anything raised but a ``ConfigError`` fails the test."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "expexp.yml")
        file.write_text(text, encoding="utf-8")
        try:
            return read([str(file)])
        except ConfigError as error:
            return error


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, MODULES, min_size=1, max_size=5), st.none() | NAMES)
@example({"x": {"method": "http", "http": {"port": 1, "headers": {"X": "a\nb S3CR3T"}}}}, "x")
def test_what_is_imported_can_be_loaded(modules: dict[str, Any], default: str | None) -> None:
    top = {"modules": modules, **({} if default is None else {"defaultModule": default})}
    result = result_of(yaml.safe_dump(top, sort_keys=False, allow_unicode=True))
    if isinstance(result, ConfigError):
        told = str(result).splitlines()
        assert len(told) == len(result.problems)
    else:
        told = [str(note) for note in result.notes]
        config = parse_config(result.text.encode(), "config.yml")
        check_config(config)
        assert tuple(exporter.name for exporter in config.exporters) == result.names
        assert len(result.names) + len(result.left_out) == len(modules)
        assert result.may_hold_secrets or SECRET not in result.text
        for name in set(modules) & set(result.names):
            timeout = next(one for one in config.exporters if one.name == name).timeout_seconds
            assert (timeout is None) is (str(modules[name].get("timeout", "0")) == "0")
    assert all(line.isprintable() for line in told)
    assert not [line for line in told if SECRET in line]


@settings(max_examples=150, deadline=None)
@given(TEXT)
@example("modules: &a {x: *a}")
@example("modules: {x: {method: file, file: {path: !!binary x}}}")
@example("modules: {[a]: 1}")
@example("modules: {x: {<<: 1}}")
def test_odd_text_is_an_error_that_says_where(text: str) -> None:
    result = result_of(text)
    assert isinstance(result, ConfigError)
    assert result.problems
