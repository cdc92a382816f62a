"""What is accepted, and as which value; what is refused is in ``testdata/config/bad``."""

from __future__ import annotations

from ipaddress import ip_network

import httpx
import pytest

from exporter_proxy.config.addresses import (
    EXPORTER_NAME,
    EXPORTER_PATH,
    ROUTE_PREFIX,
    SERVER_NAME,
    UPSTREAM_URL,
)
from exporter_proxy.config.listen import LISTEN_ADDRESS
from exporter_proxy.config.problems import quoted, visible
from exporter_proxy.config.schema import Listen, ListenAddress, StarterListen, SystemdListen, UnixListen
from exporter_proxy.config.values import (
    CONTENT_TYPE,
    HEADER_VALUE,
    HOST_HEADER,
    NETWORK,
    PASSED_HEADER_NAME,
    SET_HEADER_NAME,
    BadValue,
    duration,
    size,
)
from exporter_proxy.scrape.headers import HOP_BY_HOP


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("1h2m3.5s", 3723.5),
        ("300us", 0.0003),
        ("300\u00b5s", 0.0003),
        ("300\u03bcs", 0.0003),
        ("1ns", 1e-9),
        ("1.s", 1.0),
        (".5s", 0.5),
        ("0.1s0.2s", 0.3),
        ("1d", 86400.0),
        ("1w", 604800.0),
        ("0", 0.0),
        ("0s", 0.0),
    ],
)
def test_durations_as_go_and_prometheus_write_them(text: str, seconds: float) -> None:
    assert duration("9w", zero=True).parse(text) == seconds


def test_duration_at_its_limit() -> None:
    assert duration("2m").parse("120s") == 120.0
    with pytest.raises(BadValue, match="2m at most"):
        duration("2m").parse("120.000001s")


def test_tiny_duration_is_above_zero_but_nothing_is_not() -> None:
    assert duration("2m").parse("0.000000000000000001ns") > 0
    with pytest.raises(BadValue, match="above zero"):
        duration("2m").parse("0h0m0s")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("512", 512),
        ("512B", 512),
        ("32KiB", 32768),
        ("64MiB", 67108864),
        ("2GiB", 2147483648),
        ("1kB", 1000),
        ("1KB", 1000),
        ("10MB", 10_000_000),
        ("1GB", 1_000_000_000),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert size("1B", "1024GiB").parse(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.5", "10.0.0.5/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0a00:0005", "10.0.0.5/32"),
        ("::ffff:0:0/95", None),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_networks(text: str, network: str | None) -> None:
    if network is None:
        with pytest.raises(BadValue):
            NETWORK.parse(text)
    else:
        assert NETWORK.parse(text) == ip_network(network)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9099", "", 9099),
        ("[::]:9099", "::", 9099),
        ("[::1]:0", "::1", 0),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
        ("vm-1.example_lab.org.:80", "vm-1.example_lab.org.", 80),
        ("systemd.example.org:80", "systemd.example.org", 80),
    ],
)
def test_listen_addresses(text: str, host: str, port: int) -> None:
    address = LISTEN_ADDRESS.parse(text)
    assert address == ListenAddress(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("unix:/run/http.sock", UnixListen("/run/http.sock", None, None)),
        ("unix:/run/http.sock,mode=0600", UnixListen("/run/http.sock", 0o600, None)),
        ("unix:/run/http.sock,mode=666", UnixListen("/run/http.sock", 0o666, None)),
        ("unix:/run/a b.sock,group=prom-1,mode=0770", UnixListen("/run/a b.sock", 0o770, "prom-1")),
        # A umask leaves a group no right to connect.
        ("unix:/run/http.sock,group=prometheus", UnixListen("/run/http.sock", 0o660, "prometheus")),
        (f"unix:/{'x' * 106}", UnixListen(f"/{'x' * 106}", None, None)),
        ("systemd", SystemdListen(None)),
        ("systemd:http", SystemdListen("http")),
        ("systemd:exporter_proxy.socket", SystemdListen("exporter_proxy.socket")),
        ("systemd:80", SystemdListen("80")),
        ("SERVER_STARTER:0.0.0.0:8080", StarterListen("0.0.0.0:8080")),
        ("SERVER_STARTER:8080", StarterListen("0.0.0.0:8080")),
        ("SERVER_STARTER:[::1]:8080", StarterListen("[::1]:8080")),
        ("SERVER_STARTER:/run/http.sock", StarterListen("/run/http.sock")),
    ],
)
def test_listeners_that_are_no_address(text: str, listen: Listen) -> None:
    assert LISTEN_ADDRESS.parse(text) == listen
    # As it is shown; a socket's options are not.
    assert str(LISTEN_ADDRESS.parse(str(listen))) == str(listen)


@pytest.mark.parametrize(
    ("text", "authority", "target"),
    [
        ("https://self-signed.badssl.com", "self-signed.badssl.com", "/"),
        ("http://127.0.0.1:9100/metrics", "127.0.0.1:9100", "/metrics"),
        ("http://127.0.0.1:80", "127.0.0.1", "/"),
        ("https://127.0.0.1:443/", "127.0.0.1", "/"),
        ("http://127.0.0.1:443/", "127.0.0.1:443", "/"),
        ("http://[::1]/a?b=c&d[]=%zz;e", "[::1]", "/a?b=c&d[]=%zz;e"),
        ("http://[::ffff:127.0.0.1]:9100", "[::ffff:127.0.0.1]:9100", "/"),
        ("http://node_exporter:9100?x", "node_exporter:9100", "/?x"),
        ("http://h/a//../@b:c?u=http://x:1/@", "h", "/a//../@b:c?u=http://x:1/@"),
    ],
)
def test_urls(text: str, authority: str, target: str) -> None:
    url = UPSTREAM_URL.parse(text)
    assert (url.authority, url.target) == (authority, target)
    assert httpx.URL(f"{url.scheme}://{url.authority}/").host == url.host


@pytest.mark.parametrize(
    ("text", "path", "target"),
    [
        ("http+unix:///run/x.sock:/metrics", "/run/x.sock", "/metrics"),
        ("HTTP+UNIX:///x:/", "/x", "/"),
        ("http+unix:////run/../x;y=[z].sock:/a:b?c=:/d", "//run/../x;y=[z].sock", "/a:b?c=:/d"),
        ("http+unix:///" + "a" * 106 + ":/", "/" + "a" * 106, "/"),
    ],
)
def test_unix_urls(text: str, path: str, target: str) -> None:
    url = UPSTREAM_URL.parse(text)
    assert (url.socket_path, url.target, url.authority, url.backend) == (
        path,
        target,
        "localhost",
        f"unix:{path}",
    )
    assert str(url) == f"http+unix://{path}:{target}"
    assert UPSTREAM_URL.parse(str(url)) == url


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("vm1.example.org", "vm1.example.org"),
        ("vm1.example.org.", "vm1.example.org"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_server_names(text: str, name: str) -> None:
    assert SERVER_NAME.parse(text) == name


@pytest.mark.parametrize(
    "text", ["", "a b", "a..b", "127.0.0.256", "[::1]", "::1%eth0", "a:443", "*.example.org"]
)
def test_bad_server_names(text: str) -> None:
    with pytest.raises(BadValue):
        SERVER_NAME.parse(text)


@pytest.mark.parametrize(
    "text", ["/a", "/a/", "/-", "/-a/b", "/metrics/", "/...", "/a.b/..c", "/a;b=c,d:e@f!$&'()*+~"]
)
def test_exporter_paths(text: str) -> None:
    assert EXPORTER_PATH.parse(text) == text


def test_exporter_path_has_a_limit() -> None:
    assert EXPORTER_PATH.parse("/" + "a" * 999)
    with pytest.raises(BadValue, match="1000 characters"):
        EXPORTER_PATH.parse("/" + "a" * 1000)


@pytest.mark.parametrize(
    ("text", "prefix"), [("/", ""), ("", ""), ("/a", "/a"), ("/a/", "/a"), ("/a/b/", "/a/b")]
)
def test_route_prefixes(text: str, prefix: str) -> None:
    assert ROUTE_PREFIX.parse(text) == prefix


@pytest.mark.parametrize("text", ["//", "/a//", "a", "/a?b", "/.."])
def test_bad_route_prefixes(text: str) -> None:
    with pytest.raises(BadValue):
        ROUTE_PREFIX.parse(text)


def test_exporter_name_has_a_limit() -> None:
    assert EXPORTER_NAME.parse("a" * 100)
    with pytest.raises(BadValue, match="100 characters"):
        EXPORTER_NAME.parse("a" * 101)


@pytest.mark.parametrize("name", [*sorted(name.decode() for name in HOP_BY_HOP), "content-length"])
def test_headers_of_the_connection_can_be_neither_set_nor_passed(name: str) -> None:
    for kind in (SET_HEADER_NAME, PASSED_HEADER_NAME):
        with pytest.raises(BadValue, match="single connection"):
            kind.parse(name.title())


@pytest.mark.parametrize("text", ["", "a", "a\tb", "Basic dTpw", "~"])
def test_header_values(text: str) -> None:
    assert HEADER_VALUE.parse(text) == text


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b", "a\x7fb", "a\x0bb", "\u20ac", " a", "a\t"])
def test_bad_header_values_are_not_shown(text: str) -> None:
    with pytest.raises(BadValue) as caught:
        HEADER_VALUE.parse(text)
    assert caught.value.secret


@pytest.mark.parametrize("text", ["vm", "vm.example.org:80", "127.0.0.1:9100", "[::1]", "[::1]:80"])
def test_host_headers(text: str) -> None:
    assert HOST_HEADER.parse(text) == text


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a:b", "http://a", "u@a", "::1", "a:123456"])
def test_bad_host_headers(text: str) -> None:
    with pytest.raises(BadValue):
        HOST_HEADER.parse(text)


@pytest.mark.parametrize("text", ["text/plain", "text/plain; version=0.0.4", 'a/b+c;q="x y"'])
def test_content_types(text: str) -> None:
    assert CONTENT_TYPE.parse(text) == text


@pytest.mark.parametrize(
    "text", ["", "text", "text/", "/plain", "text/plain\n", "text/plain; a=\u00e4", "text/plain x"]
)
def test_bad_content_types(text: str) -> None:
    with pytest.raises(BadValue):
        CONTENT_TYPE.parse(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("http://u:p@h/x", "http://***@h/x"),
        ("http://u:p@q@h", "http://***@h"),
        ("u:p@h", "***@h"),
        ("u://p@h", "u://***@h"),
        ("u:a//p@h", "***@h"),
        ("a\nb", "a\\nb"),
        ("a\u2028b", "a\\u2028b"),
        ("a\u202eb", "a\\u202eb"),
        ("x" * 120, "x" * 120),
        ("x" * 121, "x" * 117 + "..."),
    ],
)
def test_what_messages_show(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_quotes_are_escaped() -> None:
    assert quoted('a"b') == '"a\\"b"'
