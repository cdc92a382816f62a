"""What of a request's query and headers counts, and what goes on to the exporter and back."""

from __future__ import annotations

import asyncio
import base64
import binascii
from math import inf
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exporter_proxy.access import is_allowed, plain_address
from exporter_proxy.config import parse_config
from exporter_proxy.front.auth import BearerTokens, Guard
from exporter_proxy.front.passwords import Passwords
from exporter_proxy.pages.landing import HTML, JSON, TEXT, preferred_type
from exporter_proxy.reasons import Denied, Reason
from exporter_proxy.scrape.deadline import parse_scrape_timeout, total_timeout_seconds
from exporter_proxy.scrape.headers import FORWARDED, HOP_BY_HOP, Headers, request_headers, response_headers
from exporter_proxy.scrape.routing import Route, build_routes
from exporter_proxy.upstreams import make_upstream
from tests.fakes.hashing import hash_of

fuzz = settings(max_examples=200, deadline=None)

# Headers

NAMES = st.sampled_from(
    [
        *(b"accept", b"accept-encoding", b"user-agent", b"cookie", b"set-cookie", b"authorization", b"range"),
        *(b"connection", b"keep-alive", b"te", b"x-scope", b"x-other", b"content-length", b"content-type"),
        *(b"transfer-encoding", b"proxy-authorization", b"x-exporter-proxy-error", b"content-encoding"),
    ]
)
VALUES = st.one_of(
    st.sampled_from([b"", b"close", b"keep-alive", b"x-scope", b"Accept , X-Other,", b"content-type, close"]),
    st.lists(NAMES, max_size=3).map(b", ".join),
    st.binary(max_size=8),
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
SPELLED = HEADERS.flatmap(
    lambda headers: st.tuples(
        *(st.tuples(st.sampled_from([name, name.title(), name.upper()]), st.just(v)) for name, v in headers)
    ).map(list)
)


def named_by_connection(headers: Headers) -> set[bytes]:
    lines = [value for name, value in headers if name.lower() == b"connection"]
    return {token.strip(b" \t").lower() for line in lines for token in line.split(b",")}


def is_part(part: Headers, whole: Headers) -> bool:
    """Whether it is the whole with some left out, in the same order."""
    rest = iter(whole)
    return all(pair in rest for pair in part)


@fuzz
@given(HEADERS, st.sets(st.sampled_from([b"x-scope", b"cookie"])))
def test_of_a_request_only_what_is_allowed_goes_on(headers: Headers, passed: set[bytes]) -> None:
    allowed = FORWARDED | passed
    kept = request_headers(headers, frozenset(allowed))
    assert is_part(kept, headers)
    names = {name for name, _ in kept}
    framing = {b"content-length", b"content-type", b"content-encoding"}
    assert names <= allowed - (named_by_connection(headers) - framing)
    for pair in headers:
        if pair[0] in allowed and pair[0] not in named_by_connection(headers):
            assert pair in kept


@fuzz
@given(SPELLED)
def test_of_a_response_all_goes_on_but_what_is_of_the_connection_or_a_session(headers: Headers) -> None:
    kept = response_headers(headers)
    assert is_part(kept, headers)
    names = {name.lower() for name, _ in kept}
    assert not names & (HOP_BY_HOP | {b"set-cookie", b"set-cookie2", b"x-exporter-proxy-error"})
    framing = {b"content-length", b"content-type", b"content-encoding"}
    assert not names & (named_by_connection(headers) - framing)
    dropped = {name.lower() for name, _ in headers} - names
    own = HOP_BY_HOP | {b"set-cookie", b"x-exporter-proxy-error"}
    assert dropped <= own | named_by_connection(headers)


# The query

ROUTES = build_routes(
    parse_config(
        b"""
exporters:
  open: {url: "http://127.0.0.1:9100/metrics"}
  own: {url: "http://127.0.0.1:9100/metrics?own=1", params: {module: [a, "b c"]}}
  listed: {url: "http://127.0.0.1:9100/metrics", allow_params: ["collect[]", "a b", "\xc3\xa9"]}
  none: {url: "http://127.0.0.1:9100/metrics", allow_params: []}
""",
        "config.yml",
    ),
    make_upstream,
)
ROUTE = {route.exporter.name: route for route in ROUTES.routes}
QUERIES = st.one_of(
    st.lists(
        st.sampled_from(
            [
                *(
                    b"collect[]=cpu",
                    b"collect%5B%5D=cpu",
                    b"c%6fllect%5b]",
                    b"a+b=1",
                    b"a%20b",
                    b"x=1",
                    b"=",
                    b"",
                ),
                *(
                    b"%C3%A9=1",
                    b"%e9",
                    b"\xc3\xa9",
                    b"%",
                    b"%zz=1",
                    b"a;b",
                    b"collect[]=1;x=2",
                    b"a=b=c",
                    b"%00",
                ),
            ]
        ),
        max_size=4,
    ).flatmap(lambda pairs: st.sampled_from([b"&", b";", b"&&"]).map(lambda sign: sign.join(pairs))),
    st.binary(max_size=20).map(lambda raw: bytes(byte for byte in raw if byte > 32 and byte not in b"#\x7f")),
)


@fuzz
@given(QUERIES, st.sampled_from(sorted(ROUTE)))
def test_the_scrapers_query_comes_last_and_byte_for_byte(query: bytes, name: str) -> None:
    route = ROUTE[name]
    target = route.target(query)
    assert target.endswith(query)
    assert target.startswith(route.target(b""))
    between = target[len(route.target(b"")) : len(target) - len(query)]
    assert between == (b"" if not query else b"&" if name == "own" else b"?")


@pytest.mark.parametrize("separator", ["&", ";"])
@fuzz
@given(query=QUERIES)
@example(query=b"collect%5B%5D=1;x=2")
def test_no_parameter_that_an_exporter_could_read_is_overlooked(separator: str, query: bytes) -> None:
    """Whichever of the two an exporter takes for what stands between parameters."""
    read = parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1", separator=separator)
    names = {name.encode("latin-1") for name, _ in read}
    if ROUTE["none"].refused_param(query) is None:
        assert not any(name.strip(b"&;") for name in names)
    if ROUTE["listed"].refused_param(query) is None:
        # With the other sign in it a name is one to this exporter and several to another.
        assert all(_is_listed(name) for name in names), names
    assert ROUTE["open"].refused_param(query) is None
    refused = ROUTE["listed"].refused_param(query)
    assert refused is None or refused not in (ROUTE["listed"].exporter.allow_params or ())


def _is_listed(name: bytes) -> bool:
    allowed = {text.encode() for text in ROUTE["listed"].exporter.allow_params or ()}
    return all(part.partition(b"=")[0] in allowed for part in name.replace(b";", b"&").split(b"&") if part)


@fuzz
@given(st.binary(max_size=60) | st.binary(max_size=8).map(lambda start: start + b"/metrics"))
def test_only_the_very_path_is_a_route(path: bytes) -> None:
    route = ROUTES.find(path)
    assert route is None or isinstance(route, Route)
    assert (route is not None) == (path in {known.path for known in ROUTES.routes})


# The scrape timeout header

NUMBERS = st.one_of(
    st.floats().map(lambda number: repr(number).encode()),
    st.integers().map(lambda number: b"%d" % number),
    st.sampled_from(
        [b"10", b" 5 ", b"1e3", b"1_0", b"0x10", b"nan", b"-inf", b"1e400", b"1" * 5000, b"\xff", b""]
    ),
    st.binary(max_size=8),
)


@fuzz
@given(NUMBERS, st.none() | st.floats(0.001, 120), st.floats(0, 120))
@example(b"5e-324", None, 1.0)
def test_a_timeout_is_always_above_zero_and_within_bounds(
    header: bytes, own: float | None, offset: float
) -> None:
    wanted = parse_scrape_timeout(header)
    assert wanted is None or 0 < wanted < inf
    total = total_timeout_seconds(own, offset, wanted)
    assert 0 < total <= 120
    assert own is None or total <= own
    if wanted is not None:
        assert total <= wanted


# Credentials

PASSWORD = b"of ann"
GUARD = Guard(None, Passwords((("ann", hash_of(PASSWORD)),)), BearerTokens(("t0ken", "a.b-c_d~e+f/g==")))
RIGHT = {b"Bearer t0ken", b"Bearer a.b-c_d~e+f/g==", b"Basic " + base64.b64encode(b"ann:" + PASSWORD)}
SHOWN = st.one_of(
    st.sampled_from(sorted(RIGHT)),
    st.binary(max_size=20),
    st.tuples(
        st.sampled_from([b"Basic", b"bASIC", b"Bearer", b"bearer", b"Digest", b""]),
        st.sampled_from([b" ", b"  ", b"\t", b""]),
        st.one_of(
            st.binary(max_size=12),
            st.binary(max_size=12).map(base64.b64encode),
            st.sampled_from(
                [b"t0ken", b"t0ken ", b"t0ke", b"t0kenn", b"T0KEN", b"Og==", b"YW5u", b"YW5uOg=="]
            ),
        ),
    ).map(b"".join),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(SHOWN, max_size=2))
def test_nobody_comes_in_but_with_right_credentials(shown: list[bytes]) -> None:
    headers = [(b"authorization", value) for value in shown]

    async def check() -> None:
        hashing = GUARD.check_credentials(headers)
        if hashing is not None:
            await hashing

    try:
        asyncio.run(check())
    except Denied as denied:
        assert denied.reason in (Reason.UNAUTHORIZED, Reason.RATE_LIMITED)
        assert not any(
            value and value.decode("latin-1") in denied.message for value in shown if len(value) > 8
        )
        return
    (value,) = shown
    assert is_right(value)


def is_right(value: bytes) -> bool:
    scheme, _, rest = value.strip(b" \t").partition(b" ")
    rest = rest.strip(b" ")
    if scheme.lower() == b"bearer":
        return rest in (b"t0ken", b"a.b-c_d~e+f/g==")
    try:
        return scheme.lower() == b"basic" and base64.b64decode(rest, validate=True) == b"ann:" + PASSWORD
    except binascii.Error:
        return False


# Further headers

ACCEPTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["text/html", "application/json", "text/plain", "*/*", "text/*", "", "TEXT/HTML ", "é"]
        ),
        st.sampled_from(
            ["", ";q=0.5", "; q=1", ";q=", ";q=nan", ";q=-1", ";q=2", ";q=inf", ";x=1;q=0.1", ";"]
        ),
    ).map("".join),
    max_size=5,
).map(",".join)


@fuzz
@given(ACCEPTS | st.text(max_size=30))
def test_any_accept_gets_one_of_the_three_forms(accept: str) -> None:
    kind = preferred_type(accept)
    assert kind in (HTML, JSON, TEXT)
    assert kind == TEXT or kind in accept.lower()


@fuzz
@given(st.ip_addresses(), st.ip_addresses(v=4))
def test_an_address_is_in_a_network_however_the_socket_spells_it(address: object, four: object) -> None:
    networks = parse_config(
        b"allow_clients: [10.0.0.0/8, '::1']\nexporters: {a: {url: http://h}}", "c"
    ).allow_clients
    plain = plain_address(f"{address}")
    assert is_allowed(plain, networks) == (str(plain).startswith("10.") or str(plain) == "::1")
    assert plain_address(f"::ffff:{four}") == four
