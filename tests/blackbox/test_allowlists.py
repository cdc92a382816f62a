"""Who may scrape what, with which parameters, and where the daemon itself may connect to."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import PAGE, FakeExporter
from tests.wire import request

DENIED = "exporter_proxy_requests_denied_total"


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Daemon, FakeExporter]]:
    """127.0.0.0/29 may come in; ``narrow`` is for .2 and .3, ``nobody`` for none of them."""
    with FakeExporter() as exporter:
        entries = {
            "open": {"url": exporter.url()},
            "narrow": {"url": exporter.url(), "allow_clients": ["127.0.0.2/31"]},
            "nobody": {"url": exporter.url(), "allow_clients": ["127.0.0.9"]},
        }
        config = {"allow_clients": ["127.0.0.0/29", "::1"], "exporters": entries}
        with Daemon({**config, "listen": ["127.0.0.1:0", "[::1]:0"]}) as daemon:
            yield daemon, exporter


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("127.0.0.1", {"open"}),
        ("127.0.0.2", {"open", "narrow"}),
        ("127.0.0.3", {"open", "narrow"}),
        ("127.0.0.4", {"open"}),
        ("127.0.0.8", set()),
        ("127.0.0.9", set()),  # an exporter's list narrows the global one, it never widens it
        ("127.1.0.2", set()),
    ],
)
@pytest.mark.parametrize("name", ["open", "narrow", "nobody"])
def test_clients_are_judged_by_their_own_address(
    guarded: tuple[Daemon, FakeExporter], source: str, allowed: set[str], name: str
) -> None:
    daemon, exporter = guarded
    exporter.play()
    reply = daemon.get(f"/{name}/metrics", source=source)
    if name in allowed:
        reply.expect_ok(PAGE)
    else:
        reply.expect_refusal(403, "forbidden")
        assert source in reply.body.decode(), "the line says which address was refused"
        assert exporter.requests == []


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-For", "127.0.0.2"),
        ("X-Real-IP", "127.0.0.2"),
        ("Forwarded", "for=127.0.0.2"),
        ("X-Client-IP", "127.0.0.2"),
    ],
)
def test_what_a_header_says_of_the_address_is_not_believed(
    guarded: tuple[Daemon, FakeExporter], header: tuple[str, str]
) -> None:
    daemon, _ = guarded
    daemon.get("/narrow/metrics", header).expect_refusal(403, "forbidden")
    daemon.get("/open/metrics", header, source="127.0.0.8").expect_refusal(403, "forbidden")
    name, value = header
    daemon.get("/open/metrics", (name, value.replace("127.0.0.2", "10.0.0.1"))).expect_ok(PAGE)


@pytest.mark.parametrize("path", ["/", "/metrics", "/nobody", "/-/healthy", "/open/metrics"])
def test_a_denied_address_gets_403_everywhere_and_is_closed(
    guarded: tuple[Daemon, FakeExporter], path: str
) -> None:
    daemon, _ = guarded
    denied = daemon.metric(DENIED, reason="forbidden")
    with daemon.connect(source="127.0.0.8") as wire:
        wire.exchange(request(path)).expect_refusal(403, "forbidden")
        assert wire.closes_within(3.0)
    daemon.wait_for_metric(denied + 1, DENIED, reason="forbidden")


def test_a_denied_address_never_learns_which_exporters_exist(guarded: tuple[Daemon, FakeExporter]) -> None:
    daemon, _ = guarded
    for source, shown, hidden in [
        ("127.0.0.1", ["/open/metrics"], ["/narrow/metrics", "/nobody/metrics"]),
        ("127.0.0.2", ["/open/metrics", "/narrow/metrics"], ["/nobody/metrics"]),
    ]:
        text = daemon.get("/wrong", source=source).expect_refusal(404, "not_found").body.decode()
        assert all(path in text for path in shown)
        assert not any(path in text for path in hidden)
    text = daemon.get("/wrong", source="127.0.0.8").expect_refusal(403, "forbidden").body.decode()
    assert "/metrics" not in text


def test_ipv6_clients_are_judged_too(guarded: tuple[Daemon, FakeExporter]) -> None:
    daemon, _ = guarded
    address = daemon.addresses[1]
    daemon.get("/open/metrics", address=address).expect_ok(PAGE)
    daemon.get("/narrow/metrics", address=address).expect_refusal(403, "forbidden")


def test_ipv6_list_does_not_admit_ipv4() -> None:
    with proxied(allow_clients=["::1", "::/96"]) as (daemon, _):
        daemon.get("/x/metrics").expect_refusal(403, "forbidden")


@pytest.mark.parametrize(
    ("allowed", "status"), [("127.0.0.1", 200), ("127.0.0.2", 403), ("::ffff:127.0.0.1", 200)]
)
def test_mapped_ipv4_address_is_an_ipv4_address(allowed: str, status: int) -> None:
    """On ``[::]`` the kernel shows an IPv4 client as ::ffff:127.0.0.1."""
    with proxied(listen="[::]:0", allow_clients=[allowed]) as (daemon, _):
        assert daemon.get("/x/metrics", address=("127.0.0.1", daemon.port)).status == status


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_who_has_left_with_a_reset_is_judged_by_the_address_he_had(loop: str) -> None:
    """The kernel tells no peer's address any more then, and the request is there to be read all the same."""
    with FakeExporter() as exporter:
        narrow = {"url": exporter.url(), "allow_clients": ["127.0.0.9"]}
        log = {"format": "json", "fields": ["remote", "status", "reason"]}
        config = {"exporters": {"narrow": narrow}, "access_log": log}
        with Daemon(config, environment={"EXPORTER_PROXY_LOOP": loop}) as daemon:
            for attempt in range(5):
                daemon.process.send_signal(signal.SIGSTOP)
                daemon.connect().send(request("/narrow/metrics")).reset()
                daemon.process.send_signal(signal.SIGCONT)
                wait_until(lambda: len(daemon.output_lines) > attempt, "it was logged")  # noqa: B023
            for line in daemon.output_lines:
                assert json.loads(line) == {"remote": "127.0.0.1", "status": 403, "reason": "forbidden"}
            assert exporter.requests == []
            assert exporter.connections == []


def test_denied_addresses_take_no_place_within_the_connection_limit() -> None:
    with proxied(max_connections=2, allow_clients=["127.0.0.1"]) as (daemon, _), daemon.connect() as idle:
        idle.exchange(request("/x/metrics")).expect_ok(PAGE)
        denied = [daemon.connect(source="127.0.0.2") for _ in range(5)]
        idle.exchange(request("/x/metrics")).expect_ok(PAGE)
        daemon.get("/x/metrics").expect_ok(PAGE)
        for wire in denied:
            wire.close()


# -- allow_upstreams


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", ["127.0.0.0/8"]),
        ("localhost", ["10.0.0.0/8", "127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1/32"]),
    ],
)
def test_upstream_within_the_list_is_scraped(host: str, allowed: list[str]) -> None:
    with FakeExporter() as exporter:
        entry = {"url": f"http://{host}:{exporter.port}/metrics"}
        with Daemon({"allow_upstreams": allowed, "exporters": {"x": entry}}) as daemon:
            daemon.get("/x/metrics").expect_ok(PAGE)


@pytest.mark.parametrize("allowed", [["10.0.0.0/8"], ["127.0.0.2/31", "2001:db8::/32"]])
def test_upstream_is_judged_by_the_address_that_its_name_leads_to(allowed: list[str]) -> None:
    """At connect time: what a name points to may change after the file was read."""
    with FakeExporter() as exporter:
        entry = {"url": f"http://localhost:{exporter.port}/metrics"}
        with Daemon({"allow_upstreams": allowed, "exporters": {"x": entry}}) as daemon:
            reply = daemon.get("/x/metrics").expect_refusal(502, "connect", "x")
            assert "allow_upstreams" in reply.body.decode()
        assert exporter.connections == []


# -- allow_params


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ("", True),
        ("?collect[]=cpu", True),
        ("?collect[]=cpu&collect[]=meminfo", True),
        ("?collect%5B%5D=cpu", True),  # as Prometheus itself writes it
        ("?target=a&collect[]=b", True),
        ("?target", True),
        ("?target=a%26module=x", True),
        ("?module=x", False),
        ("?collect[]=cpu&module=x", False),
        ("?collect=cpu", False),
        ("?Target=a", False),
        ("?target=a&%6dodule=x", False),
        ("?module", False),
        ("?=x", False),
        ("?+target=a", False),
    ],
)
def test_parameters_outside_the_list_are_refused(
    listed: tuple[Daemon, FakeExporter], query: str, allowed: bool
) -> None:
    daemon, exporter = listed
    exporter.play()
    reply = daemon.get(f"/x/metrics{query}")
    if allowed:
        reply.expect_ok(PAGE)
        assert exporter.request.target == f"/metrics{query}".encode()
    else:
        reply.expect_refusal(403, "param")
        assert exporter.requests == []


@pytest.fixture(scope="module")
def listed() -> Iterator[tuple[Daemon, FakeExporter]]:
    with proxied(route={"allow_params": ["collect[]", "target"]}) as pair:
        yield pair


def test_an_empty_list_of_parameters_refuses_all_and_leaves_the_configured_ones() -> None:
    with proxied(route={"allow_params": [], "params": {"module": ["m"]}}) as (daemon, exporter):
        daemon.get("/x/metrics?module=m").expect_refusal(403, "param")
        daemon.get("/x/metrics?a").expect_refusal(403, "param")
        daemon.get("/x/metrics").expect_ok(PAGE)
        assert exporter.request.target == b"/metrics?module=m"
        assert daemon.metric(DENIED, reason="param") == 2
