"""Secrets to plant in a configuration, and the search for them in whatever was written.

``ROWS`` has every key of an exporter that holds a secret, ``OWN_ROWS`` every one of the daemon itself, and
``SENT`` what scrapers send; a new one is a new row. ``tests/blackbox/test_secrets.py`` and
``test_own_secrets.py`` plant them all, make everything happen that can, and search. Those of commands are in
``planted_commands.py``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bcrypt
import trustme
import yaml
from cryptography.hazmat.primitives import serialization

Keys = dict[str, Any]
Plant = Callable[[Path, str], Keys]


def marker(name: str) -> str:
    """A secret that can be told from all others."""
    return f"S3CR3T{re.sub(r'[^a-z]', '', name)}T3RC3S"


@dataclass(frozen=True)
class Row:
    """One key with a secret in it.

    ``plant`` gives keys that hold the secret it is called with, of an exporter's entry or (``OWN_ROWS``)
    of the top level; files go into the directory. ``mistakes`` do the same so that the configuration is
    refused. ``is_sent``: the exporter gets to see it.
    """

    plant: Plant
    mistakes: Mapping[str, Plant]
    is_sent: bool = True
    needs_tls: bool = False
    make: Callable[[str], str] = marker
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


def own_key(name: str) -> str:
    """One whose certificate is ``OWN``'s."""
    return OWN.private_key_pem.bytes().decode()


def hash_of_ann(name: str) -> str:
    """bcrypt's, of the right password; the same for all who ask."""
    return HASH


def encrypted(key: str) -> str:
    loaded = serialization.load_pem_private_key(key.encode(), None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    ).decode()


AUTHORITY = trustme.CA()
CLIENT = AUTHORITY.issue_cert("prometheus.test")
OWN = AUTHORITY.issue_cert("127.0.0.1")
OWN_CERT = OWN.cert_chain_pems[0].bytes().decode()
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
    "params": Row(
        lambda directory, secret: {"params": {"token": [secret]}},
        {
            "mapping": lambda directory, secret: {"params": {"token": {"x": secret}}},
            "list": lambda directory, secret: {"params": [f"token={secret}"]},
            "text": lambda directory, secret: {"params": f"token={secret}"},
        },
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


def web(directory: Path, content: Keys | str) -> Keys:
    """With this web.config.file."""
    text = content if isinstance(content, str) else yaml.safe_dump(content, width=10_000)
    return {"web_config_file": file(directory, text)}


def users(directory: Path, given: Any) -> Keys:
    return web(directory, {"basic_auth_users": given})


def server_tls(directory: Path, **keys: Any) -> Keys:
    """With ``tls_server_config``, whose certificate is the right one unless ``keys`` has another."""
    certificate = {} if "cert_file" in keys else {"cert": OWN_CERT}
    return web(directory, {"tls_server_config": {**certificate, **keys}})


def own_tls(directory: Path, **keys: Any) -> Keys:
    return {"tls": {"certfile": file(directory, OWN_CERT), **keys}}


def on_one_line(pem: str) -> str:
    """As YAML folds it where the "|" was forgotten."""
    return pem.strip().replace("\n", " ")


def without_header(pem: str) -> str:
    return pem.split("\n", 1)[1]


SENT = {
    name: marker(name)
    for name in (
        *("right password", "wrong password", "password of a stranger", "password in base", "stale password"),
        *(
            "wrong token",
            "user name",
            "scheme",
            "bare",
            "cookie",
            "proxy",
            "malformed",
            "folded",
            "unfinished",
        ),
        *("repeated", "in the target", "in the host", "with nul", "long", "own header", "garbage", "plain"),
    )
}
"""What scrapers send, by what is wrong with it."""

HASH = bcrypt.hashpw(SENT["right password"].encode(), bcrypt.gensalt(4)).decode()


def for_pushprox(plant: Plant) -> Plant:
    """The same keys, shown to a PushProx proxy and not to an exporter."""

    def planted(directory: Path, secret: str) -> Keys:
        CLIENT.cert_chain_pems[0].write_to_path(directory / "client.crt")
        keys = plant(directory, secret)
        return {"pushprox": {"fqdn": "x", "proxy_url": keys.pop("url", "https://127.0.0.1:1/"), **keys}}

    return planted


OWN_ROWS: dict[str, Row] = {
    "bearer_tokens_file": Row(
        lambda directory, secret: {"bearer_tokens_file": file(directory, f"# one\nother\n{secret}\n")},
        {
            "a space": lambda directory, secret: {
                "bearer_tokens_file": file(directory, f"Bearer {secret}\n")
            },
            "a comment": lambda directory, secret: {
                "bearer_tokens_file": file(directory, f"{secret} # one\n")
            },
            "in quotes": lambda directory, secret: {"bearer_tokens_file": file(directory, f'"{secret}"\n')},
            "not ASCII": lambda directory, secret: {
                "bearer_tokens_file": file(directory, f"{secret}\u00e4\n")
            },
            "control": lambda directory, secret: {"bearer_tokens_file": file(directory, f"{secret}\x1b\n")},
            "list": lambda directory, secret: {"bearer_tokens_file": [secret]},
            "mapping": lambda directory, secret: {"bearer_tokens_file": {secret: secret}},
            "secret as path": lambda directory, secret: {"bearer_tokens_file": secret},
            "secrets in lines": lambda directory, secret: {"bearer_tokens_file": f"{secret}\n{secret}\n"},
            "no space": lambda directory, secret: {f"bearer_tokens_file:{secret}": None},
            "near miss": lambda directory, secret: {"bearer_token_file": secret},
            "as web config": lambda directory, secret: web(directory, f"# one\n{secret}\n"),
        },
    ),
    "basic_auth_users": Row(
        lambda directory, secret: users(directory, {"ann": secret}),
        {
            "too long": lambda directory, secret: users(directory, {"ann": f"{secret}x"}),
            "another form": lambda directory, secret: users(directory, {"ann": f"{{BLF-CRYPT}}{secret}"}),
            "htpasswd": lambda directory, secret: users(directory, {"ann": f"ann:{secret}"}),
            "list": lambda directory, secret: users(directory, {"ann": [secret]}),
            "mapping": lambda directory, secret: users(directory, {"ann": {"hash": secret}}),
            "user:hash": lambda directory, secret: users(directory, f"ann:{secret}"),
            "one word": lambda directory, secret: users(directory, {f"ann:{secret}": None}),
            "list of users": lambda directory, secret: users(directory, [{"ann": secret}]),
            "swapped": lambda directory, secret: users(directory, {secret: "ann"}),
            "swapped twice": lambda directory, secret: web(
                directory, f"basic_auth_users:\n  {secret}: ann\n  {secret}: eve\n"
            ),
            "tag": lambda directory, secret: web(directory, f"basic_auth_users:\n  ann: !{secret}\n"),
            "no space": lambda directory, secret: web(directory, {f"basic_auth_users:ann:{secret}": None}),
            "htpasswd file": lambda directory, secret: web(directory, f"ann:{secret}\n"),
            "long htpasswd file": lambda directory, secret: web(directory, f"ann:{secret}\neve:{secret}\n"),
            "not indented": lambda directory, secret: web(directory, f"basic_auth_users:\nann: {secret}\n"),
            "elsewhere": lambda directory, secret: {"basic_auth_users": {"ann": secret}},
            "inline": lambda directory, secret: {"web_config_file": f"basic_auth_users:\n  ann: {secret}\n"},
        },
        make=hash_of_ann,
    ),
    "password of a user": Row(
        lambda directory, secret: users(directory, {"ann": HASH}),
        {
            "for its hash": lambda directory, secret: users(directory, {"ann": secret}),
            "list": lambda directory, secret: users(directory, {"ann": [secret]}),
            "swapped": lambda directory, secret: users(directory, {secret: "ann"}),
            "swapped list": lambda directory, secret: users(directory, {secret: ["ann"]}),
            "one word": lambda directory, secret: users(directory, {f"ann:{secret}": None}),
            "user:password": lambda directory, secret: users(directory, f"ann:{secret}"),
            "htpasswd file": lambda directory, secret: web(directory, f"ann:{secret}\n"),
            "inline": lambda directory, secret: {"web_config_file": f"basic_auth_users:\n  ann: {secret}\n"},
        },
        make=lambda name: SENT["right password"],
    ),
    "key": Row(
        # The key stands beside the certificate, too, as many a .pem has it.
        lambda directory, secret: server_tls(directory, cert=OWN_CERT + secret, key=secret),
        {
            "another's": lambda directory, secret: server_tls(
                directory, cert=CLIENT.cert_chain_pems[0].bytes().decode(), key=secret
            ),
            "encrypted": lambda directory, secret: server_tls(directory, key=encrypted(secret)),
            "cut": lambda directory, secret: server_tls(directory, key=secret[:150]),
            "no header": lambda directory, secret: server_tls(directory, key=without_header(secret)),
            "as certificate": lambda directory, secret: server_tls(directory, cert=secret, key=secret),
            "as client CA": lambda directory, secret: server_tls(
                directory,
                key=secret,
                client_ca=secret,
                client_auth_type="RequireAndVerifyClientCert",
            ),
            "as key_file": lambda directory, secret: server_tls(directory, key_file=secret),
            "on one line": lambda directory, secret: server_tls(directory, key_file=on_one_line(secret)),
            "as cert_file": lambda directory, secret: server_tls(directory, cert_file=on_one_line(secret)),
            "list": lambda directory, secret: server_tls(directory, key=[secret]),
            "mapping": lambda directory, secret: server_tls(directory, key={secret: secret}),
            "section": lambda directory, secret: web(directory, {"tls_server_config": secret}),
            "no space": lambda directory, secret: server_tls(directory, **{f"key:{secret}": None}),
            "unknown key": lambda directory, secret: server_tls(directory, **{secret: None}),
            "near miss": lambda directory, secret: server_tls(directory, keys=secret),
            "as web config": web,
            "as client_auth_type": lambda directory, secret: server_tls(
                directory, key=secret, client_auth_type=on_one_line(secret)
            ),
        },
        make=own_key,
    ),
    "keyfile": Row(
        lambda directory, secret: own_tls(directory, keyfile=file(directory, secret)),
        {
            "another's": lambda directory, secret: {
                "tls": {
                    "certfile": file(directory, CLIENT.cert_chain_pems[0].bytes().decode()),
                    "keyfile": file(directory, secret),
                }
            },
            "encrypted": lambda directory, secret: own_tls(
                directory, keyfile=file(directory, encrypted(secret))
            ),
            "cut": lambda directory, secret: own_tls(directory, keyfile=file(directory, secret[:150])),
            "as certificate": lambda directory, secret: {
                "tls": {"certfile": file(directory, secret), "keyfile": file(directory, secret)}
            },
            "inline": lambda directory, secret: own_tls(directory, keyfile=secret),
            "on one line": lambda directory, secret: own_tls(directory, keyfile=on_one_line(secret)),
            "list": lambda directory, secret: own_tls(directory, keyfile=[secret]),
            "section": lambda directory, secret: {"tls": secret},
            "near miss": lambda directory, secret: own_tls(directory, key_file=secret),
            "no space": lambda directory, secret: own_tls(directory, **{f"keyfile:{secret}": None}),
        },
        make=own_key,
    ),
    **{
        f"pushprox {name}": Row(
            for_pushprox(ROWS[name].plant),
            {mistake: for_pushprox(plant) for mistake, plant in ROWS[name].mistakes.items()},
            make=ROWS[name].make,
        )
        for name in ("password", "password_file", "bearer_token_file", "key_file")
    },
}


@cache
def forms(secret: str) -> list[str]:
    """What to look for: the secret, or enough of it, as it is, encoded, and in base64 of any alignment."""
    found = []
    for part in secret.split("\n")[1:3] if "\n" in secret else [secret]:
        found += [part, part[2:-2], quote(part), part.encode().hex()]
        for before in range(3):
            encoded = base64.b64encode(b"x" * before + part.encode()).decode()
            found.append(encoded[4:-4])
    return found


@cache
def secrets() -> dict[str, str]:
    """All of them, by what they are of."""
    made = {name: row.make(name) for rows in (ROWS, OWN_ROWS) for name, row in rows.items()}
    return {**made, **SENT}


def search(text: str, where: str, among: Mapping[str, str] | None = None) -> None:
    """For all secrets, or those ``among`` a mapping like theirs."""
    for name, secret in (secrets() if among is None else among).items():
        for form in forms(secret):
            assert form not in text, f"the secret of {name} shows in {where}: {text[:2000]}"
