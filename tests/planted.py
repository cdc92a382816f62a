"""Secrets to plant in a configuration, and the search for them in whatever was written.

``ROWS`` has every key that holds a secret; a new one is a new row. ``tests/blackbox/test_secrets.py``
plants them all, makes everything happen that can, and searches.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trustme
from cryptography.hazmat.primitives import serialization

Keys = dict[str, Any]
Plant = Callable[[Path, str], Keys]
TOP_LEVEL = "top-level"


@dataclass(frozen=True)
class Row:
    """One key with a secret in it.

    ``plant`` gives keys that hold the secret it is called with, in an exporter's entry or, for the
    daemon's own, under ``TOP_LEVEL``; files go into the directory. ``mistakes`` do the same so that the
    configuration is refused. ``is_sent``: the exporter gets to see it.
    """

    plant: Plant
    mistakes: Mapping[str, Plant]
    is_sent: bool = True
    needs_tls: bool = False
    make: Callable[[str], str] = lambda name: f"S3CR3T{name.replace('_', '')}T3RC3S"
    """The secret, made from the row's name."""


def file(directory: Path, content: str) -> str:
    """A new file with this content; its name tells nothing."""
    path = directory / f"file{len([*directory.iterdir()])}"
    path.write_text(content)
    return str(path)


def basic(**keys: Any) -> Keys:
    return {"basic_auth": {"username": "u", **keys}}


def client_tls(directory: Path, key: str) -> Keys:
    return {"tls": {"cert_file": str(directory / "client.crt"), "key_file": key}}


def private_key(name: str) -> str:
    """One whose certificate stands in ``client.crt``; the same for all who ask."""
    return CLIENT.private_key_pem.bytes().decode()


def encrypted(key: str) -> str:
    loaded = serialization.load_pem_private_key(key.encode(), None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    ).decode()


AUTHORITY = trustme.CA()
CLIENT = AUTHORITY.issue_cert("prometheus.test")
ROWS: dict[str, Row] = {
    "headers": Row(
        lambda directory, secret: {"headers": {"X-Key": secret}},
        {
            "line break": lambda directory, secret: {"headers": {"X-Key": f"{secret}\nX: {secret}"}},
            "not ASCII": lambda directory, secret: {"headers": {"X-Key": f"{secret}\u00e4"}},
            "list": lambda directory, secret: {"headers": {"X-Key": [secret]}},
            "name": lambda directory, secret: {"headers": {f"X-Key: {secret}": "x"}},
            "text": lambda directory, secret: {"headers": f"X-Key: {secret}"},
            "host": lambda directory, secret: {"headers": {"Host": f"//{secret}"}},
            "passed": lambda directory, secret: {"pass_headers": [f"X-Key: {secret}"]},
        },
    ),
    "authorization": Row(
        lambda directory, secret: {"headers": {"Authorization": f"Bearer {secret}"}},
        {"twice": lambda directory, secret: {"headers": {"authorization": secret}, **basic(password=secret)}},
    ),
    "password": Row(
        lambda directory, secret: basic(password=secret),
        {
            "line break": lambda directory, secret: basic(password=f"{secret}\n"),
            "list": lambda directory, secret: basic(password=[secret]),
            "key": lambda directory, secret: basic(password={secret: secret}),
            "text": lambda directory, secret: {"basic_auth": f"u:{secret}"},
            "one word": lambda directory, secret: {"basic_auth": {f"u:{secret}": None}},
            "user name": lambda directory, secret: {
                "basic_auth": {"username": f"u:{secret}", "password": ""}
            },
            "near miss": lambda directory, secret: basic(pasword=secret),
            "in url": lambda directory, secret: {"url": f"http://u:{secret}@127.0.0.1:9100/metrics"},
            "in unix url": lambda directory, secret: {"url": f"http+unix://u:{secret}@/run/x.sock:/metrics"},
            "file too": lambda directory, secret: basic(
                password=secret, password_file=file(directory, secret)
            ),
        },
    ),
    "password_file": Row(
        lambda directory, secret: basic(password_file=file(directory, f"{secret}\n")),
        {
            "two lines": lambda directory, secret: basic(
                password_file=file(directory, f"{secret}\n{secret}\n")
            ),
            "control": lambda directory, secret: basic(password_file=file(directory, f"{secret}\x1b")),
            "secret as path": lambda directory, secret: basic(password_file=secret),
            "list": lambda directory, secret: basic(password_file=[secret]),
        },
    ),
    "bearer_token_file": Row(
        lambda directory, secret: {"bearer_token_file": file(directory, f"{secret}\n")},
        {
            "two words": lambda directory, secret: {
                "bearer_token_file": file(directory, f"Bearer {secret}\n")
            },
            "not ASCII": lambda directory, secret: {
                "bearer_token_file": file(directory, f"{secret}\u00e4\n")
            },
            "secret as path": lambda directory, secret: {"bearer_token_file": secret},
            "secret and line break": lambda directory, secret: {"bearer_token_file": f"{secret}\n"},
        },
    ),
    "key_file": Row(
        lambda directory, secret: client_tls(directory, file(directory, secret)),
        {
            "inline": client_tls,
            "encrypted": lambda directory, secret: client_tls(directory, file(directory, encrypted(secret))),
            "cut": lambda directory, secret: client_tls(directory, file(directory, secret[:150])),
            "as certificate": lambda directory, secret: {
                "tls": {"cert_file": file(directory, secret), "key_file": file(directory, secret)}
            },
        },
        is_sent=False,
        needs_tls=True,
        make=private_key,
    ),
}


def forms(secret: str) -> list[str]:
    """What to look for: the secret, or enough of it, as it is, encoded, and in base64 of any alignment."""
    found = []
    for part in secret.split("\n")[1:3] if "\n" in secret else [secret]:
        found += [part, part[2:-2], quote(part), part.encode().hex()]
        for before in range(3):
            encoded = base64.b64encode(b"x" * before + part.encode()).decode()
            found.append(encoded[4:-4])
    return found


def search(text: str, where: str) -> None:
    for name, row in ROWS.items():
        for form in forms(row.make(name)):
            assert form not in text, f"the secret of {name} shows in {where}: {text[:2000]}"


def planted(directory: Path, plant: Plant, name: str, entry: Keys) -> tuple[Keys, Keys]:
    """The exporter's entry with the row's secret in it, and the daemon's keys."""
    keys = plant(directory, ROWS[name].make(name))
    own = keys.pop(TOP_LEVEL, {})
    return {**entry, **keys}, own
