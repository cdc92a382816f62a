"""Logs and the disk: a log that cannot be written costs lines, not scrapes, and a renamed one is left."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon import REPOSITORY, Daemon, parse_logfmt, proxied, wait_until
from tests.e2e.processes import MODULE, listening_port
from tests.fakes.exporter import PAGE, FakeExporter, respond
from tests.wire import Wire, request

LOST = "exporter_proxy_log_lines_lost_total"
TROUBLE = "log lines are being lost"


def scrape_until(daemon: Daemon, condition: Callable[[], bool], what: str) -> None:
    """Go on scraping, each time with success and promptly, until something has happened."""

    def scrape_and_look() -> bool:
        assert daemon.get("/x/metrics").expect_ok(PAGE).took_seconds < 2.0
        return condition()

    wait_until(scrape_and_look, what, 10.0)


def test_a_vanished_log_directory_costs_lines_not_scrapes() -> None:
    with proxied() as (daemon, exporter):
        logs = daemon.directory / "logs"
        logs.mkdir()
        entry = {"exporters": {"x": {"url": exporter.url()}}, "access_log": {"path": "logs/access.log"}}
        daemon.write_config(entry)
        daemon.reload()
        scrape_until(daemon, lambda: (logs / "access.log").stat().st_size > 0, "there was a line")
        assert daemon.metric(LOST) == 0

        (logs / "access.log").unlink()
        logs.rmdir()
        scrape_until(daemon, lambda: daemon.metric(LOST) >= 3, "lost lines were counted")
        trouble = parse_logfmt(daemon.wait_for_log(TROUBLE))
        assert trouble["level"] == "error"
        assert "logs/access.log" in trouble["problem"]

        logs.mkdir()
        scrape_until(daemon, (logs / "access.log").exists, "the log was there again")
        daemon.wait_for_log("writing logs/access.log works again")
        assert sum(TROUBLE in line for line in daemon.log_lines) == 1


def whole_lines(path: Path) -> tuple[list[str], int]:
    """The lines that are whole, and how many are not."""
    lines = path.read_text().split("\n")
    whole = [line for line in lines if re.fullmatch(r"status:200\tpath:/\S*\tmethod:GET", line)]
    return whole, len([line for line in lines if line]) - len(whole)


def assert_survives_a_full_disk(daemon: Daemon, path: Path, make_room: Callable[[], None]) -> None:
    """The disk is nearly full; ``make_room`` makes room again."""
    scrape_until(daemon, lambda: daemon.metric(LOST) >= 3, "lost lines were counted")
    daemon.wait_for_log(TROUBLE)
    make_room()
    written = path.stat().st_size
    scrape_until(daemon, lambda: path.stat().st_size > written, "lines were written again")
    daemon.wait_for_log("works again")
    assert sum(TROUBLE in line for line in daemon.log_lines) == 1
    whole, torn = whole_lines(path)
    assert whole[-1]
    assert torn <= 1, "a line that broke off was gone on with"


FULL_DISK_LOG = {"fields": ["status", "path", "method"]}


def test_a_file_at_its_size_limit_costs_lines_not_scrapes() -> None:
    with proxied(access_log={**FULL_DISK_LOG, "path": "access.log"}) as (daemon, _):
        pid, limit = daemon.process.pid, resource.RLIMIT_FSIZE
        # Python ignores SIGXFSZ, so writing beyond it fails as on a full disk, in mid-line as well.
        resource.prlimit(pid, limit, (100, resource.RLIM_INFINITY))
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        assert_survives_a_full_disk(
            daemon, daemon.directory / "access.log", lambda: resource.prlimit(pid, limit, unlimited) and None
        )


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    directory.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounting.returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a file system")
def test_a_full_disk_costs_lines_not_scrapes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        ballast, log = disk / "ballast", disk / "access.log"
        with proxied(access_log={**FULL_DISK_LOG, "path": str(log)}) as (daemon, _):
            daemon.get("/x/metrics").expect_ok()
            wait_until(lambda: log.stat().st_size > 0, "the first line was written")
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(1024))
            log.write_bytes(log.read_bytes().ljust(4090, b"\n"))  # the page that it has already is full
            assert_survives_a_full_disk(daemon, log, ballast.unlink)


def contains(path: Path, text: str) -> Callable[[], bool]:
    return lambda: path.exists() and text in path.read_text()


@pytest.mark.parametrize("log", ["access_log", "error_log"])
def test_what_a_log_has_lost_stays_counted_when_another_takes_its_place(log: str) -> None:
    with proxied() as (daemon, exporter):
        usual = {"exporters": {"x": {"url": exporter.url()}}}
        daemon.write_config({**usual, log: {"path": "/dev/full"}})
        daemon.process.send_signal(signal.SIGHUP)

        def is_lost() -> bool:
            exporter.play(respond(500), respond())  # each a line in both logs
            for status in (500, 200):
                assert daemon.get("/x/metrics").status == status
            return daemon.metric(LOST) >= 3

        wait_until(is_lost, "lines were lost")
        lines = daemon.metric(LOST)
        daemon.write_config(usual)
        daemon.reload()
        assert daemon.metric(LOST) >= lines


def test_renamed_logs_are_left_after_sighup() -> None:
    logs = {"access_log": {"path": "access.log"}, "error_log": {"path": "error.log"}}
    generations = ["first", "second", "third"]
    with proxied() as (daemon, exporter):
        access, errors = (daemon.directory / log["path"] for log in logs.values())
        daemon.write_config({"exporters": {"x": {"url": exporter.url()}}, **logs})
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(contains(errors, "config reloaded"), "the logs were opened")
        for generation in generations:
            daemon.get(f"/{generation}")
            wait_until(contains(access, f"path:/{generation}\t"), "the line was written")
            for log in (access, errors):
                log.rename(f"{log}.{generation}")
            daemon.process.send_signal(signal.SIGHUP)
            wait_until(contains(errors, "config reloaded"), "the new error log told of the reload")
        for generation in generations:
            (line,) = Path(f"{access}.{generation}").read_text().splitlines()
            assert f"path:/{generation}\t" in line
            assert len(Path(f"{errors}.{generation}").read_text().splitlines()) == 1
        assert daemon.metric(LOST) == 0


@contextmanager
def unread_output(directory: Path, config: dict[str, Any]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The daemon with an access log on a pipe that nobody reads."""
    (directory / "config.yml").write_text(yaml.safe_dump({"listen": "127.0.0.1:0", **config}))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            MODULE,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield listening_port(process), process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("reader", ["asleep", "gone"])
def test_output_that_nobody_reads_holds_up_neither_scrapes_nor_the_stop(tmp_path: Path, reader: str) -> None:
    with FakeExporter() as exporter:
        config = {"exporters": {"x": {"url": exporter.url()}}, "access_log": {"fields": ["query"]}}
        with unread_output(tmp_path, config) as (port, process), Wire(("127.0.0.1", port)) as wire:
            if reader == "gone" and process.stdout is not None:
                process.stdout.close()
            query = "q" * 8000
            for _ in range(30):  # a pipe holds 64 KiB
                assert wire.exchange(request(f"/x/metrics?{query}")).expect_ok(PAGE).took_seconds < 2.0
            process.terminate()
            assert process.wait(5) == 0
