"""``module_route``: which module a query names, and what is left of the query."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter_proxy.config import parse_config
from exporter_proxy.scrape.modules import take_module
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.upstreams import make_upstream

PAIRS = st.lists(
    st.sampled_from([b"", b"a", b"a=1", b"=", b"%zz=%", b"m%6fdule;x=y", b"module[]=x", b"a=b=c"])
)


@pytest.mark.parametrize(
    ("query", "module", "rest"),
    [
        (b"", None, b""),
        (b"a=1", None, b"a=1"),
        (b"module=x", b"x", b""),
        (b"module", b"", b""),
        (b"module=", b"", b""),
        (b"module=x=y", b"x=y", b""),
        (b"mod%75le=%78", b"x", b""),
        (b"module=a+b", b"a b", b""),
        (b"module=%zz", b"%zz", b""),
        (b"+module=x", None, b"+module=x"),
        (b"module=x&module=y", b"x", b"module=y"),
        (b"module=&module=y", b"", b"module=y"),
        (b"a=1;module=x", None, b"a=1;module=x"),
        (b"module=x;a=1", b"x;a=1", b""),
    ],
)
def test_the_first_module(query: bytes, module: bytes | None, rest: bytes) -> None:
    assert take_module(query) == (module, rest)


@given(before=PAIRS, after=PAIRS)
def test_nothing_but_the_first_module_is_changed(before: list[bytes], after: list[bytes]) -> None:
    query = b"&".join([*before, b"%6dodule=n", *after])
    assert take_module(query) == (b"n", b"&".join([*before, *after]))
    assert take_module(b"&".join(before)) == (None, b"&".join(before))


@pytest.mark.parametrize("prefix", ["/", "/vm1"])
def test_the_table_knows_where_it_is(prefix: str) -> None:
    text = f"route_prefix: {prefix}\nmodule_route: /proxy\nexporters: {{a: {{url: 'http://127.0.0.1/'}}}}"
    routes = build_routes(parse_config(text.encode(), "config.yml"), make_upstream)
    assert routes.module_path == f"{prefix.rstrip('/')}/proxy".encode()
    assert routes.find(routes.module_path) is None
    assert routes.find_module(b"b=1&module=a") == (routes.routes[0], b"a", b"b=1")
    assert routes.find_module(b"b=1") == (None, None, b"b=1")
