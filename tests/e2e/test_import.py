"""``import`` from outside: its command line, and the imported configuration beside exporter_exporter itself.

Debian's exporter_exporter (0.4.0) runs on the original file and this daemon on the imported one, before the
same exporters; what they are asked for and what comes of it is compared. That release has no files yet:
those are compared with what its source says. How ``/proxy?module=`` is read is compared in
``test_exporter_exporter_oracle.py``.
"""

from __future__ import annotations

import ssl
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.daemon import REPOSITORY, Daemon, wait_until
from tests.e2e.processes import Prometheus, listening_port, own_loopback_address, serving, start_process
from tests.e2e.test_command_line import run
from tests.fakes.exporter import PAGE, FakeExporter, Request, respond, stall
from tests.wire import CONNECTION_CLOSE, Reply, Wire, request

PROGRAM = "prometheus-exporter-exporter"
DEBIAN = (REPOSITORY / "tests/testdata/expexp/debian.yml").read_text()
ALL_PORTS = "--web.listen-address=127.0.0.1:0"
PATIENCE_SECONDS = 30.0


def imported(directory: Path, *paths: str) -> str:
    """The text of the configuration, which ``check`` takes without a word."""
    result = run(directory, "import", *paths)
    assert result.returncode == 0, result.stderr
    (directory / "config.yml").write_text(result.stdout)
    checked = run(directory, "check")
    assert checked.returncode == 0, checked.stderr
    return result.stdout


@contextmanager
def exporter_exporter(config_file: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """The real one; gives its port."""
    process = start_process([PROGRAM, f"-config.file={config_file}", f"-web.listen-address={host}:0"])
    try:
        yield listening_port(process)
    finally:
        process.kill()
        process.wait()


def ask(port: int, target: str) -> Reply:
    with Wire(("127.0.0.1", port)) as wire:
        return wire.exchange(request(target, CONNECTION_CLOSE))


def samples(page: bytes) -> set[tuple[str, frozenset[tuple[str, str]], float]]:
    families = text_string_to_metric_families(page.decode())
    return {
        (one.name, frozenset(one.labels.items()), one.value) for found in families for one in found.samples
    }


class Both:
    """exporter_exporter on ``modules``, and this daemon on what is made of them."""

    def __init__(self, directory: Path, modules: dict[str, Any]) -> None:
        (directory / "expexp.yml").write_text(yaml.safe_dump({"modules": modules}))
        self._directory = directory
        self._stack = ExitStack()

    def __enter__(self) -> Both:
        with ExitStack() as stack:
            self._theirs = stack.enter_context(exporter_exporter(self._directory / "expexp.yml"))
            text = imported(self._directory, "expexp.yml")
            self._ours = stack.enter_context(Daemon(text, ALL_PORTS))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, module: str, query: str = "") -> tuple[Reply, Reply]:
        """Theirs, and ours."""
        target = f"/proxy?module={module}{query}"
        return ask(self._theirs, target), ask(self._ours.port, target)


def http(exporter: FakeExporter, **keys: Any) -> dict[str, Any]:
    return {"method": "http", "http": {"address": "127.0.0.1", "port": exporter.port, **keys}}


@pytest.mark.parametrize(
    ("keys", "query"),
    [
        ({}, ""),
        ({}, "&collect=cpu"),
        ({"path": "/api/v1/allmetrics?format=prometheus"}, ""),
        ({"path": "/api/v1/allmetrics?format=prometheus"}, "&x=1"),
        ({"path": "/probe"}, "&module=http_2xx&target=example.org"),
        ({"headers": {"X-Scope": "vm: 1"}}, ""),
        ({"verify": False}, ""),
    ],
)
def test_an_exporter_is_asked_the_same_and_its_page_is_the_same(
    tmp_path: Path, keys: dict[str, Any], query: str
) -> None:
    with FakeExporter(respond(body=PAGE)) as exporter:
        with Both(tmp_path, {"x": http(exporter, **keys)}) as both:
            theirs, ours = both.ask("x", query)
        asked_by_them, asked_by_us = exporter.requests
    assert theirs.expect_ok(PAGE).header("content-type") == ours.expect_ok(PAGE).header("content-type")
    assert asked_by_us.target == asked_by_them.target
    for name in keys.get("headers", {}):
        assert asked_by_us.header(name) == asked_by_them.header(name) == keys["headers"][name]


def test_what_is_no_page_passes_only_unverified(tmp_path: Path) -> None:
    with FakeExporter(respond(body=b"not a page {\n")) as exporter:
        modules = {"verified": http(exporter), "not": http(exporter, verify=False)}
        with Both(tmp_path, modules) as both:
            theirs, ours = both.ask("verified")
            # Theirs is not told apart from a failure of its own.
            assert (theirs.status, ours.status) == (500, 502)
            for reply in both.ask("not"):
                reply.expect_ok(b"not a page {\n")


def test_timeouts_are_the_modules(tmp_path: Path) -> None:
    with FakeExporter([stall()]) as exporter:
        modules = {
            "slow": {**http(exporter), "timeout": "250ms"},
            "slower": {**http(exporter), "timeout": 300_000_000},
        }
        with Both(tmp_path, modules) as both:
            for module in modules:
                for reply in both.ask(module):
                    assert reply.status == 504
                    assert 0.2 <= reply.ended_after_seconds < 2.0 + reply.stalled_seconds


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_tls_with_the_exporter(tmp_path: Path) -> None:
    """A difference on purpose: their ``tls_ca_cert_file`` is read, and then not used."""
    authority, others = trustme.CA(), trustme.CA()
    client = authority.issue_cert("proxy@example.org")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    mutual = server_context(others)
    authority.configure_trust(mutual)
    mutual.verify_mode = ssl.CERT_REQUIRED
    pair = {"tls_cert_file": str(tmp_path / "client.crt"), "tls_key_file": str(tmp_path / "client.key")}
    with (
        FakeExporter(respond(), tls=server_context(authority)) as known,
        FakeExporter(respond(), tls=server_context(others)) as unknown,
        FakeExporter(respond(), tls=mutual) as strict,
    ):
        https = {"scheme": "https"}
        modules = {
            "skip": http(unknown, **https, tls_insecure_skip_verify=True),
            "unknown": http(unknown, **https),
            "client": http(strict, **https, **pair, tls_insecure_skip_verify=True),
            "no_client": http(strict, **https, tls_insecure_skip_verify=True),
            "ca": http(known, **https, tls_ca_cert_file=str(tmp_path / "ca.crt")),
        }
        with Both(tmp_path, modules) as both:
            statuses = {module: tuple(reply.status for reply in both.ask(module)) for module in modules}
    assert statuses == {
        "skip": (200, 200),
        "unknown": (502, 502),
        "client": (200, 200),
        "no_client": (502, 502),
        "ca": (502, 200),
    }


def test_commands(tmp_path: Path) -> None:
    script = tmp_path / "raid"
    script.write_text(
        "#!/bin/sh\n"
        'echo "# HELP raid_ok Whether it is"\necho "# TYPE raid_ok gauge"\n'
        'echo "raid_ok{arguments=\\"$*\\",number=\\"$#\\",thing=\\"$THING\\"} 1"\n'
        'test -z "$FAIL"\n'
    )
    script.chmod(0o755)
    command = {"command": str(script)}
    args = ["a b", "--c='d'", ""]
    modules = {
        "plain": {"method": "exec", "exec": command},
        "all": {
            "method": "exec",
            "timeout": "5s",
            "exec": {**command, "args": args, "env": {"THING": "1 2"}},
        },
        "fails": {"method": "exec", "exec": {**command, "env": {"FAIL": "yes"}}},
        "by_name": {"method": "exec", "exec": {"command": "printf", "args": ["x 1\\n"]}},
        "slow": {"method": "exec", "timeout": "250ms", "exec": {"command": "/bin/sleep", "args": ["20"]}},
    }
    with Both(tmp_path, modules) as both:
        for module in ("plain", "all", "by_name"):
            theirs, ours = both.ask(module)
            # Theirs is parsed and written anew, in any order.
            assert samples(ours.expect_ok().body) == samples(theirs.expect_ok().body)
        # Theirs says 500 to all that goes wrong.
        assert tuple(reply.status for reply in both.ask("fails")) == (500, 502)
        assert tuple(reply.status for reply in both.ask("slow")) == (500, 504)
        # What is in the URL becomes an argument there, and nothing here.
        theirs, ours = both.ask("plain", "&args=--evil")
        assert ("arguments", "--evil") in [pair for _, labels, _ in samples(theirs.body) for pair in labels]
        ours.expect_refusal(403, "param")


def test_a_file_is_served(tmp_path: Path) -> None:
    (tmp_path / "backup.prom").write_bytes(PAGE)
    entry = {"method": "file", "file": {"path": str(tmp_path / "backup.prom")}}
    (tmp_path / "expexp.yml").write_text(
        yaml.safe_dump({"defaultModule": "backup", "modules": {"backup": entry}})
    )
    with Daemon(imported(tmp_path, "expexp.yml"), ALL_PORTS) as daemon:
        for target in ("/proxy?module=backup", "/proxy", "/backup/metrics"):
            assert samples(daemon.get(target).expect_ok().body) == samples(PAGE)
        modified = daemon.metric(
            "exporter_proxy_file_mtime_seconds", exporter="backup", file=str(tmp_path / "backup.prom")
        )
        assert modified == pytest.approx((tmp_path / "backup.prom").stat().st_mtime)


def test_basic_auth_is_sent_and_the_scrapers_credentials_are_not(tmp_path: Path) -> None:
    with FakeExporter(respond()) as exporter:
        keys = {"basic_auth_username": "u", "basic_auth_password": "p: 1"}
        (tmp_path / "expexp.yml").write_text(yaml.safe_dump({"modules": {"x": http(exporter, **keys)}}))
        with Daemon(imported(tmp_path, "expexp.yml"), ALL_PORTS) as daemon:
            daemon.get("/proxy?module=x", ("Authorization", "Bearer scraper")).expect_ok()
        assert exporter.request.get_all("authorization") == ["Basic dTpwOiAx"]


@pytest.mark.needs_prometheus
def test_a_prometheus_goes_on_scraping_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Debian's file, and a Prometheus as exporter_exporter's documentation has it, before and after."""
    jobs = {"node": {}, "mtail": {}, "cadvisor": {}, "haproxy": {}, "blackbox": {"target": ["self"]}}
    address = own_loopback_address()
    with ExitStack() as stack:
        node = start_process(["prometheus-node-exporter", "--web.listen-address=127.0.0.1:0"])
        stack.callback(node.wait)
        stack.callback(node.kill)
        ports = {9100: listening_port(node)}
        for port in (3903, 4194, 9101):
            ports[port] = stack.enter_context(FakeExporter(respond())).port

        def probed(asked: Request) -> bytes:
            return b"probe_success %d\n" % (asked.target == b"/probe?module=http_2xx&target=self")

        ports[9115] = stack.enter_context(FakeExporter(respond(body=probed))).port
        text = DEBIAN
        for written, real in ports.items():
            assert f"port: {written}\n" in text
            text = text.replace(f"port: {written}\n", f"port: {real}\n")
        (tmp_path / "exporter-exporter.yml").write_text(text)
        config = imported(tmp_path, "exporter-exporter.yml")
        assert yaml.safe_load(config)["listen"] == ":9999"

        def scrape_configs(port: int) -> list[dict[str, Any]]:
            return [
                {
                    "job_name": job,
                    "metrics_path": "/proxy",
                    "params": {"module": [job, *(["http_2xx"] if more else [])], **more},
                    "static_configs": [{"targets": [f"{address}:{port}"]}],
                }
                for job, more in jobs.items()
            ]

        with exporter_exporter(tmp_path / "exporter-exporter.yml", address) as port:
            prometheus = Prometheus(scrape_configs(port), scrape_interval="1s", scrape_timeout="1s")
            stack.enter_context(prometheus)

            def up() -> dict[str, str]:
                return {one["metric"]["job"]: one["value"][1] for one in prometheus.query("up")}

            def instances() -> set[tuple[str, str]]:
                return {(one["metric"]["job"], one["metric"]["instance"]) for one in prometheus.query("up")}

            wait_until(lambda: len(up()) == len(jobs), "all were scraped", PATIENCE_SECONDS)
            before = instances()
        wait_until(lambda: set(up().values()) == {"0"}, "it was gone", PATIENCE_SECONDS)
        with serving(tmp_path, f"--web.listen-address={address}:{port}"):
            wait_until(lambda: up() == dict.fromkeys(jobs, "1"), "all were up", PATIENCE_SECONDS)
            assert prometheus.value("probe_success") == 1
            assert prometheus.value('count(node_cpu_seconds_total{job="node"})')
            assert instances() == before


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "expexp.yaml").write_text(
        "modules:\n  a: {method: http, http: {port: 1, headers: {X: s3cr3t}}}\n"
    )
    (tmp_path / "expexp.d").mkdir()
    (tmp_path / "expexp.d" / "b.yml").write_text("method: http\nhttp: {port: 2, path: metrics}\n")
    printed = run(tmp_path, "import", "expexp.yaml", "expexp.d/")
    assert printed.returncode == 0
    assert "s3cr3t" in printed.stdout
    assert printed.stderr.splitlines() == [
        'expexp.d/b.yml:2:23: http.path: it is asked for with a "/" before it; without one exporters '
        "answer 400",
        "exporter_proxy: what is printed may hold secrets, --write=FILE keeps it private",
    ]
    written = run(tmp_path, "import", "expexp.yaml", "expexp.d/", "--write=config.yml")
    assert (written.returncode, written.stdout) == (
        0,
        "config.yml: written with 2 exporters; it may hold secrets, so its mode is 0600: give it to the user "
        "that runs exporter_proxy\n",
    )
    assert written.stderr.splitlines() == printed.stderr.splitlines()[:1]
    assert (tmp_path / "config.yml").read_text() == printed.stdout
    assert stat.S_IMODE((tmp_path / "config.yml").stat().st_mode) == 0o600
    assert run(tmp_path, "check").stdout == "config.yml: OK (2 exporters)\n"
    again = run(tmp_path, "import", "expexp.yaml", "--write=config.yml")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("config.yml: it exists already")
    assert (tmp_path / "config.yml").read_text() == printed.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "the following arguments are required: FILE"),
        (("nowhere.yaml",), 1, "nowhere.yaml: no such file"),
        (("bad.yaml",), 1, "bad.yaml:1:14: modules.a: expected a mapping"),
        (("bad.yaml", "--write=config.yml"), 1, "bad.yaml:1:14: modules.a: expected a mapping"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing_behind(
    tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    (tmp_path / "bad.yaml").write_text("modules: {a: 1}")
    result = run(tmp_path, "import", *arguments)
    assert (result.returncode, result.stdout) == (status, "")
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.yaml"]
