"""``/-/sd``: the list that http_sd reads, with the address it was asked at."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.daemon import Daemon
from tests.wire import CONNECTION_CLOSE, Reply, request

URL = "http://127.0.0.1:1/metrics"
CONFIG: dict[str, Any] = {
    "listen": ["127.0.0.1:0", "127.0.0.2:0"],
    "route_prefix": "/vm1",
    "exporters": {
        "a": {"url": "http://127.0.0.1:9100/metrics", "labels": {"team": "infra", "rack": 12}},
        "b": {"url": URL, "path": "/other"},
        "hidden": {"url": URL, "allow_clients": ["10.0.0.1"]},
        "half": {"url": URL, "allow_clients": ["127.0.0.2"]},
    },
}


@pytest.fixture(scope="module")
def host() -> Iterator[Daemon]:
    with Daemon(CONFIG) as daemon:
        yield daemon


def groups(reply: Reply) -> list[dict[str, Any]]:
    assert reply.expect_ok().header("content-type") == "application/json"
    found: list[dict[str, Any]] = json.loads(reply.body)
    return found


def asked(daemon: Daemon, host: str, target: str = "/vm1/-/sd") -> Reply:
    head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    return daemon.exchange(head.encode())


def test_the_whole_list(host: Daemon) -> None:
    assert groups(asked(host, "vm1.example.org:9099")) == [
        {
            "targets": ["vm1.example.org:9099"],
            "labels": {
                "__metrics_path__": "/vm1/a/metrics",
                "exporter": "a",
                "team": "infra",
                "rack": "12",
            },
        },
        {
            "targets": ["vm1.example.org:9099"],
            "labels": {"__metrics_path__": "/vm1/other", "exporter": "b"},
        },
    ]


def test_a_client_sees_only_what_it_may_scrape(host: Daemon) -> None:
    with host.connect(host.addresses[1], source="127.0.0.2") as wire:
        reply = wire.exchange(request("/vm1/-/sd", CONNECTION_CLOSE))
    assert [group["labels"]["exporter"] for group in groups(reply)] == ["a", "b", "half"]


@pytest.mark.parametrize(
    ("asked_at", "target"),
    [
        ("vm1", "vm1:80"),
        ("10.0.0.5:9099", "10.0.0.5:9099"),
        ("[2001:db8::1]:9099", "[2001:db8::1]:9099"),
        ("[2001:db8::1]", "[2001:db8::1]:80"),
    ],
)
def test_the_target_is_the_address_asked_at(host: Daemon, asked_at: str, target: str) -> None:
    assert [group["targets"] for group in groups(asked(host, asked_at))] == [[target], [target]]


@pytest.mark.parametrize("asked_at", ["vm1:0", "vm1:99999", "vm1:x", "[vm1]:1", "::1", "a%b", "a;b:1", ""])
def test_what_cannot_be_a_target_is_refused(host: Daemon, asked_at: str) -> None:
    reply = asked(host, asked_at)
    if asked_at:
        assert b"Host header" in reply.expect_refusal(400, "bad_request").body
    else:
        assert groups(reply)[0]["targets"] == [f"127.0.0.1:{host.port}"]


def test_without_a_host_it_is_the_connections_own_address(host: Daemon) -> None:
    reply = host.exchange(b"GET /vm1/-/sd HTTP/1.0\r\n\r\n")
    assert groups(reply)[0]["targets"] == [f"127.0.0.1:{host.port}"]


def test_instance_can_be_kept(host: Daemon) -> None:
    found = groups(asked(host, "vm1:9099", "/vm1/-/sd?instance=exporter"))
    assert [group["labels"]["instance"] for group in found] == ["vm1:9100", "vm1:1"]
    plain = groups(asked(host, "vm1:9099", "/vm1/-/sd?instance=proxy"))
    assert not any("instance" in group["labels"] for group in plain)


@pytest.mark.parametrize(
    "query", ["instance=x", "instance=", "other=1", "instance=proxy&instance=proxy", "instance=proxy&x=1"]
)
def test_other_parameters_are_refused(host: Daemon, query: str) -> None:
    reply = asked(host, "vm1:9099", f"/vm1/-/sd?{query}").expect_refusal(400, "bad_request")
    assert b"instance=exporter" in reply.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_get_and_head(host: Daemon, method: str) -> None:
    host.get("/vm1/-/sd", method=method).expect_refusal(405, "method")


def test_over_tls_the_scheme_is_said(tmp_path: Path) -> None:
    authority = trustme.CA()
    both = tmp_path / "both.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(both)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with Daemon(
        {"tls": {"certfile": str(both), "keyfile": str(both)}, "exporters": {"x": {"url": URL}}}
    ) as daemon:
        reply = daemon.exchange(b"GET /-/sd HTTP/1.1\r\nHost: vm1\r\nConnection: close\r\n\r\n", tls=trusting)
    assert groups(reply) == [
        {
            "targets": ["vm1:443"],
            "labels": {"__metrics_path__": "/x/metrics", "__scheme__": "https", "exporter": "x"},
        }
    ]


def test_it_needs_credentials_like_a_scrape(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token\n")
    config = {"bearer_tokens_file": str(tmp_path / "tokens"), "exporters": {"x": {"url": URL}}}
    with Daemon(config) as daemon:
        daemon.get("/-/sd").expect_refusal(401, "unauthorized")
        assert groups(daemon.get("/-/sd", ("Authorization", "Bearer a-token")))


@pytest.mark.parametrize(
    ("external_url", "target", "labels"),
    [
        (
            "https://proxy.example.org/vm1",
            "proxy.example.org:443",
            {"__scheme__": "https", "__metrics_path__": "/vm1/b/metrics"},
        ),
        (
            "http://proxy.example.org:8080/",
            "proxy.example.org:8080",
            {"__metrics_path__": "/b/metrics"},
        ),
    ],
)
def test_the_external_url_beats_the_address_asked_at(
    external_url: str, target: str, labels: dict[str, str]
) -> None:
    config = {"exporters": {"b": {"url": URL}}, "listen": "127.0.0.1:0"}
    with Daemon(config, f"--web.external-url={external_url}", "--web.route-prefix=/") as daemon:
        assert groups(asked(daemon, "vm1.example.org:9099", "/-/sd")) == [
            {"targets": [target], "labels": {**labels, "exporter": "b"}}
        ]
