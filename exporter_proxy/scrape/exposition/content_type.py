"""Which exposition format a Content-Type announces, decided as Prometheus decides it.

Prometheus reads the header with Go's ``mime.ParseMediaType``; what that cannot read, and
every media type but the two below, is the text format (Prometheus 2) or fails unless the
scrape configuration names a fallback (Prometheus 3).
"""

from __future__ import annotations

import re
from enum import Enum

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - RFC 9110 calls it a token
_PARAMETER = re.compile(rf'\s*;\s*({_TOKEN})\s*=\s*({_TOKEN}|"(?:[^"\\\r\n]|\\[^\r\n])*")')
_MEDIA_TYPE = re.compile(rf"\s*({_TOKEN}(?:/{_TOKEN})?)\s*(?=;|\Z)")
_TRAILING = re.compile(r"\s*;?\s*")


class Format(Enum):
    """An exposition format that can be verified."""

    TEXT = "text"
    OPENMETRICS = "openmetrics"
    PROTOBUF = "protobuf"


_FORMATS = {
    "application/openmetrics-text": Format.OPENMETRICS,
    "application/vnd.google.protobuf": Format.PROTOBUF,
}


def format_of(content_type: str | None) -> Format | None:
    """The format a body with this header is read as; ``None`` where that depends on the version.

    Depending on the version: a parameter given twice (an error to older ones, not to newer
    ones), and OpenMetrics 2, which is yet to come.
    """
    media_type = _MEDIA_TYPE.match(content_type or "")
    if media_type is None:
        return Format.TEXT
    found = _FORMATS.get(media_type[1].lower(), Format.TEXT)
    if found is Format.TEXT:
        return found
    parameters: dict[str, str] = {}
    at = media_type.end()
    while parameter := _PARAMETER.match(media_type.string, at):
        name = parameter[1].lower()
        if name in parameters:
            return None
        parameters[name] = parameter[2]
        at = parameter.end()
    if not _TRAILING.fullmatch(media_type.string, at):
        return Format.TEXT
    version = parameters.get("version", "1").strip('"')
    if found is Format.OPENMETRICS and not version.startswith(("0.", "1")):
        return None
    return found
