"""The raw messages in polls and pushes, and what a request asks for, as values."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter_proxy.config import ListenAddress, parse_config
from exporter_proxy.config.schema import UnixListen
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.pushprox.judge import Place, aim, check_size, ports_of
from exporter_proxy.pushprox.messages import PushedRequest, format_response, parse_request
from exporter_proxy.pushprox.poller import retry_delay_seconds
from exporter_proxy.reasons import Denied, Reason
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.upstreams import make_upstream

RAW = (
    b"GET http://vm1:9099/x/metrics?a=1 HTTP/1.1\r\nHost: vm1:9099\r\nUser-Agent: Prometheus/2.42.0\r\n"
    b"X-Prometheus-Scrape-Timeout-Seconds: 2\r\nId: 0af1\r\n\r\n"
)
CONFIG = parse_config(
    b"""
max_header_bytes: 1KiB
exporters:
  x: {url: "http://127.0.0.1:9100/metrics"}
  far: {url: "https://10.0.0.8:9443/secure/metrics?module=a"}
  http: {url: "http://127.0.0.1:9115/probe?module=http"}
  tcp: {url: "http://127.0.0.1:9115/probe?module=tcp", path: /tcp}
  own: {url: "http://127.0.0.1:9115/metrics"}
  unix: {url: "http+unix:///run/x.sock:/metrics"}
pushprox: {proxy_url: "http://127.0.0.1:8080", map_ports: true}
""",
    "config.yml",
)


def test_a_request_is_read() -> None:
    request = parse_request(RAW)
    assert (request.id, request.method, request.target) == (b"0af1", "GET", b"http://vm1:9099/x/metrics?a=1")
    assert request.headers == [
        (b"host", b"vm1:9099"),
        (b"user-agent", b"Prometheus/2.42.0"),
        (b"x-prometheus-scrape-timeout-seconds", b"2"),
    ]
    assert request.head_bytes == len(RAW) - 4
    assert request.get(b"user-agent") == b"Prometheus/2.42.0"
    assert request.get(b"accept") is None


def test_the_last_id_is_the_proxys_and_no_id_is_passed_on() -> None:
    request = parse_request(RAW.replace(b"User-Agent:", b"ID: forged\r\niD: again\r\nUser-Agent:"))
    assert request.id == b"0af1"
    assert not [name for name, _ in request.headers if name == b"id"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"\r\n\r\n", b"\r\n", "no blank line"),
        (b"HTTP/1.1\r\n", b"HTTP/2.0\r\n", "first line"),
        (b"GET http", b"GET  http", "first line"),
        (b"GET ", b"G\xc3T ", "first line"),
        (b"?a=1", b"?a=\xff", "first line"),
        (b"?a=1", b"?a=\x00", "first line"),
        (b"Host: ", b" Host: ", "not a header"),
        (b"Host: ", b"Host : ", "not a header"),
        (b"Host: ", b"Host ", "not a header"),
        (b"Host: vm1", b"Host: vm1\n", "not a header"),
        (b"Host: vm1", b"Host: vm\x001", "not a header"),
        (b"vm1:9099\r\nUser", b"vm1:9099\r\n folded\r\nUser", "not a header"),
        (b"Id: 0af1", b"Id: ", "no Id"),
        (b"Id: 0af1", b"Id: a b", "no Id"),
        (b"Id: 0af1", b"Id: " + b"a" * 201, "no Id"),
        (b"\r\nId: 0af1", b"", "no Id"),
        (RAW, b"<html>", "no blank line"),
        (RAW, b"\r\n\r\n", "first line"),
        (RAW, b"", "no blank line"),
    ],
)
def test_what_is_no_request_is_refused_whole(old: bytes, new: bytes, problem: str) -> None:
    assert old in RAW
    with pytest.raises(ValueError, match=problem):
        parse_request(RAW.replace(old, new, 1))


@given(st.binary(max_size=300) | st.binary(max_size=20).map(lambda more: RAW[:-2] + more))
def test_any_bytes_are_a_request_or_refused(raw: bytes) -> None:
    try:
        request = parse_request(raw)
    except ValueError:
        return
    for name, value in request.headers:
        assert b"\r" not in name + value
        assert b"\n" not in name + value


def request_for(target: str, method: str = "GET", host: str | None = None) -> PushedRequest:
    host = re.split(r"[/?#]", target)[2] if host is None else host
    raw = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nId: 1\r\n\r\n"
    return parse_request(raw.encode())


def read(response: bytes) -> tuple[h11.Response, bytes]:
    """What an independent reader makes of it, to whom it is the answer to a GET and all there is."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(response)
    head = parser.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := parser.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage), "it is not complete"
    assert parser.trailing_data[0] == b""
    return head, body


def test_a_response_carries_the_id_the_time_left_and_its_own_length() -> None:
    headers = [
        (b"Content-Type", b"text/plain"),
        (b"Content-Length", b"999"),
        (b"ID", b"the exporter's"),
        (b"X-Prometheus-Scrape-Timeout-Seconds", b"99"),
        (b"X-Other", b"1"),
        (b"X-Other", b"2"),
    ]
    head, body = read(b"".join(format_response(parse_request(RAW), 200, headers, [b"a ", b"1\n"], 1.23456)))
    assert (head.status_code, head.reason, body) == (200, b"OK", b"a 1\n")
    assert list(head.headers) == [
        (b"id", b"0af1"),
        (b"x-prometheus-scrape-timeout-seconds", b"1.235"),
        (b"content-type", b"text/plain"),
        (b"x-other", b"1"),
        (b"x-other", b"2"),
        (b"content-length", b"4"),
    ]


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [("HEAD", 200, b"0"), ("GET", 204, None), ("GET", 304, None), ("GET", 599, b"4"), ("GET", 502, b"4")],
)
def test_a_response_has_a_body_where_it_may(method: str, status: int, length: bytes | None) -> None:
    request = request_for("http://vm1:9099/x/metrics", method)
    parts = format_response(request, status, [(b"Content-Length", b"4")], [b"a 1\n"], 1.0)
    head, body = read(b"".join(parts))
    assert head.status_code == status
    assert dict(head.headers).get(b"content-length") == length
    assert body == (b"a 1\n" if length == b"4" else b"")


def aimed(
    target: str,
    host: str | None = None,
    *,
    fqdn: str = "vm1",
    map_ports: bool = True,
    ports: frozenset[int] = frozenset((9099,)),
) -> tuple[bytes, bytes]:
    """Path and query here."""
    request = request_for(target, host=host)
    assert CONFIG.pushprox is not None
    section = parse_config(
        f"pushprox: {{proxy_url: http://p, map_ports: {map_ports}}}\nexporters: {{x: {{url: http://h}}}}".encode(),
        "c",
    ).pushprox
    assert section is not None
    exchange = Exchange("pushprox", "GET", b"", b"", 0.0)
    path, _, exchange.query = request.target.partition(b"?")
    exchange.path = path
    aim(exchange, request, Place(fqdn, ports), section, build_routes(CONFIG, make_upstream))
    return exchange.path, exchange.query


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("http://vm1:9099/x/metrics", b"/x/metrics", b""),
        ("HTTP://VM1:9099/x/metrics?a=1&a=%zz;b", b"/x/metrics", b"a=1&a=%zz;b"),
        ("http://vm1:9099", b"/", b""),
        ("http://vm1:9099?a", b"/", b"a"),
        ("http://vm1:9099//x/../metrics", b"//x/../metrics", b""),
        ("http://vm1:9099/m?_scheme=https&a=1&_scheme=https", b"/m", b"a=1"),
        (
            "http://vm1:9099/m?_scheme=http&x_scheme=https&a_scheme=httpsb",
            b"/m",
            b"_scheme=http&x_scheme=https&a_scheme=httpsb",
        ),
        ("http://vm1:9100/metrics?a=1", b"/x/metrics", b"a=1"),
        ("http://vm1:9443/secure/metrics?_scheme=https", b"/far/metrics", b""),
        ("http://vm1:9115/metrics", b"/own/metrics", b""),
    ],
)
def test_what_is_asked_for_here(target: str, path: bytes, query: bytes) -> None:
    assert aimed(target) == (path, query)


@pytest.mark.parametrize(
    ("target", "reason", "words"),
    [
        ("http://vm2:9099/x/metrics", Reason.FORBIDDEN, "this is vm1"),
        ("http://127.0.0.1:9100/metrics", Reason.FORBIDDEN, "this is vm1"),
        ("http://localhost:9100/metrics", Reason.FORBIDDEN, "this is vm1"),
        ("http://vm1.:9099/x/metrics", Reason.FORBIDDEN, "this is vm1"),
        ("http://vm1:9101/metrics", Reason.NOT_FOUND, "no exporter of the configuration is at port 9101"),
        ("http://vm1:22/", Reason.NOT_FOUND, "at port 22 and path /"),
        ("http://vm1/metrics", Reason.NOT_FOUND, "at port 80"),
        ("https://vm1/metrics", Reason.NOT_FOUND, "at port 443"),
        ("http://vm1:0/metrics", Reason.NOT_FOUND, "at port 0"),
        ("http://vm1:9100/debug/pprof", Reason.NOT_FOUND, "path /debug/pprof"),
        ("http://vm1:9100/metrics/", Reason.NOT_FOUND, "path /metrics/"),
        ("http://vm1:9100/x/metrics", Reason.NOT_FOUND, "path /x/metrics"),
        (
            "http://vm1:9115/probe?target=y",
            Reason.NOT_FOUND,
            "several exporters .* their own: /http/metrics /tcp",
        ),
        ("http://vm1:123456/metrics", Reason.BAD_REQUEST, "names no host"),
        ("http://vm1:/metrics", Reason.BAD_REQUEST, "names no host"),
        ("http://u:p@vm1:9099/x/metrics", Reason.BAD_REQUEST, "Host header is not a host"),
        ("http://vm1:9099/x#y", Reason.BAD_REQUEST, "fragment"),
    ],
)
def test_what_is_refused(target: str, reason: Reason, words: str) -> None:
    with pytest.raises(Denied, match=words) as caught:
        aimed(target)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://vm1:9099/x/metrics", "vm1:9100"),
        ("http://vm1:9099/x/metrics", "vm2:9099"),
        ("http://vm1:9099/x/metrics", "vm1:9099\r\nHost: vm1:9099"),
        ("/x/metrics", "vm1:9099"),
        ("*", "vm1:9099"),
        ("vm1:9099", "vm1:9099"),
    ],
)
def test_host_and_target_have_to_agree_in_absolute_form(target: str, host: str) -> None:
    with pytest.raises(Denied) as caught:
        aimed(target, host)
    assert caught.value.reason is Reason.BAD_REQUEST


def test_ports_are_mapped_only_where_that_is_configured() -> None:
    with pytest.raises(Denied, match="use port 80 or 9099, or set map_ports") as caught:
        aimed("http://vm1:9100/metrics", map_ports=False, ports=frozenset((9099, 80)))
    assert caught.value.reason is Reason.NOT_FOUND
    assert aimed("http://vm1/x/metrics", ports=frozenset((9099, 80))) == (b"/x/metrics", b"")


def test_an_ipv6_address_can_be_the_name() -> None:
    assert aimed("http://[2001:db8::1]:9099/x/metrics", fqdn="2001:db8::1") == (b"/x/metrics", b"")


def test_the_head_has_the_limits_of_a_connections() -> None:
    check_size(request_for("http://vm1:9099/x"), CONFIG)
    with pytest.raises(Denied) as caught:
        check_size(request_for("http://vm1:9099/" + "x" * 1024), CONFIG)
    assert caught.value.status == 431
    many = parse_request(RAW.replace(b"\r\nId", b"\r\na:" * 130 + b"\r\nId"))
    with pytest.raises(Denied):
        check_size(many, parse_config(b"exporters: {x: {url: http://h}}", "c"))


def test_the_ports_are_those_listened_on_or_the_usual_one() -> None:
    sockets = UnixListen("/run/x.sock", None, None)
    assert ports_of([ListenAddress("::", 9099), sockets, ListenAddress("10.0.0.1", 80)]) == {9099, 80}
    assert ports_of([sockets]) == {9099}


def test_waiting_grows_to_a_bound_and_is_never_the_same() -> None:
    for failures, middle in ((0, 1.0), (1, 1.5), (2, 2.25), (4, 5.0), (50, 5.0), (100_000, 5.0)):
        delays = {retry_delay_seconds(failures) for _ in range(200)}
        assert len(delays) > 100
        assert middle * 0.5 <= min(delays) < middle < max(delays) <= middle * 1.5
