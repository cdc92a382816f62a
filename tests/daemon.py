"""The daemon under test: a real process, driven by signals and sockets, known by its output alone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests import forkserver
from tests.fakes.exporter import EVENT_SECONDS, FakeExporter, Script
from tests.forkserver import Forked
from tests.held import Holds, watching
from tests.stalls import stalled_since
from tests.wire import CONNECTION_CLOSE, Reply, Wire, request

REPOSITORY = Path(__file__).parent.parent
START_SECONDS = 15.0
"""Generous: on a busy machine several daemons start at once."""

STARTED: list[Daemon] = []
"""Every daemon of this run whose log may still explain a failing test; conftest.py keeps it short."""

LOGFMT_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')
RELOAD_OUTCOME = re.compile(r'\bts\W+(\S+)Z\b.*"config (?:not )?reloaded')
"""When, and that it is over."""


class DaemonFailed(Exception):
    """The daemon did not do what a test needs in order to go on; its log is in the message."""


def wait_until(condition: Callable[[], bool], what: str, timeout_seconds: float = EVENT_SECONDS) -> None:
    """Wait for a condition that nothing signals. ``what`` completes "... did not happen"."""
    began = time.monotonic()
    while not condition():
        in_time = not _is_over(began, timeout_seconds)
        assert in_time, f"within {timeout_seconds} s it did not happen that {what}"
        time.sleep(0.01)


def _is_over(began: float, timeout_seconds: float) -> bool:
    """Whether so much time has passed since then, without what stalled everyone."""
    passed = time.monotonic() - began
    return passed >= timeout_seconds and passed - stalled_since(began) >= timeout_seconds


def parse_logfmt(line: str) -> dict[str, str]:
    pairs = LOGFMT_PAIR.findall(line)
    return {key: re.sub(r"\\(.)", r"\1", value[1:-1]) if value[:1] == '"' else value for key, value in pairs}


class Daemon:
    """``exporter_proxy serve`` on ports of its own, from ``with`` to the end of the block.

    ``config`` is YAML text or the mapping it stands for; where it names no ``listen``, that is
    ``127.0.0.1:0``. The process runs in ``directory``, beside its ``config.yml``.
    """

    def __init__(
        self,
        config: str | Mapping[str, Any],
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        is_watched: bool = True,
    ) -> None:
        """``launcher`` goes before the command, and has to exec it; ``pass_fds`` stay open in it.

        ``is_watched``: whatever holds its event loop fails the test, see ``tests/loopwatch``.
        """
        self._is_watched = is_watched
        self._config = config
        self._arguments = arguments
        self._launcher = launcher
        self._pass_fds = pass_fds
        self._environment = environment or {}
        self._changed = threading.Condition()
        self.log_lines: list[str] = []
        """Standard error, line by line."""
        self.output_lines: list[str] = []
        """Standard output: the access log, where one without a path is configured."""
        self.credentials: tuple[tuple[str, str], ...] = ()
        """Headers to ask for its own metrics with, where it wants to see some."""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="exporter_proxy-")
        self.directory = Path(self._directory.name)
        listening = self.write_config(self._config)
        watched = self.directory / ".loopwatch"
        self.holds = Holds(watched)
        watch = watching(watched) if self._is_watched else {"PYTHONPATH": str(REPOSITORY)}
        serve = [sys.executable, "-m", "exporter_proxy", "serve", "--config.file=config.yml"]
        self.process = self._start([*self._launcher, *serve, *self._arguments], watch)
        STARTED.append(self)
        streams = (self.process.stdout, self.output_lines), (self.process.stderr, self.log_lines)
        self._readers = [threading.Thread(target=self._collect, args=pair, daemon=True) for pair in streams]
        for reader in self._readers:
            reader.start()
        try:
            self._wait(lambda: len(self.listening) >= listening, START_SECONDS, "it did not start to listen")
        except BaseException:
            self._discard()
            raise
        return self

    def _start(self, command: list[str], watch: Mapping[str, str]) -> subprocess.Popen[str] | Forked:
        environment = {**watch, **self._environment}
        if not self._pass_fds and self._environment.keys() <= {"EXPORTER_PROXY_LOOP"}:
            forked = forkserver.start(command, self.directory, environment)
            if forked is not None:
                return forked
        return subprocess.Popen(
            command,
            cwd=self.directory,
            pass_fds=self._pass_fds,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        hung = False
        if self.running:
            self.process.send_signal(signal.SIGTERM)
            try:
                # Twice: the second signal asks it not to wait for the scrapes that a test left hanging.
                self.process.wait(0.3)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                hung = True
        self._discard()
        if hung and failure is None:
            raise DaemonFailed(f"it did not stop at a second SIGTERM\n{self.log_tail()}")
        if failure is None:
            self.holds.check()

    def write_config(self, config: str | Mapping[str, Any]) -> int:
        """Write ``config.yml`` (for the next reload) and say how many addresses it listens on."""
        mapping = yaml.safe_load(config) if isinstance(config, str) else dict(config)
        text = config if isinstance(config, str) else yaml.safe_dump(mapping, sort_keys=False)
        if "listen" not in mapping:
            text = f'listen: "127.0.0.1:0"\n{text}'
        (self.directory / "config.yml").write_text(text)
        listen = mapping.get("listen", "")
        return len(listen) if isinstance(listen, list) else 1

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def listening(self) -> list[str]:
        """Where it says it listens, in its words and in that order."""
        return [parse_logfmt(line)["address"] for line in [*self.log_lines] if "msg=listening" in line]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Those of them that are TCP addresses."""
        pairs = [one.rpartition(":") for one in self.listening if not one.startswith("unix:")]
        return [(host.strip("[]"), int(port)) for host, _, port in pairs]

    @property
    def unix_paths(self) -> list[str]:
        """Those of them that are unix sockets, abstract ones left out."""
        return [one.removeprefix("unix:") for one in self.listening if one.startswith("unix:/")]

    @property
    def everywhere(self) -> list[tuple[str, int] | str]:
        """All that can be connected to: TCP addresses, then unix sockets."""
        return [*self.addresses, *self.unix_paths]

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, address: tuple[str, int] | str | None = None, **options: Any) -> Wire:
        """A connection to the first address, or to ``address``; the options are ``Wire``'s."""
        return Wire(address or self.everywhere[0], **options)

    def exchange(self, data: bytes, **options: Any) -> Reply:
        """These bytes on a fresh connection, and the answer."""
        with self.connect(**options) as wire:
            return wire.exchange(data)

    def raw(self, data: bytes, **options: Any) -> bytes:
        """These bytes on a fresh connection, and the bytes of the answer."""
        return self.exchange(data, **options).raw

    def get(self, target: str, *headers: tuple[str, str], method: str = "GET", **options: Any) -> Reply:
        """A plain request on a connection of its own."""
        return self.exchange(request(target, *headers, CONNECTION_CLOSE, method=method), **options)

    def metrics(self, **options: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Its own metrics: name and label set to value."""
        page = self.get("/metrics", *self.credentials, **options).expect_ok().body.decode()
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}

    def metric(self, name: str, **labels: str) -> float:
        """One sample. What can occur exists at 0 from the start, so an absent one is an error."""
        metrics = self.metrics()
        near = [dict(found) for called, found in metrics if called == name]
        assert (name, frozenset(labels.items())) in metrics, f"{name} has no {labels}, only {near}"
        return metrics[name, frozenset(labels.items())]

    def wait_for_metric(self, value: float, name: str, **labels: str) -> None:
        """A scrape is accounted for just after its last byte, so a reader may be too early."""
        wait_until(lambda: self.metric(name, **labels) == value, f"{name}{labels} became {value}")

    def reload(self) -> str:
        """SIGHUP; returns the log line that says how it went, or the first of them.

        A file with several mistakes has a line for each, which may arrive when the next reload has begun.
        """
        seen = len(self.log_lines)
        began = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        self.process.send_signal(signal.SIGHUP)

        def outcome() -> list[str]:
            lines = [RELOAD_OUTCOME.search(line) for line in self.log_lines[seen:]]
            return [found.string for found in lines if found and found[1] >= began]

        self._wait(lambda: bool(outcome()), EVENT_SECONDS, "it said nothing about a reload")
        return outcome()[0]

    def stop(self, signal_number: int = signal.SIGTERM, timeout_seconds: float = 15.0) -> int:
        """Send the signal and return the exit status."""
        self.process.send_signal(signal_number)
        status = self.process.wait(timeout_seconds)
        self._discard()
        return status

    def logged(self, message: str) -> list[dict[str, str]]:
        """The fields of each log line with exactly this message."""
        parsed = [parse_logfmt(line) for line in [*self.log_lines]]
        return [fields for fields in parsed if fields.get("msg") == message]

    def wait_for_log(self, text: str, timeout_seconds: float = EVENT_SECONDS) -> str:
        """The first line of the log with this text in it."""
        self._wait(
            lambda: any(text in line for line in self.log_lines), timeout_seconds, f"never logged {text!r}"
        )
        return next(line for line in self.log_lines if text in line)

    def wait_for_output(self, text: str, timeout_seconds: float = EVENT_SECONDS) -> str:
        """The first line of standard output with this text in it."""
        self._wait(
            lambda: any(text in line for line in self.output_lines), timeout_seconds, f"never wrote {text!r}"
        )
        return next(line for line in self.output_lines if text in line)

    def _wait_for_line(self, lines: list[str], text: str, timeout_seconds: float) -> str:
        self._wait(lambda: any(text in line for line in lines), timeout_seconds, f"never wrote {text!r}")
        return next(line for line in lines if text in line)

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_lines[-lines:])

    def descriptors(self) -> list[str]:
        """What each open descriptor leads to."""
        links = []
        for link in list(Path(f"/proc/{self.process.pid}/fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                links.append(str(link.readlink()))
        return links

    def fd_count(self) -> int:
        return len(self.descriptors())

    def rss_bytes(self) -> int:
        return self._memory_bytes("VmRSS")

    def peak_rss_bytes(self) -> int:
        """The largest resident size since ``reset_peak_rss``."""
        return self._memory_bytes("VmHWM")

    def reset_peak_rss(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def cpu_seconds(self) -> float:
        """What it has used so far, all of its threads together."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks_per_second = 100  # USER_HZ, whatever the kernel's own
        return (int(fields[11]) + int(fields[12])) / ticks_per_second

    def _memory_bytes(self, field: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        assert found, f"no {field} in {status}"
        return int(found[1]) * 1024

    def _collect(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], timeout_seconds: float, complaint: str) -> None:
        began = time.monotonic()
        with self._changed:
            while not condition():
                is_over = _is_over(began, timeout_seconds)
                if is_over or not (self.running or any(reader.is_alive() for reader in self._readers)):
                    state = "" if self.running else f" (it exited with {self.process.returncode})"
                    raise DaemonFailed(f"{complaint}{state}\n{self.log_tail()}")
                self._changed.wait(0.2)

    def _discard(self) -> None:
        """Leave nothing of it: not the process, not the pipes, not the directory."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self.holds.read()
        self._directory.cleanup()


@contextlib.contextmanager
def proxied(
    *scripts: Script, route: Mapping[str, Any] | None = None, target: str = "/metrics", **config: Any
) -> Iterator[tuple[Daemon, FakeExporter]]:
    """An exporter ``x`` that plays these scripts, and a daemon in front of it.

    ``route`` holds further keys of the exporter's entry, ``target`` is the path and query of its URL, the
    rest are top-level keys.
    """
    with FakeExporter(*scripts) as exporter:
        entry = {"url": exporter.url(target), **(route or {})}
        with Daemon({**config, "exporters": {"x": entry}}) as daemon:
            yield daemon, exporter
