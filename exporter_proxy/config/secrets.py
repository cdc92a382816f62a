"""Passwords and tokens: what they may consist of, and how one is read from its file.

No message here shows any part of a secret, and none is kept: whoever needs one reads it anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from exporter_proxy.config.certificates import check_readable
from exporter_proxy.config.values import BadValue, Kind

_MAX_SECRET_BYTES = 64 * 1024
_VISIBLE_ASCII = re.compile(r"[!-~]+")


def _parse_secret_path(text: str) -> str:
    if not text or not text.isprintable():
        # It may well be the secret itself, put where its file belongs.
        raise BadValue(secret=True)
    return text


SECRET_FILE_PATH = Kind("the path of a file", _parse_secret_path)


def _parse_username(text: str) -> str:
    if ":" in text:
        raise BadValue(
            'a user name has no ":" (RFC 7617 section 2); passwords go under "password"', secret=True
        )
    return _printable(text)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise BadValue("it has a line break or another character that does not print", secret=True)
    return text


USERNAME = Kind("a user name", _parse_username)
PASSWORD = Kind("a password", _printable)


def read_password(path: str) -> str:
    """The password in the file at ``path``. Raises ``BadValue``, which says why there is none."""
    return _printable(_read(path))


def read_token(path: str) -> str:
    """The bearer token in the file at ``path``. Raises ``BadValue``, which says why there is none."""
    token = _read(path)
    if not _VISIBLE_ASCII.fullmatch(token):
        raise BadValue(
            "a token is one word of printable ASCII characters, this file has more in it", secret=True
        )
    return token


def check_password_file(path: str) -> str | None:
    """Why the file at ``path`` cannot be a password's; ``None``: it can."""
    return _why_not(read_password, path)


def check_token_file(path: str) -> str | None:
    """Why the file at ``path`` cannot be a bearer token's; ``None``: it can."""
    return _why_not(read_token, path)


def _why_not(read: Callable[[str], str], path: str) -> str | None:
    try:
        read(path)
    except BadValue as bad:
        return bad.why
    return None


def _read(path: str) -> str:
    """The text of a file less the line break that editors end it with.

    Prometheus strips all white space around it. What is left of that after one line break is
    refused: a password with a blank at its end would be another one there.
    """
    wrong = check_readable(path)
    if wrong is not None:
        raise BadValue(wrong, secret=True)
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_SECRET_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise BadValue(f"not readable ({error.strerror})", secret=True) from None
    except UnicodeDecodeError:
        raise BadValue("not UTF-8", secret=True) from None
    if len(data) > _MAX_SECRET_BYTES:
        raise BadValue(f"larger than {_MAX_SECRET_BYTES // 1024} KiB, which no secret is", secret=True)
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise BadValue("the file is empty", secret=True)
    if text != text.strip():
        raise BadValue("it begins or ends with a blank or an empty line, remove it", secret=True)
    return text
