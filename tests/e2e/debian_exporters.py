"""Starts the exporters that Debian packages, as far as they are installed, on addresses of their own.

``testdata/debian/packages.yml`` lists them; beside it is what they read. What they report on is a small real
server where one is cheap, else a canned answer, or nobody: most exporters have something to say even then.

As a program (``python -m tests.e2e.debian_exporters NAME=HOST:PORT...``) it starts those that are named, says
``ready`` and ends them with its standard input.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from string import Template
from threading import Thread

import yaml

from tests.e2e.processes import own_loopback_address, start_process

FILES = Path(__file__).parent.parent / "testdata" / "debian"
START_SECONDS = 20.0
STOP_SECONDS = 2.0
SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where daemons are; not everybody's PATH has them."""
IS_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Packaged:
    """A program of a Debian package, and how it is started: a row of ``packages.yml``."""

    name: str
    package: str
    command: str
    path: str | None = "/metrics"
    needs: tuple[str, ...] = ()
    needs_root: bool = False
    creates: str | None = None
    error: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def executable(self) -> str | None:
        """The path of the program, where it is installed."""
        program = self.command.partition(" ")[0]
        return shutil.which(program) or shutil.which(program, path=SYSTEM_PATHS)

    @property
    def with_needed(self) -> list[Packaged]:
        """This, and what it needs."""
        return [self, *(PACKAGED[name] for name in self.needs)]

    @property
    def missing(self) -> list[str]:
        """The packages that it cannot run without and that are not installed."""
        return [one.package.split()[0] for one in self.with_needed if one.executable is None]

    @property
    def is_forbidden(self) -> bool:
        """Whether only root could run it, and this is somebody else."""
        return not IS_ROOT and any(one.needs_root for one in self.with_needed)


def _packaged() -> dict[str, Packaged]:
    rows = yaml.safe_load((FILES / "packages.yml").read_text())
    return {row["name"]: Packaged(**{**row, "needs": tuple(row.get("needs", ()))}) for row in rows}


PACKAGED = _packaged()
"""All of them, each after those that it needs."""


@dataclass(frozen=True)
class Host:
    """The programs that run."""

    directory: Path
    """Where the files are that they read."""
    urls: Mapping[str, str]
    """By its name, where each one's metrics are."""
    failures: Mapping[str, str]
    """Why a program does not run; it has no URL."""


@contextmanager
def started(wanted: Iterable[Packaged], addresses: Mapping[str, str] | None = None) -> Iterator[Host]:
    """Run these programs, and what they need; by their names at ``addresses``, the others at free ones."""
    addresses = addresses or {}
    names = {one.name for packaged in wanted for one in packaged.with_needed}
    needed = {name for packaged in wanted for name in packaged.needs}
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exporters-")))
        places = {"directory": str(directory)}
        for name in PACKAGED:
            places |= _place(name, addresses.get(name) or _free_address())
        places |= _place("answers", stack.enter_context(_serving(CannedAnswers)))
        places |= _place("mqtt", stack.enter_context(_serving(MqttBroker)))
        for file in FILES.iterdir():
            if file.is_file():
                (directory / file.name).write_text(Template(file.read_text()).safe_substitute(places))
        programs = [_Program(one, directory, places) for one in PACKAGED.values() if one.name in names]
        for program in programs:
            stack.callback(program.end)
            program.start()
            if program.name in needed:
                failures |= program.failure_to_start()
        for program in programs:
            failures |= program.failure_to_start()
        urls = {one.name: one.url for one in programs if one.name not in failures}
        yield Host(directory, urls, failures)
        for program in programs:
            program.terminate()


class _Program:
    """One of them as a process."""

    def __init__(self, packaged: Packaged, directory: Path, places: Mapping[str, str]) -> None:
        self.name = packaged.name
        self._packaged = packaged
        self._directory = directory
        host, port = places[f"{self.name}_host"], places[f"{self.name}_port"]
        self._address = host, int(port)
        self._places = {**places, "listen": f"{host}:{port}", "host": host, "port": port}
        self._log = directory / f"{self.name}.log"

    @property
    def url(self) -> str:
        """Where its metrics are."""
        return self._filled(f"http://$listen{self._packaged.path or ''}")

    def start(self) -> None:
        """Start it, without waiting for it."""
        _, *arguments = shlex.split(self._filled(self._packaged.command))
        environment = {name: self._filled(text) for name, text in self._packaged.environment.items()}
        with self._log.open("wb") as log:
            self._process = start_process([str(self._packaged.executable), *arguments], environment, log)

    def failure_to_start(self) -> dict[str, str]:
        """Wait until it is ready; gives, under its name, why it is not."""
        end = time.monotonic() + START_SECONDS
        while not self._is_ready():
            status = self._process.poll()
            if status is not None or time.monotonic() > end:
                said = self._log.read_text(errors="replace")[-2000:]
                return {self.name: f"{self.name} is not ready, its status is {status}, and it said:\n{said}"}
            time.sleep(0.02)
        return {}

    def terminate(self) -> None:
        """Ask it to end, and so its children."""
        self._process.terminate()

    def end(self) -> None:
        """End it."""
        self.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        if self._packaged.creates is not None:
            return (self._directory / self._packaged.creates).exists()
        with socket.socket() as probe:
            return probe.connect_ex(self._address) == 0

    def _filled(self, text: str) -> str:
        return Template(text).substitute(self._places)


def _place(name: str, address: str) -> dict[str, str]:
    host, _, port = address.rpartition(":")
    return {name: address, f"{name}_host": host, f"{name}_port": port}


def _free_address() -> str:
    """The host is nobody else's, so the port on it stays free until it is listened on."""
    host = own_loopback_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


class CannedAnswers(BaseHTTPRequestHandler):
    """Answers with the file that is called like the path, or with an empty JSON object."""

    def do_GET(self) -> None:
        path = self.path.rpartition("://")[2].partition("?")[0]  # Squid's clients send cache_object://...
        file = FILES / "answers" / path.strip("/").replace("/", "_")
        body = file.read_bytes() if file.is_file() else b"{}"
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class MqttBroker(BaseRequestHandler):
    """As much of a broker as one subscriber needs, with one message for it."""

    def handle(self) -> None:
        topic, message = "devices/größe".encode(), b'{"temperature": -12.5}'
        published = bytes((0, len(topic))) + topic + message
        while packet := self.request.recv(4096):
            kind = packet[0] >> 4
            if kind == 1:
                self.request.sendall(b"\x20\x02\x00\x00")
            elif kind == 8:
                self.request.sendall(b"\x90\x03" + packet[2:4] + b"\x00")
                self.request.sendall(bytes((0x30, len(published))) + published)
            elif kind == 12:
                self.request.sendall(b"\xd0\x00")


class _Server(ThreadingTCPServer):
    daemon_threads = True


@contextmanager
def _serving(handler: type[BaseRequestHandler]) -> Iterator[str]:
    """A server in this process; gives its address."""
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    """Run the programs that the arguments name."""
    addresses = dict(argument.split("=") for argument in sys.argv[1:])
    with started([PACKAGED[name] for name in addresses], addresses) as host:
        print("\n".join(host.failures.values()) or "ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
