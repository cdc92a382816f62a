"""Why a request was refused or a scrape failed: one word, used everywhere.

The word is at once the value of the ``X-Exporter-Proxy-Error`` response header,
the ``reason`` label of the metrics and the ``reason`` field of the access log, so
that what a person sees with curl can be grepped in the log and graphed.
"""

from __future__ import annotations

import encodings.unicode_escape  # noqa: F401 - by printable(), which must not read it from a disk amid scrapes
from enum import StrEnum


class Reason(StrEnum):
    """A row of the status table in the README."""

    NOT_FOUND = "not_found"
    METHOD = "method"
    FORBIDDEN = "forbidden"
    UNAUTHORIZED = "unauthorized"
    RATE_LIMITED = "rate_limited"
    BAD_REQUEST = "bad_request"
    PARAM = "param"
    CONNECTION_LIMIT = "connection_limit"
    HEADER_TIMEOUT = "header_timeout"
    CONNECT = "connect"
    PROTOCOL = "protocol"
    REDIRECT = "redirect"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    COMMAND_FAILED = "command_failed"
    FILE_CONFLICT = "file_conflict"
    STALE = "stale"
    SATURATED = "saturated"
    DRAINING = "draining"
    TIMEOUT = "timeout"
    CLIENT_SLOW = "client_slow"
    INTERNAL = "internal"
    UPSTREAM_STATUS = "upstream_status"
    TRUNCATED = "truncated"
    CLIENT_GONE = "client_gone"


# Refused before any exporter was asked: ``exporter_proxy_requests_denied_total``.
DENIAL_STATUS: dict[Reason, int] = {
    Reason.NOT_FOUND: 404,
    Reason.METHOD: 405,
    Reason.FORBIDDEN: 403,
    Reason.UNAUTHORIZED: 401,
    Reason.RATE_LIMITED: 429,
    Reason.BAD_REQUEST: 400,
    Reason.PARAM: 403,
    Reason.CONNECTION_LIMIT: 503,
    Reason.HEADER_TIMEOUT: 408,
    Reason.DRAINING: 503,
    # Left while its password was hashed, or in the middle of a page; see below.
    Reason.CLIENT_GONE: 499,
}

# A scrape that was begun and failed: ``exporter_proxy_scrape_errors_total``.
# The status applies while the response headers are unsent; later it is an abort.
SCRAPE_ERROR_STATUS: dict[Reason, int] = {
    Reason.CONNECT: 502,
    Reason.PROTOCOL: 502,
    Reason.REDIRECT: 502,
    Reason.TOO_LARGE: 502,
    Reason.MALFORMED: 502,
    Reason.COMMAND_FAILED: 502,
    Reason.FILE_CONFLICT: 502,
    Reason.STALE: 502,
    Reason.SATURATED: 503,
    Reason.DRAINING: 503,
    Reason.TIMEOUT: 504,
    Reason.CLIENT_SLOW: 504,
    Reason.INTERNAL: 500,
    Reason.UPSTREAM_STATUS: 502,
    Reason.TRUNCATED: 502,
    # Nothing is sent: nobody is there to read it. 499 stands in the log only (nginx's number).
    Reason.CLIENT_GONE: 499,
}

# Those that say it always; how long a 429 asks to wait depends on the limit, see ``Denied.headers``.
RETRY_AFTER_SECONDS: dict[Reason, int] = {
    Reason.CONNECTION_LIMIT: 1,
    Reason.SATURATED: 1,
    Reason.DRAINING: 5,
}

# What to do about a failed scrape, for the pages; README's table of reasons has the same words.
ADVICE: dict[Reason, str] = {
    Reason.CONNECT: "start the exporter, or correct its url, file, tls or allow_upstreams",
    Reason.PROTOCOL: "see that url is an exporter's port",
    Reason.REDIRECT: "set url to where it leads",
    Reason.TOO_LARGE: "raise max_response_bytes, or scrape less",
    Reason.MALFORMED: "see the line that the message names",
    Reason.SATURATED: "raise max_concurrent, or find what hangs",
    Reason.DRAINING: "wait for the restart",
    Reason.TIMEOUT: "find what it waits for, or raise scrape_timeout",
    Reason.CLIENT_SLOW: "look at the network",
    Reason.INTERNAL: "report it, with the log",
    Reason.COMMAND_FAILED: "read what it said on stderr, in the message",
    Reason.FILE_CONFLICT: "keep it in one of the files that the message names",
    Reason.STALE: "see that the job runs that writes it",
    Reason.UPSTREAM_STATUS: "read what the exporter says, with curl",
    Reason.TRUNCATED: "see its own log",
    Reason.CLIENT_GONE: "raise scrape_timeout",
}


def printable(text: str) -> str:
    """``text`` on one line, with escapes for line breaks, direction marks and whatever does not print."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Denied(Exception):
    """A request that is answered without asking an exporter.

    ``message`` is the one line a person with curl reads; it says what to do.
    ``status`` differs from the table only for 431 (request headers too large); ``allow`` is
    the Allow header of a 405 (RFC 9110 section 15.5.6). ``headers`` are further lines of the
    answer: WWW-Authenticate, Retry-After.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        status: int | None = None,
        allow: str = "GET, HEAD",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.status = status if status is not None else DENIAL_STATUS[reason]
        self.allow = allow
        self.headers = headers


class ScrapeError(Exception):
    """A scrape that failed for ``reason``; ``message`` says what happened and what to try.

    ``excerpt`` is a piece of the body that explains it, printable; it is kept apart since not
    everyone who may see a page may see what the exporter says.
    """

    def __init__(self, reason: Reason, message: str, excerpt: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.excerpt = excerpt

    @property
    def status(self) -> int:
        """The status to answer with while the response headers are unsent."""
        return SCRAPE_ERROR_STATUS[self.reason]
