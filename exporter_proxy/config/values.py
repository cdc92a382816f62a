"""From the text of a value to the value: durations, sizes, numbers, networks, headers.

Each kind of value says what it expects and how its text is read, and knows nothing of YAML
or of positions; ``positions.py`` turns a refusal into a problem at its place. Addresses,
URLs and paths are in ``addresses.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Generic, TypeVar

from exporter_proxy.config.schema import Network

T = TypeVar("T")


class BadValue(Exception):
    """Text that is not of its kind. ``why`` goes after "expected ..., got ...", and may be "".

    ``secret``: the text may be a credential, so the message must not show it.
    """

    def __init__(self, why: str = "", *, secret: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.secret = secret


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of value: ``parse`` takes the text as written and raises ``BadValue``."""

    expected: str
    """Completes the sentence "expected ..."."""
    parse: Callable[[str], T]
    only_text: bool = False
    """Numbers and booleans without quotes are refused: written there, they are mistakes."""
    only_boolean: bool = False

    def refusal(self, found: str, bad: BadValue | None = None) -> str:
        """The message for a value that is not of this kind; ``found`` describes the value."""
        message = f"expected {self.expected}"
        if bad is None or not bad.secret:
            message += f", got {found}"
        return f"{message}: {bad.why}" if bad is not None and bad.why else message


_UNIT_SECONDS = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "\u00b5s": Fraction(1, 10**6),  # micro sign
    "\u03bcs": Fraction(1, 10**6),  # Greek small mu: Go takes both
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
    "w": Fraction(7 * 86400),
}
_DURATION_PART = re.compile(
    r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(ns|us|\u00b5s|\u03bcs|ms|s|m|h|d|w)"
)
_DURATION = re.compile(f"(?:{_DURATION_PART.pattern})+")
_BARE_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?")


def duration(at_most: str, zero: bool = False) -> Kind[float]:
    """Seconds, written as Go and Prometheus do: ``500ms``, ``1m30s``, ``1h2m3.5s``.

    A bare number is refused, for Go reads it as nanoseconds and people mean seconds; 0 needs
    no unit.
    """
    at_most_seconds = _parse_duration(at_most)

    def parse(text: str) -> float:
        seconds = _parse_duration(text)
        if seconds == 0 and not zero:
            raise BadValue("it must be above zero")
        if seconds > at_most_seconds:
            raise BadValue(f"it can be {at_most} at most")
        return seconds

    return Kind('a duration such as "10s"', parse)


def _parse_duration(text: str) -> float:
    if text == "0":
        return 0.0
    if _BARE_NUMBER.fullmatch(text):
        raise BadValue("the unit is missing")
    if not _DURATION.fullmatch(text):
        raise BadValue
    # Exact until the last step: 300us is 0.0003, not 0.00030000000000000003.
    parts = _DURATION_PART.findall(text)
    return float(sum(Fraction(number) * _UNIT_SECONDS[unit] for number, unit in parts))


_UNIT_BYTES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_SIZE = re.compile(r"([0-9]{1,18})([A-Za-z]*)")


def size(at_least: str, at_most: str) -> Kind[int]:
    """Bytes: ``64MiB`` (powers of 1024), ``10MB`` (powers of 1000), ``512B`` or a plain number."""

    def parse(text: str) -> int:
        n_bytes = _parse_size(text)
        if not _parse_size(at_least) <= n_bytes <= _parse_size(at_most):
            raise BadValue(f"it must be between {at_least} and {at_most}")
        return n_bytes

    return Kind('a size such as "64MiB"', parse)


def _parse_size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise BadValue
    number, unit = match.groups()
    if unit not in _UNIT_BYTES:
        raise BadValue("units are B, KB, MB, GB, KiB, MiB and GiB")
    if _has_leading_zero(number):
        raise BadValue("a leading zero could mean an octal number")
    return int(number) * _UNIT_BYTES[unit]


def _has_leading_zero(digits: str) -> bool:
    return len(digits) > 1 and digits[0] == "0"


def whole_number(at_least: int, at_most: int) -> Kind[int]:
    """A decimal number; YAML's octal, hexadecimal and base-60 forms are refused."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise BadValue
        if _has_leading_zero(text.lstrip("-")):
            raise BadValue("a leading zero could mean an octal number")
        if not at_least <= int(text) <= at_most:
            raise BadValue(f"it must be between {at_least} and {at_most}")
        return int(text)

    return Kind("a whole number", parse)


def _parse_boolean(text: str) -> bool:
    if text.lower() not in ("true", "yes", "on", "false", "no", "off"):
        raise BadValue
    return text.lower() in ("true", "yes", "on")


BOOLEAN = Kind("true or false, without quotes", _parse_boolean, only_boolean=True)


def one_of(words: Sequence[str]) -> Kind[str]:
    """One of a few words, written exactly so."""

    def parse(text: str) -> str:
        if text not in words:
            raise BadValue
        return text

    return Kind(f"one of {', '.join(words)}", parse)


_NETWORK = re.compile(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?")


def _parse_network(text: str) -> Network:
    """A network or a bare address; an IPv4-mapped IPv6 one becomes the IPv4 one it stands for.

    A peer of a dual-stack socket shows up as ``::ffff:10.0.0.5`` and is compared as 10.0.0.5,
    so a network written in that form would otherwise match nobody.
    """
    if not _NETWORK.fullmatch(text):
        raise BadValue
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise BadValue from None
    try:
        ip_network(text)
    except ValueError:
        raise BadValue(
            f'it has bits set beyond its prefix length, did you mean "{_without_mapping(network)}"?'
        ) from None
    return _without_mapping(network)


def _without_mapping(network: Network) -> Network:
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


NETWORK = Kind('an address or network such as "10.0.0.5" or "10.0.0.0/8"', _parse_network)


def _parse_file_path(text: str) -> str:
    if not text:
        raise BadValue
    if not text.isprintable():
        # Of several lines: more likely what belongs into the file, which may be secret.
        raise BadValue("it has a character that does not print", secret=True)
    return text


FILE_PATH = Kind("the path of a file", _parse_file_path, only_text=True)


def _parse_process_text(text: str) -> str:
    if "\0" in text:
        raise BadValue("no program could be given a NUL", secret=True)
    return text


PROCESS_TEXT = Kind("text", _parse_process_text)
"""An argument, or the value of an environment variable."""


def _parse_env_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        # It may be NAME=value, put in the wrong place.
        raise BadValue('it begins with a letter or "_" and goes on with letters, digits and "_"', secret=True)
    return text


ENV_NAME = Kind("the name of an environment variable", _parse_env_name)


def _parse_param_name(text: str) -> str:
    if not text:
        raise BadValue
    return text


PARAM_NAME = Kind("the name of a query parameter", _parse_param_name)
PARAM_VALUE = Kind("text, a number or a list of them", str)

# RFC 9110 section 5.6.2.
_TOKEN_CHARACTERS = r"!#$%&'*+.^_`|~0-9A-Za-z-"  # noqa: S105 - a token of the HTTP grammar
_TOKEN = re.compile(f"[{_TOKEN_CHARACTERS}]+")
_MEDIA_TYPE = re.compile(f"[{_TOKEN_CHARACTERS}]+/[{_TOKEN_CHARACTERS}]+([ \t]*;[\t -~]*)?")

_CONNECTION_HEADERS = frozenset(
    (
        "connection",
        "proxy-connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
    )
)
_SCRAPE_TIMEOUT_HEADER = "x-prometheus-scrape-timeout-seconds"


def _check_header_name(text: str) -> None:
    if not _TOKEN.fullmatch(text):
        # It may well be a whole header, credentials included, put in the wrong place.
        raise BadValue("it may have letters, digits and hyphens", secret=True)
    if text.lower() in _CONNECTION_HEADERS:
        raise BadValue("it belongs to a single connection (RFC 9110 section 7.6.1) and is ours to set")
    if text.lower() == _SCRAPE_TIMEOUT_HEADER:
        raise BadValue("it is always sent, with what is left of the deadline")


def _parse_set_header_name(text: str) -> str:
    _check_header_name(text)
    return text


def _parse_passed_header_name(text: str) -> str:
    _check_header_name(text)
    if text.lower() == "host":
        raise BadValue('the exporter gets its own host; to send another, set it under "headers"')
    return text.lower()


SET_HEADER_NAME = Kind("the name of a header", _parse_set_header_name)
PASSED_HEADER_NAME = Kind("the name of a request header", _parse_passed_header_name)


def _parse_header_value(text: str) -> str:
    if re.search(r"[\r\n\0]", text):
        raise BadValue("it has a line break or a NUL, which would end the header", secret=True)
    if not re.fullmatch(r"[\t -~]*", text):
        raise BadValue("only printable ASCII characters can be sent", secret=True)
    if text != text.strip():
        raise BadValue("it begins or ends with a blank, which would not reach the exporter", secret=True)
    return text


HEADER_VALUE = Kind("one line of text", _parse_header_value)


def _parse_host_header(text: str) -> str:
    if not _HOST_HEADER.fullmatch(text):
        raise BadValue(secret=True)
    return text


# RFC 9110 section 7.2: a Host header carries an authority.
_HOST_HEADER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
HOST_HEADER = Kind('a host name or "host:port"', _parse_host_header)


def _parse_content_type(text: str) -> str:
    if not _MEDIA_TYPE.fullmatch(text):
        raise BadValue
    return text


CONTENT_TYPE = Kind('a media type such as "text/plain; version=0.0.4"', _parse_content_type)


def _parse_label_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise BadValue('it begins with a letter or "_" and goes on with letters, digits and "_"')
    if text.startswith("__"):
        raise BadValue('names that begin with "__" are for Prometheus\'s own use')
    if text == "exporter":
        raise BadValue("this label is always the exporter's name")
    return text


def _parse_label_value(text: str) -> str:
    if not text:
        raise BadValue("to Prometheus an empty label is none at all, leave it out")
    return text


LABEL_NAME = Kind("the name of a Prometheus label", _parse_label_name)
LABEL_VALUE = Kind("text", _parse_label_value)
