"""Requests that mean harm, beside those of test_malformed_requests: what is answered, and what reaches whom.

Behind each stands a second request, as a smuggler sends it. While they come an honest scraper is served.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon import Daemon
from tests.fakes.exporter import PAGE, FakeExporter
from tests.honest import honest_scraper
from tests.wire import request

GET = b"GET /x/metrics HTTP/1.1\r\n"
HOST = b"Host: proxy.test\r\n"
SMUGGLED = b"GET /x/metrics?smuggled HTTP/1.1\r\nHost: proxy.test\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

Besieged = tuple[Daemon, FakeExporter]


@pytest.fixture(scope="module")
def besieged() -> Iterator[Besieged]:
    """A daemon before the exporter ``x``, and before another that an honest scraper keeps asking."""
    with FakeExporter() as exporter, FakeExporter() as other:
        entries = {"x": {"url": exporter.url()}, "honest": {"url": other.url()}}
        with Daemon({"exporters": entries}) as daemon, honest_scraper(daemon):
            yield daemon, exporter


def coded(coding: bytes) -> bytes:
    return GET + HOST + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + LAST_CHUNK


def sized(length: bytes) -> bytes:
    return GET + HOST + b"Content-Length: " + length + b"\r\n\r\nhello"


def chunks(body: bytes) -> bytes:
    return GET + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body


def line(request_line: bytes) -> bytes:
    return request_line + b"\r\n" + HOST + b"\r\n"


def target(raw: bytes) -> bytes:
    return line(b"GET " + raw + b" HTTP/1.1")


def header(raw: bytes) -> bytes:
    return GET + HOST + raw + b"\r\n\r\n"


def host(raw: bytes) -> bytes:
    return GET + b"Host: " + raw + b"\r\n\r\n"


# -- refused as malformed, nothing behind it is read

UNKNOWN_CODINGS = [
    *(b"", b"chunked, chunked", b"chunked, identity", b"identity, chunked", b"identity", b"gzip, chunked"),
    *(b"xchunked", b"chunkedx", b"x chunked", b"chunk ed", b'"chunked"', b"chunked;q=1", b",chunked"),
    *(b"chunked,", b"chunked\x0b", b"\x0bchunked", b"chunked\x00", b"\xa0chunked", b"chunked\xa0"),
    b"chunked\r\nTransfer-Encoding: chunked",
    b"chunked\r\nTransfer-Encoding: identity",
    b"identity\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer-Encoding: chunked",
    b"chunked\r\nContent-Length: 0",
    b"chunked\r\ncontent-length: 5",
]
UNKNOWN_LENGTHS = [
    *(b"", b"5 5", b"5;", b"5.0", b"5e0", b'"5"', b"1_0", b"\x0b5", b"\xb2", b"5,", b"5, 5", b"--5", b"0x05"),
    *(b"18446744073709551616", b"9" * 1000),
    b"5\r\nContent-Length: 5",
    b"0\r\nContent-Length: 5",
    b"5\r\ncontent-length: 0",
    b"5\r\nTransfer-Encoding: identity",
    b"0\r\nTransfer-Encoding: chunked",
]
REQUEST_LINES = [
    *(b"GET\t/x/metrics HTTP/1.1", b"GET /x/metrics\tHTTP/1.1", b"GET /x/metrics HTTP/1.1 "),
    *(b"GET /x/metrics HTTP/1.1\t", b"GET /x/metrics HTTP/1.1\r", b"GET /x/metrics HTTP/1.1\x00"),
    *(b"GET /x/metrics HTTP/1.1 HTTP/1.1", b"GET /x/metrics HTTP/0.9", b"GET /x/metrics HTTP/1.2"),
    *(
        b"GET /x/metrics HTTP/2.0",
        b"GET /x/metrics HTTP/2",
        b"GET /x/metrics HTTP/3",
        b"GET /x/metrics HTTP/",
    ),
    *(b"GET /x/metrics HTTP/11.1", b"GET /x/metrics HTTP/1.10", b"GET /x/metrics HTTP/1.01"),
    *(b"GET /x/metrics HTTP/1,1", b"GET /x/metrics HTTP/1", b"GET /x/metrics http/1.1"),
    *(b"GET /x/metrics HTTP/ 1.1", b"GET /x/metrics HTTP/-1.1", b"GET /x/metrics HTTP/+1.1"),
    *(b"\tGET /x/metrics HTTP/1.1", b"\x00GET /x/metrics HTTP/1.1", b"\xef\xbb\xbfGET /x/metrics HTTP/1.1"),
    *(b"G\x00ET /x/metrics HTTP/1.1", b"A" * 33 + b" /x/metrics HTTP/1.1", b"A" * 5000 + b" / HTTP/1.1"),
    *(b"GET 127.0.0.1:9100 HTTP/1.1", b"GET * HTTP/1.1", b"GET ?a HTTP/1.1"),
    *(b"GET /x/metrics RTSP/1.0", b"SSH-2.0-OpenSSH_9.2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n"),
    b"PROXY TCP4 127.0.0.2 127.0.0.1 4711 9099\r\nGET /x/metrics HTTP/1.1",
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x02\x7f\x00\x00\x01\x12\x67\x23\x8bGET / HTTP/1.1",
]
TARGETS = [
    *(b"https://other.test/x/metrics", b"http://other.test:80/x/metrics", b"http://u:p@proxy.test/x/metrics"),
    *(b"http://proxy.test:443/x/metrics", b"http://proxy.test\\@other.test/x/metrics", b"http:/x/metrics"),
    *(b"http://169.254.169.254/latest/meta-data", b"http://localhost/x/metrics", b"http:///x/metrics"),
    *(b"http://[::1]/x/metrics", b"ftp://proxy.test/x/metrics", b"file:///etc/passwd", b"ws://proxy.test/x"),
    *(b"http+unix:///run/x.sock:/metrics", b"javascript:alert(1)", b"\\x\\metrics", b"http://#/x/metrics"),
    *(
        b"/x/metrics#a",
        b"/#/x/metrics",
        b"/x/metrics?a#b",
        b"/x/metrics\x7f",
        b"/x/metrics\xff",
        b"/\xc3\xa9",
    ),
    *(
        b"/x/metrics?\xff\x80",
        b"/x/metrics?\x0b",
        b"/x/metrics?\x1b[31m",
        b"/x/metrics?a b",
        b"/x\x08/metrics",
    ),
]
HEADERS = [
    *(b"A b: c", b"A\x01b: c", b"A/b: c", b"A@b: c", b'"A": c', b"{A}: c", b"A\r\n: c", b"\tA: b", b"A: b\r"),
    *(b"A: b\x0bc", b"A: b\x0cc", b"A: \x08", b"A: \x1b[0m", b"A: b\r\n\rC: d", b"A: b\n\nC: d"),
    *(b"Transfer-Encoding : chunked", b"Content-Length : 5", b"Transfer-Encoding\x00: chunked"),
    *(b"Content-Length\r\n : 5", b"\x00", b"GET /x/metrics?smuggled HTTP/1.1"),
]
HOSTS = [
    *(b"u@proxy.test", b"proxy .test", b"proxy.test/x", b"a#b", b"a?b", b"a\\b", b'"a"', b"<a>", b"\xff"),
    *(b"a\tb", b"a\x7f", b"http://proxy.test", b"proxy.test\r\n other.test", b"a\r\nHost : b"),
]
MALFORMED = [
    *map(coded, UNKNOWN_CODINGS),
    *map(sized, UNKNOWN_LENGTHS),
    *map(line, REQUEST_LINES),
    *map(target, TARGETS),
    *map(header, HEADERS),
    *(GET + raw + b"\r\n" + HOST + b"\r\n" for raw in HEADERS),
    *map(host, HOSTS),
    (GET + HOST + b"\r\n").replace(b"\r\n", b"\r"),
    GET + HOST[:-2] + b"\n\n",
    GET + HOST[:-2] + b"\n\r\n",
    GET + b"X-Host: proxy.test\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: repr(data[:70])[2:-1])
def test_malformed_and_nothing_behind_it_is_answered(besieged: Besieged, data: bytes) -> None:
    daemon, exporter = besieged
    exporter.play()
    with daemon.connect() as wire:
        wire.exchange(data + SMUGGLED).expect_refusal(400, "bad_request")
        assert wire.closes_within(3.0)
    assert exporter.requests == []


# -- refused, but it is clear where the next request begins

UNKNOWN_PATHS = [
    *(b"/x/%2e%2e/x/metrics", b"/../x/metrics", b"/..%2fx/metrics", b"/x/metrics%23", b"/x/metrics%0d%0aX:y"),
    *(b"/x;a/metrics", b"/x/metrics%ff", b"/x/metrics\\", b"///x/metrics", b"//proxy.test/x/metrics"),
    *(b"http://proxy.test//x/metrics", b"http://proxy.test/../x/metrics", b"/%2Fx/metrics", b"/x/metrics%2f"),
    *(
        b"/%u0078/metrics",
        b"/x/metrics%c0%af",
        b"/" + b"a" * 20_000,
        b"/" + b"%61" * 8_000,
        b"/x/metrics&a=b",
    ),
]
ANSWERED: list[tuple[bytes, int, str]] = [
    *((target(path), 404, "not_found") for path in UNKNOWN_PATHS),
    (line(b"QUERY /x/metrics HTTP/1.1"), 405, "method"),
    (line(b"TRACE /x/metrics HTTP/1.1"), 405, "method"),
    (line(b"POST /x/metrics HTTP/1.1"), 405, "method"),
    (target(b"/x/metrics?" + b"a" * 40_000), 431, "bad_request"),
    (line(b"get /x/metrics HTTP/1.1"), 405, "method"),
    (line(b"GETS /x/metrics HTTP/1.1"), 405, "method"),
    (line(b"CONNECT other.test:443 HTTP/1.1"), 405, "method"),
    (line(b"CONNECT /x/metrics HTTP/1.1"), 405, "method"),
    (line(b"OPTIONS * HTTP/1.1"), 405, "method"),
]
CLOSES_AFTER = (b"get ", b"GETS", b"CONN", b"OPTIONS *")


@pytest.mark.parametrize(("data", "status", "reason"), ANSWERED, ids=lambda value: repr(value)[:60])
def test_refused_and_what_follows_is_another_request(
    besieged: Besieged, data: bytes, status: int, reason: str
) -> None:
    daemon, exporter = besieged
    exporter.play()
    with daemon.connect() as wire:
        wire.exchange(data).expect_refusal(status, reason)
        if status == 431 or data.startswith(CLOSES_AFTER):
            assert wire.closes_within(3.0)
            assert exporter.requests == []
        else:
            wire.exchange(request("/x/metrics?next")).expect_ok(PAGE)
            assert exporter.request.target == b"/metrics?next"


# -- served once: a body is announced, and whatever it is, it is no request

BODIES = [
    *map(coded, [b"Chunked", b"CHUNKED", b"chunked ", b"\tchunked", b"chunked\t", b"\t chunked \t"]),
    *map(
        sized, [b"005", b"5 ", b" 5", b"5\t", b"00", b"18446744073709551615", b"9223372036854775808", b"56"]
    ),
    *map(
        chunks,
        [b"5;a=b\r\nhello\r\n", b"5;a\nhello\r\n", b"5\nhello\r\n", b"-5\r\nhello\r\n", b"+5\r\nhello"],
    ),
    *map(
        chunks,
        [b"0x5\r\nhello\r\n", b" 5\r\nhello\r\n", b"5 \r\nhello\r\n", b"f" * 17 + b"\r\nhello", b"\r\n"],
    ),
    *map(
        chunks,
        [b"3\r\nhello\r\n", b"g\r\n", b"0\r\nContent-Length: 50\r\n\r\n", b"0\r\n\r\n", b"0\n\n", b"00000\r"],
    ),
    b"GET /x/metrics HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + LAST_CHUNK,
    b"GET /x/metrics HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /x/metrics HTTP/1.0\r\n"
    + HOST
    + b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /x/metrics HTTP/1.0\r\n\r\n",
    header(b"Connection: close"),
    header(b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    header(b"Connection: Upgrade\r\nUpgrade: TLS/1.0"),
    header(b"Expect: 100-continue\r\nContent-Length: 5") + b"hello",
]


@pytest.mark.parametrize("data", BODIES, ids=lambda data: repr(data[23:])[2:-1])
def test_served_once_and_nothing_behind_it_is_answered(besieged: Besieged, data: bytes) -> None:
    daemon, exporter = besieged
    exporter.play()
    malformed = daemon.metric("exporter_proxy_requests_denied_total", reason="bad_request")
    with daemon.connect() as wire:
        wire.exchange(data + SMUGGLED).expect_ok(PAGE)
        assert wire.closes_within(3.0)
    assert exporter.request.target == b"/metrics"
    assert daemon.metric("exporter_proxy_requests_denied_total", reason="bad_request") == malformed


# -- odd, but it can be read in one way only

ODD = [
    *map(
        line, [b"GET  /x/metrics HTTP/1.1", b"GET /x/metrics  HTTP/1.1", b"\r\n\r\nGET /x/metrics HTTP/1.1"]
    ),
    *map(
        target,
        [b"HTTP://PROXY.TEST/x/metrics", b"http://proxy.test:80/x/metrics", b"https://proxy.test/x/metrics"],
    ),
    *map(header, [b"A: \x80\xff", b"A: b\tc", b"A" * 20_000 + b": c", b"Transfer_Encoding: chunked"]),
    *map(
        header,
        [
            b"X-Transfer-Encoding: chunked",
            b"Connection: transfer-encoding, content-length",
            b"Content_Length: 5",
        ],
    ),
    *map(header, [b"Content-Length: 0", b"Trailer: Host", b"TE: chunked", b"Keep-Alive: timeout=0, max=0"]),
    *map(host, [b"", b"[::1]", b"a,b", b"a:1:2", b"a" * 20_000]),
]


@pytest.mark.parametrize("data", ODD, ids=lambda data: repr(data[:70])[2:-1])
def test_odd_and_served_and_what_follows_is_another_request(besieged: Besieged, data: bytes) -> None:
    daemon, exporter = besieged
    exporter.play()
    with daemon.connect() as wire:
        wire.send(data + request("/x/metrics?next"))
        wire.read_reply().expect_ok(PAGE)
        wire.read_reply().expect_ok(PAGE)
        assert not wire.readable_within(0.0)
    assert [asked.target for asked in exporter.requests] == [b"/metrics", b"/metrics?next"]


@pytest.mark.parametrize(
    "data",
    [
        b"HEAD * HTTP/1.1\r\n" + HOST + b"\r\n",
        b"HEAD /x/metrics HTTP/1.1\r\n\r\n",
        b"HEAD /x/metrics HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n",
        b"HEAD /x/metrics HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 40_000 + b"\r\n\r\n",
    ],
    ids=["target", "no-host", "malformed", "too-large"],
)
def test_a_refusal_of_head_has_no_body(besieged: Besieged, data: bytes) -> None:
    """A proxy before us would take it for the beginning of the next answer."""
    daemon, _ = besieged
    with daemon.connect() as wire:
        reply = wire.exchange(data)
        assert (reply.error, reply.body, reply.complete) == ("bad_request", b"", True)
        assert wire.closes_within(3.0)


@pytest.mark.parametrize(
    "query", [b"?a=/../b", b"??", b"?%0d%0aHost:%20evil", b'?\\"<>|^`{}', b"?" + b"a" * 20_000]
)
def test_a_query_chooses_no_other_path_and_adds_no_header(besieged: Besieged, query: bytes) -> None:
    daemon, exporter = besieged
    exporter.play()
    daemon.exchange(target(b"/x/metrics" + query)).expect_ok(PAGE)
    assert exporter.request.head.startswith(b"GET /metrics" + query + b" HTTP/1.1\r\n")
    assert exporter.request.header_names == ["host"]


def test_trailers_do_not_become_headers(besieged: Besieged) -> None:
    """RFC 9110 section 6.5.1: whoever stands before us has judged the headers, not these."""
    daemon, exporter = besieged
    exporter.play()
    trailers = b"Accept: trailer\r\nConnection: user-agent\r\nX-Prometheus-Scrape-Timeout-Seconds: 1\r\n\r\n"
    daemon.exchange(
        GET + HOST + b"User-Agent: u\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + trailers
    ).expect_ok(PAGE)
    assert exporter.request.headers == [("host", exporter.authority), ("user-agent", "u")]


def test_another_protocol_behind_a_request_is_refused_too(besieged: Besieged) -> None:
    daemon, exporter = besieged
    exporter.play()
    with daemon.connect() as wire:
        wire.send(request("/x/metrics") + b"GET /x/metrics RTSP/1.0\r\nHost: proxy.test\r\n\r\n")
        wire.read_reply().expect_ok(PAGE)
        wire.read_reply().expect_refusal(400, "bad_request")
        assert wire.closes_within(3.0)
    assert len(exporter.requests) == 1
