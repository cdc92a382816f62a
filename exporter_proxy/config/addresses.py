"""From text to where an exporter is asked, and under which path it is served.

What is accepted here is sent as it is: nothing is decoded, normalised or guessed, so a text
that two programs could read in two ways is refused. Messages never show a URL's credentials.
Where to listen is in ``listen.py``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from exporter_proxy.access import address_of
from exporter_proxy.config.schema import ExternalUrl, UpstreamUrl
from exporter_proxy.config.values import BadValue, Kind

HOST_PORT = re.compile(r"(\[[^\]]*\]|[^:]*):([^:]*)")
"""Host, in its brackets if it has them, and port; neither is checked."""
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_LOOKS_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


def check_host(host: str) -> str:
    """A host without its brackets; raises ``BadValue`` unless it is an address or a plausible name."""
    if host.startswith("["):
        address = host[1:-1]
        if "%" in address:
            raise BadValue('an address with a zone ("%") is not supported')
        if not host.endswith("]") or not _is_ipv6(address):
            raise BadValue("what is in brackets is not an IPv6 address")
        return address
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadValue("the host is neither a name nor an address")
    if _LOOKS_NUMERIC.fullmatch(labels[-1]):
        # The C library reads 127.1, 0x7f.1 and 2130706433 as 127.0.0.1; few people do.
        try:
            IPv4Address(host)
        except ValueError:
            raise BadValue("the host is not an IPv4 address of four decimal numbers") from None
    return host


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this host: 127.0.0.0/8, ::1, localhost and names under it (RFC 6761)."""
    address = address_of(host)
    if address is not None:
        return address.is_loopback
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def parse_port(text: str, lowest: int) -> int:
    """A port from ``lowest`` on; raises ``BadValue``."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not lowest <= int(text) <= 65535:
        raise BadValue(f"the port must be a number from {lowest} to 65535")
    return int(text)


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(#.*)?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_SCHEMES = 'it must begin with "http://", "https://" or "http+unix:///"'
_MAX_SOCKET_PATH_BYTES = 107
"""What fits into a sockaddr_un beside its final NUL, see unix(7)."""


def _parse_url(text: str) -> UpstreamUrl:
    if not re.fullmatch(r"[!-~]*", text):
        raise BadValue("blanks, control and non-ASCII characters must be encoded (%20, xn--...)")
    match = _URL.fullmatch(text)
    if match is None:
        if re.match(r"https?:", text, re.IGNORECASE):
            raise BadValue('"//" must follow the scheme')
        raise BadValue(_SCHEMES)
    scheme, authority, target, fragment = match.groups()
    scheme = scheme.lower()
    if scheme == "http+unix":
        return _parse_unix_url(authority, text[match.end(1) + len("://") :])
    if scheme not in _DEFAULT_PORTS:
        raise BadValue(_SCHEMES)
    if "@" in authority:
        raise BadValue("a user name and password do not belong in a URL")
    if fragment is not None:
        raise BadValue('what follows "#" is never sent, leave it out')
    host, port = _split_authority(authority)
    if not host:
        raise BadValue("the host is missing")
    path_and_query = target if target.startswith("/") else f"/{target}"
    return UpstreamUrl(
        scheme=scheme,
        host=check_host(host),
        port=parse_port(port if port is not None else _DEFAULT_PORTS[scheme], lowest=1),
        target=path_and_query,
    )


def _parse_unix_url(authority: str, rest: str) -> UpstreamUrl:
    """``/run/x.sock:/metrics``: the first colon ends the path of the socket, nothing is decoded."""
    path, colon, target = rest.partition(":")
    if authority or not path.startswith("/"):
        raise BadValue('the path of the socket is absolute, as in "http+unix:///run/x.sock:/metrics"')
    if not colon or not target.startswith("/"):
        raise BadValue('":" and what to ask for follow the socket, as in "http+unix:///run/x.sock:/metrics"')
    if "#" in rest:
        raise BadValue('what follows "#" is never sent, leave it out')
    if re.search("[?%@]", path):
        raise BadValue(
            'the path of the socket is taken as it is written and cannot have "?", "%" or "@" in it'
        )
    if len(path) > _MAX_SOCKET_PATH_BYTES:
        raise BadValue(f"the path of a socket can have {_MAX_SOCKET_PATH_BYTES} characters at most")
    return UpstreamUrl("http+unix", "localhost", 0, target, socket_path=path)


def _parse_proxy_url(text: str) -> UpstreamUrl:
    url = _parse_url(text)
    if url.socket_path is not None:
        raise BadValue('it must begin with "http://" or "https://"')
    if "?" in url.target:
        raise BadValue('"/poll" and "/push" are put behind it, so it can have no "?"')
    return replace(url, target=url.target.rstrip("/") or "/")


PROXY_URL = Kind('a URL such as "http://pushprox.example.org:8080/"', _parse_proxy_url, only_text=True)


def _parse_server_name(text: str) -> str:
    if _is_ipv6(text):
        return check_host(f"[{text}]")
    if ":" in text:
        raise BadValue("a port does not belong here")
    return check_host(text).removesuffix(".")


SERVER_NAME = Kind("a host name or an IP address, without a port", _parse_server_name, only_text=True)


def _split_authority(authority: str) -> tuple[str, str | None]:
    """Host, in its brackets if it has them, and the text of the port; ``None`` where there is none."""
    match = HOST_PORT.fullmatch(authority)
    if match is not None:
        return match.group(1), match.group(2)
    if authority.count(":") > 1 and not authority.startswith("["):
        raise BadValue('an IPv6 address goes in brackets, as in "http://[::1]:9100/metrics"')
    return authority, None


UPSTREAM_URL = Kind('a URL such as "http://127.0.0.1:9100/metrics"', _parse_url, only_text=True)

_MAX_PATH_CHARACTERS = 1000
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/-]*")


def _check_path(text: str) -> None:
    """A path is compared with the raw bytes of a request: refuse what could never match, or in two ways."""
    if not text.startswith("/"):
        raise BadValue('it must begin with "/"')
    if "?" in text or "#" in text:
        raise BadValue('a path has no "?" or "#"; parameters go under "params"')
    if "%" in text:
        raise BadValue("a path is matched as it is written, without percent-encoding")
    if not _PATH.fullmatch(text):
        raise BadValue("only letters, digits and -._~!$&'()*+,;=:@/ can be in a path")
    if "//" in text:
        raise BadValue('"//" would not survive on the way through most clients')
    if any(segment in (".", "..") for segment in text.split("/")):
        raise BadValue('clients resolve "." and ".." before they send a path')
    if len(text) > _MAX_PATH_CHARACTERS:
        raise BadValue(f"it can have {_MAX_PATH_CHARACTERS} characters at most")


def _parse_exporter_path(text: str) -> str:
    _check_path(text)
    if text in ("/", "/metrics") or text.startswith("/-/"):
        raise BadValue('"/", "/metrics" and what is under "/-/" are this daemon\'s own pages')
    return text


EXPORTER_PATH = Kind('a path such as "/node_exporter/metrics"', _parse_exporter_path, only_text=True)


def _parse_route_prefix(text: str) -> str:
    """The prefix without a trailing slash; "" for ``/``, which is also what Prometheus makes of ""."""
    if text in ("", "/"):
        return ""
    _check_path(text)
    return text.removesuffix("/")


ROUTE_PREFIX = Kind('"/" or a path such as "/exporters"', _parse_route_prefix, only_text=True)


def _parse_external_url(text: str) -> ExternalUrl:
    """Its path is one that a route prefix can be."""
    if not re.match(r"https?:", text, re.IGNORECASE):
        raise BadValue('it must begin with "http://" or "https://"')
    url = _parse_url(text)
    if "?" in url.target:
        raise BadValue('there is no "?" in it')
    return ExternalUrl(url.scheme, url.authority, _parse_route_prefix(url.target))


EXTERNAL_URL = Kind('a URL such as "https://example.org/exporters"', _parse_external_url, only_text=True)

MAX_NAME_CHARACTERS = 100
_EXPORTER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def _parse_exporter_name(text: str) -> str:
    if not _EXPORTER_NAME.fullmatch(text) or len(text) > MAX_NAME_CHARACTERS:
        raise BadValue(
            'it begins with a letter or "_", goes on with letters, digits and "_.-", '
            f"and has {MAX_NAME_CHARACTERS} characters at most"
        )
    return text


_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


def exporter_name_like(text: str) -> str:
    """``text`` itself where it can be an exporter's name, else one that is like it."""
    name = _NOT_IN_NAMES.sub("_", text)
    if not re.match("[A-Za-z_]", name):
        name = f"_{name}"
    return name[:MAX_NAME_CHARACTERS]


def with_suffix(name: str, suffix: str) -> str:
    """An exporter's name with ``suffix`` behind it, and cut before that where it would be too long."""
    return name[: MAX_NAME_CHARACTERS - len(suffix)] + suffix


EXPORTER_NAME = Kind('an exporter name such as "node_exporter"', _parse_exporter_name)
