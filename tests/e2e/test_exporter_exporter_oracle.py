"""``module_route`` beside exporter_exporter itself: the same requests to both, and what came of each.

Debian's exporter_exporter (0.4.0) and this daemon stand before the same exporters. What the exporter saw and
the status have to be the same, or a row of ``DIFFERENT`` has to say how they differ and why. That release
knows no ``defaultModule`` yet: what it would answer is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.daemon import Daemon, wait_until
from tests.e2e.processes import Exporter, Prometheus, listening_port, start_process
from tests.fakes.exporter import FakeExporter, respond
from tests.wire import CONNECTION_CLOSE, Reply, Wire, request

PROGRAM = "prometheus-exporter-exporter"
PATIENCE_SECONDS = 30.0
TOKEN = ("Authorization", "Bearer of-the-scraper")


class Seen(NamedTuple):
    """What became of a request: the status, and what which exporter was asked for."""

    status: int
    exporter: str = ""
    target: bytes = b""


class Site(NamedTuple):
    exporters: dict[str, FakeExporter]
    theirs: int
    """The port of exporter_exporter."""
    ours: Daemon

    def ask_both(self, target: str, *headers: tuple[str, str], method: str = "GET") -> tuple[Seen, Seen]:
        """What became of it there and here."""
        theirs, ours = (
            self.ask(port, target, *headers, method=method)[1] for port in (self.theirs, self.ours.port)
        )
        return theirs, ours

    def ask(
        self, port: int, target: str, *headers: tuple[str, str], method: str = "GET"
    ) -> tuple[Reply, Seen]:
        for exporter in self.exporters.values():
            exporter.play()
        with Wire(("127.0.0.1", port)) as wire:
            reply = wire.exchange(request(target, *headers, CONNECTION_CLOSE, method=method))
        asked = [(name, one.target) for name, fake in self.exporters.items() for one in fake.requests]
        assert len(asked) <= 1
        return reply, Seen(reply.status, *(asked[0] if asked else ()))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both daemons before ``node`` and ``probe``, and the command ``runs``, which shows its arguments."""
    directory = tmp_path_factory.mktemp("oracle")
    program = directory / "runs"
    program.write_text("#!/bin/sh\necho \"# HELP x Arguments: $*\"\necho 'x 1'\n")
    program.chmod(0o755)
    with FakeExporter() as node, FakeExporter() as probe:
        fakes = {"node": node, "probe": probe}
        modules: dict[str, Any] = {
            name: {"method": "http", "http": {"address": "127.0.0.1", "port": fake.port}}
            for name, fake in fakes.items()
        }
        modules["runs"] = {"method": "exec", "exec": {"command": str(program), "args": ["configured"]}}
        config_file = directory / "exporter_exporter.yml"
        config_file.write_text(yaml.safe_dump({"modules": modules}))
        process = start_process(
            [PROGRAM, f"-config.file={config_file}", "-web.listen-address=127.0.0.1:0", "-config.skip-dirs"]
        )
        exporters: dict[str, Any] = {name: {"url": fake.url()} for name, fake in fakes.items()}
        exporters["runs"] = {"command": [str(program), "configured"]}
        try:
            with Daemon({"module_route": "/proxy", "exporters": exporters}) as daemon:
                yield Site(fakes, listening_port(process), daemon)
        finally:
            process.kill()
            process.wait()


SAME: dict[str, Seen] = {
    "/proxy?module=node": Seen(200, "node", b"/metrics"),
    "/proxy?module=probe": Seen(200, "probe", b"/metrics"),
    "/proxy?module=node&a=1": Seen(200, "node", b"/metrics?a=1"),
    "/proxy?a=1&module=node": Seen(200, "node", b"/metrics?a=1"),
    "/proxy?a=1&module=node&b=2": Seen(200, "node", b"/metrics?a=1&b=2"),
    "/proxy?module=probe&module=http_2xx&target=x": Seen(200, "probe", b"/metrics?module=http_2xx&target=x"),
    "/proxy?module=node&module=probe": Seen(200, "node", b"/metrics?module=probe"),
    "/proxy?module=node&module=probe&module=x": Seen(200, "node", b"/metrics?module=probe&module=x"),
    "/proxy?module=node&module=": Seen(200, "node", b"/metrics?module="),
    "/proxy?%6dodule=node&a=1": Seen(200, "node", b"/metrics?a=1"),
    "/proxy?module=n%6fde": Seen(200, "node", b"/metrics"),
    "/proxy?module=node&a=b+c": Seen(200, "node", b"/metrics?a=b+c"),
    "/proxy?module=node&a=%2F": Seen(200, "node", b"/metrics?a=%2F"),
    "/proxy?Module=x&module=node": Seen(200, "node", b"/metrics?Module=x"),
    "/proxy?module=node&": Seen(200, "node", b"/metrics"),
    "/proxy": Seen(400),
    "/proxy?": Seen(400),
    "/proxy?a=1": Seen(400),
    "/proxy?Module=node": Seen(400),
    "/proxy?module[]=node": Seen(400),
    "/proxy?a=1;module=node": Seen(400),
    "/proxy?module=nod": Seen(404),
    "/proxy?module=NODE": Seen(404),
    "/proxy?module=": Seen(404),
    "/proxy?module": Seen(404),
    "/proxy?module=&module=node": Seen(404),
    "/proxy?module=x&module=node": Seen(404),
    "/proxy?module=node+": Seen(404),
    "/proxy?module=node%00": Seen(404),
    "/proxy?module=runs": Seen(200),
}

DIFFERENT: dict[str, tuple[str, Seen, Seen]] = {
    "/proxy?module=node&b=2&a=1": (
        "the order of parameters is kept",
        Seen(200, "node", b"/metrics?a=1&b=2"),
        Seen(200, "node", b"/metrics?b=2&a=1"),
    ),
    "/proxy?module=node&collect[]=cpu&collect%5B%5D=mem": (
        "escapes are left as they are",
        Seen(200, "node", b"/metrics?collect%5B%5D=cpu&collect%5B%5D=mem"),
        Seen(200, "node", b"/metrics?collect[]=cpu&collect%5B%5D=mem"),
    ),
    "/proxy?module=node&a=b%20c": (
        "escapes are left as they are",
        Seen(200, "node", b"/metrics?a=b+c"),
        Seen(200, "node", b"/metrics?a=b%20c"),
    ),
    "/proxy?module=node&a": (
        "a name without a value stays one",
        Seen(200, "node", b"/metrics?a="),
        Seen(200, "node", b"/metrics?a"),
    ),
    "/proxy?module=node&&a=1": (
        "what is empty stays, too",
        Seen(200, "node", b"/metrics?a=1"),
        Seen(200, "node", b"/metrics?&a=1"),
    ),
    "/proxy?module=node&a=%zz": (
        "what cannot be decoded is the exporter's to judge, not dropped",
        Seen(200, "node", b"/metrics"),
        Seen(200, "node", b"/metrics?a=%zz"),
    ),
    "/proxy?module=node&a=1;b=2": (
        "so is what has a semicolon; allow_params looks behind it",
        Seen(200, "node", b"/metrics"),
        Seen(200, "node", b"/metrics?a=1;b=2"),
    ),
    "/proxy?module=%zz": ("it names an exporter that is none, not nobody", Seen(400), Seen(404)),
    "/proxy?module=node;a=1": ("it names an exporter that is none, not nobody", Seen(400), Seen(404)),
    "/proxy?module=runs&args=injected": ("no parameter gets near a command", Seen(200), Seen(403)),
    "/proxy?module=runs&a=1": ("none at all", Seen(200), Seen(403)),
    "/prox?module=node": ("a mistyped path is not found", Seen(200), Seen(404)),
    "/proxy/?module=node": ("a mistyped path is not found", Seen(200), Seen(404)),
    "/proxy/metrics?module=node": ("a mistyped path is not found", Seen(200), Seen(404)),
}


@pytest.mark.parametrize("target", SAME)
def test_both_do_the_same(site: Site, target: str) -> None:
    assert site.ask_both(target) == (SAME[target], SAME[target])


@pytest.mark.parametrize("target", DIFFERENT)
def test_where_they_differ(site: Site, target: str) -> None:
    _, theirs, ours = DIFFERENT[target]
    assert site.ask_both(target) == (theirs, ours)
    assert theirs != ours


def test_the_arguments_of_a_command_are_the_configurations(site: Site) -> None:
    """What the query brings reaches the command line there, and nothing of it does here."""
    for port, shown in (
        (site.theirs, b"Arguments: configured injected\n"),
        (site.ours.port, b"Arguments: configured\n"),
    ):
        target = "/proxy?module=runs" + ("&args=injected" if port == site.theirs else "")
        reply, _ = site.ask(port, target)
        assert shown in reply.body


def test_a_mistyped_path_is_a_web_page_there(site: Site) -> None:
    theirs, _ = site.ask(site.theirs, "/prox?module=node")
    ours, _ = site.ask(site.ours.port, "/prox?module=node")
    assert "text/html" in (theirs.header("content-type") or "")
    assert "text/plain" in (ours.header("content-type") or "")


@pytest.mark.parametrize(
    ("method", "theirs", "ours"),
    [
        ("HEAD", Seen(200, "node", b"/metrics"), Seen(200, "node", b"/metrics")),
        ("POST", Seen(200, "node", b"/metrics"), Seen(405)),
        ("DELETE", Seen(200, "node", b"/metrics"), Seen(405)),
    ],
)
def test_other_methods_stay_here(site: Site, method: str, theirs: Seen, ours: Seen) -> None:
    assert site.ask_both("/proxy?module=node", method=method) == (theirs, ours)


def test_the_scrapers_credentials_stay_here(site: Site) -> None:
    seen = []
    for port in (site.theirs, site.ours.port):
        site.ask(port, "/proxy?module=node", TOKEN)
        seen.append(site.exporters["node"].request.header("authorization"))
    assert seen == [TOKEN[1], None]


def test_a_redirect_is_not_passed_on(site: Site) -> None:
    statuses = []
    for port in (site.theirs, site.ours.port):
        site.exporters["node"].play(respond(302, [("Location", "http://127.0.0.1:1/")]))
        with Wire(("127.0.0.1", port)) as wire:
            statuses.append(wire.exchange(request("/proxy?module=node", CONNECTION_CLOSE)).status)
    assert statuses == [302, 502]


def test_ours_says_what_there_is(site: Site) -> None:
    assert b"there is: node probe runs\n" in site.ask(site.ours.port, "/proxy")[0].body
    assert b"there is: node probe runs\n" in site.ask(site.ours.port, "/proxy?module=x")[0].body


# Prometheus, as it is configured for exporter_exporter


def scrape_configs(address: str, directory: Path) -> list[dict[str, Any]]:
    """A job with its module, one that finds them in files, and one that hands a second module on."""
    groups = [{"targets": [address], "labels": {"module": name}} for name in ("node", "fake", "nowhere")]
    (directory / "targets.json").write_text(json.dumps(groups))
    here = [{"targets": [address]}]
    return [
        {
            "job_name": "node",
            "metrics_path": "/proxy",
            "params": {"module": ["node"], "collect[]": ["loadavg"]},
            "static_configs": here,
        },
        {
            "job_name": "files",
            "metrics_path": "/proxy",
            "file_sd_configs": [{"files": [str(directory / "targets.json")]}],
            "relabel_configs": [{"source_labels": ["module"], "target_label": "__param_module"}],
        },
        {
            "job_name": "blackbox",
            "metrics_path": "/proxy",
            "params": {"module": ["blackbox", "http_2xx"]},
            "static_configs": [{"targets": ["probed.example.org"]}],
            "relabel_configs": [
                {"source_labels": ["__address__"], "target_label": "__param_target"},
                {"source_labels": ["__param_target"], "target_label": "instance"},
                {"target_label": "__address__", "replacement": address},
            ],
        },
        {"job_name": "default", "metrics_path": "/proxy", "static_configs": here},
    ]


@pytest.mark.needs_prometheus
def test_a_prometheus_set_up_for_exporter_exporter_needs_no_change(tmp_path: Path) -> None:
    with Exporter("node_exporter") as node, FakeExporter() as fake, FakeExporter() as blackbox:
        config = {
            "module_route": {"path": "/proxy", "default_module": "fake"},
            "exporters": {
                "node": {"url": node.url()},
                "fake": {"url": fake.url()},
                "blackbox": {"url": blackbox.url("/probe")},
            },
        }
        with Daemon(config) as daemon:
            jobs = scrape_configs(f"127.0.0.1:{daemon.port}", tmp_path)
            with Prometheus(jobs, scrape_interval="1s", scrape_timeout="1s") as prometheus:

                def ups() -> dict[tuple[str, str], str]:
                    return {
                        (one["metric"]["job"], one["metric"].get("module", "")): one["value"][1]
                        for one in prometheus.query("up")
                    }

                expected = {
                    ("node", ""): "1",
                    ("files", "node"): "1",
                    ("files", "fake"): "1",
                    ("files", "nowhere"): "0",
                    ("blackbox", ""): "1",
                    ("default", ""): "1",
                }
                wait_until(lambda: ups() == expected, "all are up that can be", PATIENCE_SECONDS)
                assert prometheus.value('node_load1{job="node"}') is not None
                assert prometheus.value('fake_up{job="blackbox",instance="probed.example.org"}') == 1
                (unknown,) = (one for one in prometheus.targets() if one["labels"].get("module") == "nowhere")
                assert unknown["lastError"] == "server returned HTTP status 404 Not Found"
        assert {one.target for one in blackbox.requests} == {
            b"/probe?module=http_2xx&target=probed.example.org"
        }
