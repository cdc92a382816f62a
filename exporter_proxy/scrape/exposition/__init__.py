"""Verification of exposition formats: would Prometheus take in this body?

``verifier_for`` gives a verifier for one response; feed it the body as it passes by. Pure
code: no sockets, no clock, constant memory whatever the body. It accepts what Prometheus 2
or 3 accepts, since a false alarm loses a target that worked; where the two part, or where
the answer hangs on the scrape configuration (labels given twice, which relabelling can
mend), it says nothing. It catches what is no exposition at all, pages that are cut off or
run together, and lines that no Prometheus parses.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporter_proxy.scrape.exposition.content_type import Format, format_of
from exporter_proxy.scrape.exposition.gunzip import GzipVerifier
from exporter_proxy.scrape.exposition.lines import LineVerifier
from exporter_proxy.scrape.exposition.openmetrics import OpenMetricsGrammar
from exporter_proxy.scrape.exposition.protobuf import ProtobufVerifier
from exporter_proxy.scrape.exposition.summary import Summary, summarise
from exporter_proxy.scrape.exposition.text import TextGrammar
from exporter_proxy.scrape.exposition.verdict import Malformed, TooLarge, Verifier

__all__ = ["Malformed", "Summary", "TooLarge", "Verifier", "summarise", "verifier_for"]


def verifier_for(
    content_type: str | None, content_encoding: str | None, *, max_decoded_bytes: int
) -> Verifier | None:
    """A verifier for one body with these response headers; ``None``: it cannot be judged.

    ``max_decoded_bytes`` bounds what a gzip body may decode to. Prometheus decodes ``gzip``
    in exactly this spelling and parses any other body as it stands, whatever its
    Content-Encoding says; so does the verifier.
    """
    exposition = format_of(content_type)
    if exposition is None:
        return None
    verifier: Verifier
    if exposition is Format.PROTOBUF:
        verifier = ProtobufVerifier()
    else:
        verifier = LineVerifier(TextGrammar() if exposition is Format.TEXT else OpenMetricsGrammar())
    encoding = (content_encoding or "").strip()
    if encoding == "gzip":
        return GzipVerifier(verifier, max_decoded_bytes)
    if encoding.lower() not in ("", "identity"):
        return _UndecodedVerifier(verifier, encoding)
    return verifier


class _UndecodedVerifier:
    """Names the likely cause where a body in an encoding unknown to Prometheus is malformed."""

    def __init__(self, inner: Verifier, encoding: str) -> None:
        self._inner = inner
        self._problem = f"Prometheus does not decode Content-Encoding {encoding[:40]!a}, and undecoded it is"

    def feed(self, chunk: bytes | memoryview) -> None:
        """See ``Verifier.feed``."""
        for _ in self.feed_in_steps(chunk):
            pass

    def feed_in_steps(self, chunk: bytes | memoryview) -> Iterator[None]:
        """See ``Verifier.feed_in_steps``."""
        try:
            yield from self._inner.feed_in_steps(chunk)
        except Malformed as fault:
            raise self._explained(fault) from None

    def finish(self) -> None:
        """See ``Verifier.finish``."""
        try:
            self._inner.finish()
        except Malformed as fault:
            raise self._explained(fault) from None

    def _explained(self, fault: Malformed) -> Malformed:
        return Malformed(fault.line, fault.excerpt, f"{self._problem} no exposition: {fault.problem}")
