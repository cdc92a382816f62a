"""Requests of any sort to everything that answers them: a status of the table, and no defect in the log.

And pages of any sort to whoever asks an exporter for its name.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter_proxy.config.addresses import EXPORTER_NAME
from exporter_proxy.discover.recognise import exporter_name, parse_families
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.reasons import DENIAL_STATUS, SCRAPE_ERROR_STATUS
from exporter_proxy.scrape.exposition import summarise
from tests.inprocess import Answered, Parts, parts
from tests.properties.test_exposition_verdicts import pages
from tests.properties.test_query_and_headers import ACCEPTS, NUMBERS, QUERIES, SHOWN


@dataclass
class Site:
    runner: asyncio.Runner
    made: Parts
    log: Path

    def ask(
        self, method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], address: str | None
    ) -> Answered:
        """One request given to the application as the front gives it."""
        exchange = Exchange("-", method, path, query, time.monotonic())
        answered = Answered(exchange)
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "headers": headers,
            "server": ("127.0.0.1", 9099),
            "exchange": exchange,
            "address": None if address is None else ip_address(address),
            "admitted_by": None,
        }
        self.runner.run(self.made.app(scope, _no_body, answered.send))
        log = self.log.read_text()
        assert "defect" not in log, log
        return answered


async def _no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("app")
    (directory / "page.prom").write_text("a 1\n")
    (directory / "tokens").write_text("t0ken\n")
    exporters = {
        "file": {"file": str(directory / "page.prom")},
        "here": {
            "file": str(directory / "page.prom"),
            "allow_clients": ["127.0.0.1"],
        },
        "gone": {"file": str(directory / "nothing.prom")},
    }
    with asyncio.Runner() as runner:
        context = parts(
            directory / "log",
            exporters,
            allow_clients=["127.0.0.0/8", "10.0.0.0/8"],
            bearer_tokens_file=str(directory / "tokens"),
            route_prefix="/p",
        )
        made = runner.run(context.__aenter__())
        yield Site(runner, made, directory / "log")
        runner.run(context.__aexit__(None, None, None))


PATHS = st.one_of(
    st.sampled_from(
        [
            *(b"/", b"/metrics", b"/-/healthy", b"/-/ready", b"/-/reload", b"/-/exporters", b"/-/sd"),
            *(b"/file/metrics", b"/here/metrics", b"/gone/metrics", b"/file/metrics/", b"//", b""),
        ]
    ).map(lambda path: b"/p" + path),
    st.binary(max_size=12),
)
HOSTS = st.sampled_from(
    [b"", b"h", b"h:1", b"[::1]:9", b"[::", b"h:99999", b"1.2.3.4", b"%zz", b"\xc3\xa9", b"h:" + b"1" * 30]
)
OTHERS = st.lists(
    st.one_of(
        st.tuples(st.just(b"host"), HOSTS),
        st.tuples(st.just(b"accept"), ACCEPTS.map(lambda text: text.encode("latin-1", "replace"))),
        st.tuples(st.just(b"accept-encoding"), st.sampled_from([b"gzip", b"gzip;q=0", b"br", b"", b"\xff"])),
        st.tuples(st.just(b"x-prometheus-scrape-timeout-seconds"), NUMBERS),
        st.tuples(st.just(b"authorization"), SHOWN),
        st.tuples(st.sampled_from([b"connection", b"user-agent", b"x-y"]), st.binary(max_size=9)),
    ),
    max_size=4,
)
STATUSES = {200, *DENIAL_STATUS.values(), *SCRAPE_ERROR_STATUS.values()}


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "M-SEARCH"]),
    path=PATHS,
    query=QUERIES | st.sampled_from([b"instance=exporter", b"instance=x"]),
    headers=OTHERS,
    is_right=st.booleans(),
    address=st.sampled_from(["127.0.0.1", "10.1.2.3", "192.0.2.1", "::1", None]),
)
def test_any_request_is_answered_from_the_table(
    site: Site,
    method: str,
    path: bytes,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    is_right: bool,
    address: str | None,
) -> None:
    if is_right:
        headers = [
            *(pair for pair in headers if pair[0] != b"authorization"),
            (b"authorization", b"Bearer t0ken"),
        ]
    answered = site.ask(method, path, query, headers, address)
    exchange = answered.exchange
    assert answered.is_complete
    assert answered.status == exchange.status
    assert answered.status in STATUSES
    assert exchange.message.isprintable()
    assert (answered.header(b"x-exporter-proxy-error") or b"").decode() == (exchange.reason or "")
    for name, value in answered.headers:
        assert not set(name + value) & {0, 10, 13}
    if exchange.reason is None:
        is_probe = path in (b"/p/-/healthy", b"/p/-/ready")
        assert address is None or address.startswith(("127.0.0.1", "10."))
        assert method in ("GET", "HEAD")
        shown = [value.split() for name, value in headers if name == b"authorization"]
        assert is_probe or [words[1:] for words in shown] == [[b"t0ken"]]
        if answered.header(b"content-type") == b"application/json" and answered.body:
            json.loads(answered.body)


@settings(max_examples=200, deadline=None)
@given(
    page=pages() | st.binary(max_size=60),
    process=st.none() | st.text(max_size=12) | st.sampled_from(["node_exporter", "9p-exporter", "-exporter"]),
    port=st.integers(0, 65535),
    content_type=st.sampled_from(
        ["", "text/plain", "application/openmetrics-text", "application/vnd.google.protobuf"]
    ),
)
def test_any_page_has_a_name_and_a_size(
    page: bytes, process: str | None, port: int, content_type: str
) -> None:
    """What ``discover`` and ``scrape`` make of pages."""
    families = parse_families(page.decode("utf-8", "replace"))
    assert families is None or all(families)
    name = exporter_name(families or frozenset(), process, port)
    assert EXPORTER_NAME.parse(name) == name
    summary = summarise(page, content_type)
    assert summary.series >= 0
    assert summary.families >= 0
