"""How many series and families a page has, for a person who looks at one scrape.

Slower than verification and with the whole body at hand; for the command line, not for
the data path.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

from exporter_proxy.scrape.exposition.content_type import Format, format_of
from exporter_proxy.scrape.exposition.protobuf import ProtobufVerifier
from exporter_proxy.scrape.exposition.verdict import Malformed

_STRING = rb'(?>"(?:[^"\\]++|\\.){0,10000}")'
_TYPED = re.compile(
    rb"^[ \t]*+#[ \t]++TYPE[ \t]++([a-zA-Z_:][a-zA-Z0-9_:]*+|" + _STRING + rb")", re.MULTILINE | re.DOTALL
)
_BRACES = rb'\{(?:[^"}\n]++|' + _STRING + rb"){0,10000}\}"
_SAMPLE = re.compile(
    rb"^[ \t]*+(?:([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+|)(" + _BRACES + rb"|)[ \t]*+[^\s{]",
    re.MULTILINE | re.DOTALL,
)
_NAME_IN_BRACES = re.compile(rb"[{,][ \t]*+(" + _STRING + rb")[ \t]*+[,}]", re.DOTALL)
_SUFFIXES = (b"_bucket", b"_sum", b"_count", b"_total", b"_created", b"_info", b"_gsum", b"_gcount")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a page holds.

    ``series`` counts sample lines (protobuf: metrics, a histogram being one). ``families``
    counts what has a TYPE and the names of samples that belong to none of those.
    """

    series: int
    families: int


def summarise(body: bytes, content_type: str | None) -> Summary:
    """Count what the decoded ``body`` holds; of a malformed one, what could be made out."""
    if format_of(content_type) is Format.PROTOBUF:
        verifier = ProtobufVerifier()
        with suppress(Malformed):
            verifier.feed(body)
            verifier.finish()
        return Summary(series=verifier.metrics, families=verifier.families)
    series = 0
    names: set[bytes] = set()
    for sample in _SAMPLE.finditer(body):
        name, braces = sample.groups()
        if name is None:
            if not braces:
                continue
            in_braces = _NAME_IN_BRACES.search(braces)
            name = in_braces[1].strip(b'"') if in_braces else braces
        series += 1
        names.add(name)
    families = {typed[1].strip(b'"') for typed in _TYPED.finditer(body)}
    return Summary(series, len(families | {_family(name, families) for name in names}))


def _family(name: bytes, typed: set[bytes]) -> bytes:
    if name not in typed:
        for suffix in _SUFFIXES:
            if name.endswith(suffix) and name.removesuffix(suffix) in typed:
                return name.removesuffix(suffix)
    return name
