"""A web.config.file, the file format that Prometheus's exporters share (exporter-toolkit).

Reads and checks it whole. What TLS is made of it is in ``front/tls.py``; users and rates are
checked at each request by others. Where this differs from exporter-toolkit stands in README.
"""

from __future__ import annotations

import hashlib
import os
import re

import yaml

from exporter_proxy.config.positions import Document, is_null, shape
from exporter_proxy.config.problems import ConfigError, in_file_order
from exporter_proxy.config.schema import RateLimit, WebConfig
from exporter_proxy.config.sections import Section
from exporter_proxy.config.source import read_file
from exporter_proxy.config.values import BOOLEAN, BadValue, Kind, duration, one_of, whole_number
from exporter_proxy.config.web_tls import read_server_tls

WEB_CONFIG_FLAG = "--web.config.file"

WEB_KEYS = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
HTTP_SERVER_KEYS = ("http2", "headers")
RATE_LIMIT_KEYS = ("interval", "burst")

RATE_INTERVAL = duration("24h", zero=True)
RATE_BURST = whole_number(0, 1_000_000)


def _parse_response_header_value(text: str) -> str:
    """Without what surrounds it: a folded text in YAML ends with a line break."""
    value = text.strip()
    if not re.fullmatch(r"[\t -~]*", value):
        raise BadValue("a header is one line of printable ASCII characters")
    return value


_HEADER_VALUE = Kind("the value of a header", _parse_response_header_value)
HEADER_KINDS = {
    "Content-Security-Policy": _HEADER_VALUE,
    "X-Frame-Options": one_of(("deny", "sameorigin")),
    "X-Content-Type-Options": one_of(("nosniff",)),
    "X-XSS-Protection": _HEADER_VALUE,
    "Strict-Transport-Security": _HEADER_VALUE,
}
"""The headers that can be set; exporter-toolkit compares their names letter by letter, too."""

_HEADER_NAME = one_of(tuple(HEADER_KINDS))

# Version, cost from 4 to 31, 22 characters of salt and 31 of hash, in bcrypt's own base64.
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}")


def _parse_bcrypt_hash(text: str) -> str:
    if not _BCRYPT.fullmatch(text):
        raise BadValue("make one with: htpasswd -nBC 10 NAME", secret=True)
    return text


_BCRYPT_HASH = Kind(
    'a bcrypt hash of 60 characters ("$2y$10$...") with a cost from 4 to 31', _parse_bcrypt_hash
)


def _parse_user_name(text: str) -> str:
    if text.startswith("$2"):
        raise BadValue("this looks like a hash, which goes behind the name", secret=True)
    return text


_USER_NAME = Kind("the name of a user", _parse_user_name)


def load_web_config(path: str) -> WebConfig:
    """The web.config.file at ``path``. Raises ``ConfigError`` with all problems, and nothing else."""
    return parse_web_config(read_file(path, WEB_CONFIG_FLAG), path)


def parse_web_config(data: bytes, source: str) -> WebConfig:
    """The web.config.file in ``data``. Raises ``ConfigError`` with all problems, and nothing else.

    ``source`` is the file's name, in messages and for what relative paths are relative to. An
    empty file is as good as none: no TLS, nobody asked for a password.
    """
    digest = hashlib.sha256(data).hexdigest()
    document = Document(data, source)
    root = document.root
    if root is None or is_null(root):
        return WebConfig(source, tls=None, headers=(), basic_auth_users=(), rate_limit=None, sha256=digest)
    if not isinstance(root, yaml.MappingNode):
        # Its text is not shown: a file of htpasswd's or a key is one long text to YAML.
        document.report(root, "", f'expected keys such as "tls_server_config", got {shape(root)}')
        raise ConfigError(in_file_order(document.problems))
    top = Section(document, root, root, "", WEB_KEYS, null_is_absent=True)
    config = WebConfig(
        source=source,
        tls=read_server_tls(top, os.path.dirname(source)),  # noqa: PTH120 - "" for a bare name
        headers=_read_http_server(top),
        basic_auth_users=_read_users(top),
        rate_limit=_read_rate_limit(top),
        sha256=digest,
    )
    if document.problems:
        raise ConfigError(in_file_order(document.problems))
    return config


def _read_http_server(top: Section) -> tuple[tuple[str, str], ...]:
    """The headers for every response. ``http2`` is checked and has no effect: HTTP/1.1 is served."""
    section = top.section("http_server_config", HTTP_SERVER_KEYS)
    if section is None:
        return ()
    section.get("http2", BOOLEAN, True)
    headers = section.section("headers", known_keys=None)
    if headers is None:
        return ()
    pairs: list[tuple[str, str]] = []
    for name in headers:
        if not headers.check_key(name, _HEADER_NAME):
            continue
        kind = HEADER_KINDS[name]
        if kind is _HEADER_VALUE and headers.is_blank(name):
            continue
        value = headers.get(name, kind, "")
        if value:
            pairs.append((name, value))
    return tuple(pairs)


def _read_users(top: Section) -> tuple[tuple[str, str], ...]:
    """Names and hashes. A user without a hash is a problem: without it, nobody would be asked."""
    section = top.section(
        "basic_auth_users", known_keys=None, expected="a mapping from names to hashes", private_keys=True
    )
    if section is None:
        return ()
    pairs: list[tuple[str, str]] = []
    for name in section:
        if section.check_key(name, _USER_NAME):
            password_hash = section.get(name, _BCRYPT_HASH, None)
            if password_hash is not None:
                pairs.append((name, password_hash))
    return tuple(pairs)


def _read_rate_limit(top: Section) -> RateLimit | None:
    section = top.section("rate_limit", RATE_LIMIT_KEYS)
    if section is None:
        return None
    interval_seconds = section.get("interval", RATE_INTERVAL, 0.0)
    burst = section.get("burst", RATE_BURST, None if "burst" in section else 0)
    if not interval_seconds:
        return None
    if burst == 0:
        # Go's limiter then lets nothing through at all, which nobody can want.
        section.report("burst", "with an interval it has to be at least 1, or every request is refused")
    return RateLimit(interval_seconds, burst or 1)
