"""Points 10 to 19: what an exporter answers."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fakes.exporter import (
    CHUNKED,
    CLOSE,
    CONTENT_LENGTH,
    EXPOSITION,
    LAST_CHUNK,
    PAGE,
    Action,
    Script,
    chunk,
    close,
    end,
    head,
    pause,
    reset,
    respond,
    send,
    stall,
)
from tests.faults.case import NO_HTTP, NOT_PUSHPROX, ONLY_TLS, Case, Exporter, Reasons, get, whole
from tests.faults.cases_request import framed, http_1_0
from tests.faults.judges import (
    all_of,
    either,
    failed,
    first,
    has,
    has_length,
    if_ours,
    lacks,
    no_1xx,
    one_framing,
    passed,
    refused,
    served,
    unless_pushprox,
)
from tests.faults.points import EXPORTER_EXPORTER, FILE, HAPROXY, NGINX, UNIX
from tests.faults.seen import Seen
from tests.faults.target import SMALL, SMALL_BYTES, Page

PROTOBUF = ("Content-Type", "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily")
ANY_BYTES = bytes(range(256)) * 1200
NAMED = (("Connection", "X-Internal"), ("X-Internal", "1"))
HOP_BY_HOP = (
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("Proxy-Authenticate", "Basic"),
    ("Trailer", "X-Sum"),
    ("Upgrade", "h2c"),
)
OK = b"HTTP/1.1 200 OK\r\n"
ETAG = ("ETag", '"e"')
OTHERS = (("X-A", "1"), ("X-B", "b, c"), ("X-A", "2"), ("Vary", "Accept"), ETAG)
OTHER = b"other_page 1\n"
SURPLUS = head(200, [EXPOSITION, ("Content-Length", str(len(OTHER)))]) + OTHER
RELAYED_SECONDS = 0.05
"""How long a broken exporter waits before it breaks: what it said so far is on its way to the scraper."""
NO_ERROR_HEADER: Reasons = dict.fromkeys((NGINX, HAPROXY, EXPORTER_EXPORTER), "that header is not its own")
NO_RESET: Reasons = {UNIX: "a unix socket knows no reset: it only ends"}
NO_LIMIT: Reasons = dict.fromkeys((NGINX, HAPROXY, EXPORTER_EXPORTER), "it has no limit for sizes")


# What the exporter does


def answers(*headers: tuple[str, str], status: int = 200, body: bytes | None = None) -> Exporter:
    """A proper answer; ``None``: with the page. A Content-Type has to be given where one is wanted."""

    def play(page: Page) -> Sequence[Script]:
        kept = [pair for pair in page.headers if pair[0] != "Content-Type"] if body is None else []
        return [respond(status, [*headers, *kept], page.body if body is None else body)]

    return play


def says(raw: bytes, end: Action) -> Exporter:
    """These bytes, and then the end."""
    return lambda page: [[send(raw), end]]


def breaks(framing: str, *then: Action, more: bytes = b"") -> Exporter:
    """The head and half of the page in this framing, a little later more of it, and then the end."""

    def play(page: Page) -> Sequence[Script]:
        framing_header = {
            CONTENT_LENGTH: ("Content-Length", str(len(page.body))),
            CHUNKED: ("Transfer-Encoding", "chunked"),
            CLOSE: ("Connection", "close"),
        }[framing]
        part = chunk(page.half) if framing == CHUNKED else page.half
        opening = [send(head(200, [*page.headers, framing_header]) + part), pause(RELAYED_SECONDS)]
        return [[*opening, send(more), *then]]

    return play


def bodyless(status: int, *headers: tuple[str, str]) -> Exporter:
    """An answer without a body to the first request, and the page to others."""
    return lambda page: [[send(head(status, headers))], *whole(page)]


def until_closed(version: bytes, *headers: tuple[str, str]) -> Exporter:
    def play(page: Page) -> Sequence[Script]:
        start = head(200, [*page.headers, *headers]).replace(b"HTTP/1.1", version)
        return [[send(start + page.body), end()]]

    return play


def both(order: int) -> Exporter:
    """A length and chunks, in this order or the other way round."""

    def play(page: Page) -> Sequence[Script]:
        framing = [("Content-Length", "5"), ("Transfer-Encoding", "chunked")][::order]
        return [[send(head(200, [*page.headers, *framing]) + chunk(page.body) + LAST_CHUNK)]]

    return play


def too_much(page: Page) -> Sequence[Script]:
    """More than may be, in chunks, after a first part that is not too much."""
    start = head(200, [*page.headers, ("Transfer-Encoding", "chunked")])
    more = chunk(b"x" * 4 * SMALL_BYTES)
    return [[send(start + chunk(page.half)), pause(RELAYED_SECONDS), send(more + LAST_CHUNK)]]


# Cases of one kind


def redirect(status: int, location: str) -> Case:
    exporter = answers(EXPOSITION, ("Location", location), status=status)
    judge = all_of(refused(502, "redirect"), lacks("Location"))
    return Case(12, f"{status} to {location}", judge, exporter=exporter, not_for=NO_HTTP)


def error(status: int, *headers: tuple[str, str]) -> Case:
    html = ("Content-Type", "text/html")
    exporter = answers(html, *headers, status=status, body=b"<h1>no</h1>\n")
    mark = if_ours(has(("X-Exporter-Proxy-Error", "upstream_status")))
    judge = all_of(passed(status, html, *headers, body=b"<h1>no</h1>\n"), mark)
    return Case(13, str(status), judge, exporter=exporter, not_for=NO_HTTP)


def not_http(name: str, raw: bytes, end: Action | None = None) -> Case:
    judge = refused(502, "protocol")
    return Case(15, name, judge, exporter=says(raw, end or stall()), not_for=NO_HTTP)


def truncated(name: str, exporter: Exporter, not_for: Reasons = NO_HTTP) -> Case:
    return Case(17, name, failed(502, "truncated"), exporter=exporter, not_for={**NO_HTTP, **not_for})


def no_body(name: str, status: int, *headers: tuple[str, str], method: str = "GET") -> Case:
    """Such an answer; then the page, on a connection that is fit for it."""
    judge = all_of(first(passed(status, ETAG, body=b"")), served)
    exporter = bodyless(status, ETAG, *headers)
    return Case(19, name, judge, get(method=method), exporter, Seen.ask_and_get, not_for=NO_HTTP)


def surplus(name: str, status: int, method: str = "GET") -> Case:
    """A body where none may be: what looks like a response in it is not the next scrape's answer."""
    start = head(status, [EXPOSITION, ("Content-Length", str(len(SURPLUS)))])
    judge = all_of(first(passed(status, body=b"")), served)
    return Case(
        19,
        name,
        judge,
        get(method=method),
        lambda page: [[send(start + SURPLUS)], *whole(page)],
        Seen.ask_and_get,
        not_for=NO_HTTP,
    )


ANSWER_CASES = (
    Case(10, "a length", served, exporter=framed(CONTENT_LENGTH)),
    Case(10, "chunks", served, exporter=framed(CHUNKED), not_for=NO_HTTP),
    Case(
        10,
        "protobuf",
        passed(200, PROTOBUF, body=ANY_BYTES),
        exporter=lambda page: [respond(headers=[PROTOBUF], body=ANY_BYTES)],
        not_for=NO_HTTP,
    ),
    Case(
        10,
        "its content type",
        all_of(served, has(EXPOSITION)),
        exporter=answers(EXPOSITION),
    ),
    Case(10, "no content type", all_of(served, lacks("Content-Type")), exporter=answers(), not_for=NO_HTTP),
    Case(
        10,
        "other headers",
        all_of(served, has(*OTHERS)),
        exporter=answers(EXPOSITION, *OTHERS),
        not_for=NO_HTTP,
    ),
    Case(10, "a 203", passed(203), exporter=answers(EXPOSITION, status=203), not_for=NO_HTTP),
    Case(
        11,
        "those by name",
        all_of(served, lacks(*(name for name, _ in HOP_BY_HOP))),
        exporter=answers(EXPOSITION, *HOP_BY_HOP),
        not_for=NO_HTTP,
    ),
    Case(
        11,
        "those that Connection names",
        all_of(served, lacks("X-Internal")),
        exporter=answers(EXPOSITION, ("Connection", "keep-alive, X-Internal"), ("X-Internal", "1")),
        not_for=NO_HTTP,
    ),
    Case(
        11,
        "cookies",
        all_of(served, lacks("Set-Cookie")),
        exporter=answers(EXPOSITION, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")),
        not_for=NO_HTTP,
    ),
    Case(
        11,
        "an error header of its own",
        all_of(served, lacks("X-Exporter-Proxy-Error")),
        exporter=answers(EXPOSITION, ("X-Exporter-Proxy-Error", "timeout")),
        not_for={**NO_HTTP, **NO_ERROR_HEADER},
    ),
    redirect(302, "http://127.0.0.1:9100/"),
    redirect(301, "https://vault.test/metrics"),
    redirect(307, "/login"),
    error(404),
    error(401, ("WWW-Authenticate", "Basic")),
    error(500),
    error(503, ("Retry-After", "7")),
    Case(
        14,
        "100 and 103",
        all_of(served, no_1xx, lacks("X-Early")),
        exporter=lambda page: [
            [send(head(100, []) + head(103, [("X-Early", "1")])), *whole(page)[0]],
        ],
        not_for=NO_HTTP,
    ),
    Case(
        14,
        "an unasked 101",
        refused(502, "protocol"),
        exporter=says(head(101, [("Upgrade", "h2c"), ("Connection", "Upgrade")]) + b"hello", stall()),
        not_for=NO_HTTP,
    ),
    Case(
        15,
        "a banner",
        refused(502, "protocol", "malformed"),
        exporter=says(b"SSH-2.0-OpenSSH_9.2\r\n", stall()),
        command="echo SSH-2.0-OpenSSH_9.2",
        file=b"SSH-2.0-OpenSSH_9.2\n",
    ),
    not_http("two lengths", OK + b"Content-Length: 2\r\nContent-Length: 4\r\n\r\nokok"),
    not_http("a list of lengths", OK + b"Content-Length: 10, 12\r\n\r\n0123456789ab"),
    not_http("a length below 0", OK + b"Content-Length: -2\r\n\r\nok"),
    not_http("a head that breaks off", OK + b"Content-Le", close()),
    Case(
        15,
        "headers of 1 MB",
        refused(502, "too_large"),
        exporter=says(OK + b"X-Long: " + b"v" * 1_000_000 + b"\r\nContent-Length: 2\r\n\r\nok", stall()),
        not_for=NO_HTTP,
    ),
    Case(
        16,
        "length first",
        all_of(either(served, refused(502, "protocol")), one_framing),
        exporter=both(1),
        not_for=NO_HTTP,
    ),
    Case(
        16,
        "chunks first",
        all_of(either(served, refused(502, "protocol")), one_framing),
        exporter=both(-1),
        not_for=NO_HTTP,
    ),
    Case(
        17,
        "a length, closed",
        failed(502, "truncated", "command_failed", "malformed"),
        exporter=breaks(CONTENT_LENGTH, close()),
        command="cat $HALF; exit 3",
        file=PAGE[: len(PAGE) - 3],
    ),
    Case(
        17,
        "a length, reset",
        failed(502, "truncated", "command_failed"),
        exporter=breaks(CONTENT_LENGTH, reset()),
        command="cat $HALF; kill -9 $$",
        not_for={FILE: NO_HTTP[FILE]},
    ),
    truncated("no last chunk", breaks(CHUNKED, close())),
    truncated("no last chunk, reset", breaks(CHUNKED, reset())),
    truncated("within a chunk", breaks(CHUNKED, close(), more=b"ff\r\nhalf")),
    truncated("a malformed chunk", breaks(CHUNKED, stall(), more=b"zz\r\nhalf\r\n")),
    truncated("within the last chunk", breaks(CHUNKED, close(), more=b"0\r\n")),
    truncated("until closed, reset", breaks(CLOSE, reset()), NO_RESET),
    Case(
        17,
        "until closed, TLS without its end",
        failed(502, "truncated"),
        exporter=breaks(CLOSE, close()),
        not_for={**ONLY_TLS},
    ),
    Case(
        17,
        "to an HTTP/1.0 scraper",
        failed(502, "truncated", "command_failed"),
        http_1_0(),
        breaks(CHUNKED, close()),
        command="cat $HALF; exit 3",
        not_for={**NOT_PUSHPROX, FILE: NO_HTTP[FILE]},
    ),
    Case(
        17,
        "over the size limit",
        failed(502, "too_large"),
        get(route=SMALL),
        too_much,
        command=f"yes 'x 1' | head -c {4 * SMALL_BYTES}",
        file=b"x 1\n" * SMALL_BYTES,
        not_for=NO_LIMIT,
    ),
    Case(18, "HTTP/1.1", served, exporter=until_closed(b"HTTP/1.1"), not_for=NO_HTTP),
    Case(18, "Connection: close", served, exporter=framed(CLOSE), not_for=NO_HTTP),
    Case(18, "HTTP/1.0", served, exporter=until_closed(b"HTTP/1.0"), not_for=NO_HTTP),
    Case(
        19,
        "HEAD",
        all_of(first(all_of(passed(200, body=b""), unless_pushprox(has_length))), served),
        get(method="HEAD"),
        scene=Seen.ask_and_get,
    ),
    no_body("204", 204),
    no_body("304", 304),
    no_body("304 with a length", 304, ("Content-Length", "79")),
    no_body("HEAD of chunks", 200, ("Transfer-Encoding", "chunked"), method="HEAD"),
    surplus("HEAD with a body", 200, "HEAD"),
    surplus("304 with a body", 304),
)
