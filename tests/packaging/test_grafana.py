"""The Grafana dashboard: what Grafana's own types know of it, and every query on a real Prometheus."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trustme
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.daemon import Daemon, wait_until
from tests.e2e.processes import Prometheus
from tests.fakes.exporter import EXPOSITION, FakeExporter, head, pause, respond, send, stall
from tests.fakes.ports import refusing_port
from tests.packaging.artefacts import PACKAGING

GRAFANA = PACKAGING / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "exporter_proxy.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['id']} {panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel.get("targets", [])
]
RULES = yaml.safe_load((PACKAGING / "prometheus" / "exporter_proxy.rules.yml").read_text())["groups"]
PATIENCE_SECONDS = 30.0


def test_the_committed_dashboard_is_what_the_script_makes() -> None:
    made = runpy.run_path(str(GRAFANA / "build_dashboard.py"))["text"]()
    assert made == (GRAFANA / "exporter_proxy.json").read_text()


def lost(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """What is in ``ours`` and not, or not the same, in ``theirs``."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if isinstance(theirs, dict) and key in theirs:
                yield from lost(value, theirs[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(our, their, f"{place}[{index}]")
    elif ours != theirs:
        yield f"{place}: {ours!r} has become {theirs!r}"


def through_grafanas_types(dashboard: dict[str, Any]) -> Any:
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_grafanas_types_know_every_key() -> None:
    assert not [*lost(DASHBOARD, through_grafanas_types(DASHBOARD))]


def test_grafanas_types_do_not_know_a_misspelt_key() -> None:
    misspelt = json.loads(json.dumps(DASHBOARD))
    misspelt["panels"][1]["gridpos"] = misspelt["panels"][1].pop("gridPos")
    assert [*lost(misspelt, through_grafanas_types(misspelt))] == [".panels[1].gridpos"]


def test_panels_have_numbers_titles_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == ["Fleet", "$instance"]
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_everything_comes_from_the_chosen_prometheus_and_job() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert [*variables] == ["datasource", "job", "instance"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [panel for panel in PANELS if panel["type"] != "row"]
    targets = [target for panel in asking for target in panel["targets"]]
    assert all(
        one["datasource"] == chosen for one in [*asking, *targets, variables["job"], variables["instance"]]
    )
    row = ""
    for panel in PANELS:
        row = panel["title"] if panel["type"] == "row" else row
        for target in panel.get("targets", []):
            assert 'job="$job"' in target["expr"]
            assert ('instance="$instance"' in target["expr"]) == (row == "$instance")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, str]]:
    """One that scrapes a daemon with exporters in every state; and the daemon's ``instance``."""
    ca_file = tmp_path_factory.mktemp("ca") / "ca.crt"
    trustme.CA().cert_pem.write_to_path(ca_file)
    with ExitStack() as stack:
        fine = stack.enter_context(FakeExporter())
        entries: dict[str, dict[str, Any]] = {
            "fine": {"url": fine.url()},
            "failing": {"url": f"http://127.0.0.1:{stack.enter_context(refusing_port())}/metrics"},
            "malformed": {
                "url": stack.enter_context(
                    FakeExporter(respond(headers=[EXPOSITION], body=b"a 1 b c\n"))
                ).url(),
                "verify": True,
            },
            "slow": {
                "url": stack.enter_context(FakeExporter([pause(0.5), *respond(headers=[EXPOSITION])])).url()
            },
            "hung": {
                "url": stack.enter_context(FakeExporter([send(head()), stall()])).url(),
                "timeout": "200ms",
            },
            "encrypted": {"url": fine.url().replace("http:", "https:"), "tls": {"ca_file": str(ca_file)}},
        }
        daemon = stack.enter_context(Daemon({"exporters": entries}))
        target = f"127.0.0.1:{daemon.port}"
        by_label = {
            "source_labels": ["exporter"],
            "target_label": "__metrics_path__",
            "replacement": "/$1/metrics",
        }
        scrapes = [
            {"job_name": "exporter_proxy", "static_configs": [{"targets": [target]}]},
            {
                "job_name": "host",
                "static_configs": [{"targets": [target], "labels": {"exporter": name}} for name in entries],
                "relabel_configs": [by_label],
                "scrape_interval": "3s",
                "scrape_timeout": "3s",
            },
        ]
        yield (
            stack.enter_context(Prometheus(scrapes, scrape_interval="1s", scrape_timeout="1s")),
            target,
        )


@pytest.mark.needs_prometheus
@pytest.mark.parametrize("expression", QUERIES)
def test_every_query_finds_something(prometheus: tuple[Prometheus, str], expression: str) -> None:
    server, instance = prometheus
    for name, value in {"$job": "exporter_proxy", "$instance": instance, "$__rate_interval": "30s"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    wait_until(lambda: bool(server.query(expression)), f"{expression} found something", PATIENCE_SECONDS)


@pytest.mark.needs_prometheus
@pytest.mark.parametrize(
    "rule", [rule["record"] for group in RULES for rule in group["rules"] if "record" in rule]
)
def test_every_recording_rule_finds_something(prometheus: tuple[Prometheus, str], rule: str) -> None:
    (expression,) = [one["expr"] for group in RULES for one in group["rules"] if one.get("record") == rule]
    wait_until(lambda: bool(prometheus[0].query(expression)), f"{rule} found something", PATIENCE_SECONDS)


@pytest.mark.needs_prometheus
@pytest.mark.parametrize(
    ("alert", "exporters"),
    [
        ("ExporterDown", {"failing", "malformed", "hung", "encrypted"}),
        ("ExporterMalformed", {"malformed"}),
        ("ExporterSaturated", set()),
        ("ExporterProxyReloadFailed", set()),
        ("ExporterProxyDown", set()),
        ("ExporterProxyConfigDrift", set()),
    ],
)
def test_alerts_are_about_the_exporters_that_have_it(
    prometheus: tuple[Prometheus, str], alert: str, exporters: set[str]
) -> None:
    (expression,) = [one["expr"] for group in RULES for one in group["rules"] if one.get("alert") == alert]

    def found() -> tuple[set[str], bool]:
        about = {one["metric"].get("exporter", "") for one in prometheus[0].query(expression)}
        return about, len(prometheus[0].query('up{exporter=~"fine|slow"} == 1')) == 2

    wait_until(lambda: found() == (exporters, True), f"{alert} was about {exporters}", PATIENCE_SECONDS)
