"""Warnings: which configurations give one, and that each says whom it is about and what to do."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from exporter_proxy.config import config_warnings, host_warnings, parse_config
from tests.second_address import with_second_address


def warnings_for(text: str) -> list[str]:
    return config_warnings(parse_config(text.encode(), "config.yml"))


LOCAL = "exporters: {a: {url: http://127.0.0.1:9100/metrics}}\n"
OPEN = (
    "everyone who reaches {} can scrape: set allow_clients to the addresses of your Prometheus servers, "
    "or listen on 127.0.0.1"
)


@pytest.mark.parametrize(
    ("listen", "exposed"),
    [
        ('["127.0.0.1:9099", "127.1.2.3:9099", "[::1]:9099", "localhost:9099", "vm.localhost:9099"]', ""),
        ('"[::ffff:127.0.0.1]:9099"', ""),
        ('"0.0.0.0:9099"', "0.0.0.0:9099"),
        ('":9099"', ":9099"),
        ('"[::]:9099"', "[::]:9099"),
        ('"vm.example.org:9099"', "vm.example.org:9099"),
        ('"notlocalhost:9099"', "notlocalhost:9099"),
        ('["127.0.0.1:9099", "10.0.0.1:9099", "[2001:db8::1]:1"]', "10.0.0.1:9099, [2001:db8::1]:1"),
    ],
)
def test_open_to_everyone(listen: str, exposed: str) -> None:
    assert warnings_for(f"listen: {listen}\n{LOCAL}") == ([OPEN.format(exposed)] if exposed else [])


@pytest.mark.parametrize("clients", ["[10.0.0.5]", "[]", "[0.0.0.0/0]"])
def test_allow_clients_silences_it(clients: str) -> None:
    assert warnings_for(f"allow_clients: {clients}\n{LOCAL}") == []


@pytest.mark.parametrize(
    ("url", "backend"),
    [
        ("http://127.0.0.1:9100/metrics", None),
        ("http://[::1]:9100/metrics", None),
        ("http://LOCALHOST:9100/metrics", None),
        ("http://a.localhost.:9100/metrics", None),
        ("http://10.0.0.7:9100/metrics", "10.0.0.7:9100"),
        ("http://[2001:db8::1]/metrics", "[2001:db8::1]:80"),
        ("http://node_exporter:9100/metrics", "node_exporter:9100"),
        ("http+unix:///run/x.sock:/metrics", None),
    ],
)
def test_exporter_off_this_host(url: str, backend: str | None) -> None:
    text = f'listen: "127.0.0.1:0"\nexporters: {{one: {{url: "{url}"}}, two: {{url: "{url}"}}}}\n'
    assert warnings_for(f"allow_upstreams: [10.0.0.0/8]\n{text}") == []
    expected = [
        f"exporter {name} is not on this host ({backend}): set allow_upstreams to the networks that may be "
        "asked, or use its loopback address"
        for name in ("one", "two")
    ]
    assert warnings_for(text) == ([] if backend is None else expected)


def test_an_exporter_on_an_own_address_is_on_this_host() -> None:
    def warned(address: str) -> None:
        text = f'listen: "127.0.0.1:0"\nexporters: {{x: {{url: "http://{address}:9100/metrics"}}}}\n'
        assert warnings_for(text) == []

    with_second_address(warned)


def test_skipped_verification() -> None:
    text = """
listen: "127.0.0.1:0"
exporters:
  tls: {url: "https://127.0.0.1:9443/metrics", insecure_skip_verify: true}
  plain: {url: "http://127.0.0.1:9100/metrics", insecure_skip_verify: true}
  unix: {url: "http+unix:///run/x.sock:/metrics", insecure_skip_verify: true}
  checked: {url: "https://127.0.0.1:9444/metrics"}
"""
    assert warnings_for(text) == [
        "exporter tls: the certificate of 127.0.0.1:9443 is not checked, anyone can pose as it: give it one "
        "that this host trusts and remove insecure_skip_verify",
        "exporter plain: insecure_skip_verify does nothing for an http URL, remove it",
        "exporter unix: insecure_skip_verify does nothing for an http+unix URL, remove it",
    ]


class Resolver:
    """Answers in the place of DNS, which a test must not ask."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = names
        self.asked: list[str] = []

    def __call__(self, host: str, port: None, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self._names[host]]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    names = {
        "inside": ["10.0.0.7", "10.0.0.7"],
        "outside": ["192.0.2.1", "2001:db8::1"],
        "partly": ["10.0.0.8", "192.0.2.2"],
        "mapped": ["::ffff:10.0.0.9"],
        "linklocal": ["fe80::1%eth0"],
    }
    resolver = Resolver(names)
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver


def resolved(upstreams: str, *hosts: str) -> list[str]:
    exporters = "".join(f'  e{n}: {{url: "http://{host}:9100"}}\n' for n, host in enumerate(hosts))
    return host_warnings(parse_config(f"{upstreams}\nexporters:\n{exporters}".encode(), "config.yml"))


def refused(name: str, subject: str) -> str:
    return (
        f"exporter {name}: {subject} is outside allow_upstreams and would be refused: add its network there, "
        "or correct the url"
    )


def test_names_outside_allow_upstreams(resolver: Resolver) -> None:
    hosts = (
        "inside",
        "outside",
        "partly",
        "mapped",
        "linklocal",
        "10.1.1.1",
        "127.0.0.1",
        "[::ffff:10.1.1.1]",
    )
    assert resolved('allow_upstreams: ["10.0.0.0/8"]', *hosts) == [
        refused("e1", "outside resolves to 192.0.2.1, 2001:db8::1, which"),
        refused("e2", "partly resolves to 192.0.2.2, which"),
        refused("e4", "linklocal resolves to fe80::1, which"),
        refused("e6", "127.0.0.1"),
    ]


def test_name_that_does_not_resolve(resolver: Resolver) -> None:
    assert resolved("", "inside", "nowhere", "192.0.2.1") == [
        "exporter e1: nowhere does not resolve (Name or service not known): correct its url, "
        "or the name in DNS or /etc/hosts"
    ]


def test_each_name_is_asked_for_once_and_addresses_never(resolver: Resolver) -> None:
    assert resolved("", "inside", "inside", "partly", "10.0.0.1", "[::1]") == []
    assert sorted(resolver.asked) == ["inside", "partly"]


def test_localhost_resolves_to_loopback() -> None:
    """With the system's own resolver, which answers this one from /etc/hosts."""
    assert resolved('allow_upstreams: [127.0.0.0/8, "::1"]', "localhost") == []
    assert "is outside allow_upstreams" in resolved("allow_upstreams: []", "localhost")[0]


def test_a_group_that_the_host_does_not_know() -> None:
    listen = 'listen: ["unix:/run/a.sock,group=root", "unix:/run/b.sock,group=nobody-knows"]'
    assert host_warnings(parse_config(f"{listen}\n{LOCAL}".encode(), "config.yml")) == [
        'listen: there is no group "nobody-knows" on this host, and no start without it: '
        "create it or name another"
    ]


@pytest.mark.parametrize(("max_descriptors", "is_enough"), [(None, True), (2000, True), (1999, False)])
def test_more_connections_than_descriptors(max_descriptors: int | None, is_enough: bool) -> None:
    config = parse_config(f'listen: "127.0.0.1:0"\nmax_connections: 1000\n{LOCAL}'.encode(), "config.yml")
    assert config_warnings(config, (), max_descriptors) == (
        []
        if is_enough
        else [
            "max_connections 1000 can take 2000 file descriptors, this process may have 1999: "
            "raise its limit (LimitNOFILE, ulimit -n) or lower max_connections"
        ]
    )
