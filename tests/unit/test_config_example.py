"""``config.example.yml`` is the reference of all keys: it loads, as it is and with every key in use."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from exporter_proxy.config import Pem, ServerTls, parse_config
from exporter_proxy.config.credentials import CLIENT_TLS_KEYS
from exporter_proxy.config.exporters import DEFAULTS_KEYS, EXPORTER_KEYS
from exporter_proxy.config.load import ACCESS_LOG_KEYS, ERROR_LOG_KEYS, TLS_KEYS, TOP_KEYS
from exporter_proxy.config.pushprox import PUSHPROX_KEYS
from exporter_proxy.config.schema import (
    ACCESS_LOG_FIELDS,
    ACCESS_LOG_FORMATS,
    DEFAULT_ACCESS_LOG_FIELDS,
    CommandSource,
    FileSource,
)

EXAMPLE = (Path(__file__).parents[2] / "config.example.yml").read_text(encoding="utf-8")
MINIMAL = b"exporters: {node_exporter: {url: http://127.0.0.1:9100/metrics}}"

# A key that is commented out has no blank between "#" and its name; text has one.
_COMMENTED_KEY = re.compile(r"^(\s*)#(?=[a-z_]+:)", re.MULTILINE)


# These two exclude each other: "all keys" is all of them but one.
EITHER = ("tls", "web_config_file")


def uncommented(only: str | None = None, without: str | None = None) -> str:
    """The example with all its keys in use, or only some: a top-level key stands for what is under it."""
    lines = []
    current = None
    for line in EXAMPLE.splitlines():
        top = re.match(r"#?([a-z_]+):", line)
        current = top.group(1) if top else current
        is_used = current == only if only is not None else current != without
        lines.append(_COMMENTED_KEY.sub(r"\1", line) if is_used else line)
    return "\n".join(lines)


@pytest.fixture
def tls_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerTls:
    """In the directory that relative names are taken from, as those of included files are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf.d").mkdir()
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n")
    (tmp_path / "tokens").write_text("a-token\n")
    return ServerTls(Pem(file=str(tmp_path / "server.crt")), Pem(file=str(tmp_path / "server.key")))


def with_real_files(text: str, tls_files: ServerTls) -> bytes:
    directory = Path(tls_files.cert.file or "").parent
    for name in re.findall(r"/etc/exporter_proxy/(\S+)", text):
        if name in ("ca.crt", "client.crt", "client.key"):
            shutil.copy(directory / f"server{Path(name).suffix}", directory / name)
        elif not name.startswith(("server.", "web.")):
            (directory / name).write_text("s3cr3t\n")
    return text.replace("/etc/exporter_proxy", str(directory)).encode()


def without_contradictions(text: str) -> str:
    """Keys that exclude each other cannot all be in use: a token beside a password, TLS by http."""
    text = re.sub(
        r"(?m)^ *(bearer_token_file|file|max_age|follow_symlinks|command|env|working_dir):.*\n", "", text
    )
    return text.replace("url: http://", "url: https://")


def test_loads_as_it_is_and_means_the_defaults() -> None:
    example = parse_config(EXAMPLE.encode(), "config.yml")
    assert replace(example, sha256="") == replace(parse_config(MINIMAL, "config.yml"), sha256="")


@pytest.mark.parametrize(
    ("parent", "keys"),
    [
        ("", TOP_KEYS),
        ("tls", TLS_KEYS),
        ("defaults", DEFAULTS_KEYS),
        ("access_log", ACCESS_LOG_KEYS),
        ("error_log", ERROR_LOG_KEYS),
        ("pushprox", PUSHPROX_KEYS),
        ("pushprox.basic_auth", ("username", "password_file")),
        ("pushprox.tls", CLIENT_TLS_KEYS),
        ("exporters.node_exporter", EXPORTER_KEYS),
        ("exporters.node_exporter.basic_auth", ("username", "password_file")),
        ("exporters.node_exporter.tls", CLIENT_TLS_KEYS),
    ],
)
def test_has_every_key_in_its_place_with_a_text_before_it(parent: str, keys: tuple[str, ...]) -> None:
    found: list[str] = []
    parents: list[str] = []
    for line in uncommented().splitlines():
        match = re.match(r"( *)([a-z_]+):", line)
        if match:
            depth = len(match.group(1)) // 2
            parents[depth:] = [match.group(2)]
            if ".".join(parents[:depth]) == parent:
                found.append(match.group(2))
    assert sorted(found) == sorted(keys)


@pytest.mark.parametrize("without", EITHER)
def test_loads_with_every_key_in_use(without: str, tls_files: ServerTls) -> None:
    config = parse_config(
        with_real_files(without_contradictions(uncommented(without=without)), tls_files), "config.yml"
    )
    assert config.server_tls == tls_files
    assert (config.tls is None) == (without == "tls") == (config.web is not None)
    assert config.access_log is not None
    assert config.access_log.fields == DEFAULT_ACCESS_LOG_FIELDS
    assert config.error_log_path == "./error.log"
    exporter = config.exporters[0]
    assert exporter.params == (("module", "http_2xx"), ("debug", "false"))
    assert exporter.basic_auth is not None
    assert exporter.tls is not None
    assert exporter.tls.server_name == "node.example.org"


def test_loads_with_a_token(tls_files: ServerTls) -> None:
    text = EXAMPLE.replace("    #bearer_token_file", "    bearer_token_file")
    assert parse_config(with_real_files(text, tls_files), "config.yml").exporters[0].bearer_token_file


def test_loads_with_files_in_place_of_a_url(tmp_path: Path) -> None:
    text = re.sub(r"#(?=file:|max_age:|follow_symlinks:)", "", EXAMPLE.replace("url: http", "#url: http"))
    text = text.replace("/var/lib/exporter_proxy", str(tmp_path))
    exporter = parse_config(text.encode(), "config.yml").exporters[0]
    assert exporter.file == FileSource(f"{tmp_path}/*.prom", 7200.0, follow_symlinks=True)


def test_loads_with_a_command_in_place_of_a_url() -> None:
    text = re.sub(r"#(?=command:|env:|working_dir:)", "", EXAMPLE.replace("url: http", "#url: http"))
    text = text.replace("/usr/local/bin/raid_metrics", "/bin/sh")
    expected = CommandSource("/bin/sh", ("--all",), (("LANG", "C"),), "/")
    assert parse_config(text.encode(), "config.yml").exporters[0].command == expected
    defaults = re.sub(r" +(env|working_dir):.*\n", "", text)
    assert parse_config(defaults.encode(), "config.yml").exporters[0].command == replace(expected, env=())


@pytest.mark.parametrize("key", [key for key in TOP_KEYS if key != "exporters"])
def test_each_key_can_be_put_to_use_alone(key: str, tls_files: ServerTls) -> None:
    text = uncommented(only=key)
    assert text.splitlines() != EXAMPLE.splitlines()
    assert parse_config(with_real_files(without_contradictions(text), tls_files), "config.yml")


@pytest.mark.parametrize(
    "key",
    [
        *("listen", "route_prefix", "shutdown_timeout", "keep_alive_timeout", "read_header_timeout"),
        *("max_header_bytes", "max_connections"),
    ],
)
def test_keys_with_a_default_are_shown_at_it(key: str) -> None:
    changed = parse_config(uncommented(only=key).encode(), "config.yml")
    assert replace(changed, sha256="") == replace(parse_config(MINIMAL, "config.yml"), sha256="")


@pytest.mark.parametrize("word", [*ACCESS_LOG_FIELDS, *ACCESS_LOG_FORMATS])
def test_names_every_log_field_and_format(word: str) -> None:
    assert re.search(rf"\b{word}\b", EXAMPLE[EXAMPLE.index("# One line for each request") :])
