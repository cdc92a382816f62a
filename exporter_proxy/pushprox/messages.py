"""The raw HTTP messages inside polls and pushes, as values: a request read, a response written.

Nothing here decides what may be asked for. The proxy is another's program: what is no request
by the letter of RFC 9112 is refused whole, as it would be on a connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

from exporter_proxy.scrape.headers import SCRAPE_TIMEOUT_HEADER, Headers

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~]+) HTTP/1\.[01]")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_ID = re.compile(rb"[!-~]{1,200}")
_NO_BODY = frozenset((204, 304))
_FOR_THE_PROXY = frozenset((b"id", SCRAPE_TIMEOUT_HEADER, b"content-length"))


class PushedRequest(NamedTuple):
    """One scrape. Header names are in lower case, as ASGI has them."""

    id: bytes
    method: str
    target: bytes
    headers: Headers
    head_bytes: int

    def get(self, name: bytes) -> bytes | None:
        """The first header called ``name``, which is in lower case."""
        return next((value for found, value in self.headers if found == name), None)


def parse_request(raw: bytes) -> PushedRequest:
    """The request in the answer to a poll. Raises ValueError where there is none.

    Of several ``Id`` headers the last is the proxy's, which appends it; the ones before came from
    the scraper. None of them is passed on. A body is not looked at.
    """
    head, end, _ = raw.partition(b"\r\n\r\n")
    if not end:
        raise ValueError("no blank line ends it")
    first, *lines = head.split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(first)
    if request_line is None:
        raise ValueError("its first line is not that of an HTTP/1.1 request")
    headers: Headers = []
    request_id = b""
    for line in lines:
        header = _HEADER_LINE.fullmatch(line)
        if header is None:
            raise ValueError("a line of its head is not a header")
        name, value = header[1].lower(), header[2].rstrip(b" \t")
        if name == b"id":
            request_id = value
        else:
            headers.append((name, value))
    if not _ID.fullmatch(request_id):
        raise ValueError("it has no Id to answer to")
    return PushedRequest(request_id, request_line[1].decode("ascii"), request_line[2], headers, len(head))


def format_response(
    request: PushedRequest, status: int, headers: Headers, body: Sequence[bytes], seconds_left: float
) -> list[bytes]:
    """A whole response for a push, in parts: to put megabytes together would hold up scrapes.

    ``seconds_left`` is how long the proxy may wait for the scraper to take it. Headers that the
    proxy would take for its own are left out of ``headers``, and the length is the body's own: the
    proxy passes on to the scraper what it is given.
    """
    lines = [b"HTTP/1.1 %d %b" % (status, _phrase(status))]
    lines.append(b"Id: " + request.id)
    lines.append(b"X-Prometheus-Scrape-Timeout-Seconds: %.3f" % seconds_left)
    lines += [name + b": " + value for name, value in headers if name.lower() not in _FOR_THE_PROXY]
    if request.method == "HEAD":
        body = ()  # the proxy reads it as the answer to a GET: a length would make it wait for a body
    if status in _NO_BODY:
        body = ()
    else:
        lines.append(b"Content-Length: %d" % sum(map(len, body)))
    return [b"\r\n".join((*lines, b"", b"")), *body]


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
