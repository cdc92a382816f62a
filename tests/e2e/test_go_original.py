"""The documented examples of the Go original, each played as its users run it: ``-config FILE``.

``tests/testdata/go_original`` has one file for each; only addresses are put in. Routes, logs, TLS, a socket
of start_server, and a stop by SIGTERM with a scrape under way.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
import trustme
import yaml

from tests.daemon import REPOSITORY, wait_until
from tests.e2e.processes import MODULE, listening_port
from tests.fakes.exporter import PAGE, FakeExporter, respond, wait_for
from tests.wire import CONNECTION_CLOSE, Reply, Wire, request

EXAMPLES = {file.stem: file for file in (REPOSITORY / "tests/testdata/go_original").glob("*.yml")}
FIELDS = ["time", "time_nsec", "status", "size", "reqtime_nsec", "backend", "path", "query", "method"]
PATIENCE_SECONDS = 20.0


class Service:
    """One example, running; what it prints is in ``stdout`` and ``stderr``."""

    def __init__(self, directory: Path, *exporters: FakeExporter) -> None:
        """The exporters at 9100, 9104 and, by TLS, 9443 of the examples."""
        self.directory = directory
        self.node, self.other, self.secure = exporters
        self.tls: ssl.SSLContext | None = None

    def write(self, name: str, port: int = 0) -> None:
        """The example as ``config.yml``, with this test's addresses; ``port``: of what start_server holds."""
        text = EXAMPLES[name].read_text()
        for written, real in (
            ("0.0.0.0:9099", f"127.0.0.1:{port}"),
            ("127.0.0.1:9099", f"127.0.0.1:{port}"),
            (":9100", f":{self.node.port}"),
            (":9104", f":{self.other.port}"),
            (":9443", f":{self.secure.port}"),
        ):
            text = text.replace(written, real)
        (self.directory / "config.yml").write_text(text)

    @contextmanager
    def running(
        self, environment: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
    ) -> Iterator[subprocess.Popen[bytes]]:
        """As its service unit starts it; it has to end well."""
        with (self.directory / "stdout").open("wb") as out, (self.directory / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [*MODULE, "-config", "config.yml"],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=pass_fds,
            )
        try:
            self.port = listening_port(process)
            yield process
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0, self.text("stderr")
        finally:
            process.kill()
            process.wait()

    def text(self, name: str) -> str:
        return (self.directory / name).read_text()

    def get(self, path: str) -> Reply:
        with Wire(("127.0.0.1", self.port), tls=self.tls) as wire:
            return wire.exchange(request(path, CONNECTION_CLOSE))

    def asked(self) -> list[bytes]:
        return [one.target for exporter in (self.node, self.other, self.secure) for one in exporter.requests]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    nobodys = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(nobodys)
    with (
        FakeExporter(respond()) as node,
        FakeExporter(respond()) as other,
        FakeExporter(respond(), tls=nobodys) as secure,
    ):
        yield Service(tmp_path, node, other, secure)


def records(log: str) -> list[dict[str, str]]:
    """The lines of an LTSV log."""
    return [dict(field.split(":", 1) for field in line.split("\t")) for line in log.splitlines()]


def test_no_example_is_left_out() -> None:
    assert set(EXAMPLES) == {"usage", "every-key", "container", "start_server"}


def test_usage(service: Service) -> None:
    service.write("usage")
    with service.running() as process:
        for path in ("/node_exporter/metrics", "/mysqld_exporter/metrics?collect[]=x"):
            service.get(path).expect_ok(PAGE)
        assert service.get("/node_exporter").status == 404
        assert service.asked() == [b"/metrics", b"/metrics?collect[]=x"]
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert service.text("stdout") == ""


def test_every_key(service: Service) -> None:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    server.cert_chain_pems[0].write_to_path(service.directory / "server.crt")
    server.private_key_pem.write_to_path(service.directory / "server.key")
    service.tls = ssl.create_default_context()
    authority.configure_trust(service.tls)
    service.write("every-key")
    paths = ["/node_exporter/metrics", "/mysqld_exporter/metrics", "/appliance/example"]
    with service.running():
        for path in paths:
            service.get(path).expect_ok(PAGE)
        service.node.stop_accepting()
        service.node.drop_connections()
        assert service.get("/node_exporter/metrics?x=1").status == 502
    assert service.asked() == [b"/metrics", b"/metrics", b"/"]
    assert service.text("stdout") == service.text("stderr") == ""
    *scrapes, failed = records(service.text("access.log"))
    assert [one["path"] for one in scrapes] == paths
    assert all(list(one) == FIELDS for one in scrapes)
    assert {(one["status"], one["method"], one["query"]) for one in scrapes} == {("200", "GET", "")}
    assert [one["backend"] for one in scrapes] == [
        exporter.authority for exporter in (service.node, service.other, service.secure)
    ]
    assert (failed["status"], failed["query"]) == ("502", "x=1")
    log = service.text("error.log")
    assert "msg=listening" in log
    assert "exporter=node_exporter" in log


def test_container(service: Service) -> None:
    service.write("container")
    with service.running():
        for path in ("/node_exporter/metrics", "/cadvisor/metrics", "/self_signed/metrics"):
            service.get(path).expect_ok(PAGE)
        wait_until(lambda: len(records(service.text("stdout"))) == 3, "three scrapes were logged")
    assert all(list(one) == FIELDS for one in records(service.text("stdout")))
    assert "msg=listening" in service.text("stderr")


def test_start_server(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        service.write("start_server", port)
        text = service.text("config.yml")
        assert yaml.safe_load(text)["listen"] == f"SERVER_STARTER:127.0.0.1:{port}"
        passed = {"SERVER_STARTER_PORT": f"127.0.0.1:{port}={held.fileno()}"}
        with service.running(passed, [held.fileno()]):
            assert service.port == port
            for path in ("/node_exporter/metrics", "/cadvisor/metrics"):
                service.get(path).expect_ok(PAGE)
            own = service.get("/exporter_proxy_exporter/metrics").expect_ok().body
            assert b'exporter_proxy_scrapes_total{code="200",exporter="cadvisor"} 1.0' in own


def test_sigterm_lets_a_scrape_finish(service: Service) -> None:
    service.write("usage")
    may_go_on = Event()
    service.node.play([wait_for(may_go_on), *respond()])
    with service.running() as process:
        with Wire(("127.0.0.1", service.port)) as wire:
            wire.send(request("/node_exporter/metrics"))
            service.node.wait_for_requests()
            process.send_signal(signal.SIGTERM)

            def is_closed() -> bool:
                with socket.socket() as client:
                    return client.connect_ex(("127.0.0.1", service.port)) != 0

            wait_until(is_closed, "nobody new was let in")
            assert process.poll() is None
            may_go_on.set()
            reply = wire.read_reply().expect_ok(PAGE)
            assert reply.header("connection") == "close"
        assert process.wait(PATIENCE_SECONDS) == 0
