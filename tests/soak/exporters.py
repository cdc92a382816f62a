"""The exporters of the site: six of Debian's packages, one of our own with checksums, and a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.daemon import REPOSITORY
from tests.e2e.processes import (
    DATA_SOURCES,
    EXPORTER_COMMANDS,
    listening_port,
    own_loopback_address,
    redis_server,
)

CHECKSUM = "checksum"
COMMAND = "command"
COMMANDS = "commands"
"""The directory that it runs in, and nothing else does."""
HANGS = "hangs"
"""The file that makes the command hang."""
_REAL = {
    **{name: command for name, command in EXPORTER_COMMANDS.items() if name != "postgres_exporter"},
    "exporter_exporter": ("prometheus-exporter-exporter", "-config.file=modules.yml"),
}
"""Without a database postgres_exporter takes a second for each answer, all that a scrape has here."""


class NotInstalled(Exception):
    """A program that the soak needs is missing; the message names it."""


def start(
    command: list[str],
    directory: Path,
    log: str,
    environment: dict[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program in ``directory``; what it prints goes to the file ``log``. Raises NotInstalled."""
    with (directory / log).open("ab") as output:
        try:
            return subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=pass_fds,
            )
        except FileNotFoundError:
            raise NotInstalled(f"{command[0]} is not installed; .ci/setup installs it") from None


class Exporter:
    """One exporter as a process, at the same address all along."""

    def __init__(self, name: str, directory: Path, *command: str) -> None:
        self.name = name
        self._directory = directory
        self._command = command
        self._host = own_loopback_address()
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}/metrics"

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    def start(self) -> None:
        """Start it, for the first time or again where it was before."""
        address = f"{self._host}:{self._port}"
        place = f"--web.listen-address={address}"
        data_source = DATA_SOURCES.get(self.name)
        environment = {"DATA_SOURCE_NAME": data_source} if data_source else {}
        self.process = start([*self._command, place], self._directory, f"{self.name}.log", environment)
        try:
            self._port = listening_port(self.process)
        except BaseException:
            self.kill()
            raise

    def terminate(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()
        self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def suspend(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections for it, and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def exporters(directory: Path, seed: int) -> Iterator[dict[str, Exporter]]:
    """All that are processes, started; killed at the end of the block. Raises NotInstalled."""
    (directory / "modules.yml").write_text("modules: {}\n")
    (directory / "blackbox.yml").write_text("modules: {http_2xx: {prober: http}}\n")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        commands = {**_REAL, "redis_exporter": (*_REAL["redis_exporter"], f"--redis.addr={redis}")}
        found = [Exporter(name, directory, *command) for name, command in commands.items()]
        ours = (sys.executable, "-m", "tests.soak.exporter", str(seed))
        found.append(Exporter(CHECKSUM, directory, *ours))
        for exporter in found:
            exporter.start()
            stack.callback(exporter.kill)
        yield {exporter.name: exporter for exporter in found}


def write_command(directory: Path) -> list[str]:
    """A program that prints a page, and hangs while there is the file ``HANGS``; its command line."""
    (directory / COMMANDS).mkdir()
    script, page = directory / "command.sh", directory / "command.prom"
    page.write_text("# TYPE soak_command gauge\nsoak_command 1\n")
    script.write_text(f"if [ -e {directory / HANGS} ]; then /bin/sleep 1000; fi\nexec /bin/cat {page}\n")
    return ["/bin/sh", str(script)]
