"""From a YAML file to a ``Config``, or to every mistake in it at once.

Says which keys there are, what they hold and what they default to. How a value is read is in
``values.py``, ``addresses.py`` and ``listen.py``; where it stands is known to ``positions.py`` and
``sections.py``. Only what exists is accepted: a key without effect would be a trap.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import TypeVar

import yaml

from exporter_proxy.config.addresses import EXTERNAL_URL, ROUTE_PREFIX
from exporter_proxy.config.certificates import check_pair, check_readable
from exporter_proxy.config.exporters import read_exporters, report_passed_credentials
from exporter_proxy.config.include import read_included
from exporter_proxy.config.listen import LISTEN_ADDRESS, listen_conflicts
from exporter_proxy.config.module_route import read_module_route
from exporter_proxy.config.positions import Document, is_null, shape
from exporter_proxy.config.problems import ConfigError, Problem, in_file_order, quoted
from exporter_proxy.config.pushprox import read_pushprox
from exporter_proxy.config.schema import (
    ACCESS_LOG_FIELDS,
    ACCESS_LOG_FORMATS,
    DEFAULT_ACCESS_LOG_FIELDS,
    DEFAULT_LISTEN,
    AccessLog,
    Config,
    ExternalUrl,
    Listen,
    Pem,
    ServerTls,
    WebConfig,
)
from exporter_proxy.config.secrets import SECRET_FILE_PATH
from exporter_proxy.config.sections import Section
from exporter_proxy.config.source import read_file
from exporter_proxy.config.tokens import read_tokens
from exporter_proxy.config.values import (
    FILE_PATH,
    NETWORK,
    BadValue,
    Kind,
    duration,
    one_of,
    size,
    whole_number,
)
from exporter_proxy.config.web import WEB_CONFIG_FLAG, load_web_config

T = TypeVar("T")

__all__ = ["ConfigError", "Overrides", "Problem", "load_config", "parse_config"]

TOP_KEYS = (
    "listen",
    "route_prefix",
    "shutdown_timeout",
    "keep_alive_timeout",
    "read_header_timeout",
    "max_header_bytes",
    "max_connections",
    "tls",
    "web_config_file",
    "bearer_tokens_file",
    "allow_clients",
    "allow_upstreams",
    "module_route",
    "defaults",
    "exporters",
    "include",
    "access_log",
    "error_log",
    "pushprox",
)
TLS_KEYS = ("certfile", "keyfile")
ACCESS_LOG_KEYS = ("format", "path", "fields")
ERROR_LOG_KEYS = ("path",)

SHUTDOWN_TIMEOUT = duration("24h", zero=True)
SERVER_TIMEOUT = duration("24h")
HEADER_BYTES = size("1KiB", "16MiB")
CONNECTIONS = whole_number(1, 1_000_000)

_EXAMPLE_HINT = ", or start from config.example.yml"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says instead of the file; a flag beats its key."""

    listen: tuple[str, ...] = ()
    """``--web.listen-address``, each time it was given; empty: as the file says."""
    route_prefix: str | None = None
    """``--web.route-prefix``; ``None``: as the file says, or else the path of ``external_url``."""
    external_url: str | None = None
    """``--web.external-url``; ``None``: not said."""
    web_config_file: str | None = None
    """``--web.config.file``; ``None``: as the file says."""


@dataclass(slots=True)
class _WebFile:
    """A web config file that was read: what it says, or what is wrong with it."""

    config: WebConfig | None = None
    problems: tuple[Problem, ...] = ()

    @classmethod
    def read(cls, path: str) -> _WebFile:
        try:
            return cls(load_web_config(path))
        except ConfigError as error:
            return cls(problems=error.problems)


def load_config(path: str, overrides: Overrides = Overrides()) -> Config:
    """The configuration in the file at ``path``. Raises ``ConfigError``, and nothing else."""
    return parse_config(read_file(path, "--config.file", _EXAMPLE_HINT), path, overrides)


def parse_config(
    data: bytes,
    source: str,
    overrides: Overrides = Overrides(),
    base_dir: str | os.PathLike[str] = "",
) -> Config:
    """The configuration in ``data``. Raises ``ConfigError`` with all problems, and nothing else.

    ``source`` is the file's name in messages. Relative paths in the file are taken from
    ``base_dir``; "" is the working directory, as with the Go original. A web config file is read
    along with it, and its problems are reported together with this file's.
    """
    problems: list[Problem] = []
    listen = _read_listen_flags(overrides.listen, problems)
    route_prefix = None
    if overrides.route_prefix is not None:
        route_prefix = _read_flag("--web.route-prefix", overrides.route_prefix, ROUTE_PREFIX, problems)
    external_url = None
    if overrides.external_url is not None:
        external_url = _read_flag("--web.external-url", overrides.external_url, EXTERNAL_URL, problems)
    web_file = None
    if overrides.web_config_file is not None:
        web_file = _WebFile.read(overrides.web_config_file)
    try:
        config = _parse_file(data, source, os.fspath(base_dir), web_file, external_url)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return replace(
        config,
        listen=listen or config.listen,
        route_prefix=config.route_prefix if route_prefix is None else route_prefix,
    )


def _read_listen_flags(texts: tuple[str, ...], problems: list[Problem]) -> tuple[Listen, ...]:
    flag = "--web.listen-address"
    given = [_read_flag(flag, text, LISTEN_ADDRESS, problems) for text in texts]
    addresses = tuple(address for address in given if address is not None)
    problems += [Problem(flag, None, None, "", wrong) for wrong in listen_conflicts(addresses, "given")]
    return addresses


def _read_flag(flag: str, text: str, kind: Kind[T], problems: list[Problem]) -> T | None:
    try:
        return kind.parse(text)
    except BadValue as bad:
        problems.append(Problem(flag, None, None, "", kind.refusal(quoted(text), bad)))
        return None


def _parse_file(
    data: bytes, source: str, base_dir: str, web_file: _WebFile | None, external_url: ExternalUrl | None
) -> Config:
    """What the file says, and the web config file: ``web_file``, or else the one that it names.

    Raises ``ConfigError`` with all problems of the one in file order, then those of the other.
    """
    try:
        document = Document(data, source)
        top = _top_section(document)
    except ConfigError as error:
        raise ConfigError([*error.problems, *(web_file.problems if web_file else ())]) from None
    if "tls" in top and (web_file is not None or "web_config_file" in top):
        named = "web_config_file" if web_file is None else WEB_CONFIG_FLAG
        top.report("tls", f"{named} is given, too: remove tls, and set tls_server_config in that file")
    if web_file is None:
        web_file = _read_web_config_file(top, base_dir)
    included = read_included(top, source, base_dir)
    exporters = read_exporters(top, included.tops, base_dir)
    config = Config(
        source=source,
        sha256=_digest(data, included.contents),
        listen=_read_listen(top),
        route_prefix=top.get("route_prefix", ROUTE_PREFIX, external_url.path if external_url else ""),
        external_url=external_url,
        shutdown_timeout_seconds=top.get("shutdown_timeout", SHUTDOWN_TIMEOUT, 10.0),
        keep_alive_timeout_seconds=top.get("keep_alive_timeout", SERVER_TIMEOUT, 150.0),
        read_header_timeout_seconds=top.get("read_header_timeout", SERVER_TIMEOUT, 10.0),
        max_header_bytes=top.get("max_header_bytes", HEADER_BYTES, 32 * 2**10),
        max_connections=top.get("max_connections", CONNECTIONS, 512),
        tls=_read_tls(top, base_dir),
        web=web_file.config,
        bearer_tokens_file=_read_tokens_file(top, base_dir),
        allow_clients=top.get_list("allow_clients", NETWORK, None),
        allow_upstreams=top.get_list("allow_upstreams", NETWORK, None),
        exporters=tuple(exporter for exporter, _ in exporters),
        access_log=_read_access_log(top, base_dir),
        error_log_path=_read_error_log(top, base_dir),
        pushprox=read_pushprox(top, included.tops, base_dir),
        module_route=read_module_route(top, included.tops),
    )
    if config.bearer_tokens_file is not None or (config.web is not None and config.web.basic_auth_users):
        report_passed_credentials(exporters)
    problems = [*in_file_order(document.problems), *included.problems, *web_file.problems]
    if problems:
        raise ConfigError(problems)
    return config


def _digest(data: bytes, included: list[bytes]) -> str:
    """Of the file's bytes; with included files, of the digests of all of them."""
    digests = [hashlib.sha256(content).hexdigest() for content in (data, *included)]
    return digests[0] if not included else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _top_section(document: Document) -> Section:
    root = document.root
    if root is None or is_null(root):
        message = "the file is empty; it needs an exporters section, see config.example.yml"
        raise ConfigError([Problem(document.source, None, None, "", message)])
    if not isinstance(root, yaml.MappingNode):
        # Its text is not shown: a key or a file of passwords is one long text to YAML.
        document.report(root, "", f'expected keys such as "listen" and "exporters", got {shape(root)}')
        raise ConfigError(in_file_order(document.problems))
    return Section(document, root, root, "", TOP_KEYS)


def _read_listen(top: Section) -> tuple[Listen, ...]:
    default = (LISTEN_ADDRESS.parse(DEFAULT_LISTEN),)
    addresses = top.get_list("listen", LISTEN_ADDRESS, default, one_will_do=True)
    if top.is_empty_list("listen"):
        top.report("listen", "the list is empty, it needs at least one address")
    for wrong in listen_conflicts(addresses, "listed"):
        top.report("listen", wrong)
    return addresses


def _read_tls(top: Section, base_dir: str) -> ServerTls | None:
    tls = top.section("tls", TLS_KEYS)
    if tls is None:
        return None
    pems: dict[str, Pem] = {}
    for key, example in (("certfile", "server.crt"), ("keyfile", "server.key")):
        given = tls.require(key, FILE_PATH, example)
        if given is not None:
            path = os.path.join(base_dir, given)  # noqa: PTH118 - keeps "./x" as it was written
            wrong = check_readable(path)
            if wrong is None:
                pems[key] = Pem(file=path)
            else:
                tls.report(key, f"{quoted(given)}: {wrong}")
    if len(pems) < len(TLS_KEYS):
        return None
    cert, key_pem = pems["certfile"], pems["keyfile"]
    bad = check_pair(cert, key_pem, "tls.certfile")
    if bad is not None:
        which, message = bad
        tls.report(f"{which}file", message)
    return ServerTls(cert=cert, key=key_pem)


def _read_web_config_file(top: Section, base_dir: str) -> _WebFile:
    """The file that ``web_config_file`` names; an empty one where it names none."""
    given = top.get("web_config_file", FILE_PATH, None)
    if given is None:
        return _WebFile()
    path = os.path.join(base_dir, given)  # noqa: PTH118 - as above
    wrong = check_readable(path)
    if wrong is not None:
        top.report("web_config_file", f"{quoted(given)}: {wrong}")
        return _WebFile()
    return _WebFile.read(path)


def _read_tokens_file(top: Section, base_dir: str) -> str | None:
    given = top.get("bearer_tokens_file", SECRET_FILE_PATH, None)
    if given is None:
        return None
    path = os.path.join(base_dir, given)  # noqa: PTH118 - as above
    wrong = check_readable(path)
    if wrong is not None:
        # The path is not shown: it may well be a token, put where the file belongs.
        top.report("bearer_tokens_file", wrong)
        return path
    try:
        read_tokens(path)
    except ConfigError as error:
        for problem in error.problems:
            top.report("bearer_tokens_file", str(problem))
    return path


def _read_access_log(top: Section, base_dir: str) -> AccessLog | None:
    section = top.section("access_log", ACCESS_LOG_KEYS)
    if section is None:
        return None
    fields = section.get_list("fields", one_of(ACCESS_LOG_FIELDS), DEFAULT_ACCESS_LOG_FIELDS)
    if section.is_empty_list("fields"):
        section.report("fields", "the list is empty; without this key all the usual fields are logged")
    repeated = sorted(name for name, times in Counter(fields).items() if times > 1)
    if repeated:
        section.report("fields", f"listed twice: {', '.join(repeated)}")
    return AccessLog(
        format=section.get("format", one_of(ACCESS_LOG_FORMATS), "ltsv"),
        path=_read_file_path(section, base_dir),
        fields=fields,
    )


def _read_error_log(top: Section, base_dir: str) -> str | None:
    section = top.section("error_log", ERROR_LOG_KEYS)
    return None if section is None else _read_file_path(section, base_dir)


def _read_file_path(section: Section, base_dir: str) -> str | None:
    given = section.get("path", FILE_PATH, None)
    return None if given is None else os.path.join(base_dir, given)  # noqa: PTH118 - as above
