"""``bearer_tokens_file``: what is a token, and what is said of a file that has none or a bad one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporter_proxy.config import Config, ConfigError, parse_config
from exporter_proxy.config.tokens import MAX_FILE_BYTES, read_tokens

EXPORTERS = "exporters: {a: {url: 'http://127.0.0.1:9100/metrics'}}\n"
SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        (b"one\n", ("one",)),
        (b"one", ("one",)),
        (b"one\ntwo\n", ("one", "two")),
        (b"\n# prometheus-1\n  one \t\r\n\n\t# two\n#two\ntwo\n\n", ("one", "two")),
        (b"one\ntwo\none\n", ("one", "two")),
        (b"\xef\xbb\xbfone\n", ("one",)),
        (b"aZ09-._~+/==\n", ("aZ09-._~+/==",)),
    ],
)
def test_tokens_are_one_a_line(tmp_path: Path, content: bytes, tokens: tuple[str, ...]) -> None:
    (tmp_path / "tokens").write_bytes(content)
    assert read_tokens(str(tmp_path / "tokens")) == tokens


BAD_LINES = [
    b"s3cr3t s3cr3t",
    b"Bearer s3cr3t",
    b"s3cr3t # prometheus-1",
    b"s3cr=3t",
    b"=",
    "s3cr3té".encode(),
    b"s3cr3t\xff",
    b"s3cr3t\0",
    b'"s3cr3t"',
    b"s3cr3t\rs3cr3t",
]


@pytest.mark.parametrize("line", BAD_LINES, ids=repr)
def test_a_bad_line_is_named_and_not_shown(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(b"# first\ngood-" + SECRET.encode() + b"\n" + line + b"\n")
    with pytest.raises(ConfigError) as caught:
        read_tokens(str(path))
    shown = str(caught.value)
    assert shown.startswith(f"{path}:3:1: not a bearer token, ")
    assert "\n" not in shown
    for text in (shown, repr(caught.value)):
        assert "s3" not in text.removeprefix(str(path))
        assert "3t" not in text.removeprefix(str(path))


def test_every_bad_line_is_named_up_to_a_number(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("a b\nok\na b\na b\n")
    with pytest.raises(ConfigError, match=r":1:1: not a bearer token.*; the same in line 3, 4$"):
        read_tokens(str(path))
    path.write_text("a b\n" * 1000)
    with pytest.raises(ConfigError, match=r":1:1: .*; the same in line 2, 3, .*, 10 and 990 more$"):
        read_tokens(str(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no token in this file"),
        (b"# nothing\n\n", "no token in this file"),
        (b"a\n" * (MAX_FILE_BYTES // 2 + 1), "larger than 1 MiB"),
    ],
)
def test_a_file_without_tokens_or_of_another_kind(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_tokens(str(tmp_path / "tokens"))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_tokens(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="not a regular file"):
        read_tokens(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_tokens(str(tmp_path / "pipe"))


def load(tmp_path: Path, text: str) -> Config:
    return parse_config(f"{text}\n{EXPORTERS}".encode(), "config.yml", base_dir=tmp_path)


def test_the_key_is_a_path_and_the_file_is_checked_where_the_key_stands(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{SECRET}\n")
    config = load(tmp_path, "bearer_tokens_file: tokens")
    assert config.bearer_tokens_file == str(tmp_path / "tokens")
    assert SECRET not in repr(config)
    (tmp_path / "tokens").write_text(f"# x\n{SECRET} {SECRET}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "listen: nonsense\nbearer_tokens_file: tokens")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(
        f"config.yml:2:21: bearer_tokens_file: {tmp_path}/tokens:2:1: not a bearer token"
    )
    assert SECRET not in lines[1]


def test_authorization_may_pass_only_where_it_is_not_for_this_daemon(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a\n")
    exporter = "exporters: {a: {url: 'http://127.0.0.1:9100/', pass_headers: [Cookie, Authorization]}}"
    allowed = parse_config(exporter.encode(), "config.yml")
    assert allowed.exporters[0].pass_headers == ("cookie", "authorization")
    guarded = f"bearer_tokens_file: tokens\n{exporter}"
    with pytest.raises(ConfigError, match=r"^config.yml:2:62: exporters.a.pass_headers: Authorization "):
        parse_config(guarded.encode(), "config.yml", base_dir=tmp_path)
    without = guarded.replace(", Authorization", "")
    assert parse_config(without.encode(), "config.yml", base_dir=tmp_path)
