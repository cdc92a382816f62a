"""The alerting and recording rules, judged by promtool, and the Alertmanager example, by Alertmanager."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter_proxy.reasons import DENIAL_STATUS, SCRAPE_ERROR_STATUS
from tests.daemon import REPOSITORY, proxied, wait_until
from tests.e2e.alertmanager import Alertmanager
from tests.packaging.artefacts import PACKAGING, needs

PROMETHEUS = PACKAGING / "prometheus"
RULES = PROMETHEUS / "exporter_proxy.rules.yml"
CASES = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALERTMANAGER = PROMETHEUS / "alertmanager.yml"
HISTOGRAM_PARTS = re.compile(r"_(?:bucket|sum|count)$")


def groups() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return found


RULE_NAMES = [rule.get("alert", rule.get("record")) for group in groups() for rule in group["rules"]]
ALERTS = [rule["alert"] for group in groups() for rule in group["rules"] if "alert" in rule]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [needs("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_rules_are_valid() -> None:
    result = promtool("check", "rules", RULES)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(RULE_NAMES)} rules found" in result.stdout
    assert len(set(RULE_NAMES)) == len(RULE_NAMES)


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(cases: Path) -> None:
    result = promtool("test", "rules", cases)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    fires = {
        bool(case.get("exp_alerts"))
        for cases in CASES
        for test in yaml.safe_load(cases.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert
    }
    assert fires == {True, False}


def test_each_recording_rule_has_a_case_with_samples() -> None:
    tested = {
        case["expr"]
        for cases in CASES
        for test in yaml.safe_load(cases.read_text())["tests"]
        for case in test.get("promql_expr_test", [])
        if case["exp_samples"]
    }
    assert tested == set(RULE_NAMES) - set(ALERTS)


def test_what_the_rules_ask_for_is_what_the_daemon_has() -> None:
    with proxied() as (daemon, _):
        names = {HISTOGRAM_PARTS.sub("", name) for name, _ in daemon.metrics()}
    # A gauge that exists where there are certificates.
    names.add("exporter_proxy_certificate_not_after_timestamp_seconds")
    expressions = "\n".join(rule["expr"] for group in groups() for rule in group["rules"])
    asked = {
        HISTOGRAM_PARTS.sub("", name)
        for name in re.findall(r"(?<![\w:])exporter_proxy_\w+(?=[{\[) ])", expressions)
    }
    assert len(asked) > 5
    assert asked <= names
    for metric, reasons in re.findall(r'(\w+)\{reason=~?"([\w|]+)"', expressions):
        known = DENIAL_STATUS if "denied" in metric else SCRAPE_ERROR_STATUS
        assert set(reasons.split("|")) <= {reason.value for reason in known}


def test_the_alert_about_certificates_explains_each_kind() -> None:
    """Those that README.md lists."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `exporter_proxy_certificate_not_after.*$", readme, re.MULTILINE)
    kinds = re.findall(r"`(\w+)`", row.rpartition("| when")[2])
    (description,) = (
        rule["annotations"]["description"]
        for group in groups()
        for rule in group["rules"]
        if rule.get("alert") == "ExporterProxyCertificateExpires"
    )
    assert len(kinds) > 3
    assert [kind for kind in kinds if not re.search(rf"\b{kind}\b", description)] == []


def test_alertmanager_takes_its_configuration() -> None:
    result = subprocess.run(
        [needs("amtool"), "check-config", ALERTMANAGER], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def alert(name: str, **labels: str) -> dict[str, Any]:
    return {"labels": {"alertname": name, **labels}}


PROXY_IS_DOWN = alert("ExporterProxyDown", job="exporter_proxy", instance="vm1:9099", host="vm1")
INHIBITED = {
    "an exporter of that host, by its host": alert(
        "ExporterDown", job="redis", instance="vm1:9121", host="vm1", exporter="redis_exporter"
    ),
    "an alert of others, by its instance": alert("TargetDown", instance="vm1:9099", exporter="node_exporter"),
    "an exporter that is slow and, on second thoughts, down": alert(
        "ExporterSlow", instance="vm2:9099", exporter="node_exporter"
    ),
}
SENT = {
    "the proxy's own": PROXY_IS_DOWN,
    "an exporter that is down on another host": alert(
        "ExporterDown", job="host", instance="vm2:9099", host="vm2", exporter="node_exporter"
    ),
    "another exporter that is slow there": alert(
        "ExporterSlow", instance="vm2:9099", exporter="redis_exporter"
    ),
    "something else on that host": alert("DiskFull", instance="vm1:9099", host="vm1"),
    "something without host and instance": alert("Anything", exporter="node_exporter"),
}


def by_labels(alerts: Iterable[Mapping[str, Any]]) -> set[str]:
    return {json.dumps(one["labels"], sort_keys=True) for one in alerts}


def test_a_proxy_that_is_down_is_one_message() -> None:
    """Alertmanager lists an alert a moment before it knows which others inhibit it."""
    posted = [*INHIBITED.values(), *SENT.values()]
    with Alertmanager(ALERTMANAGER) as alertmanager:

        def outcome() -> tuple[set[str], set[str]]:
            """Which are there, and which of them are inhibited."""
            alerts = alertmanager.alerts()
            return by_labels(alerts), by_labels(one for one in alerts if one["status"]["inhibitedBy"])

        alertmanager.post(posted)
        expected = by_labels(posted), by_labels(INHIBITED.values())
        with contextlib.suppress(AssertionError):
            wait_until(lambda: outcome() == expected, "these are inhibited")
        assert outcome() == expected
