"""What one request became: the single record that metrics, access log and history read.

The front makes it when a request's headers are complete, the pipeline fills it in on the
way down, and it is recorded exactly once, when the last byte has gone out or nothing more
can be sent. It holds plain values only; what to do with them is its readers' business.

Times are taken from ``time.monotonic()``: uvloop's own clock has the same origin, but shows
the millisecond in which the loop last woke up, which is no measure of a scrape.
"""

from __future__ import annotations

from exporter_proxy.reasons import Reason


class Exchange:
    """One request and what was answered. Times in seconds."""

    __slots__ = (
        "backend",
        "client_gone",
        "connect_seconds",
        "ended_nsec",
        "excerpt",
        "exporter",
        "first_byte_seconds",
        "has_slot",
        "is_held",
        "message",
        "method",
        "path",
        "query",
        "reason",
        "received_bytes",
        "remote",
        "sent_bytes",
        "started",
        "status",
        "timeout_seconds",
        "total_seconds",
        "user_agent",
        "waiting_for_client",
    )

    def __init__(self, remote: str, method: str, path: bytes, query: bytes, started: float) -> None:
        self.remote = remote
        """The peer's address: an IP address, ``unix`` or ``pushprox``; never what a header claims."""
        self.method = method
        self.path = path
        """The raw path as received."""
        self.query = query
        self.started = started
        self.user_agent = b""
        self.exporter = ""
        """Name from the configuration; "" where no exporter was meant."""
        self.backend = ""
        """``host:port`` that the exporter is asked at."""
        self.status = 0
        """What was answered; 499 where the scraper had left before anything was."""
        self.reason: Reason | None = None
        self.message = ""
        """The line that explains ``reason`` to a person."""
        self.excerpt = ""
        """The piece of a malformed body that ``message`` speaks of."""
        self.timeout_seconds = 0.0
        self.connect_seconds: float | None = None
        """From asking for a connection to having one; ``None`` where a kept one was used."""
        self.first_byte_seconds: float | None = None
        """From the request's arrival to the exporter's response headers."""
        self.total_seconds = 0.0
        self.ended_nsec = 0
        """Unix time in nanoseconds."""
        self.has_slot = False
        """Whether the exporter was asked, or its slots were all in use."""
        self.received_bytes = 0
        """Body bytes from the exporter, as on the wire."""
        self.sent_bytes = 0
        """Body bytes handed to the scraper's connection."""
        self.waiting_for_client = False
        """True while the relay waits for the scraper to read: tells client_slow from timeout."""
        self.client_gone = False
        self.is_held = False
        """Whether the answer goes out whole or not at all, so that an error can still replace it."""
