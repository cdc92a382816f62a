"""Files with tokens and passwords, whatever is in them: read exactly, or refused without a word of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.config import ConfigError
from exporter_proxy.config.secrets import check_password_file, check_token_file, read_password, read_token
from exporter_proxy.config.tokens import read_tokens
from exporter_proxy.config.values import BadValue

fuzz = settings(max_examples=200, deadline=None)

PIECES = st.sampled_from(
    [
        *(
            b"t0ken-1",
            b"a.b~c/d+e==",
            b"s3cr3t with blank",
            b"caf\xc3\xa9",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"#x",
        ),
        *(
            b"\n",
            b"\n\n",
            b"\r\n",
            b"\r",
            b" ",
            b"\t",
            b"\0",
            b"\x0b",
            b"\x85",
            b"\xe2\x80\xa8",
            b"=",
            b"a=b",
        ),
    ]
)
CONTENT = st.one_of(st.lists(PIECES, max_size=6).map(b"".join), st.binary(max_size=40))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets") / "secret"


def expect_silence(message: str, content: bytes) -> None:
    """No word of the file in what is said of it."""
    assert message.isprintable()
    for word in re.findall(rb"[!-~]{6,}", content):
        assert word.decode() not in message


@fuzz
@given(CONTENT)
def test_tokens_are_the_words_on_lines_of_their_own(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        tokens = read_tokens(str(file))
    except ConfigError as error:
        (problem,) = error.problems
        expect_silence(problem.message, content)
        return
    assert len(set(tokens)) == len(tokens) > 0
    lines = [line.strip() for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    assert [*dict.fromkeys(line for line in lines if line and not line.startswith(b"#"))] == [
        token.encode() for token in tokens
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token) for token in tokens)


@pytest.mark.parametrize(
    ("read", "check"),
    [(read_password, check_password_file), (read_token, check_token_file)],
    ids=["password", "token"],
)
@fuzz
@given(content=CONTENT)
def test_a_secret_is_all_of_its_file_but_the_last_line_break(
    file: Path, read: Callable[[str], str], check: Callable[[str], str | None], content: bytes
) -> None:
    file.write_bytes(content)
    problem = check(str(file))
    try:
        secret = read(str(file))
    except BadValue as bad:
        assert bad.secret
        assert problem == bad.why
        assert problem is not None
        expect_silence(problem, content)
        return
    assert problem is None
    assert content in {secret.encode() + line_break for line_break in (b"", b"\n", b"\r\n", b"\r")}
    assert secret == secret.strip() != ""
    assert secret.isprintable()
    assert read is read_password or secret.isascii()
