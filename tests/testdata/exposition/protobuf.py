"""Protobuf pages, written by hand from the wire format, and what Prometheus makes of them."""

from __future__ import annotations

from struct import pack

from tests.testdata.exposition.pages import PROTOBUF, Page, Taken, bad, taken, zipped


def varint(number: int) -> bytes:
    """A base-128 number."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def field(number: int, payload: bytes | int) -> bytes:
    """A length-delimited field, or a number."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def metric(value: float = 1.0, **labels: str) -> bytes:
    """A Metric that is a counter."""
    pairs = (field(1, field(1, name.encode()) + field(2, text.encode())) for name, text in labels.items())
    return b"".join(pairs) + field(3, varint(1 << 3 | 1) + pack("<d", value))


def family(
    name: bytes = b"foo", help_text: bytes = b"h", kind: int = 0, metrics: tuple[bytes, ...] = (metric(),)
) -> bytes:
    """A MetricFamily."""
    described = field(1, name) + field(2, help_text) + field(3, kind)
    return described + b"".join(field(4, one) for one in metrics)


def delimited(*messages: bytes) -> bytes:
    """A body: each message after its length."""
    return b"".join(varint(len(message)) + message for message in messages)


FOO = family()
BAR = family(b"bar_total", b"", 0, (metric(2.5, a="b"), metric(3, a="c"), metric(4, a="größe")))

GOOD_PROTOBUF = taken(
    Taken.BY_2,
    PROTOBUF,
    b"",
    delimited(FOO),
    delimited(FOO, BAR),
    delimited(family(b"big", b"x" * 70000, 1), FOO),
    delimited(family(b"long", b"", 3, tuple(metric(number, n=str(number)) for number in range(3000)))),
    # What has no metric is not looked at.
    delimited(b""),
    delimited(b"", b"", FOO),
    delimited(family(b"a b", metrics=())),
    delimited(family(b"\xff", b"\xff", 9, metrics=())),
    delimited(field(1, b"zzz") + FOO),
    delimited(field(3, 0) + field(4, metric()) + field(1, b"foo")),
    delimited(field(1, b"foo") + field(4, metric())),
    # Unknown fields of every wire type.
    delimited(FOO + field(99, 5) + field(98, b"x")),
    delimited(FOO + b"\xfd\x06abcd" + b"\xf9\x06abcdefgh"),
    delimited(FOO + b"\x9b\x06\x9c\x06"),
    # Numbers written longer than need be.
    bytes((len(FOO) | 0x80, 0x80, 0x80, 0x80, 0)) + FOO,
    delimited(FOO + b"\xf8\x80\x80\x80\x80\x00\x01"),
)

LENIENT_PROTOBUF = [
    *taken(Taken.BY_3_ONLY, PROTOBUF, delimited(family(b"a b")), delimited(family("größe".encode()))),
    *taken(
        Taken.IF_RELABELLED,
        PROTOBUF,
        delimited(family(metrics=(field(1, field(1, b"a") + field(2, b"b")) * 2 + metric(),))),
    ),
    *taken(
        Taken.UNJUDGED,
        PROTOBUF,
        delimited(family(metrics=(b"\xff\xff\xff",))),
        delimited(family(metrics=(field(1, field(1, b"a") + field(2, b"\xff")) + metric(),))),
    ),
]

_CUT = "the body ends inside MetricFamily"

BAD_PROTOBUF = [
    bad(body, None, problem, PROTOBUF)
    for body, problem in (
        (delimited(FOO)[:-1], f"{_CUT} 1"),
        (delimited(FOO, BAR)[:-1], f"{_CUT} 2"),
        (delimited(FOO, BAR)[: len(FOO) + 2], f"{_CUT} 2"),
        (delimited(FOO) + b"\x80", f"{_CUT} 2"),
        (b"\xff\xff\xff\xff\x0f", f"{_CUT} 1"),
        (b"foo 1\n", "MetricFamily 1, byte 2, has a field of wire type 7"),
        (b"<html>", f"{_CUT} 1"),
        (b"<html>" * 20, "MetricFamily 1, byte 9, has a field of wire type 4"),
        (zipped(b"foo 1\n"), "MetricFamily 1"),
        (delimited(field(3, 0) + field(4, metric())), "MetricFamily 1 has no name"),
        (delimited(FOO, family(b"")), "MetricFamily 2 has no name"),
        (delimited(family(b"\xff")), "MetricFamily 1 has a name that is not valid UTF-8"),
        (delimited(family(help_text=b"\xff"), BAR), "MetricFamily 1 has a help text that is not valid UTF-8"),
        (delimited(family(kind=9)), "MetricFamily 1 has the unknown metric type 9"),
        (delimited(field(1, 3) + FOO), "has a name of wire type 0"),
        (delimited(field(1, b"foo") + field(3, b"x") + field(4, metric())), "has a type of wire type 2"),
        (delimited(FOO + b"\x36"), "has a field of wire type 6"),
        (delimited(FOO + b"\x9c\x06"), "has a field of wire type 4"),
        (delimited(FOO + b"\x00\x01"), "has an invalid field number"),
        (delimited(FOO + b"\xff" * 11), "has an invalid field number"),
        (delimited(FOO + b"\x28" + b"\xff" * 11), "has a unit of wire type 0"),
        (delimited(FOO + b"\x30" + b"\xff" * 11), "has an invalid number"),
        (delimited(FOO + b"\x32" + b"\xff" * 11), "has a field of invalid length"),
        (delimited(field(1, b"foo") + b"\x22\x7f\x01"), "has a field that is longer than the message"),
        (b"\x80\x80\x80\x80\x80\x01" + FOO, "has no valid length before it"),
    )
]

PROTOBUF_PAGES: list[Page] = [*GOOD_PROTOBUF, *LENIENT_PROTOBUF, *BAD_PROTOBUF]
