"""Response headers and what Prometheus reads a body as when it has them."""

from __future__ import annotations

import zlib

from tests.testdata.exposition.pages import TEXT, Page, Taken, zipped
from tests.testdata.exposition.protobuf import FOO, delimited

PLAIN = b"foo 1\n"
ZIPPED = zipped(PLAIN)

_ONLY_TEXT = b"# a comment\nfoo 1\n"
_ONLY_OPENMETRICS = b"# TYPE foo info\n# EOF\n"
_ONLY_PROTOBUF = delimited(FOO)

READ_AS_TEXT: list[str | None] = [
    None,
    "",
    "text/plain",
    "TEXT/PLAIN; version=1.0.0; escaping=allow-utf-8",
    "text/html; charset=utf-8",
    "application/json",
    "garbage",
    "/",
    "text/plain; version",
    "application/openmetrics-text/x",
    "application/openmetrics-text, text/plain",
    "application/openmetrics-text; version",
    "application/openmetrics-text; version=",
    "application/openmetrics-text;; version=1.0.0",
    "application/openmetrics-text; =1.0.0",
    'application/openmetrics-text; a="b',
    "application/openmetrics-text; a=b c",
    "application/vnd.google.protobuf; proto",
]
READ_AS_OPENMETRICS = [
    "application/openmetrics-text",
    "application/openmetrics-text; version=0.0.1",
    "Application/OpenMetrics-Text; VERSION=1.0.0",
    " application/openmetrics-text ; version = 1.0.0 ;",
    'application/openmetrics-text; version="1.0.0"; a="b;c"; d="\\""; e=""',
    "application/openmetrics-text;\tversion=1.0.0; charset=utf-8; escaping=underscores",
]
READ_AS_PROTOBUF = [
    "application/vnd.google.protobuf",
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
    "Application/vnd.google.Protobuf; encoding=text",
]
UNJUDGED = [
    "application/openmetrics-text; version=2.0.0",
    "application/openmetrics-text; version=1.0.0; version=1.0.0",
    "application/vnd.google.protobuf; a=1; a=2",
]

CONTENT_TYPE_PAGES = [
    Page(body, content_type, taken=Taken.BY_2 if right else Taken.BY_NONE)
    for content_types, good in (
        (READ_AS_TEXT, _ONLY_TEXT),
        (READ_AS_OPENMETRICS, _ONLY_OPENMETRICS),
        (READ_AS_PROTOBUF, _ONLY_PROTOBUF),
    )
    for content_type in content_types
    for body, right in ((good, True), (_ONLY_TEXT if good is not _ONLY_TEXT else _ONLY_OPENMETRICS, False))
]

_NOT_GZIP = "not a gzip body"

ENCODED_PAGES = [
    Page(body, TEXT, encoding, Taken.BY_NONE if problem else Taken.BY_2, line, problem)
    for encoding, body, line, problem in (
        ("gzip", ZIPPED, None, ""),
        (" gzip ", ZIPPED, None, ""),
        ("gzip", zipped(b""), None, ""),
        ("gzip", ZIPPED + ZIPPED, None, ""),
        ("gzip", zipped(b"fo") + zipped(b"o 1"), None, ""),
        ("identity", PLAIN, None, ""),
        ("br", PLAIN, None, ""),
        ("gzip", b"", None, "the body is empty"),
        ("gzip", ZIPPED[:5], None, "cut off"),
        ("gzip", ZIPPED[:-3], None, "cut off"),
        ("gzip", ZIPPED[:-8] + b"abcd" + ZIPPED[-4:], None, _NOT_GZIP),
        ("gzip", ZIPPED[:-4] + b"abcd", None, _NOT_GZIP),
        ("gzip", ZIPPED + b"garbage at the end", None, _NOT_GZIP),
        ("gzip", ZIPPED + bytes(64), None, _NOT_GZIP),
        ("gzip", PLAIN, None, _NOT_GZIP),
        ("gzip", zlib.compress(PLAIN), None, _NOT_GZIP),
        ("gzip", zipped(b"a 1\n<html>\n"), 2, "not HTML"),
        (None, ZIPPED, 1, "gzip without a Content-Encoding"),
        ("GZIP", ZIPPED, 1, "Prometheus does not decode Content-Encoding 'GZIP'"),
        ("x-gzip", ZIPPED, 1, "Prometheus does not decode Content-Encoding 'x-gzip'"),
        ("deflate", zlib.compress(PLAIN), 1, "Prometheus does not decode Content-Encoding 'deflate'"),
        ("gzip, gzip", zipped(ZIPPED), 1, "Prometheus does not decode"),
    )
]
