"""Commands that multiply, within a limit for tasks as a unit's TasksMax= is one: what the daemon still does.

What hangs, prints without end or dies in other ways is in test_commands.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.blackbox.test_commands import LOOPS, children
from tests.daemon import Daemon, wait_until
from tests.fakes.exporter import PAGE, FakeExporter
from tests.stalls import stalled_since
from tests.tasks_limit import TasksLimit, tasks_limit

TASKS = 64
BOMB = "bomb() { bomb | bomb & }; bomb; sleep 300"
LEAVING = "while :; do setsid sleep 300 & done"
"""Each child gets a session, and so a process group, of its own."""
ERRORS = "exporter_proxy_scrape_errors_total"


class Site(NamedTuple):
    daemon: Daemon
    limit: TasksLimit


def script(directory: Path, name: str, text: str) -> list[str]:
    path = directory / name
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


@contextmanager
def bombed(directory: Path, bomb: str, loop: str) -> Iterator[Site]:
    """A daemon with the exporters ``http``, ``named``, ``good`` and ``bomb``, within the limit."""
    with tasks_limit(TASKS) as limit, FakeExporter() as exporter:
        config = {
            "exporters": {
                "http": {"url": exporter.url()},
                "named": {"url": exporter.url().replace("127.0.0.1", "localhost")},
                "good": {"command": script(directory, "good", "echo 'a 1'")},
                "bomb": {"command": script(directory, "bomb", bomb), "timeout": "2s"},
            }
        }
        environment = {"EXPORTER_PROXY_LOOP": loop}
        with Daemon(config, launcher=limit.launcher, environment=environment) as daemon:
            assert daemon.process.pid in limit.pids
            daemon.get("/good/metrics").expect_ok(b"a 1\n")
            daemon.get("/http/metrics").expect_ok(PAGE)
            yield Site(daemon, limit)


def explode(site: Site) -> tuple[int, str]:
    """Scrape the bomb; while it goes off, another exporter. Status and line of the bomb's."""
    daemon, limit = site
    with daemon.connect() as wire:
        wire.send(b"GET /bomb/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_until(limit.was_reached, "the limit was reached", 15)
        daemon.get("/http/metrics").expect_ok(PAGE)
        daemon.metric(ERRORS, exporter="bomb", reason="timeout")
        reply = wire.read_reply()
    assert reply.took_seconds < 10
    return reply.status, reply.body.decode()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_fork_bomb_goes_with_its_group(tmp_path: Path, loop: str) -> None:
    began = time.monotonic()
    with bombed(tmp_path, BOMB, loop) as site:
        daemon, limit = site
        before = limit.tasks, daemon.fd_count(), daemon.rss_bytes()
        for _ in range(2):
            status, line = explode(site)
            assert status in (502, 504), line
            wait_until(lambda: not children(daemon.process.pid), "no child is left")
            wait_until(lambda: limit.tasks <= before[0], "no task is left")
            daemon.get("/good/metrics").expect_ok(b"a 1\n")
        wait_until(lambda: daemon.fd_count() <= before[1], "no descriptor is left")
        assert daemon.rss_bytes() - before[2] < 4 * 2**20
        assert daemon.metric("exporter_proxy_loop_lag_seconds") < 0.5 + stalled_since(began)
        assert "config reloaded" in daemon.reload()


@pytest.mark.parametrize("loop", LOOPS)
def test_what_leaves_the_group_is_held_by_the_limit(tmp_path: Path, loop: str) -> None:
    """It stays, up to the limit, until the unit is stopped. Only commands are in trouble, and say so."""
    with bombed(tmp_path, LEAVING, loop) as site:
        daemon, limit = site
        before = limit.tasks, daemon.fd_count()
        explode(site)
        wait_until(lambda: not children(daemon.process.pid), "no child is left")
        assert TASKS // 2 < limit.tasks <= TASKS
        # What is left may hold a task or none free; both are told or done, and nothing hangs.
        began = time.monotonic()
        for _ in range(3):
            reply = daemon.get("/good/metrics")
            if reply.status != 200:
                line = reply.expect_refusal(502, "command_failed", "good").body.decode()
                assert re.search(r"raise exporter_proxy's TasksMax|Cannot fork|Resource temporarily", line), (
                    line
                )
            daemon.get("/http/metrics").expect_ok(PAGE)
        assert time.monotonic() - began < 5 + stalled_since(began)
        assert limit.tasks <= TASKS
        limit.end_all_but(daemon.process.pid)
        wait_until(lambda: limit.tasks <= before[0], "no task is left")
        daemon.get("/good/metrics").expect_ok(b"a 1\n")
        wait_until(lambda: daemon.fd_count() <= before[1], "no descriptor is left")
        assert "config reloaded" in daemon.reload()


def test_where_no_task_is_free_the_daemon_says_so_and_lives_on(tmp_path: Path) -> None:
    """At the limit from outside: no thread and no process can be started, by whatever way."""
    with bombed(tmp_path, BOMB, "uvloop") as site:
        daemon, limit = site
        (limit.directory / "pids.max").write_text("1\n")  # fewer than there are
        line = daemon.get("/good/metrics").expect_refusal(502, "command_failed", "good").body.decode()
        assert "raise exporter_proxy's TasksMax" in line
        daemon.get("/http/metrics").expect_ok(PAGE)
        line = daemon.get("/named/metrics").expect_refusal(502, "connect", "named").body.decode()
        assert "raise exporter_proxy's TasksMax" in line
        daemon.get("/").expect_ok()
        browser = ("Accept", "text/html")  # what its page is made of is read for the first who asks
        assert (daemon.get("/", browser).expect_ok().header("content-type") or "").startswith("text/plain")
        reloaded = daemon.reload()
        (limit.directory / "pids.max").write_text(f"{TASKS}\n")
        assert "config reloaded" in reloaded or "config not reloaded" in reloaded
        daemon.get("/good/metrics").expect_ok(b"a 1\n")
        daemon.get("/named/metrics").expect_ok(PAGE)
        assert (daemon.get("/", browser).expect_ok().header("content-type") or "").startswith("text/html")
        assert "config reloaded" in daemon.reload()
        assert not [line for line in daemon.log_lines if "defect" in line]
