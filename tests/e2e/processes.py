"""Child processes on loopback ports of their own: real exporters, a real Prometheus, a bare daemon."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

import pytest
import yaml

from tests.daemon import wait_until
from tests.held import Holds, watching

MODULE = [sys.executable, "-m", "exporter_proxy"]
START_SECONDS = 20.0
STOP_SECONDS = 20.0
PROMETHEUS = os.environ.get("PROMETHEUS", "prometheus")
"""Another one than the installed one, as of another version, can be named in the environment."""
PROMTOOL = os.environ.get("PROMTOOL", "promtool")
LISTENING = "0A"
"""The state's number in /proc/net/tcp."""

EXPORTER_COMMANDS: dict[str, tuple[str, ...]] = {
    "node_exporter": ("prometheus-node-exporter",),
    "redis_exporter": ("prometheus-redis-exporter",),
    "blackbox_exporter": ("prometheus-blackbox-exporter",),
    "process_exporter": ("prometheus-process-exporter", "-procnames=prometheus-proc"),
    "mysqld_exporter": ("prometheus-mysqld-exporter",),
    "postgres_exporter": ("prometheus-postgres-exporter",),
}
DATA_SOURCES = {
    "mysqld_exporter": "nobody:none@(127.0.0.1:1)/",
    "postgres_exporter": "postgresql://nobody:none@127.0.0.1:1/none?sslmode=disable",
}
"""Databases that are down: their exporters answer all the same, postgres_exporter after one second."""


def start_process(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program; where it is not installed the test is skipped, or fails if ``CI`` is "true"."""
    try:
        return subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    except FileNotFoundError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{command[0]} is not installed")


def listening_port(process: subprocess.Popen[bytes]) -> int:
    """Wait until a process listens, and give its TCP port as /proc has it."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"{process.args!r} ended with status {process.returncode}"
        sockets: set[str] = set()
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                sockets.add(str(link.readlink()))
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets:
                    return int(fields[1].split(":")[1], 16)
        time.sleep(0.02)
    raise AssertionError(f"{process.args!r} does not listen")


def own_loopback_address() -> str:
    """An address of 127.0.0.0/8 that nobody else uses: a port on it stays free while its owner restarts."""
    return f"127.{random.randrange(64, 128)}.{random.randrange(256)}.{random.randrange(1, 255)}"


class Exporter:
    """One of Debian's exporters, from ``with`` to the end of the block, at the same address all along."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self._arguments = arguments
        self._host = own_loopback_address()
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def url(self, path: str = "/metrics") -> str:
        return f"http://{self._host}:{self._port}{path}"

    def start(self) -> None:
        """Start it, for the first time or again where it was before."""
        listen = f"--web.listen-address={self._host}:{self._port}"
        data_source = DATA_SOURCES.get(self.name)
        self.process = start_process(
            [*EXPORTER_COMMANDS[self.name], listen, *self._arguments],
            {"DATA_SOURCE_NAME": data_source} if data_source else None,
        )
        try:
            self._port = listening_port(self.process)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def suspend(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections for it, and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis on a unix socket (it cannot choose a free port); gives its address for redis_exporter."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        socket_path = Path(directory, "redis.sock")
        options = ("--port", "0", "--unixsocket", str(socket_path), "--save", "", "--dir", directory)
        process = start_process(["redis-server", *options])
        try:
            end = time.monotonic() + START_SECONDS
            while not socket_path.exists():
                assert process.poll() is None, f"redis-server ended with status {process.returncode}"
                assert time.monotonic() < end, "redis-server does not listen"
                time.sleep(0.02)
            yield f"unix://{socket_path}"
        finally:
            process.kill()
            process.wait()


@contextmanager
def serving(directory: Path, *arguments: str) -> Iterator[int]:
    """The daemon with exactly these arguments, in ``directory``; gives its port.

    For what ``tests.daemon.Daemon`` cannot do: it needs the daemon's log, in logfmt on standard error.
    What the process prints goes to the file ``output``. It has to stop with status 0, and nothing may have
    held its event loop.
    """
    watched = directory / ".loopwatch"
    with (directory / "output").open("wb") as output:
        process = start_process(
            ["env", f"--chdir={directory}", *MODULE, *arguments], watching(watched), output
        )
    try:
        yield listening_port(process)
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0, (directory / "output").read_text()
        Holds(watched).check()
    finally:
        process.kill()
        process.wait()


class Prometheus:
    """A Prometheus with storage and port of its own, from ``with`` to the end of the block."""

    def __init__(
        self,
        scrape_configs: Sequence[Mapping[str, Any]],
        *flags: str,
        rule_files: Sequence[Path] = (),
        alertmanager: str | None = None,
        **global_config: Any,
    ) -> None:
        """``alertmanager`` is the address of one that it sends its alerts to."""
        managers = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
        self._config = {
            "global": global_config,
            "scrape_configs": list(scrape_configs),
            "rule_files": [str(file) for file in rule_files],
            "alerting": {"alertmanagers": managers},
        }
        self._flags = flags

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="prometheus-")
        directory = Path(self._directory.name)
        (directory / "prometheus.yml").write_text(yaml.safe_dump(self._config))
        with (directory / "log").open("wb") as log:
            self._process = start_process(
                [
                    PROMETHEUS,
                    f"--config.file={directory}/prometheus.yml",
                    f"--storage.tsdb.path={directory}/data",
                    "--web.listen-address=127.0.0.1:0",
                    *self._flags,
                ],
                output=log,
            )
        try:
            self._port = listening_port(self._process)
            # It listens before it has opened its storage, and until then answers 503.
            wait_until(self._is_ready, "Prometheus is ready", START_SECONDS)
        except BaseException:
            print((directory / "log").read_text())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def targets(self) -> list[dict[str, Any]]:
        """The active targets, as ``/api/v1/targets`` has them."""
        found: list[dict[str, Any]] = self._ask("targets", state="active")["activeTargets"]
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are pending or firing: labels, annotations, state."""
        found: list[dict[str, Any]] = self._ask("alerts")["alerts"]
        return found

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's vector: metric and [time, value] of each series."""
        result: list[dict[str, Any]] = self._ask("query", query=expression)["result"]
        return result

    def value(self, expression: str) -> float | None:
        """The value of the one series that ``expression`` has now, ``None`` where it has none."""
        result = self.query(expression)
        assert len(result) <= 1, f"{expression} is {len(result)} series"
        return float(result[0]["value"][1]) if result else None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url("/-/ready"), timeout=START_SECONDS):
                return True
        except urllib.error.HTTPError:
            return False

    def _ask(self, endpoint: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        url = self.url(f"/api/v1/{endpoint}?{query}")
        with urllib.request.urlopen(url, timeout=START_SECONDS) as response:
            return json.load(response)["data"]
