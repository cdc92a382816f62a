"""What ``prometheus-config`` prints and ``/-/sd`` serves: a real Prometheus takes it and scrapes by it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme
import yaml

from exporter_proxy.prometheus_config import CA_FILE, CERT_FILE, KEY_FILE, PASSWORD_FILE, TOKEN_FILE
from tests.daemon import REPOSITORY, Daemon, wait_until
from tests.e2e.processes import MODULE, PROMTOOL, Exporter, Prometheus, start_process
from tests.fakes.exporter import FakeExporter
from tests.fakes.hashing import hash_of

pytestmark = pytest.mark.needs_prometheus

PATIENCE_SECONDS = 40.0


def printed(daemon: Daemon, *arguments: str) -> str:
    """What the command says of this daemon's configuration."""
    return subprocess.run(
        [*MODULE, "prometheus-config", *arguments],
        cwd=daemon.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stdout


def assert_promtool_accepts(directory: Path, text: str) -> None:
    """As ``prometheus.yml`` in this directory, where the files are that it names."""
    (directory / "prometheus.yml").write_text(text)
    with (directory / "promtool.log").open("wb") as output:
        command = [PROMTOOL, "check", "config", str(directory / "prometheus.yml")]
        status = start_process(command, output=output).wait(PATIENCE_SECONDS)
    assert status == 0, (directory / "promtool.log").read_text()


def jobs(text: str, case: str) -> list[dict[str, Any]]:
    """The jobs of a configuration, with names that are no other's."""
    found: list[dict[str, Any]] = yaml.safe_load(text)["scrape_configs"]
    for job in found:
        job["job_name"] = f"{case}: {job['job_name']}"
    return found


@contextmanager
def serving_list(text: str) -> Iterator[str]:
    """An http_sd of somebody else's that has what the command printed; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Site:
    """Two daemons with the same exporters, and the Prometheus that was told of them in every way."""

    addresses: Sequence[str]
    ports: Mapping[str, int]
    """Of the exporters."""
    prometheus: Prometheus

    def series(self, case: str) -> set[tuple[str, ...]]:
        """exporter, instance, team and value of ``up``, of the jobs of this case."""
        found = set()
        for one in self.prometheus.query(f'up{{pool="{case}"}}'):
            labels = one["metric"]
            found.add((*(labels.get(name, "") for name in ("exporter", "instance", "team")), one["value"][1]))
        return found


CASES: dict[str, tuple[str, ...]] = {
    "jobs": (),
    "jobs, instance": ("--instance=exporter",),
    "one job": ("--job=one",),
    "one job, instance": ("--job=one", "--instance=exporter"),
    "file_sd": ("--format=file-sd",),
    "file_sd, instance": ("--format=file-sd", "--instance=exporter"),
    "http_sd": ("--format=http-sd",),
    "page": (),
    "page, instance": (),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        node = stack.enter_context(Exporter("node_exporter"))
        fake = stack.enter_context(FakeExporter())
        config: dict[str, Any] = {
            "route_prefix": "/here",
            "exporters": {
                "node_exporter": {"url": node.url(), "labels": {"team": "infra"}},
                "a.b": {"url": fake.url(), "path": "/a/$1/b"},
            },
        }
        daemons = [
            stack.enter_context(Daemon({**config, "listen": f"{host}:0"}))
            for host in ("127.0.0.1", "127.0.0.2")
        ]
        addresses = [f"{host}:{port}" for daemon in daemons for host, port in daemon.addresses]
        targets = [f"--target={address}" for address in addresses]
        all_jobs: list[dict[str, Any]] = []
        for case, arguments in CASES.items():
            text = printed(daemons[0], *targets, *arguments)
            sd: dict[str, Any] = {}
            if "file_sd" in case:
                (directory / f"{case}.json").write_text(text)
                sd = {"file_sd_configs": [{"files": [str(directory / f"{case}.json")]}]}
            elif "http_sd" in case:
                sd = {"http_sd_configs": [{"url": stack.enter_context(serving_list(text))}]}
            elif "page" in case:
                page = "/here/-/sd?instance=exporter" if "instance" in case else "/here/-/sd"
                sd = {"http_sd_configs": [{"url": f"http://{address}{page}"} for address in addresses]}
            if sd:
                text = yaml.safe_dump({"scrape_configs": [{"job_name": "vm", **sd}]})
            assert_promtool_accepts(directory, text)
            all_jobs += [
                # A label that says which case it is; those of the exporters are what is looked at.
                {
                    **job,
                    "relabel_configs": [
                        *job.get("relabel_configs", []),
                        {"target_label": "pool", "replacement": case},
                    ],
                }
                for job in jobs(text, case)
            ]
        prometheus = stack.enter_context(Prometheus(all_jobs, scrape_interval="1s", scrape_timeout="1s"))
        urls = {"node_exporter": node.url(""), "a.b": fake.url("")}
        ports = {name: int(url.rpartition(":")[2]) for name, url in urls.items()}
        yield Site(addresses, ports, prometheus)


@pytest.mark.parametrize("case", CASES)
def test_a_real_prometheus_scrapes_every_exporter_of_both_hosts(site: Site, case: str) -> None:
    expected = set()
    for address in site.addresses:
        host = address.partition(":")[0]
        for name, team in (("node_exporter", "infra"), ("a.b", "")):
            instance = f"{host}:{site.ports[name]}" if "instance" in case else address
            expected.add((name, instance, team, "1"))
        if "job" in case:
            expected.add(("", address, "", "1"))  # the daemon itself
    wait_until(lambda: site.series(case) == expected, f"{case} came to {expected}", PATIENCE_SECONDS)


def write_web(directory: Path) -> None:
    """web.yml and tokens; what a client needs is there under the names that the command gives it."""
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("prometheus.example.org")
    server.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    authority.cert_pem.write_to_path(directory / CA_FILE)
    client.cert_chain_pems[0].write_to_path(directory / CERT_FILE)
    client.private_key_pem.write_to_path(directory / KEY_FILE)
    (directory / PASSWORD_FILE).write_text("of ann")
    (directory / TOKEN_FILE).write_text("t0ken")
    (directory / "tokens").write_text("t0ken\n")
    web = {
        "tls_server_config": {
            "cert_file": "server.pem",
            "key_file": "server.pem",
            "client_ca_file": CA_FILE,
            "client_auth_type": "RequireAndVerifyClientCert",
        },
        "basic_auth_users": {"ann": hash_of(b"of ann")},
    }
    (directory / "web.yml").write_text(yaml.safe_dump(web))


def test_tls_and_credentials_are_there_for_files_to_be_put_in_place(tmp_path: Path) -> None:
    write_web(tmp_path)
    options: dict[str, dict[str, str]] = {
        "password": {"web_config_file": str(tmp_path / "web.yml")},
        "token": {"bearer_tokens_file": str(tmp_path / "tokens")},
    }
    placeholders = (CA_FILE, CERT_FILE, KEY_FILE, PASSWORD_FILE, TOKEN_FILE)
    with ExitStack() as stack:
        fake = stack.enter_context(FakeExporter())
        all_jobs = []
        for case, option in options.items():
            daemon = stack.enter_context(Daemon({**option, "exporters": {"x": {"url": fake.url()}}}))
            text = printed(daemon, f"--target=127.0.0.1:{daemon.port}")
            named = {name for name in placeholders if name in text.splitlines()[0]}
            assert named == ({TOKEN_FILE} if case == "token" else {*placeholders} - {TOKEN_FILE})
            assert_promtool_accepts(tmp_path, text)
            for name in placeholders:
                text = text.replace(name, str(tmp_path / name))
            all_jobs += jobs(text, case)
        prometheus = stack.enter_context(Prometheus(all_jobs, scrape_interval="1s", scrape_timeout="1s"))

        def shown() -> dict[str, tuple[str, str]]:
            return {one["scrapePool"]: (one["health"], one["lastError"]) for one in prometheus.targets()}

        pools = [f"{case}: {name}" for case in options for name in ("x", "exporter_proxy")]
        expected = dict.fromkeys(pools, ("up", ""))
        wait_until(lambda: shown() == expected, "all were up", PATIENCE_SECONDS)
