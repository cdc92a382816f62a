"""The protobuf format: MetricFamily messages, each after its length, as they stream by.

Judged are the framing, the fields of each MetricFamily, and its name, help and type; not
what is inside its metrics, which is stepped over without being kept. Prometheus looks at
name, help and type only where the family has a metric.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn

from exporter_proxy.scrape.exposition.verdict import Malformed

_STRING_LIMIT_BYTES = 1 << 18
"""A name, help or unit that is longer is let through unjudged."""

FIELDS_A_STEP, METRICS_A_STEP = 1000, 4000
"""A step of ``feed_in_steps`` reads so many fields or steps over so many metrics: 1 ms."""
_STRETCH_BYTES = 1 << 13

_MAX_LENGTH_BYTES = 5
_MAX_VARINT_BYTES = 10
_MAX_TYPE = 5

_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_NAME, _HELP, _TYPE, _METRIC, _UNIT = range(1, 6)
_WIRE_TYPES = {_NAME: _BYTES, _HELP: _BYTES, _TYPE: _VARINT, _METRIC: _BYTES, _UNIT: _BYTES}
_METRIC_TAG = _METRIC << 3 | _BYTES
_FIELD_NAMES = {_NAME: "name", _HELP: "help", _TYPE: "type", _METRIC: "metric", _UNIT: "unit"}

_empty_messages = re.compile(rb"\x00++")


class _NeedsMore(Exception):
    """The data ends inside a field; ``count`` bytes from its beginning are needed at least."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count


class ProtobufVerifier:
    """Verifies a delimited protobuf body and counts what is in it."""

    def __init__(self) -> None:
        self.families = 0
        """Families that have a metric."""
        self.metrics = 0
        self._messages = 0
        self._offset = 0
        """Bytes of the body before ``_pieces``."""
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 0
        self._skip = 0
        """Bytes of a payload that are not looked at."""
        self._left: int | None = None
        """Bytes of the message that are still to come; ``None`` between messages."""
        self._new_family()

    def feed(self, chunk: bytes | memoryview) -> None:
        """Check as much as is complete. Raises ``Malformed``."""
        for _ in self.feed_in_steps(chunk):
            pass

    def feed_in_steps(self, chunk: bytes | memoryview) -> Iterator[None]:
        """See ``Verifier.feed_in_steps``; most parts of a body are one step."""
        data = chunk if isinstance(chunk, bytes) else bytes(chunk)
        if not data:
            return
        self._have += len(data)
        self._pieces.append(data)
        if self._have < self._need:
            return
        if len(self._pieces) > 1:
            data = b"".join(self._pieces)
        at = 0
        self._need = 0
        fields, metrics_before = 0, self.metrics
        try:
            while at < len(data):
                at = self._step(data, at)
                fields += 1
                if fields > FIELDS_A_STEP or self.metrics - metrics_before > METRICS_A_STEP:
                    yield
                    fields, metrics_before = 0, self.metrics
        except _NeedsMore as more:
            self._need = more.count
        self._offset += at
        rest = data[at:]
        self._pieces = [rest] if rest else []
        self._have = len(rest)

    def finish(self) -> None:
        """Check that the last message was whole. Raises ``Malformed``."""
        if self._have or self._skip or self._left:
            number = self._messages + (self._left is None)
            raise Malformed(None, "", f"the body ends inside MetricFamily {number}")
        self._close_family()

    def _new_family(self) -> None:
        self._metrics_before = self.metrics
        self._name: bytes | None = b""
        self._help: bytes | None = b""
        self._type = 0
        self._judges_family = True

    def _step(self, data: bytes, at: int) -> int:
        """Read one field, the length of one message, or some of a payload."""
        if self._skip:
            count = min(self._skip, len(data) - at)
            self._skip -= count
            return at + count
        if self._left:
            after = self._metrics(data, at)
            return after if after > at else self._field(data, at)
        if self._left == 0:
            self._close_family()
            self._left = None
        if empty := _empty_messages.match(data, at):
            self._messages += empty.end() - at
            return empty.end()
        left, after = _varint(data, at, _MAX_LENGTH_BYTES)
        self._messages += 1
        if after == 0:
            self._reject(at, "has no valid length before it")
        self._left = left
        return after

    def _field(self, data: bytes, at: int) -> int:
        assert self._left is not None
        tag, payload = _varint(data, at, _MAX_VARINT_BYTES)
        field, wire_type = tag >> 3 & 0xFFFFFFFF, tag & 7
        if payload == 0 or not 0 < field < 1 << 31:
            self._reject(at, "has an invalid field number")
        if wire_type != _WIRE_TYPES.get(field, wire_type):
            self._reject(at, f"has a {_FIELD_NAMES[field]} of wire type {wire_type}")
        length = 0
        if wire_type == _VARINT:
            length, payload = _varint(data, payload, _MAX_VARINT_BYTES)
            if payload == 0:
                self._reject(at, "has an invalid number")
            if field == _TYPE:
                self._type = length & 0xFFFFFFFF
            length = 0
        elif wire_type == _BYTES:
            length, payload = _varint(data, payload, _MAX_VARINT_BYTES)
            if payload == 0:
                self._reject(at, "has a field of invalid length")
        elif wire_type == _FIXED64:
            length = 8
        elif wire_type == _FIXED32:
            length = 4
        elif wire_type == _START_GROUP:
            # Long out of use; nobody writes one, so the rest of the family is not judged.
            length = self._left - (payload - at)
            self._judges_family = False
        else:
            self._reject(at, f"has a field of wire type {wire_type}")
        if payload - at + length > self._left:
            self._reject(at, "has a field that is longer than the message")
        if field in (_NAME, _HELP):
            text = _payload(data, at, payload, length)
            if field == _NAME:
                self._name = text
            else:
                self._help = text
        self.metrics += field == _METRIC
        self._left -= payload - at + length
        self._skip = length
        return payload

    def _metrics(self, data: bytes, at: int) -> int:
        """Step over metrics that follow each other, nearly all that there is in most bodies.

        Those of 16 KiB and more, or that are not as they should be, are left to ``_field``.
        """
        size, left = len(data), self._left or 0
        until = min(size - 2, at + _STRETCH_BYTES)
        while left and at < until and data[at] == _METRIC_TAG:
            length = data[at + 1]
            head_bytes = 2
            if length > 0x7F:
                high = data[at + 2]
                length += (high << 7) - 0x80
                head_bytes = 3
                if high > 0x7F:
                    break
            if head_bytes + length > left:
                break
            left -= head_bytes + length
            at += head_bytes + length
            self.metrics += 1
        self._left = left
        self._skip = max(0, at - size)
        return min(at, size)

    def _close_family(self) -> None:
        """Judge the family that is complete now."""
        if self.metrics > self._metrics_before:
            self.families += 1
            if self._judges_family:
                if self._name == b"":
                    self._reject(None, "has no name")
                for what, text in (("a name", self._name), ("a help text", self._help)):
                    if text is not None and not _is_utf8(text):
                        self._reject(None, f"has {what} that is not valid UTF-8")
                if self._type > _MAX_TYPE:
                    self._reject(None, f"has the unknown metric type {self._type}")
        self._new_family()

    def _reject(self, at: int | None, problem: str) -> NoReturn:
        where = "" if at is None else f", byte {self._offset + at + 1},"
        raise Malformed(None, "", f"MetricFamily {self._messages}{where} {problem}")


def _varint(data: bytes, at: int, max_bytes: int) -> tuple[int, int]:
    """A base-128 number and the position after it; position 0 where it is longer than allowed."""
    number = 0
    for count, byte in enumerate(data[at : at + max_bytes]):
        number |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return number, at + count + 1
    if len(data) - at < max_bytes:
        raise _NeedsMore(len(data) - at + 1)
    return 0, 0


def _payload(data: bytes, field: int, start: int, length: int) -> bytes | None:
    """The payload of the field that begins at ``field``; ``None`` where it is too long to judge."""
    if length > _STRING_LIMIT_BYTES:
        return None
    if start + length > len(data):
        raise _NeedsMore(start + length - field)
    return data[start : start + length]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
