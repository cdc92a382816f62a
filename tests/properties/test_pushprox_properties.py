"""What a PushProx proxy says, whatever it is: a request for a configured path, or refused in words."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exporter_proxy.config import parse_config
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.pushprox.judge import Place, aim, check_size
from exporter_proxy.pushprox.messages import PushedRequest, format_response, parse_request
from exporter_proxy.reasons import Denied, Reason
from exporter_proxy.scrape.headers import SCRAPE_TIMEOUT_HEADER
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.upstreams import make_upstream

RAW = b"GET http://vm1:9099/x/metrics?a=1 HTTP/1.1\r\nHost: vm1:9099\r\nAccept: */*\r\nId: 0af1\r\n\r\n"
CONFIG = parse_config(
    b"""
exporters:
  x: {url: "http://127.0.0.1:9100/metrics"}
  y: {url: "http://127.0.0.1:9115/probe?module=a"}
  file: {file: "/var/lib/x.prom"}
pushprox: {proxy_url: "http://127.0.0.1:8080", map_ports: true}
""",
    "config.yml",
)
assert CONFIG.pushprox is not None
SECTION = CONFIG.pushprox
ROUTES = build_routes(CONFIG, make_upstream)
PLACE = Place("vm1", frozenset((9099,)))

fuzz = settings(max_examples=250, deadline=None)

PIECES = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b":",
            b"\0",
            b"#",
            b"@",
            b"//",
            b"?",
            b"%00",
            b"[::1]",
            b"\x85",
        ),
        *(b"Host: vm2\r\n", b"Id: 2\r\n", b"id:\r\n", b"GET ", b" HTTP/1.1", b"https://", b"vm1", b":9100"),
        *(b"/../", b"_scheme=https&", b"X-Prometheus-Scrape-Timeout-Seconds: 1e9\r\n", b"a" * 300),
    ]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    raw = RAW
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(PIECES | st.binary(max_size=3)) + raw[at + draw(st.integers(0, 4)) :]
    return raw


@fuzz
@given(damaged() | st.binary(max_size=200))
def test_any_answer_to_a_poll_is_a_request_or_refused(raw: bytes) -> None:
    try:
        request = parse_request(raw)
    except ValueError as error:
        assert str(error).isprintable()
        return
    assert re.fullmatch(rb"[!-~]{1,200}", request.id)
    assert re.fullmatch(rb"[!-~]+", request.target)
    assert request.method.isascii()
    assert all(name == name.lower() and name != b"id" for name, _ in request.headers)
    assert not any(re.search(rb"[\r\n\0]", name + value) for name, value in request.headers)
    judge(request)


def judge(request: PushedRequest) -> Exchange | None:
    """What is asked for here, ``None`` where it is refused; nothing but ``Denied`` may be raised."""
    path, _, query = request.target.partition(b"?")
    exchange = Exchange("pushprox", request.method, path, query, 0.0)
    try:
        check_size(request, CONFIG)
        aim(exchange, request, PLACE, SECTION, ROUTES)
    except Denied as denied:
        assert denied.reason in (Reason.BAD_REQUEST, Reason.FORBIDDEN, Reason.NOT_FOUND, Reason.METHOD)
        assert denied.message.isprintable()
        return None
    return exchange


URLS = st.tuples(
    st.sampled_from(["http://", "https://", "HTTP://", "ftp://", "//", "/", "", "http:/", "http://u:p@"]),
    st.sampled_from(
        ["vm1", "VM1", "vm2", "localhost", "[::1]", "127.0.0.1", "vm1.", "", "vm1%2e", "vm1:80@vm2"]
    ),
    st.sampled_from(["", ":9099", ":9100", ":9115", ":0", ":99999", ":", ":09099", ":22", ":1e3", ":٩"]),
    st.sampled_from(
        ["/x/metrics", "/metrics", "/probe", "/", "", "/x/../metrics", "//metrics", "\\metrics", "/y"]
    ),
    st.sampled_from(["", "?a=1", "?_scheme=https", "?_scheme=https&b", "#x", "?#", "?a=http://vm2/"]),
).map("".join)
HOSTS = st.sampled_from(
    ["", "vm1", "vm1:9099", "vm1:9100", "vm2:9099", "VM1:9099", "vm1:80", "u:p@vm1", "[::1]:9099"]
)


@fuzz
@given(URLS, st.none() | HOSTS)
@example("http://vm1:9099@vm2:9100/metrics", "vm1:9099@vm2:9100")
def test_nothing_is_asked_for_but_what_the_url_names_by_another_reader_too(
    url: str, host: str | None
) -> None:
    authority = re.split(r"[/?#]", url.partition("//")[2])[0] if host is None else host
    raw = f"GET {url} HTTP/1.1\r\nHost: {authority}\r\nId: 1\r\n\r\n".encode()
    try:
        exchange = judge(parse_request(raw))
    except ValueError:
        return
    if exchange is None:
        return
    parts = urlsplit(url)
    assert (parts.hostname, parts.username, parts.fragment) == ("vm1", None, "")
    port = parts.port if parts.port is not None else {"http": 80, "https": 443}[parts.scheme]
    path = (parts.path or "/").encode()
    if port == 9099:
        assert exchange.path == path
    else:
        assert (port, path, exchange.path) in {
            (9100, b"/metrics", b"/x/metrics"),
            (9115, b"/probe", b"/y/metrics"),
        }
    kept = [pair for pair in parts.query.encode().split(b"&") if pair != b"_scheme=https"]
    assert exchange.query == b"&".join(kept)


FIELD = st.tuples(
    st.sampled_from([b"Content-Type", b"Id", b"iD", b"Content-Length", SCRAPE_TIMEOUT_HEADER, b"X-Other"]),
    st.sampled_from([b"", b"5", b"text/plain", b"a b"])
    | st.binary(max_size=6).map(bytes.hex).map(str.encode),
)


@fuzz
@given(
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    status=st.sampled_from([200, 204, 304, 404, 499, 502, 503, 599]),
    headers=st.lists(FIELD, max_size=5),
    body=st.binary(max_size=50),
    seconds=st.floats(0.001, 1e6),
)
def test_a_push_is_one_response_to_an_independent_reader(
    method: str, status: int, headers: list[tuple[bytes, bytes]], body: bytes, seconds: float
) -> None:
    request = parse_request(RAW.replace(b"GET", method.encode()))
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    parts = [body[:20], body[20:]]
    parser.receive_data(b"".join(format_response(request, status, headers, parts, seconds)))
    head = parser.next_event()
    assert isinstance(head, h11.Response)
    read = b""
    while isinstance(event := parser.next_event(), h11.Data):
        read += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert parser.trailing_data[0] == b""
    assert head.status_code == status
    assert read == (b"" if method == "HEAD" or status in (204, 304) else body)
    assert [value for name, value in head.headers if name == b"id"] == [b"0af1"]
    assert len([name for name, _ in head.headers if name == SCRAPE_TIMEOUT_HEADER]) == 1
