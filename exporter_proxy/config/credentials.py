"""``basic_auth``, ``bearer_token_file`` and ``tls`` of an exporter: what it is shown and known by.

Files are read to find mistakes early and forgotten again; what is sent is read from them by
``upstreams/credentials.py``. Paths of files with secrets stay out of messages, since people
put the secret there itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from exporter_proxy.config.addresses import SERVER_NAME
from exporter_proxy.config.certificates import check_authorities, check_pair, check_readable
from exporter_proxy.config.problems import quoted
from exporter_proxy.config.schema import BasicAuth, ClientTls, Pem, UpstreamUrl
from exporter_proxy.config.secrets import (
    PASSWORD,
    SECRET_FILE_PATH,
    USERNAME,
    check_password_file,
    check_token_file,
)
from exporter_proxy.config.sections import Section
from exporter_proxy.config.values import FILE_PATH

BASIC_AUTH_KEYS = ("username", "password", "password_file")
CLIENT_TLS_KEYS = ("ca_file", "cert_file", "key_file", "server_name")


def read_basic_auth(entry: Section, base_dir: str) -> BasicAuth | None:
    """The section, ``None`` where it is absent or nothing can be made of it."""
    section = entry.section("basic_auth", BASIC_AUTH_KEYS, private_keys=True)
    if section is None:
        return None
    username = section.require("username", USERNAME, "prometheus")
    password = section.get("password", PASSWORD, None)
    password_file = _read_secret_file(section, "password_file", check_password_file, base_dir)
    if "password" in section and "password_file" in section:
        section.report("password_file", "there is a password as well, keep one of them")
    if "password" not in section and "password_file" not in section:
        section.report_missing("password", "missing, add it, or a password_file that it is read from")
    if username is None or (password is None) == (password_file is None):
        return None
    return BasicAuth(username, password, password_file)


def read_bearer_token_file(entry: Section, base_dir: str) -> str | None:
    """The path of the file, ``None`` where it is absent or holds no token."""
    return _read_secret_file(entry, "bearer_token_file", check_token_file, base_dir)


def check_one_authorization(entry: Section, headers: tuple[tuple[str, str], ...]) -> None:
    """A request has one Authorization header (RFC 9110 section 11.6.2): one key may set it."""
    ways = [key for key in ("basic_auth", "bearer_token_file") if key in entry]
    if any(name.lower() == "authorization" for name, _ in headers):
        ways.append("headers.Authorization")
    if len(ways) > 1 and ways[0] in entry:
        others = " and ".join(ways[1:])
        entry.report(ways[0], f"{others} would set the Authorization header as well, keep one of them")


def read_client_tls(entry: Section, url: UpstreamUrl | None, base_dir: str) -> ClientTls | None:
    """The section, ``None`` where it is absent."""
    section = entry.section("tls", CLIENT_TLS_KEYS)
    if section is None:
        return None
    if url is not None and url.scheme != "https":
        entry.report(
            "tls", f"it has no effect on an {url.scheme} url, remove it or ask the exporter by https"
        )
    ca_file = _read_pem_path(section, "ca_file", base_dir)
    if ca_file is not None and (wrong := check_authorities(Pem(file=ca_file))) is not None:
        section.report("ca_file", wrong)
    cert_file = _read_pem_path(section, "cert_file", base_dir)
    key_file = _read_secret_file(section, "key_file", check_readable, base_dir)
    for key, other in (("cert_file", "key_file"), ("key_file", "cert_file")):
        if key in section and other not in section:
            section.report_missing(other, f"missing, a client certificate needs both {key} and {other}")
    if cert_file is not None and key_file is not None:
        bad = check_pair(Pem(file=cert_file), Pem(file=key_file), "tls.cert_file")
        if bad is not None:
            section.report(f"{bad[0]}_file", bad[1])
    return ClientTls(ca_file, cert_file, key_file, section.get("server_name", SERVER_NAME, None))


def _read_secret_file(
    section: Section, key: str, check: Callable[[str], str | None], base_dir: str
) -> str | None:
    given = section.get(key, SECRET_FILE_PATH, None)
    if given is None:
        return None
    path = _in(base_dir, given)
    wrong = check(path)
    if wrong is not None:
        section.report(key, wrong)
        return None
    return path


def _read_pem_path(section: Section, key: str, base_dir: str) -> str | None:
    given = section.get(key, FILE_PATH, None)
    if given is None:
        return None
    path = _in(base_dir, given)
    wrong = check_readable(path)
    if wrong is not None:
        section.report(key, f"{quoted(given)}: {wrong}")
        return None
    return path


def _in(base_dir: str, given: str) -> str:
    return os.path.join(base_dir, given)  # noqa: PTH118 - keeps "./x" as it was written
