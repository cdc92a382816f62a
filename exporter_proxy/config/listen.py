"""From text to where to listen: an address, a unix socket, or a socket that someone passes on.

What is written here is judged as text only. Whether the port is free, the group exists or a
socket was passed is known at start, in ``front/sockets.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from exporter_proxy.config.addresses import HOST_PORT, check_host, parse_port
from exporter_proxy.config.schema import Listen, ListenAddress, StarterListen, SystemdListen, UnixListen
from exporter_proxy.config.values import BadValue, Kind

MAX_UNIX_PATH_BYTES = 107
"""unix(7): 108 bytes of ``sun_path``, the last of them NUL."""
GROUP_MODE = 0o660
"""Where a group is named without a mode: connecting takes the right to write, which no umask leaves it."""

_UNIX = "unix:"
_STARTER = "SERVER_STARTER:"
_SYSTEMD = re.compile(r"systemd(?:(:)(.*))?", re.DOTALL)
_SYSTEMD_NAME = re.compile(r"[ -9;-~]{1,255}")  # what FileDescriptorName= of systemd.socket(5) takes
_MODE = re.compile(r"0?[0-7]{3}")
_GROUP = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_OTHER_CASE = re.compile(r"(unix:|systemd(?![A-Za-z0-9.-])|server_starter:)", re.IGNORECASE)


def _parse_listen(text: str) -> Listen:
    if text.startswith(_UNIX):
        return _parse_unix(text.removeprefix(_UNIX))
    if text.startswith(_STARTER):
        return _parse_starter(text.removeprefix(_STARTER))
    systemd = _SYSTEMD.fullmatch(text)
    if systemd is not None:
        return _parse_systemd(*systemd.groups())
    return _parse_address(text)


def _parse_address(text: str) -> ListenAddress:
    if _OTHER_CASE.match(text):
        raise BadValue('"unix:" and "systemd" are written in small letters, "SERVER_STARTER:" in capitals')
    if text.startswith("/"):
        raise BadValue('a unix socket is written as "unix:" and its path')
    if "/" in text:
        raise BadValue("it takes an address only, without a scheme or a path")
    if text.isascii() and text.isdigit():
        raise BadValue(f'the colon is missing, did you mean ":{text}"?')
    match = HOST_PORT.fullmatch(text)
    if match is None:
        if text.count(":") > 1:
            raise BadValue('an IPv6 address goes in brackets, as in "[::1]:9099"')
        raise BadValue("the port is missing")
    host, port = match.groups()
    return ListenAddress(check_host(host) if host else "", parse_port(port, lowest=0))


def _parse_unix(text: str) -> UnixListen:
    path, *options = text.split(",")
    if not path.startswith("/"):
        raise BadValue(
            'the path of a unix socket must be absolute, as in "unix:/run/exporter_proxy/http.sock"'
        )
    if "//" in path or path.endswith("/"):
        raise BadValue('the path has a "/" too many; it is written as "unix:/run/exporter_proxy/http.sock"')
    if not path.isprintable():
        raise BadValue("the path has a character that does not print")
    if len(path.encode()) > MAX_UNIX_PATH_BYTES:
        raise BadValue(f"the path of a unix socket can have {MAX_UNIX_PATH_BYTES} bytes at most")
    mode, group = _parse_unix_options(options)
    return UnixListen(path, GROUP_MODE if group is not None and mode is None else mode, group)


def _parse_unix_options(options: Sequence[str]) -> tuple[int | None, str | None]:
    mode: int | None = None
    group: str | None = None
    for option in options:
        name, _, value = option.partition("=")
        if name == "mode" and mode is None:
            if not _MODE.fullmatch(value):
                raise BadValue('mode is three octal digits, with or without a 0 before them: "mode=0660"')
            mode = int(value, 8)
        elif name == "group" and group is None:
            if not _GROUP.fullmatch(value):
                raise BadValue('group is the name of a group, as in "group=prometheus"')
            group = value
        elif name in ("mode", "group"):
            raise BadValue(f"{name} is given twice")
        else:
            raise BadValue(f'"{name}" is no option of a unix socket, the options are mode and group')
    return mode, group


def _parse_systemd(colon: str | None, name: str | None) -> SystemdListen:
    if colon is None:
        return SystemdListen(None)
    if not _SYSTEMD_NAME.fullmatch(name or ""):
        raise BadValue(
            'after "systemd:" comes the socket\'s name, which FileDescriptorName= of its unit sets; '
            'without one it is the name of the unit, as in "systemd:exporter_proxy.socket"'
        )
    return SystemdListen(name)


def _parse_starter(address: str) -> StarterListen:
    if not address or not address.isprintable() or re.search("[;=]", address):
        raise BadValue(
            f'after "{_STARTER}" comes what start_server was told to listen on: an address such as '
            '"0.0.0.0:8080", or a path'
        )
    # start_server calls every IPv4 address by the port alone.
    return StarterListen(f"0.0.0.0:{address}" if address.isdecimal() else address)


LISTEN_ADDRESS = Kind('an address such as "0.0.0.0:9099", ":9099" or "[::1]:9099"', _parse_listen)


def listen_conflicts(listens: Sequence[Listen], given: str) -> list[str]:
    """What is wrong with these together. ``given`` completes "... is ... twice"."""
    # Port 0 is another port each time.
    counted = Counter(str(one) for one in listens if not (isinstance(one, ListenAddress) and one.port == 0))
    wrong = [f'"{text}" is {given} twice' for text, times in counted.items() if times > 1]
    if SystemdListen(None) in listens:
        named = [one for one in counted if one.startswith("systemd:")]
        wrong += [f'"systemd" means all sockets that systemd passes, "{one}" among them' for one in named]
    return wrong
