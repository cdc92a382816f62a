"""What every section measures on: the pages, the exporters that serve them, and the daemon in front.

The page is an nginx's that serves files over keep-alive connections; ``origin.py`` does what nginx
cannot. Their CPU time is not counted. That nginx has no ``tcp_nopush``: with it, headers and body would
come in fewer and fuller segments than any exporter sends, which spares nginx as a proxy 40 % of its CPU
at 57 KB.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench import pages
from tests.bench.figures import OURS
from tests.bench.load import Scraper, expect_body
from tests.bench.processes import (
    LOOPBACK,
    NotMeasured,
    Program,
    executable,
    free_port,
)
from tests.bench.progress import say

REPOSITORY = Path(__file__).parents[2]
SERVE = (sys.executable, "-m", "exporter_proxy", "serve")
CHECK = (sys.executable, "-m", "exporter_proxy", "check")
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY)}
"""The tree that the benchmark stands in is measured, not a release that happens to be installed."""
UNKNOWN_KEY = "unknown key"
CHECK_SECONDS = 60.0
CHUNKED = "page_chunked"
CONTENT_TYPE = '"text/plain; version=0.0.4; charset=utf-8"'


@dataclass(frozen=True, slots=True)
class Proxy:
    """Something between the scraper and the exporter."""

    name: str
    program: Program
    pid: int
    """The process whose CPU time and memory count: nginx's worker."""
    port: int
    path_format: str
    is_tls: bool = False

    def path(self, body: str) -> str:
        return self.path_format.format(body)


class Site:
    """The pages by name, and their exporters. Made by ``site``."""

    def __init__(
        self,
        directory: Path,
        bodies: Mapping[str, bytes],
        origin_port: int,
        answering_port: int,
        origin_pids: Sequence[int],
    ) -> None:
        self.directory = directory
        self.bodies = bodies
        self.origin_port = origin_port
        self.answering_port = answering_port
        self.origin_pids = origin_pids
        self._programs = 0

    def url(self, body: str) -> str:
        port = self.answering_port if body == CHUNKED else self.origin_port
        return f"http://{LOOPBACK}:{port}/{body}"

    @property
    def hanging_url(self) -> str:
        return f"http://{LOOPBACK}:{self.answering_port}/hang"

    def held(self) -> int:
        """How many scrapes wait at ``hanging_url``."""
        with Scraper(self.answering_port) as scraper:
            return int(scraper.scrape("/held"))

    def file(self, suffix: str) -> Path:
        """A file name that nobody else has."""
        self._programs += 1
        return self.directory / f"{self._programs}{suffix}"

    def check(self, proxy: Proxy, body: str, times: int = 20) -> None:
        """Raises NotMeasured unless this page comes through whole, so many times."""
        expect_body(proxy.port, proxy.path(body), self.bodies[body], times, tls=proxy.is_tls)

    def config(self, route: Mapping[str, Any] | None = None, **top_level: Any) -> dict[str, Any]:
        """A configuration with everything on; ``route`` is added to each exporter's entry."""
        rules = {"allow_clients": [LOOPBACK], "allow_params": [], **(route or {})}
        return {
            "allow_clients": [LOOPBACK, "::1"],
            "allow_upstreams": ["127.0.0.0/8"],
            "access_log": {"path": str(self.file(".access.log"))},
            "exporters": {body: {"url": self.url(body), **rules} for body in self.bodies},
            **top_level,
        }

    def knows(self, route: Mapping[str, Any]) -> bool:
        """Whether the daemon has these keys of an exporter's entry. Raises NotMeasured for other problems."""
        file = self.file(".yml")
        file.write_text(yaml.safe_dump(self.config(route)))
        said = run_check(file)
        if said.returncode and UNKNOWN_KEY not in said.stdout + said.stderr:
            raise NotMeasured(f"check: {said.stdout}{said.stderr}")
        return said.returncode == 0

    @contextlib.contextmanager
    def daemon(self, config: Mapping[str, Any], file: Path | None = None) -> Iterator[Proxy]:
        """The daemon on this configuration, which is written to ``file``, until the end of the block."""
        port, file = free_port(), file or self.file(".yml")
        file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        with self.launch(file, port) as program:
            program.wait_until_listening(port)
            yield Proxy(OURS, program, program.pid, port, "/{}/metrics", "tls" in config)
            for line in program.log.read_text().splitlines():
                if "level=error" in line:
                    say(f"the daemon logged: {line}")

    def launch(self, file: Path, port: int) -> Program:
        """Start the daemon, and do not wait for it."""
        command = [*SERVE, f"--config.file={file}", f"--web.listen-address={LOOPBACK}:{port}"]
        return Program(command, self.file(".exporter_proxy.log"), ENVIRONMENT)


def run_check(file: Path) -> subprocess.CompletedProcess[str]:
    """``exporter_proxy check`` on a file."""
    return subprocess.run(
        [*CHECK, f"--config.file={file}"],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
    )


def required(name: str, package: str) -> str:
    """The path of a program. Raises NotMeasured where it is not installed."""
    path = executable(name)
    if path is None:
        raise NotMeasured(f"{name} is not installed (Debian package {package})")
    return path


@contextlib.contextmanager
def node_exporter(directory: Path) -> Iterator[tuple[Program, int]]:
    """A real node_exporter of this machine, and its port."""
    port = free_port()
    command = [
        required("prometheus-node-exporter", "prometheus-node-exporter"),
        f"--web.listen-address={LOOPBACK}:{port}",
    ]
    with Program(command, directory / "node_exporter.log") as program:
        program.wait_until_listening(port)
        yield program, port


@contextlib.contextmanager
def site(directory: Path) -> Iterator[Site]:
    """Set up the pages and their exporters, until the end of the block. Raises NotMeasured."""
    served = directory / "served"
    served.mkdir()
    bodies = make_bodies(directory)
    for name, body in bodies.items():
        (served / name).write_bytes(body)
    origin_port, answering_port = free_port(), free_port()
    origin = start_nginx(directory, "origin", ORIGIN % {"port": origin_port, "root": served})
    answering = [sys.executable, "-m", "tests.bench.origin", str(answering_port), str(served / "page")]
    with origin, Program(answering, directory / "answering.log", ENVIRONMENT) as answering_program:
        origin.wait_until_listening(origin_port)
        answering_program.wait_until_listening(answering_port)
        origin_pids = origin.pid, origin.wait_for_child(), answering_program.pid
        yield Site(directory, bodies, origin_port, answering_port, origin_pids)


def make_bodies(directory: Path) -> dict[str, bytes]:
    """The pages as they go over the wire."""
    with node_exporter(directory) as (_, port), Scraper(port) as scraper:
        live = gzip.decompress(scraper.scrape("/metrics"))
    page, big = pages.fitted(live, pages.PAGE_BYTES), pages.fitted(live, pages.BIG_BYTES)
    return {
        "tiny": pages.TINY,
        "page": page,
        "big": big,
        "page_gzip": gzip.compress(page, 6),
        "big_gzip": gzip.compress(big, 6),
        CHUNKED: page,
        "huge": pages.repeated(big, pages.HUGE_BYTES),
    }


NGINX = """
%(user)s
worker_processes 1;
daemon off;
pid %(directory)s/%(name)s.pid;
error_log stderr;
events { worker_connections 8192; }
http {
  client_body_temp_path %(directory)s/%(name)s.body;
  proxy_temp_path %(directory)s/%(name)s.proxy;
  fastcgi_temp_path %(directory)s/%(name)s.fastcgi;
  uwsgi_temp_path %(directory)s/%(name)s.uwsgi;
  scgi_temp_path %(directory)s/%(name)s.scgi;
  keepalive_requests 100000000;
  keepalive_timeout 300s;
  %(http)s
}
"""
ORIGIN = (
    """
  access_log off;
  sendfile on;
  open_file_cache max=100;
  types { }
  default_type """
    + CONTENT_TYPE
    + """;
  server {
    listen 127.0.0.1:%(port)d;
    root %(root)s;
    location ~ _gzip$ { add_header Content-Encoding gzip; }
  }
"""
)


def start_nginx(directory: Path, name: str, http: str) -> Program:
    """An nginx with these directives in its ``http`` block and with its temporary files in ``directory``."""
    # Workers of a root's nginx are otherwise nobody's, who may not enter the directory.
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    config = directory / f"{name}.conf"
    config.write_text(NGINX % {"user": user, "directory": directory, "name": name, "http": http})
    log = directory / f"{name}.log"
    return Program([required("nginx", "nginx"), "-p", str(directory), "-c", str(config), "-e", str(log)], log)
