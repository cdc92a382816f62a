"""What Prometheus is told, as text: targets, labels, relabelling. It is scraped in tests/e2e."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from exporter_proxy.config import Config, parse_config
from exporter_proxy.config.values import BadValue
from exporter_proxy.prometheus_config import (
    Entrance,
    Target,
    listened,
    parse_target,
    reachable,
    scrape_configs,
    target_list,
)

EXPORTERS = """
exporters:
  node: {url: "http://localhost:9100/metrics", labels: {team: "infra's", rack: 12, odd: "a\\u202e\\"b\\n"}}
  on: {url: "http://[::1]:9115/probe", path: "/bb/$1p"}
  a.b: {url: "https://10.0.0.7/metrics", labels: {job: x}}
  sock: {url: "http+unix:///x:/metrics"}
  own: {url: "http://127.0.0.2:9200/", labels: {instance: mine}}
"""
VM1, VM2 = Target("vm1", 9099), Target("2001:db8::1", 80)


def config(text: str = "") -> Config:
    return parse_config(f"{text}\n{EXPORTERS}".encode(), "config.yml")


def entrance(**changes: Any) -> Entrance:
    return Entrance(**{"targets": (VM1, VM2), "is_https": False, "route_prefix": "", **changes})


def jobs(one_job: bool = False, text: str = "", **changes: Any) -> dict[str, Any]:
    document = yaml.safe_load(scrape_configs(config(text), entrance(**changes), one_job))
    assert list(document) == ["scrape_configs"]
    return {job["job_name"]: job for job in document["scrape_configs"]}


def relabelled(labels: dict[str, str], rules: list[dict[str, Any]]) -> dict[str, str]:
    """What Prometheus makes of the labels, for rules that replace."""
    result = dict(labels)
    for rule in rules:
        source = ";".join(result.get(name, "") for name in rule.get("source_labels", ()))
        match = re.fullmatch(rule.get("regex", "(.*)"), source)
        if match is not None:
            replacement = rule["replacement"].replace("$$", "\0").replace("${1}", match[match.lastindex or 0])
            result[rule["target_label"]] = replacement.replace("\0", "$")
    return result


def scraped(job: dict[str, Any]) -> set[tuple[str, str, str, str]]:
    """Address, path, exporter and instance of each target of a job."""
    found = set()
    for group in job["static_configs"]:
        for address in group["targets"]:
            labels = {"__address__": address, "__metrics_path__": job.get("metrics_path", "/metrics")}
            final = relabelled(labels | group.get("labels", {}), job.get("relabel_configs", []))
            found.add(
                (
                    address,
                    final["__metrics_path__"],
                    final.get("exporter", ""),
                    final.get("instance", address),
                )
            )
    return found


def test_a_job_for_each_exporter_and_one_for_the_daemon() -> None:
    found = jobs(route_prefix="/p")
    assert {name: job["metrics_path"] for name, job in found.items()} == {
        "node": "/p/node/metrics",
        "on": "/p/bb/$1p",
        "a.b": "/p/a.b/metrics",
        "sock": "/p/sock/metrics",
        "own": "/p/own/metrics",
        "exporter_proxy": "/p/metrics",
    }
    assert found["node"]["static_configs"] == [
        {
            "targets": ["vm1:9099", "[2001:db8::1]:80"],
            "labels": {"exporter": "node", "team": "infra's", "rack": "12", "odd": 'a\u202e"b\n'},
        }
    ]
    assert found["exporter_proxy"]["static_configs"] == [{"targets": ["vm1:9099", "[2001:db8::1]:80"]}]
    assert not any("relabel_configs" in job for job in found.values())


# Exporter: path, and what instance is on vm1 when it is kept.
KEPT = {
    "node": ("/p/node/metrics", "vm1:9100"),
    "on": ("/p/bb/$1p", "vm1:9115"),
    "a.b": ("/p/a.b/metrics", "10.0.0.7:443"),
    "sock": ("/p/sock/metrics", "vm1:9099"),
    "own": ("/p/own/metrics", "mine"),
}


@pytest.mark.parametrize("one_job", [False, True])
@pytest.mark.parametrize("keeps_instance", [False, True])
def test_every_target_has_its_path_exporter_and_instance(one_job: bool, keeps_instance: bool) -> None:
    found = jobs(one_job, route_prefix="/p", keeps_instance=keeps_instance, targets=(VM1,))
    found.pop("exporter_proxy")
    assert len(found) == (1 if one_job else len(KEPT))
    expected = {
        ("vm1:9099", path, name, instance if keeps_instance or name == "own" else "vm1:9099")
        for name, (path, instance) in KEPT.items()
    }
    assert {target for job in found.values() for target in scraped(job)} == expected


@pytest.mark.parametrize("keeps_instance", [False, True])
def test_the_list_of_targets_says_the_same(keeps_instance: bool) -> None:
    groups = json.loads(
        target_list(config().exporters, entrance(route_prefix="/p", keeps_instance=keeps_instance))
    )
    found = {
        (address, labels["__metrics_path__"], labels["exporter"], labels.get("instance", address))
        for group in groups
        for address, labels in ((address, group["labels"]) for address in group["targets"])
    }
    by_jobs = jobs(True, route_prefix="/p", keeps_instance=keeps_instance)["exporters"]
    assert found == scraped(by_jobs)
    assert groups[0]["labels"]["odd"] == 'a\u202e"b\n'
    assert not any("__scheme__" in group["labels"] for group in groups)


@pytest.mark.parametrize("one_job", [False, True])
def test_several_daemons_that_ask_one_exporter_give_it_a_series_each(one_job: bool) -> None:
    found = jobs(one_job, keeps_instance=True)
    targets = [target for job in found.values() for target in scraped(job)]
    assert {instance for _, _, name, instance in targets if name == "a.b"} == {str(VM1), str(VM2)}
    assert {instance for _, _, name, instance in targets if name == "node"} == {
        "vm1:9100",
        "[2001:db8::1]:9100",
    }


def test_https_is_said_in_the_list_of_targets() -> None:
    groups = json.loads(target_list(config().exporters, entrance(is_https=True)))
    assert {group["labels"]["__scheme__"] for group in groups} == {"https"}


def test_through_pushprox_the_proxy_is_named_and_no_credentials() -> None:
    text = """
pushprox:
  proxy_url: ["http://pushprox.example.org:8080/p", "http://b/"]
  allow_exporters: [node, sock]
"""
    found = yaml.safe_load(scrape_configs(reachable(config(text)), entrance()))["scrape_configs"]
    assert [job["job_name"] for job in found] == ["node", "sock", "exporter_proxy"]
    for job in found:
        assert job["proxy_url"] == "http://pushprox.example.org:8080/"
        assert not job.keys() & {"scheme", "tls_config", "authorization", "basic_auth"}
    assert reachable(config()) == config()


def test_the_daemons_job_has_the_name_that_rules_know_and_no_exporters_job_has_it() -> None:
    own, other = "exporter_proxy", "exporter_proxy_exporter"
    text = f"exporters: {{{own}: {{url: 'http://127.0.0.1:1/'}}, {other}: {{url: 'http://127.0.0.1:2/'}}}}"
    jobs = yaml.safe_load(scrape_configs(parse_config(text.encode(), "x"), entrance()))["scrape_configs"]
    assert [(job["job_name"], job["metrics_path"]) for job in jobs] == [
        (f"{other}_", f"/{own}/metrics"),
        (other, f"/{other}/metrics"),
        (own, "/metrics"),
    ]
    assert [job["static_configs"][0].get("labels") for job in jobs] == [
        {"exporter": own},
        {"exporter": other},
        None,
    ]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("vm1", Target("vm1", 9099)),
        ("vm1.example.org:80", Target("vm1.example.org", 80)),
        ("10.0.0.5", Target("10.0.0.5", 9099)),
        ("[2001:db8::1]", Target("2001:db8::1", 9099)),
        ("[::1]:1", Target("::1", 1)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text, 9099) == target


@pytest.mark.parametrize(
    "text",
    ["", ":9099", "vm1:", "vm1:0", "vm1:65536", "::1", "a b", "http://vm1", "vm1/x", "u@vm1", "[vm1]:1"],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(BadValue):
        parse_target(text, 9099)


def test_a_url_is_no_target() -> None:
    with pytest.raises(BadValue) as caught:
        parse_target("http://vm1:9099", 9099)
    assert caught.value.why == "HOST or HOST:PORT, without http://"


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("", "vm:9099"),
        ("listen: ':8080'", "vm:8080"),
        ("listen: '[::]:8080'", "vm:8080"),
        ("listen: ['unix:/x', '10.0.0.5:81', '127.0.0.1:82']", "10.0.0.5:81"),
        ("listen: systemd", "vm:9099"),
        ("listen: '127.0.0.1:0'", "127.0.0.1:9099"),
        ("listen: ['127.0.0.1:82', '10.0.0.5:81', '10.0.0.6:80']", "10.0.0.5:81"),
        ("listen: ['localhost:82', '[::1]:83', ':81']", "vm:81"),
        ("listen: ['10.0.0.5:0', '127.0.0.1:82']", "127.0.0.1:82"),
        ("listen: ['127.0.0.1:82', '[::1]:83']", "127.0.0.1:82"),
        ("listen: 'SERVER_STARTER:0.0.0.0:8080'", "vm:8080"),
        ("listen: 'SERVER_STARTER:8080'", "vm:8080"),
        ("listen: 'SERVER_STARTER:10.0.0.5:8080'", "10.0.0.5:8080"),
        ("listen: 'SERVER_STARTER:[::]:8080'", "vm:8080"),
        ("listen: ['SERVER_STARTER:127.0.0.1:8080', '10.0.0.5:81']", "10.0.0.5:81"),
        ("listen: 'SERVER_STARTER:/run/x.sock'", "vm:9099"),
    ],
)
def test_where_the_daemon_is_by_its_configuration(listen: str, target: str) -> None:
    read = config(listen)
    assert str(listened(read, "vm")) == target
