"""Whatever an exporter is, a server, files or a command, it is seen alike in every page, metric and log.

Each kind is scraped once while it is good and once after it has gone bad; then every place is looked at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter_proxy.discover import FoundExporter
from exporter_proxy.discover_once import write
from tests.blackbox.test_secrets import run_command
from tests.daemon import Daemon, parse_logfmt, wait_until
from tests.fakes.exporter import FakeExporter, respond

PAGE = b"# TYPE a gauge\na 1\n"
ERRORS = "exporter_proxy_scrape_errors_total"
SCRAPES = "exporter_proxy_scrapes_total"
BYTES = "exporter_proxy_scrape_response_bytes_total"
REASONS = {
    "http": "connect",
    "unix": "connect",
    "file": "connect",
    "files": "file_conflict",
    "stale": "stale",
    "command": "command_failed",
}


@dataclass(frozen=True)
class Kind:
    """An exporter's entry, its ``backend``, and how it is broken."""

    entry: dict[str, Any]
    backend: str
    spoil: Callable[[], object]


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    kinds: dict[str, Kind]

    def json(self, path: str) -> Any:
        return json.loads(self.daemon.get(path, ("Accept", "application/json")).expect_ok().body)

    def on_landing_page(self, name: str) -> dict[str, Any]:
        (one,) = (one for one in self.json("/")["exporters"] if one["name"] == name)
        found: dict[str, Any] = one
        return found

    def in_exporters(self, name: str) -> dict[str, Any]:
        (one,) = (one for one in self.json("/-/exporters")["exporters"] if one["name"] == name)
        found: dict[str, Any] = one
        return found

    def line_of(self, name: str) -> str:
        """Of the table for people."""
        (line,) = re.findall(rf"^{name} .*$", self.daemon.get("/").expect_ok().body.decode(), re.MULTILINE)
        return str(line)

    def logged(self, name: str) -> list[dict[str, str]]:
        """What the access log has of the exporter's path."""
        self.daemon.get(f"/last-of-{name}")
        self.daemon.wait_for_output(f"/last-of-{name}")
        parsed = [parse_logfmt(line) for line in self.daemon.output_lines]
        return [fields for fields in parsed if fields["path"] == f"/{name}/metrics"]


PROGRAM = """\
#!/bin/sh
test -e {0}/bad && echo why >&2 && exit 3
while read -r line; do echo "$line"; done <{0}/printed
"""


def as_kinds(directory: Path, http: FakeExporter, unix: FakeExporter) -> dict[str, Kind]:
    for name in ("file.prom", "one.x", "old.prom", "printed"):
        (directory / name).write_bytes(PAGE)
    (directory / "two.x").write_bytes(b"# TYPE b gauge\nb 1\n")
    file, old, program = directory / "file.prom", directory / "old.prom", directory / "program"
    program.write_text(PROGRAM.format(directory))
    program.chmod(0o755)

    def stop(exporter: FakeExporter) -> None:
        exporter.stop_accepting()
        exporter.drop_connections()

    return {
        "http": Kind({"url": http.url()}, http.authority, lambda: stop(http)),
        "unix": Kind({"url": unix.url()}, f"unix:{directory}/socket", lambda: stop(unix)),
        "file": Kind({"file": str(file)}, f"file:{file}", file.unlink),
        "files": Kind(
            {"file": f"{directory}/*.x"},
            f"file:{directory}/*.x",
            lambda: (directory / "two.x").write_bytes(PAGE),
        ),
        "stale": Kind({"file": str(old), "max_age": "1h"}, f"file:{old}", lambda: os.utime(old, (1e9, 1e9))),
        "command": Kind({"command": [str(program)]}, f"command:{program}", (directory / "bad").touch),
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Every kind, scraped twice: well, and badly."""
    directory = tmp_path_factory.mktemp("kinds")
    answer = respond(body=PAGE)
    with FakeExporter(answer) as http, FakeExporter(answer, unix=directory / "socket") as unix:
        kinds = as_kinds(directory, http, unix)
        config = {
            "access_log": {"format": "logfmt"},
            "exporters": {name: {**kind.entry, "labels": {"team": "infra"}} for name, kind in kinds.items()},
        }
        with Daemon(config) as daemon:
            site = Site(daemon, kinds)
            for name, kind in kinds.items():
                page = daemon.get(f"/{name}/metrics").expect_ok().body
                assert page.startswith(PAGE)
                daemon.wait_for_metric(1, SCRAPES, exporter=name, code="200")
                assert site.on_landing_page(name)["state"] == "up"
                assert site.line_of(name).split()[1] == "up"
                assert site.in_exporters(name)["state"] == "up"
                assert daemon.metric("exporter_proxy_exporter_up", exporter=name) == 1
                assert daemon.metric(BYTES, exporter=name) == len(page)
                kind.spoil()
                daemon.get(f"/{name}/metrics").expect_refusal(502, REASONS[name], name)
                daemon.wait_for_metric(1, SCRAPES, exporter=name, code="502")
            yield site


KINDS = pytest.mark.parametrize("name", REASONS)


@KINDS
def test_the_landing_page_as_json(site: Site, name: str) -> None:
    one = site.on_landing_page(name)
    assert (one["state"], one["path"]) == ("down", f"/{name}/metrics")
    assert one["last_hour"] == {"scrapes": 2, "succeeded": 1}
    assert one["last_success"] is not None
    assert one["last_scrape"]["status"] == 502
    assert one["last_scrape"]["seconds"] > 0
    assert one["failure"]["reason"] == REASONS[name]
    assert one["failure"]["message"]
    assert [scrape["status"] for scrape in one["recent"]] == [200, 502]


@KINDS
def test_the_landing_page_as_a_table_and_in_html(site: Site, name: str) -> None:
    text = site.daemon.get("/").expect_ok().body.decode()
    columns = rf"{name}\s+down\s+\d+ s ago\s+\S+ ms\s+\d+ B\s+50\.0 % of 2\s+/{name}/metrics"
    assert re.fullmatch(columns, site.line_of(name))
    assert re.search(rf"^{name}: {REASONS[name]}: .+\n  \S.+; last success \d+ s ago$", text, re.MULTILINE)
    assert f"{name} ({REASONS[name]})" in text.splitlines()[0]
    page = site.daemon.get("/", ("Accept", "text/html")).expect_ok().body.decode()
    assert re.search(rf"^{name}\s+down ", page, re.MULTILINE)


@KINDS
def test_the_exporters_page(site: Site, name: str) -> None:
    one = site.in_exporters(name)
    assert (one["path"], one["state"], one["scrapes_in_flight"]) == (f"/{name}/metrics", "down", 0)
    bad, good = one["recent"]
    assert (good["status"], good["reason"], bad["status"], bad["reason"]) == (200, None, 502, REASONS[name])
    assert good["received_bytes"] >= len(PAGE)
    assert good["first_byte_seconds"] is not None
    assert 0 < good["first_byte_seconds"] <= good["total_seconds"]
    assert list(one["last_failures"]) == [REASONS[name]]


@KINDS
def test_the_own_metrics(site: Site, name: str) -> None:
    metrics = site.daemon.metrics()

    def value(metric: str, **labels: str) -> float:
        return metrics[metric, frozenset({"exporter": name, **labels}.items())]

    assert value("exporter_proxy_exporter_up") == 0
    assert value("exporter_proxy_exporter_last_success_timestamp_seconds") > 1e9
    assert value("exporter_proxy_scrapes_in_flight") == 0
    assert value("exporter_proxy_scrape_duration_seconds_count") == 2
    assert value(BYTES) >= len(PAGE)
    errors = {
        dict(labels)["reason"]: count
        for (metric, labels), count in metrics.items()
        if metric == ERRORS and ("exporter", name) in labels
    }
    assert {reason for reason, count in errors.items() if count} == {REASONS[name]}
    assert len(errors) > 10, "each reason is there from the start"


@KINDS
def test_the_access_log(site: Site, name: str) -> None:
    good, bad = site.logged(name)
    assert (good["status"], good["reason"], bad["status"], bad["reason"]) == ("200", "", "502", REASONS[name])
    assert good["backend"] == bad["backend"] == site.kinds[name].backend
    assert int(good["size"]) >= len(PAGE)


@KINDS
def test_the_daemons_log(site: Site, name: str) -> None:
    def lines() -> list[dict[str, str]]:
        return [line for line in site.daemon.logged("exporter failing") if line["exporter"] == name]

    wait_until(lambda: bool(lines()), "it was told")
    (line,) = lines()
    assert (line["level"], line["reason"]) == ("warn", REASONS[name])
    assert line["error"]


@KINDS
def test_the_commands(site: Site, name: str) -> None:
    status, output = run_command(site.daemon.directory, "scrape", name)
    assert status == 1
    assert re.search(rf"^exporter:     {name} at \S+$", output, re.MULTILINE)
    assert re.search(rf"^reason:       {REASONS[name]}$", output, re.MULTILINE)
    arguments = ("prometheus-config", "--target=vm1", "--instance=exporter")
    status, output = run_command(site.daemon.directory, *arguments)
    assert status == 0
    (job,) = (job for job in yaml.safe_load(output)["scrape_configs"] if job["job_name"] == name)
    labels = {"exporter": name, "team": "infra"}
    assert job["metrics_path"] == f"/{name}/metrics"
    assert job["static_configs"] == [{"targets": ["vm1:9099"], "labels": labels}]
    assert ("relabel_configs" in job) == (name == "http"), "only a server has a port of its own to keep"
    status, output = run_command(site.daemon.directory, "check")
    assert (status, output) == (0, f"config.yml: OK ({len(REASONS)} exporters)\n")


@KINDS
def test_the_list_of_targets(site: Site, name: str) -> None:
    listed = site.json("/-/sd?instance=exporter")
    (group,) = (group for group in listed if group["labels"]["exporter"] == name)
    assert group["labels"]["__metrics_path__"] == f"/{name}/metrics"
    assert group["labels"]["team"] == "infra"
    assert ("instance" in group["labels"]) == (name == "http")


def test_the_files_times(site: Site) -> None:
    found = {
        dict(labels)["file"]: value
        for (metric, labels), value in site.daemon.metrics().items()
        if metric == "exporter_proxy_file_mtime_seconds"
    }
    names = sorted(Path(path).name for path in found)
    assert names == ["old.prom", "one.x", "two.x"], "a file that is gone has no time"
    assert min(found.values()) == 1e9


def test_new_exporters_are_added_beside_other_kinds(site: Site, tmp_path: Path) -> None:
    """``discover --write`` leaves files and commands as they stand, and their names to them."""
    config = tmp_path / "config.yml"
    shutil.copy(site.daemon.directory / "config.yml", config)
    before = yaml.safe_load(config.read_text())["exporters"]
    found = FoundExporter("command", "http://127.0.0.1:9100/metrics", 9100, None, None)
    assert "added 1 exporter: command_9100" in write([found], str(config), asked_all=False)
    after = yaml.safe_load(config.read_text())["exporters"]
    assert after == {**before, "command_9100": {"url": found.url}}
