"""Each exporter's last scrapes as JSON, in ``/-/exporters`` and ``/``: however many, and whoever reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from exporter_proxy.observe.recent import RECENT_SCRAPES
from tests.daemon import Daemon
from tests.fakes.ports import refusing_port
from tests.second_address import with_second_address
from tests.wire import request

EXPORTERS = 150
READERS = 60
GROWTH_BYTES = 32 * 1024 * 1024


AS_JSON = ("Accept", "application/json")
PATHS = pytest.mark.parametrize("path", ["/-/exporters", "/"])


def told(daemon: Daemon, path: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(daemon.get(path, AS_JSON).expect_ok().body)
    return values


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Many exporters, each of whose last scrapes failed: 2.4 MB of JSON, 0.4 MB in the overview.

    Of that a TCP connection's buffer in the kernel may take all, that of a unix socket 0.2 MB.
    """
    path = tmp_path_factory.mktemp("pages") / "x.sock"
    with refusing_port() as port:
        entry = {"url": f"http://127.0.0.1:{port}/metrics"}
        exporters = {f"exporter_{number:03}": entry for number in range(EXPORTERS)}
        with Daemon({"listen": ["127.0.0.1:0", f"unix:{path}"], "exporters": exporters}) as daemon:
            with daemon.connect() as wire:
                for _ in range(RECENT_SCRAPES):
                    for number in range(EXPORTERS):
                        assert wire.exchange(request(f"/exporter_{number:03}/metrics")).status == 502
            last = {"exporter": f"exporter_{EXPORTERS - 1:03}", "code": "502"}
            daemon.wait_for_metric(RECENT_SCRAPES, "exporter_proxy_scrapes_total", **last)
            yield daemon


@PATHS
def test_every_exporter_is_there_with_all_that_is_remembered(busy: Daemon, path: str) -> None:
    """Made in one piece it would hold the loop, for which the daemon is watched."""
    exporters = told(busy, path)["exporters"]
    assert [one["name"] for one in exporters] == [f"exporter_{number:03}" for number in range(EXPORTERS)]
    for one in exporters:
        assert [scrape["reason"] for scrape in one["recent"]] == ["connect"] * RECENT_SCRAPES
        if path != "/":
            assert one["last_failures"] == {"connect": one["recent"][0]}


@PATHS
def test_readers_that_do_not_read_hold_little(busy: Daemon, path: str) -> None:
    told(busy, path)  # whatever is loaded or allocated for the first is no growth
    before = busy.rss_bytes()
    with ExitStack() as wires:
        for _ in range(READERS):
            wire = wires.enter_context(busy.connect(busy.unix_paths[0]))
            wire.send(request(path, AS_JSON))
            assert wire.sock.recv(100), "its answer has begun"
        assert len(told(busy, path)["exporters"]) == EXPORTERS, "others have theirs meanwhile"
        grown = busy.rss_bytes() - before
    assert grown < GROWTH_BYTES, f"it grew by {grown / 1024 / 1024:.1f} MiB"


def test_a_head_has_no_body(busy: Daemon) -> None:
    reply = busy.get("/-/exporters", method="HEAD").expect_ok(b"")
    assert reply.header("content-type") == "application/json"


def test_why_no_pushprox_proxy_is_reached_is_shown_to_loopback_clients_only() -> None:
    """It names addresses of the network around this host; ``/`` goes by the same rule."""

    def test(address: str) -> None:
        with refusing_port() as port:
            config = {
                "listen": ["127.0.0.1:0", f"{address}:0"],
                "pushprox": {"proxy_url": f"http://127.0.0.1:{port}/", "fqdn": "vm1.test"},
                "exporters": {"x": {"url": f"http://127.0.0.1:{port}/metrics"}},
            }
            with Daemon(config) as daemon:
                daemon.wait_for_log("pushprox failing")
                for at in daemon.addresses:
                    shown = []
                    for path, whole in (("/-/exporters", "pushprox"), ("/", "daemon")):
                        with daemon.connect(at, source=at[0]) as wire:
                            asked = request(path, ("Accept", "application/json"))
                            values = json.loads(wire.exchange(asked).expect_ok().body)[whole]
                        (proxy,) = values["proxies"] if whole == "pushprox" else values["pushprox"]
                        shown.append(proxy["problem"])
                    assert shown[0] == shown[1]
                    assert ("connection refused" in shown[0]) == at[0].startswith("127.")

    with_second_address(test)
