"""Points 1 to 9: what a scraper sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.fakes.exporter import CHUNKED, CLOSE, CONTENT_LENGTH, Connection, Script, respond
from tests.faults.case import NOT_PUSHPROX, NOTHING_IS_SENT, Case, Exporter, Sends, get
from tests.faults.judges import (
    SCRAPE_TIMEOUT,
    all_of,
    closed,
    exporter_lacks,
    exporter_sees,
    exporter_sees_only,
    has,
    host_is_its_own,
    if_ours,
    lacks,
    passed,
    refused,
    refused_like,
    served,
    target_is,
    told_less_than,
    unread,
    untouched,
)
from tests.faults.points import EXPORTER_EXPORTER, GZIP
from tests.faults.seen import Seen
from tests.faults.target import PROBE, PROBE_TARGET, Page, Target

PROMETHEUS = (
    ("user-agent", "Prometheus/2.42.0+ds"),
    ("accept", "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"),
    ("accept-encoding", "gzip"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "a=1"),
)
HOP_BY_HOP = (
    ("Connection", "keep-alive"),
    ("Proxy-Connection", "keep-alive"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authenticate", "Basic"),
    ("Proxy-Authorization", "Basic dTpw"),
    ("TE", "trailers"),
    ("Trailer", "X-Sum"),
    ("Upgrade", "h2c"),
)
QUERY = "collect[]=cpu&collect[]=meminfo&a=1&a=2;b=3"
ODD_QUERY = "%zz&a=%2B+%20%2b&=&b&&"


# What is sent


def at(change: Callable[[str], str]) -> Sends:
    """A request for a path that is not quite the exporter's."""
    return lambda target: target.get(target=target.changed(change))


def absolute(host: str = "") -> Sends:
    """A request with a whole URL as its target, and this Host; by default it is the URL's."""

    def send(target: Target) -> bytes:
        return target.get(target=f"http://{target.host}{target.path()}", host=host or target.host)

    return send


def bent(old: bytes, new: bytes) -> Sends:
    """A request in which something is not written as it should be."""
    return lambda target: target.get(("Accept", "*/*")).replace(old, new)


def with_body(sent: bytes, *headers: tuple[str, str]) -> Sends:
    return lambda target: target.get(*headers) + sent


def hidden(target: Target) -> bytes:
    """A request that is another one's body."""
    second = target.get(query="hidden")
    return target.get(("Content-Length", str(len(second)))) + second


def http_1_0(method: str = "GET") -> Sends:
    return lambda target: target.get(method=method, version="1.0")


def framed(framing: str) -> Exporter:
    def play(page: Page) -> Sequence[Script]:
        return [respond(headers=page.headers, body=page.body, framing=framing)]

    return play


def chunks_if_understood(page: Page) -> Sequence[Script]:
    """As HTTP has it: a proxy that asks in HTTP/1.0 gets no chunks."""

    def play(connection: Connection) -> None:
        framing = CLOSE if b" HTTP/1.0\r\n" in connection.request.head else CHUNKED
        for action in framed(framing)(page)[0]:
            action(connection)

    return [[play]]


# Cases of one kind


def method(name: str) -> Case:
    judge = all_of(refused(405, "method"), has(("Allow", "GET, HEAD")), untouched)
    return Case(1, name, judge, get(method=name))


def special(name: str, target: str) -> Case:
    """A method with a target of its own: to others that is malformed."""
    ours = if_ours(all_of(refused(405, "method"), has(("Allow", "GET, HEAD"))))
    judge = all_of(ours, refused_like(405), untouched)
    sends = get(method=name, target=target)
    return Case(1, f"{name} {target}", judge, sends, not_for=NOT_PUSHPROX)


def path(name: str, change: Callable[[str], str]) -> Case:
    return Case(2, name, all_of(refused_like(404, "not_found"), lacks("Location"), untouched), at(change))


def sent_on(point: int, name: str, judge: Callable[[Seen], None], *headers: tuple[str, str]) -> Case:
    """A scrape with these headers is served, and the exporter sees what it should of them."""
    return Case(point, name, all_of(served, judge), get(*headers), not_for=NOTHING_IS_SENT)


def stays(name: str, *headers: tuple[str, str]) -> Case:
    return sent_on(4, name, exporter_lacks(*(header for header, _ in headers)), *headers)


def query(name: str, sent: str) -> Case:
    judge = all_of(served, target_is(b"/metrics?" + sent.encode()))
    return Case(6, name, judge, get(query=sent), not_for=NOTHING_IS_SENT)


def body(name: str, sends: Sends, is_all_there: bool = False) -> Case:
    judge = all_of(unread, if_ours(closed) if is_all_there else closed)
    return Case(7, name, judge, sends, scene=Seen.ask_and_watch, not_for=NOT_PUSHPROX)


def malformed(name: str, sends: Sends) -> Case:
    return Case(8, name, all_of(refused(400, "bad_request"), untouched), sends, not_for=NOT_PUSHPROX)


def to_1_0(name: str, exporter: Exporter) -> Case:
    judge = all_of(served, lacks("Transfer-Encoding"), closed)
    return Case(9, name, judge, http_1_0(), exporter, Seen.ask_and_watch, not_for=NOT_PUSHPROX)


REQUEST_CASES = (
    *(method(name) for name in ("POST", "DELETE", "OPTIONS", "TRACE")),
    special("CONNECT", "127.0.0.1:9100"),
    special("OPTIONS", "*"),
    path("a slash at the end", lambda path: f"{path}/"),
    path("upper case", str.upper),
    path("two slashes", lambda path: f"/{path}"),
    path("dot segments", lambda path: f"/a/..{path}"),
    path("encoded dots", lambda path: f"/%2e%2e{path}"),
    path("an encoded letter", lambda path: f"{path[:-1]}%{ord(path[-1]):x}"),
    Case(2, "a whole URL", served, absolute()),
    Case(
        2, "a URL that is not of Host", all_of(refused(400, "bad_request"), untouched), absolute("other.test")
    ),
    sent_on(3, "those by name", exporter_lacks(*(name for name, _ in HOP_BY_HOP[1:])), *HOP_BY_HOP),
    sent_on(
        3,
        "those that Connection names",
        exporter_lacks("traceparent"),
        ("Connection", "keep-alive ,\tTraceparent"),
        PROMETHEUS[3],
    ),
    sent_on(
        3,
        "those that a second Connection names",
        exporter_lacks("tracestate"),
        ("Connection", ""),
        ("Connection", ", tracestate,"),
        PROMETHEUS[4],
    ),
    sent_on(
        3,
        "an upgrade",
        exporter_lacks("upgrade", "sec-websocket-key"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ),
    sent_on(
        4,
        "Prometheus's own",
        all_of(exporter_sees(*PROMETHEUS), exporter_sees_only(*(name for name, _ in PROMETHEUS))),
        *PROMETHEUS,
    ),
    Case(
        4,
        "a bare request",
        all_of(served, exporter_sees_only()),
        not_for={**NOTHING_IS_SENT, GZIP: "its scrapers say that they understand gzip"},
    ),
    sent_on(
        4,
        "a repeated Accept",
        exporter_sees(("accept", "text/plain"), ("accept", "*/*;q=0.1")),
        ("Accept", "text/plain"),
        ("Accept", "*/*;q=0.1"),
    ),
    sent_on(4, "the time that is left", told_less_than(8), (SCRAPE_TIMEOUT, "8")),
    stays("credentials", ("Authorization", "Bearer of-the-scraper"), ("Cookie", "a=1")),
    stays("ranges and conditions", ("Range", "bytes=0-1"), ("If-None-Match", '"e"'), ("If-Range", '"e"')),
    stays(
        "who is behind it",
        ("Forwarded", "for=10.0.0.1"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-Host", "proxy.test"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "10.0.0.1"),
        ("Via", "1.1 proxy.test"),
    ),
    stays("anything else", ("X-Anything", "1"), ("Cache-Control", "no-cache"), ("Referer", "http://a/")),
    sent_on(5, "Host", host_is_its_own),
    query("repeated names", QUERY),
    query("what is not well-formed", ODD_QUERY),
    query("8 kB", "a=" + "v" * 8000),
    Case(
        6,
        "its own query first",
        all_of(served, target_is(f"{PROBE_TARGET}&{QUERY}".encode())),
        get(route=PROBE, query=QUERY),
        not_for={**NOTHING_IS_SENT, EXPORTER_EXPORTER: "its path cannot have a query"},
    ),
    body("an announced one", with_body(b"x" * 1000, ("Content-Length", "1000000"))),
    body("chunks", with_body(b"3\r\nabc\r\n", ("Transfer-Encoding", "chunked"))),
    body("one that is asked for", with_body(b"", ("Expect", "100-continue"), ("Content-Length", "9"))),
    body("a hidden request", hidden, is_all_there=True),
    malformed("no Host", lambda target: target.get().replace(f"Host: {target.host}\r\n".encode(), b"")),
    Case(
        8,
        "two Hosts",
        all_of(refused(400, "bad_request"), untouched),
        get(("Host", "other.test")),
    ),
    malformed("length and chunks", get(("Content-Length", "5"), ("Transfer-Encoding", "chunked"))),
    malformed("a folded line", bent(b"*/*", b"*/*,\r\n a/b")),
    malformed("bare line feeds", bent(b"\r\n", b"\n")),
    malformed("a blank before the colon", bent(b"Accept:", b"Accept :")),
    malformed("a control character", bent(b"*/*", b"*/\x01*")),
    malformed("a NUL", bent(b"*/*", b"*/\x00*")),
    to_1_0("chunks", chunks_if_understood),
    to_1_0("a length", framed(CONTENT_LENGTH)),
    Case(
        9,
        "HEAD",
        all_of(passed(200, body=b""), closed),
        http_1_0("HEAD"),
        scene=Seen.ask_and_watch,
        not_for=NOT_PUSHPROX,
    ),
)
