"""Commands whose output nobody takes, or who are interrupted: no traceback, and the right end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY, wait_until
from tests.e2e.processes import MODULE
from tests.e2e.test_command_line import run, write_config
from tests.e2e.test_discover_command import LEFT_OUT
from tests.fakes.exporter import FakeExporter, stall

PRINTING = ["--help", "--version", "check", "prometheus-config", "scrape x", "import expexp.yml", "discover"]
# Unbuffered, argparse passes over what it could not print.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""}
PATIENCE_SECONDS = 20


def into(
    directory: Path, command: str, output: int, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command that prints to this descriptor; what it says."""
    write_config(directory)
    (directory / "expexp.yml").write_text("modules: {a: {method: http, http: {port: 1}}}\n")
    result = subprocess.run(
        [*MODULE, *command.split()],
        cwd=directory,
        env={**ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    result.stderr = LEFT_OUT.sub(b"", result.stderr)
    return result


@pytest.mark.parametrize("command", PRINTING)
def test_a_pipe_that_nobody_reads_is_status_1_without_a_word(tmp_path: Path, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = into(tmp_path, command, writer)
    finally:
        os.close(writer)
    said = result.stderr.replace(b"exporter_proxy: no exporter was found", b"").split(b";")[0]
    assert (result.returncode, said) == (1, b"")


@pytest.mark.parametrize("command", PRINTING)
def test_a_full_disk_is_status_1_and_one_line(tmp_path: Path, command: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        result = into(tmp_path, command, full)
    finally:
        os.close(full)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        b"exporter_proxy: standard output cannot be written: No space left on device"
    )
    assert b"Traceback" not in result.stderr


def test_output_is_utf8_in_every_locale(tmp_path: Path) -> None:
    exporters = {"x": {"url": "http://127.0.0.1:1/", "labels": {"country": "\u65e5\u672c"}}}
    write_config(tmp_path, exporters=exporters)
    result = subprocess.run(
        [*MODULE, "prometheus-config"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert "\u65e5\u672c" in result.stdout.decode()


def interrupted(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C ends it by the signal, and it says nothing.

    Python hears of one that comes right before it begins to read only when it has read.
    """
    for _ in range(PATIENCE_SECONDS // 2):
        process.send_signal(signal.SIGINT)
        try:
            printed = process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            continue
        assert (process.returncode, *printed) == (-signal.SIGINT, b"", b"")
        return
    process.kill()
    pytest.fail("it went on")


def start(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            "/usr/bin/env",
            "--default-signal=INT",
            *MODULE,
            *arguments,
        ],  # a test run in the background ignores it
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "arguments",
    [["check", "--config.file=pipe"], ["prometheus-config", "--config.file=pipe"], ["import", "pipe"]],
    ids=lambda arguments: arguments[0],
)
def test_an_interrupt_ends_a_command_by_the_signal(tmp_path: Path, arguments: list[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with start(tmp_path, *arguments) as process:
        found: list[int] = []

        def is_read() -> bool:
            try:
                found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # ENXIO: nobody reads it yet
                return False
            return True

        wait_until(is_read, "the command read the pipe", PATIENCE_SECONDS)
        interrupted(process)
        os.close(found[0])


def test_an_interrupted_scrape_just_ends(tmp_path: Path) -> None:
    with FakeExporter([stall()]) as exporter:
        write_config(tmp_path, exporters={"x": {"url": exporter.url()}})
        with start(tmp_path, "scrape", "x") as process:
            wait_until(lambda: bool(exporter.requests), "the exporter was asked", PATIENCE_SECONDS)
            interrupted(process)


def test_a_defect_is_still_seen(tmp_path: Path) -> None:
    program = "from exporter_proxy import cli; cli._check = lambda _: 1 / 0; cli.main(['check'])"
    result = run(tmp_path, "-c", program, command=MODULE[:1])
    assert "ZeroDivisionError" in result.stderr
