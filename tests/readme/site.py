"""The host that README.md speaks of: its config.yml in force, two of its three exporters running.

Commands are run as they stand there, but for addresses: a test can't have port 9099 for itself. They are
put in on the way to the shell and taken out of what it prints.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.daemon import REPOSITORY, Daemon
from tests.e2e.processes import Exporter
from tests.fakes.ports import refusing_port
from tests.readme.document import Step, difference

LISTEN = "0.0.0.0:9099"
PROXY = "127.0.0.1:9099"
EXPORTERS = {"node_exporter": "127.0.0.1:9100", "redis_exporter": "127.0.0.1:9121"}
STOPPED_EXPORTER = "127.0.0.1:9104"
PROGRAMS = ("curl", "exporter_proxy", "grep", "sed")
"""What a transcript may run; a line of another program is one that this test knows nothing about."""
SERVE = re.compile(r"exporter_proxy (serve )?--?config\S*[ =]")
PATIENCE_SECONDS = 30.0
LOG_SECONDS = 15.0
"""An access log's line is written a moment after its answer."""


def printed(command: str, directory: Path, environment: Mapping[str, str]) -> str:
    """What a shell's user sees of it: both of its outputs."""
    result = subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return result.stdout


@dataclass(frozen=True, slots=True)
class Host:
    """``addresses``: README.md's address to the one that stands for it here."""

    daemon: Daemon
    addresses: Mapping[str, str]
    programs: Path

    @property
    def directory(self) -> Path:
        return self.daemon.directory

    def put_in(self, text: str) -> str:
        """README.md's text with the addresses of this host."""
        for written, real in self.addresses.items():
            text = text.replace(written, real)
        return text

    def take_out(self, text: str) -> str:
        """What was printed here, with README.md's addresses; ports too, which messages name alone."""
        text = re.sub(r"\baddress=127\.0\.0\.1:\d+", f"address={LISTEN}", text)
        for written, real in self.addresses.items():
            text = text.replace(real, written)
        for written, real in self.addresses.items():
            text = re.sub(rf"\b{real.rpartition(':')[2]}\b", written.rpartition(":")[2], text)
        return text

    def run(self, step: Step) -> None:
        """Run a command and compare what it prints. Raises AssertionError where it differs."""
        program = shlex.split(step.command)[0]
        assert program in PROGRAMS, f"{step}: the test does not know how to run {program}"
        if SERVE.match(step.command):
            complaint = difference(step.output, self.take_out(self._served(step.command)))
        else:
            end = time.monotonic() + LOG_SECONDS
            complaint = self._complaint(step)
            while complaint and program == "grep" and time.monotonic() < end:
                time.sleep(0.02)
                complaint = self._complaint(step)
        assert not complaint, f"{step}\n{complaint}"

    def _complaint(self, step: Step) -> str:
        shown = printed(self.put_in(step.command), self.directory, self._environment())
        return difference(step.output, self.take_out(shown))

    def _served(self, command: str) -> str:
        """Start another daemon with this command, until it listens; its log up to there."""
        process = subprocess.Popen(
            ["sh", "-c", f"exec {self.put_in(command)}"],
            cwd=self.directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        printed = ""
        try:
            for line in process.stderr:
                printed += line
                if "msg=listening" in line:
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(PATIENCE_SECONDS) == 0
                    return printed
            raise AssertionError(f"{command} ended with status {process.wait()}:\n{printed}")
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "LC_ALL": "C.UTF-8",
        }


@contextmanager
def host(config: str, serve_command: str, programs: Path) -> Iterator[Host]:
    """A host with README.md's ``config``, served as its ``serve_command`` says. ``programs`` is for PATH."""
    script = programs / "exporter_proxy"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m exporter_proxy "$@"\n')
    script.chmod(0o755)
    flags = shlex.split(serve_command.removeprefix("exporter_proxy "))
    assert flags[0] == "--config.file=config.yml", f"{serve_command!r} is not how this test starts the daemon"
    with ExitStack() as stack:
        addresses = {STOPPED_EXPORTER: f"127.0.0.1:{stack.enter_context(refusing_port())}"}
        for name, address in EXPORTERS.items():
            exporter = stack.enter_context(Exporter(name))
            addresses[address] = exporter.url("").removeprefix("http://")
        text = config.replace(LISTEN, "127.0.0.1:0")
        for written, real in addresses.items():
            assert written in text, f"README.md's config.yml has no {written}"
            text = text.replace(written, real)
        daemon = stack.enter_context(Daemon(text, *flags[1:]))
        yield Host(daemon, {**addresses, PROXY: f"127.0.0.1:{daemon.port}"}, programs)
