"""Decoding a gzip body beside the relay, so that what is inside can be verified.

The decoder works in slices: a bomb of a thousand to one costs time, but no more memory than
one slice. Several members in a row are one body, as for Go's reader; anything else after
the last member is an error, padding included.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from exporter_proxy.scrape.exposition.verdict import Malformed, TooLarge, Verifier

_GZIP_WINDOW_BITS = 31
_INPUT_SLICE_BYTES = 1 << 14
_OUTPUT_SLICE_BYTES = 1 << 16


class GzipVerifier:
    """Feeds what a gzip body decodes to into another verifier."""

    def __init__(self, inner: Verifier, max_decoded_bytes: int) -> None:
        self._inner = inner
        self._max_decoded_bytes = max_decoded_bytes
        self._decoded_bytes = 0
        self._members = 0
        self._decoder = zlib.decompressobj(_GZIP_WINDOW_BITS)
        self._in_member = False

    def feed(self, chunk: bytes | memoryview) -> None:
        """Decode and check what is complete. Raises ``Malformed`` or ``TooLarge``."""
        for _ in self.feed_in_steps(chunk):
            pass

    def feed_in_steps(self, chunk: bytes | memoryview) -> Iterator[None]:
        """See ``Verifier.feed_in_steps``; a step decodes 16 KiB, to 64 KiB at most."""
        view = memoryview(chunk)
        # In slices: zlib copies the input it leaves, which must not become quadratic.
        for start in range(0, len(view), _INPUT_SLICE_BYTES):
            if start:
                yield
            yield from self._decode(bytes(view[start : start + _INPUT_SLICE_BYTES]))

    def finish(self) -> None:
        """Check that the last member was whole and what it held is. Raises ``Malformed``."""
        if self._in_member:
            raise Malformed(None, "", "the gzip body is cut off")
        if not self._members:
            raise Malformed(None, "", "the body is empty, but Content-Encoding says gzip")
        self._inner.finish()

    def _decode(self, data: bytes) -> Iterator[None]:
        while data or self._in_member:
            if not self._in_member:
                self._decoder = zlib.decompressobj(_GZIP_WINDOW_BITS)
                self._in_member = True
            try:
                decoded = self._decoder.decompress(data, _OUTPUT_SLICE_BYTES)
            except zlib.error as error:
                reason = str(error).rpartition(": ")[2]
                raise Malformed(
                    None, "", f"not a gzip body, though that is its Content-Encoding: {reason}"
                ) from None
            yield from self._pass_on(decoded)
            if self._decoder.eof:
                self._members += 1
                self._in_member = False
                data = self._decoder.unused_data
            else:
                data = self._decoder.unconsumed_tail
                if not data and len(decoded) < _OUTPUT_SLICE_BYTES:
                    return
            if len(decoded) == _OUTPUT_SLICE_BYTES:
                yield

    def _pass_on(self, decoded: bytes) -> Iterator[None]:
        self._decoded_bytes += len(decoded)
        if self._decoded_bytes > self._max_decoded_bytes:
            raise TooLarge(self._max_decoded_bytes)
        yield from self._inner.feed_in_steps(decoded)
