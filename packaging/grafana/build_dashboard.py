"""Writes `exporter_proxy.json`, the Grafana dashboard: a row for the fleet and one for a single host.

A dashboard's JSON is mostly positions and repeated options; here a panel is one entry that says what it
shows. `tests/packaging/test_grafana.py` compares the committed file with what this makes and runs each query.

    python packaging/grafana/build_dashboard.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).with_name("exporter_proxy.json")
GRID_COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
FLEET = 'job="$job"'
HOST = 'job="$job", instance="$instance"'
RED_ABOVE_ZERO = [(None, "green"), (1, "red")]
RED_BELOW_ONE = [(None, "red"), (1, "green")]
DAY_SECONDS = 86400


@dataclass(frozen=True)
class Panel:
    """One panel. ``queries`` are pairs of expression and legend; ``steps`` are lower bounds of colours."""

    title: str
    type: str
    queries: Sequence[tuple[str, str]]
    width: int = 8
    height: int = 7
    unit: str = "short"
    description: str = ""
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),)
    mappings: Sequence[tuple[str, str]] = ()
    """Pairs of a value and what is shown in its place."""


def number(title: str, expression: str, **options: Any) -> Panel:
    return Panel(title, "stat", [(expression, "")], **{"width": 4, "height": 4, **options})


def graph(title: str, *queries: tuple[str, str], **options: Any) -> Panel:
    return Panel(title, "timeseries", queries, **options)


def table(title: str, expression: str, **options: Any) -> Panel:
    return Panel(title, "table", [(expression, "")], **options)


def quantile(share: float, selector: str, by: str) -> str:
    """Scrape durations from the histogram. ``by`` are the labels to keep besides ``le``."""
    rate = f"rate(exporter_proxy_scrape_duration_seconds_bucket{{{selector}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({by}) ({rate}))"


def rate(metric: str, selector: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


FLEET_PANELS = [
    number("Proxies up", f"sum(up{{{FLEET}}})"),
    number("Proxies down", f"sum(1 - up{{{FLEET}}})", steps=RED_ABOVE_ZERO),
    number(
        "Exporters down",
        f"sum(1 - exporter_proxy_exporter_up{{{FLEET}}})",
        steps=RED_ABOVE_ZERO,
        description="Those whose last scrape failed, on hosts whose proxy is up.",
    ),
    number(
        "Failed reloads",
        f"sum(1 - exporter_proxy_config_last_reload_successful{{{FLEET}}})",
        steps=RED_ABOVE_ZERO,
        description="Hosts on which a configuration was refused and the one before is in force.",
    ),
    number(
        "Configurations",
        "max(count by (fleet) "
        f"(count_values by (fleet) ('config_hash', exporter_proxy_config_hash{{{FLEET}}})))",
        steps=[(None, "green"), (2, "orange")],
        description="How many there are where there should be one: see `fleet` in the rules.",
    ),
    number(
        "First certificate expires in",
        f"min(exporter_proxy_certificate_not_after_timestamp_seconds{{{FLEET}}}) - time()",
        unit="s",
        steps=[(None, "red"), (2 * DAY_SECONDS, "orange"), (14 * DAY_SECONDS, "green")],
        description="Of all certificates and CAs; empty where there are none.",
    ),
    graph(
        "Scrapes by status",
        (rate("exporter_proxy_scrapes_total", FLEET, "code"), "{{code}}"),
        unit="reqps",
    ),
    graph(
        "Failed scrapes by reason",
        (rate("exporter_proxy_scrape_errors_total", FLEET, "reason") + " > 0", "{{reason}}"),
        unit="reqps",
    ),
    graph(
        "Scrape duration",
        (quantile(0.5, FLEET, "le"), "median"),
        (quantile(0.99, FLEET, "le"), "99 %"),
        unit="s",
    ),
    table("Exporters that fail", f"exporter_proxy_exporter_up{{{FLEET}}} == 0"),
    table(
        "Slowest exporters",
        f"topk(10, {quantile(0.99, FLEET, 'instance, exporter, le')})",
        unit="s",
        description="The 99th percentile of scrape durations.",
    ),
    table("Versions", f"count by (version, python) (exporter_proxy_build_info{{{FLEET}}})"),
    graph(
        "Refused requests by reason",
        (rate("exporter_proxy_requests_denied_total", FLEET, "reason"), "{{reason}}"),
        unit="reqps",
        width=12,
    ),
    graph(
        "Load of the daemons",
        (f"max(rate(process_cpu_seconds_total{{{FLEET}}}[$__rate_interval]))", "CPU cores, the busiest"),
        (f"max(exporter_proxy_loop_lag_seconds{{{FLEET}}})", "event loop lag in seconds, the worst"),
        width=12,
    ),
]

HOST_PANELS = [
    Panel(
        "Exporters",
        "state-timeline",
        [(f"exporter_proxy_exporter_up{{{HOST}}}", "{{exporter}}")],
        width=16,
        steps=RED_BELOW_ONE,
        mappings=[("0", "down"), ("1", "up")],
        description="How the last scrape went. An exporter that was never scraped is not there.",
    ),
    table(
        "Time since the last success",
        f"time() - (exporter_proxy_exporter_last_success_timestamp_seconds{{{HOST}}} > 0)",
        unit="s",
    ),
    graph(
        "Scrape duration, 99 %",
        (quantile(0.99, HOST, "exporter, le"), "{{exporter}}"),
        unit="s",
    ),
    graph(
        "Failed scrapes",
        (
            rate("exporter_proxy_scrape_errors_total", HOST, "exporter, reason") + " > 0",
            "{{exporter}} {{reason}}",
        ),
        unit="reqps",
    ),
    graph(
        "Received from exporters",
        (rate("exporter_proxy_scrape_response_bytes_total", HOST, "exporter"), "{{exporter}}"),
        unit="Bps",
    ),
    graph(
        "Scrapes in flight",
        (f"exporter_proxy_scrapes_in_flight{{{HOST}}}", "{{exporter}}"),
        description="Under way or waiting for a slot; more than a few at once: the exporter hangs.",
    ),
    graph(
        "Scrapes answered from another one",
        (rate("exporter_proxy_shared_scrapes_total", HOST, "exporter"), "{{exporter}}"),
        unit="reqps",
        description="What share_for has saved.",
    ),
    graph(
        "Connections and file descriptors",
        (f"exporter_proxy_connections{{{HOST}}}", "connections from scrapers"),
        (f"process_open_fds{{{HOST}}}", "open file descriptors"),
    ),
    graph("Resident memory", (f"process_resident_memory_bytes{{{HOST}}}", "resident"), unit="bytes"),
    graph(
        "CPU and event loop",
        (f"rate(process_cpu_seconds_total{{{HOST}}}[$__rate_interval])", "CPU cores"),
        (f"exporter_proxy_loop_lag_seconds{{{HOST}}}", "loop lag in seconds"),
    ),
    number(
        "Last reload",
        f"exporter_proxy_config_last_reload_successful{{{HOST}}}",
        height=7,
        steps=RED_BELOW_ONE,
        mappings=[("0", "failed"), ("1", "succeeded")],
    ),
    number(
        "Log lines lost",
        f"exporter_proxy_log_lines_lost_total{{{HOST}}}",
        height=7,
        steps=RED_ABOVE_ZERO,
        description="What a full disk or a stuck pipe did not take.",
    ),
]


def variables() -> list[dict[str, Any]]:
    """What is chosen at the top of the dashboard."""

    def from_labels(name: str, label: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": DATASOURCE,
            "query": query,
            "refresh": 2,  # with each change of the time range
            "sort": 1,  # by name
        }

    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        from_labels("job", "Job", "label_values(exporter_proxy_build_info, job)"),
        from_labels("instance", "Host", 'label_values(exporter_proxy_build_info{job="$job"}, instance)'),
    ]


def rendered(panel: Panel, panel_id: int, x: int, y: int) -> dict[str, Any]:
    """The panel as Grafana has it."""
    is_graph = panel.type in ("timeseries", "state-timeline")
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": expression,
            "legendFormat": legend,
            "range": is_graph,
            "instant": not is_graph,
            "format": "table" if panel.type == "table" else "time_series",
        }
        for index, (expression, legend) in enumerate(panel.queries)
    ]
    steps = [{"value": bound, "color": colour} for bound, colour in panel.steps]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.type in ("stat", "state-timeline"):
        defaults["color"] = {"mode": "thresholds"}
    if panel.mappings:
        shown = {value: {"text": text, "index": index} for index, (value, text) in enumerate(panel.mappings)}
        defaults["mappings"] = [{"type": "value", "options": shown}]
    made: dict[str, Any] = {
        "id": panel_id,
        "type": panel.type,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }
    if panel.type == "table":
        # What says which series it is, and the value; not the metric's name or the time of the query.
        hidden = {"Time": True, "__name__": True, "job": True}
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made


def laid_out(title: str, panels: Sequence[Panel], row_id: int, y: int) -> Iterator[dict[str, Any]]:
    """A row's heading and its panels, left to right and line by line from ``y`` down."""
    heading = {"x": 0, "y": y, "w": GRID_COLUMNS, "h": 1}
    yield {"id": row_id, "type": "row", "title": title, "collapsed": False, "gridPos": heading, "panels": []}
    x, y, line_height = 0, y + 1, 0
    for panel_id, panel in enumerate(panels, row_id + 1):
        if x + panel.width > GRID_COLUMNS:
            x, y, line_height = 0, y + line_height, 0
        yield rendered(panel, panel_id, x, y)
        x, line_height = x + panel.width, max(line_height, panel.height)


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    for title, row in (("Fleet", FLEET_PANELS), ("$instance", HOST_PANELS)):
        below = max((panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels), default=0)
        panels += laid_out(title, row, len(panels) + 1, below)
    return {
        "uid": "exporter_proxy",
        "title": "exporter_proxy",
        "description": "All exporters of all hosts through one port each: the fleet, and one host of it.",
        "tags": ["prometheus", "exporter_proxy"],
        "schemaVersion": 38,
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "1m",
        "graphTooltip": 1,  # one crosshair for all panels
        "templating": {"list": variables()},
        "panels": panels,
    }


def text() -> str:
    """The file's text: short enough in a diff, long enough to be read."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text(), encoding="utf-8")
