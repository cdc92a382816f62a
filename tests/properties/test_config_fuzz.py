"""Whatever a configuration file holds, loading it gives a sane ``Config`` or a ``ConfigError``."""

from __future__ import annotations

import ipaddress
import math
import re
import string
from pathlib import Path
from typing import Any

import httpx
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.config import Config, ConfigError, Exporter, ListenAddress, config_warnings, parse_config
from exporter_proxy.config.exporters import EXPORTER_KEYS
from exporter_proxy.config.load import TOP_KEYS
from exporter_proxy.config.schema import MAX_TIMEOUT_SECONDS, UpstreamUrl
from exporter_proxy.config.values import duration, size

GOOD_DIRECTORY = Path(__file__).parents[1] / "testdata" / "config" / "good"
# Without the keys whose files would have to be there.
NEEDS_FILES = re.compile(
    r"(?m)^ *(?:tls|web_config_file):.*\n(  (cert|key)file.*\n)*"
    r"|^ *bearer_tokens?_file:.*\n|^ *basic_auth:.*password_file.*\n"
)
GOOD = [
    NEEDS_FILES.sub("", file.read_text(encoding="utf-8")) for file in sorted(GOOD_DIRECTORY.glob("*.yml"))
]

PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+/?")
POSITION = re.compile(r"config\.yml(:[1-9][0-9]*:[1-9][0-9]*)?: ")

fuzz = settings(max_examples=200, deadline=None)


def load(data: bytes) -> Config | None:
    """The configuration if ``data`` is one. Anything raised but a ``ConfigError`` fails the test."""
    try:
        config = parse_config(data, "config.yml")
    except ConfigError as error:
        check_error(error)
        return None
    check_config(config)
    assert parse_config(data, "config.yml") == config, "the same file is the same configuration"
    return config


def check_error(error: ConfigError) -> None:
    assert error.problems
    assert len(str(error).splitlines()) == len(error.problems), "a problem is a line"
    for line in str(error).splitlines():
        assert POSITION.match(line)
        assert line.isprintable()
    places = [(problem.line or 0, problem.column or 0) for problem in error.problems]
    assert places == sorted(places)


def check_config(config: Config) -> None:
    assert config.listen
    assert all(0 <= address.port <= 65535 for address in config.listen if isinstance(address, ListenAddress))
    assert config.route_prefix == "" or PATH.fullmatch(config.route_prefix)
    assert not config.route_prefix.endswith("/")
    assert 0 <= config.shutdown_timeout_seconds < math.inf
    assert 0 < config.keep_alive_timeout_seconds < math.inf
    assert 0 < config.read_header_timeout_seconds < math.inf
    assert config.max_header_bytes >= 1024
    assert config.max_connections >= 1
    assert config.exporters
    assert len({exporter.name for exporter in config.exporters}) == len(config.exporters)
    assert len({exporter.path for exporter in config.exporters}) == len(config.exporters)
    for exporter in config.exporters:
        check_exporter(exporter)
    for network in (*(config.allow_clients or ()), *(config.allow_upstreams or ())):
        assert isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network)
    assert all(warning.isprintable() for warning in config_warnings(config))


def check_exporter(exporter: Exporter) -> None:
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", exporter.name)
    assert PATH.fullmatch(exporter.path)
    assert exporter.path != "/metrics"
    assert not exporter.path.startswith("/-/")
    assert not {".", ".."} & set(exporter.path.split("/"))
    if exporter.url is not None:
        check_url(exporter.url)
    assert [exporter.url, exporter.file, exporter.command].count(None) == 2
    assert exporter.timeout_seconds is None or 0 < exporter.timeout_seconds <= MAX_TIMEOUT_SECONDS
    assert 0 <= exporter.timeout_offset_seconds <= MAX_TIMEOUT_SECONDS
    assert exporter.max_response_bytes >= 1
    assert exporter.max_concurrent >= 1
    assert all(name and isinstance(value, str) for name, value in exporter.params)
    for name, value in exporter.headers:
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        assert re.fullmatch(r"[\t -~]*", value)
        assert name.lower() not in ("connection", "content-length", "transfer-encoding")
    assert all(name == name.lower() and name.isascii() and name != "host" for name in exporter.pass_headers)
    assert exporter.content_type is None or exporter.content_type.isprintable()


def check_url(url: UpstreamUrl) -> None:
    assert url.scheme in ("http", "https", "http+unix")
    assert (url.scheme == "http+unix") == (url.socket_path is not None) == (url.port == 0)
    assert 0 <= url.port <= 65535
    if url.socket_path is not None:
        assert re.fullmatch(r"/[!-~]{0,106}", url.socket_path)
        assert url.host == "localhost"
    assert re.fullmatch(r"/[!-~]*", url.target)
    assert "#" not in url.target
    # The way the upstream client sees it: another host there would be a hole in allow_upstreams.
    assert httpx.URL(f"{url.scheme}://{url.authority}/").host.lower() == url.host.lower()


@fuzz
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
    )
)
def test_arbitrary_bytes(data: bytes) -> None:
    load(data)


@fuzz
@given(st.text(alphabet="abu[]{}:,-?&*!|>'\"%#@`<~. \n\t019", max_size=120))
def test_arbitrary_yaml_punctuation(text: str) -> None:
    load(text.encode())
    load(b"exporters:\n  a:\n    url: http://h\n    params: " + text.encode())


WORDS = st.sampled_from(
    [
        *TOP_KEYS,
        *EXPORTER_KEYS,
        *("certfile", "keyfile", "format", "fields", "<<", "node_exporter", "", "/a", "/a/metrics"),
        *(
            "10s",
            "64MiB",
            "10.0.0.0/8",
            "::1",
            ":9099",
            "http://127.0.0.1:9100/metrics",
            "http://[::1]",
            "ltsv",
        ),
    ]
)
SCALARS = st.one_of(
    WORDS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.text(max_size=12),
    st.binary(max_size=4),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@fuzz
@given(st.dictionaries(st.sampled_from(TOP_KEYS), VALUES, max_size=5))
def test_arbitrary_structures_under_known_keys(structure: dict[str, Any]) -> None:
    load(yaml.safe_dump(structure, allow_unicode=True).encode("utf-8"))


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "on", "x.y", "-", "metrics"]),
        st.fixed_dictionaries(
            {"url": st.sampled_from(["http://h", "https://[::1]:1/x?y", "http://127.0.0.1:9100"])},
            optional={key: VALUES for key in EXPORTER_KEYS if key != "url"},
        ),
        min_size=1,
        max_size=3,
    )
)
def test_arbitrary_values_of_an_exporter(exporters: dict[str, Any]) -> None:
    load(yaml.safe_dump({"exporters": exporters}, allow_unicode=True).encode("utf-8"))


@fuzz
@given(st.data())
def test_mutations_of_good_files(data: st.DataObject) -> None:
    """Some characters of a file that loads are cut, doubled or replaced."""
    text = data.draw(st.sampled_from(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        piece = data.draw(
            st.one_of(
                st.just(""),
                st.just(text[start:end] * 2),
                st.sampled_from(
                    ["\n", " ", "  ", ":", "&a ", "*a", "<<: *a", "!!int ", "[", "}", "0", "%", "@"]
                ),
                st.text(max_size=3),
            )
        )
        text = text[:start] + piece + text[end:]
    load(text.encode("utf-8", "replace"))


def test_the_good_files_load_before_they_are_mutated() -> None:
    """Otherwise the mutations would only ever test what is wrong with the original."""
    assert len(GOOD) >= 5
    assert all(load(text.encode()) is not None for text in GOOD)


HOSTS = st.text(alphabet=string.ascii_letters + string.digits + "-_.:[]%@\\/?#", max_size=12)


@fuzz
@given(
    HOSTS,
    st.sampled_from(["", ":", ":0", ":80", ":99999", ":x"]),
    st.text(alphabet="/a?#@:\\ %.", max_size=6),
)
def test_arbitrary_urls(host: str, port: str, rest: str) -> None:
    structure = {
        "exporters": {
            "a": {"url": f"http://{host}{port}{rest}", "path": f"/a{rest}"},
            "b": {"url": f"http://{host}"},
            "c": {"url": f"http+unix://{host}{port}{rest}"},
            "d": {"url": "https://h", "tls": {"server_name": host}},
        }
    }
    load(yaml.safe_dump(structure).encode())
    load(yaml.safe_dump({"listen": f"{host}{port}", "exporters": {"a": {"url": "http://h"}}}).encode())


@fuzz
@given(st.integers(1, 10**9), st.sampled_from(["ns", "us", "ms"]))
def test_durations_mean_what_they_say(number: int, unit: str) -> None:
    per_second = {"ns": 10**9, "us": 10**6, "ms": 10**3}[unit]
    assert duration("9w").parse(f"{number}{unit}") == number / per_second


@fuzz
@given(st.integers(1, 10**6), st.sampled_from(["KiB", "MiB"]))
def test_sizes_mean_what_they_say(number: int, unit: str) -> None:
    assert size("1B", "1024GiB").parse(f"{number}{unit}") == number * {"KiB": 1024, "MiB": 1024 * 1024}[unit]


SECRETS = st.text(min_size=1, max_size=20).map(lambda noise: f"S3CR3T{noise}T3RC3S")


@fuzz
@given(
    st.sampled_from(
        ["username", "password", "password_file", "bearer_token_file", "key_file", "headers", ""]
    ),
    SECRETS,
    st.sampled_from([lambda secret: secret, lambda secret: [secret], lambda secret: {secret: secret}]),
)
def test_a_secret_is_never_shown_wherever_it_was_put(key: str, secret: str, shape: Any) -> None:
    """With another mistake beside it, so that there is always something to be said."""
    entry: dict[str, Any] = {
        "url": "https://h",
        "timeout": "x",
        "basic_auth": {"username": "u", "password": "p"},
    }
    if key in ("username", "password", "password_file"):
        entry["basic_auth"][key] = shape(secret)
    elif key == "key_file":
        entry["tls"] = {"cert_file": "no-such-file", key: shape(secret)}
    elif key:
        entry[key] = shape(secret)
    else:
        entry["basic_auth"] = shape(secret)
    try:
        parse_config(yaml.safe_dump({"exporters": {"a": entry}}, width=1000).encode(), "config.yml")
    except ConfigError as error:
        assert "S3CR3T" not in f"{error} {error!r}"
        assert "T3RC3S" not in f"{error} {error!r}"
    else:
        raise AssertionError("it must not load")


@fuzz
@given(st.text(alphabet=string.ascii_letters + string.digits + "/@:#?%\\ ", min_size=4, max_size=20))
def test_a_password_in_a_url_is_never_shown(noise: str) -> None:
    secret = f"S3CR3T{noise}T3RC3S"
    url = f"http://user:{secret}@127.0.0.1:9100/metrics"
    structure = {
        "listen": url,
        "exporters": {
            "a": {"url": url},
            "b": url,
            "c": {"url": f"http+unix:///run/{url}"},
            url: {"url": url, "timeout": url},
        },
    }
    try:
        parse_config(yaml.safe_dump(structure, width=1000).encode(), "config.yml")
    except ConfigError as error:
        assert "S3CR3T" not in str(error)
        assert "T3RC3S" not in str(error)
    else:
        raise AssertionError("it must not load")
