"""``command`` exporters from outside: how a program is run, how a run ends, that nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, wait_until
from tests.e2e.test_command_line import run
from tests.fakes.exporter import EVENT_SECONDS
from tests.stalls import stalled_since
from tests.wire import Reply, Wire, request

ERRORS = "exporter_proxy_scrape_errors_total"
SHARED = "exporter_proxy_shared_scrapes_total"
PAGE = b"# TYPE raid_ok gauge\nraid_ok 1\n"
SLEEPS = "exec sleep 300"
LOOPS = ("asyncio", "uvloop")
OF_THE_C_LIBRARY = 1 << 31 | 1 << 32
"""Signals 32 and 33: a process that was started with them ignored takes them back with its first thread."""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., str]:
    """Writes a program and gives its path."""

    def write(text: str, interpreter: str = "/bin/sh", name: str = "program") -> str:
        path = tmp_path / name
        path.write_text(f"#!{interpreter}\n{textwrap.dedent(text)}\n")
        path.chmod(0o755)
        return str(path)

    return write


@contextmanager
def commanded(
    program: str, loop: str = "uvloop", top: dict[str, Any] | None = None, **entry: Any
) -> Iterator[Daemon]:
    exporters = {"x": {"command": [program], **entry}}
    with Daemon({**(top or {}), "exporters": exporters}, environment={"EXPORTER_PROXY_LOOP": loop}) as daemon:
        yield daemon


def children(pid: int) -> dict[int, str]:
    """The state of each child process: ``Z`` is a zombie."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found[int(entry.name)] = fields[0]
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def nothing_left(daemon: Daemon, timeout_seconds: float = EVENT_SECONDS) -> Iterator[None]:
    """What the block does leaves neither a process, zombies included, nor a descriptor."""
    daemon.get("/-/healthy").expect_ok()
    before = daemon.fd_count()
    yield
    wait_until(lambda: not children(daemon.process.pid), "no child process is left", timeout_seconds)
    wait_until(lambda: daemon.fd_count() <= before, "no descriptor is left", timeout_seconds)


def failed(daemon: Daemon, reason: str, status: int = 502) -> str:
    before = daemon.metric(ERRORS, exporter="x", reason=reason)
    line = daemon.get("/x/metrics").expect_refusal(status, reason, "x").body.decode()
    daemon.wait_for_metric(before + 1, ERRORS, exporter="x", reason=reason)
    return line


def written_pids(path: Path, count: int) -> list[int]:
    wait_until(lambda: path.exists() and len(path.read_text().split()) >= count, f"{count} pids were written")
    return [int(word) for word in path.read_text().split()]


@pytest.mark.parametrize("loop", LOOPS)
def test_what_a_command_prints_is_the_page(program: Callable[..., str], loop: str) -> None:
    with (
        commanded(program("echo '# TYPE raid_ok gauge'; echo 'raid_ok 1'"), loop) as daemon,
        nothing_left(daemon),
    ):
        for _ in range(20):
            reply = daemon.get("/x/metrics").expect_ok(PAGE)
        assert reply.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        head = daemon.get("/x/metrics", method="HEAD")
        assert (head.status, head.error, head.body) == (200, None, b"")
        daemon.wait_for_metric(21, "exporter_proxy_scrapes_total", exporter="x", code="200")
        daemon.wait_for_metric(20 * len(PAGE), "exporter_proxy_scrape_response_bytes_total", exporter="x")
        daemon.wait_for_metric(1, "exporter_proxy_exporter_up", exporter="x")


def test_what_surrounds_a_command(program: Callable[..., str], tmp_path: Path) -> None:
    """Its environment, descriptors, session and directory; and nothing of a request gets near it."""
    text = """
        import os, sys
        def label(value): return str(value).replace("\\\\", "/").replace('"', "'")
        for name, value in {
            "argv": sys.argv[1:], "env": sorted(os.environ.items()), "cwd": os.getcwd(),
            "stdin": os.readlink("/proc/self/fd/0"), "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
            "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:5],
            "signals": [line[8:24] for line in open("/proc/self/status") if line[:6] in ("SigIgn", "SigBlk")],
        }.items():
            print('x{name="%s",value="%s"} 1' % (name, label(value)))
        """
    path = program(text, f"{sys.executable} -I")
    entry = {"env": {"LANG": "C", "SECRET": "s3cr3t"}, "working_dir": str(tmp_path)}
    config = {"exporters": {"x": {"command": [path, "a b", "$HOME", ";id", "*", 5], **entry}}}
    with Daemon(config) as daemon:
        daemon.get("/x/metrics?x=$(id)").expect_refusal(403, "param")
        page = (
            daemon.get("/x/metrics", ("X-Header", "; id"), ("User-Agent", "$(id)")).expect_ok().body.decode()
        )
        shown = dict(re.findall(r'name="(\w+)",value="(.*)"} 1', page))
        assert shown["argv"] == "['a b', '$HOME', ';id', '*', '5']"
        assert (
            shown["env"].replace("('LC_CTYPE', 'C.UTF-8'), ", "") == "[('LANG', 'C'), ('SECRET', 's3cr3t')]"
        )
        assert (shown["cwd"], shown["stdin"], shown["leads"]) == (str(tmp_path), "/dev/null", "True")
        assert shown["descriptors"] == "[0, 1, 2, 3]"  # the fourth is the listing's
        # Nothing is blocked, and ignored only what is ignored wherever these tests run.
        blocked, ignored = (int(text, 16) for text in re.findall(r"[0-9a-f]{16}", shown["signals"]))
        assert (blocked, ignored & ~OF_THE_C_LIBRARY) == (0, _ignored_here() & ~OF_THE_C_LIBRARY)
        for page_path in ("/", "/-/exporters", "/metrics"):
            assert "s3cr3t" not in daemon.get(page_path).body.decode()


def _ignored_here() -> int:
    """What a Python that is started by this process ignores, but for the signals that the daemon handles."""
    status = subprocess.run(
        [sys.executable, "-I", "-c", "print(open('/proc/self/status').read())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (ignored,) = re.findall(r"^SigIgn:\s+(\w+)$", status, re.MULTILINE)
    handled = sum(1 << number - 1 for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    return int(ignored, 16) & ~handled


def test_exit_status_and_stderr_are_told(program: Callable[..., str]) -> None:
    path = program("""
        echo 'raid_ok 1'
        for i in 1 2 3 4 5; do echo "line $i" >&2; done
        printf 'la\\033[31mst \\377' >&2
        exit 3
        """)
    with commanded(path) as daemon, nothing_left(daemon):
        line = failed(daemon, "command_failed")
        told = r"line 4 | line 5 | la\x1b[31mst \xff"
        assert re.search(rf"command:{path} exited with status 3 after \d+ ms: {re.escape(told)}$", line)
        daemon.wait_for_log("exporter failing")
        (logged,) = daemon.logged("exporter failing")
        assert (logged["reason"], logged["excerpt"]) == ("command_failed", told)
        shown = daemon.get("/-/exporters").expect_ok().body.decode()
        assert '"command_failed"' in shown
        assert "line 4 | line 5 |" in shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kill -SEGV $$", "was ended by SIGSEGV"),
        ("kill -KILL $$", "was ended by SIGKILL"),
        ("exit 255", "exited with status 255 after"),
        ("exec false", "said nothing on stderr"),
    ],
)
def test_other_bad_ends(program: Callable[..., str], text: str, says: str) -> None:
    with commanded(program(f"ulimit -c 0\n{text}")) as daemon, nothing_left(daemon):
        assert says in failed(daemon, "command_failed")


def test_what_is_no_exposition_is_malformed(program: Callable[..., str]) -> None:
    with commanded(program("echo usage: raid -x")) as daemon, nothing_left(daemon):
        assert "line 1" in failed(daemon, "malformed")


def test_a_command_that_cannot_be_started(program: Callable[..., str], tmp_path: Path) -> None:
    path = program("echo a 1", "/no/such/interpreter")
    with commanded(path) as daemon, nothing_left(daemon):
        assert f"cannot start {path}: No such file or directory" in failed(daemon, "command_failed")
        Path(path).unlink()
        assert f"cannot start {path}: No such file" in failed(daemon, "command_failed")
        Path(path).write_text("no program")
        assert "Permission denied" in failed(daemon, "command_failed")
        Path(path).chmod(0o755)
        assert "Exec format error" in failed(daemon, "command_failed")
        Path(path).write_text("#!/bin/sh\necho 'a 1'")
        daemon.get("/x/metrics").expect_ok(b"a 1\n")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("text", "within_seconds"),
    [
        ("echo $$ >> pids; exec sleep 300", 1.5),
        ("echo $$ >> pids; echo 'a 1'; exec >&-; exec sleep 300", 1.5),
        # Only SIGKILL ends these, a second after the answer.
        ("trap '' TERM; echo $$ >> pids; while :; do sleep 300; done", 3.2),
        ("trap '' TERM; (sleep 300 & echo $! >> pids; wait); sleep 300", 3.2),
        ("for i in 1 2 3 4 5; do (sleep 300; :) & echo $! >> pids; done; wait", 1.5),
        ("echo $$ >> pids; kill -STOP $$", 3.2),
    ],
    ids=["hangs", "closes its output", "ignores TERM", "grandchildren ignore TERM", "many", "stopped"],
)
def test_what_hangs_is_ended_with_all_of_its_group(
    program: Callable[..., str], tmp_path: Path, text: str, within_seconds: float, loop: str
) -> None:
    with (
        commanded(program(text), loop, timeout="1s", working_dir=str(tmp_path)) as daemon,
        nothing_left(daemon, within_seconds + 1),
    ):
        began = time.monotonic()
        failed(daemon, "timeout", 504)
        pids = written_pids(tmp_path / "pids", 1)
        wait_until(lambda: not any(map(is_alive, pids)), "all are gone", within_seconds + 1)
        assert time.monotonic() - began < within_seconds + 1.5 + stalled_since(began)


def test_the_next_run_waits_for_the_end_of_the_last_one(program: Callable[..., str], tmp_path: Path) -> None:
    """However stubborn they are, there is never more than one."""
    text = "trap '' TERM; echo $$ >> pids; while :; do sleep 300; done"
    with commanded(program(text), timeout="400ms", working_dir=str(tmp_path)) as daemon, nothing_left(daemon):
        for _ in range(4):
            failed(daemon, "timeout", 504)
            assert sum(map(is_alive, written_pids(tmp_path / "pids", 1))) <= 1
        assert len(written_pids(tmp_path / "pids", 1)) <= 3


@pytest.mark.parametrize("loop", LOOPS)
def test_what_a_command_leaves_in_the_background_goes_with_it(
    program: Callable[..., str], tmp_path: Path, loop: str
) -> None:
    path = program("sleep 300 >/dev/null 2>&1 & echo $! >> pids; echo 'a 1'")
    with commanded(path, loop, working_dir=str(tmp_path)) as daemon, nothing_left(daemon):
        reply = daemon.get("/x/metrics").expect_ok(b"a 1\n")
        assert reply.took_seconds < 3
        wait_until(lambda: not any(map(is_alive, written_pids(tmp_path / "pids", 1))), "it is gone")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_that_leaves_the_group_and_holds_the_output_open(
    program: Callable[..., str], tmp_path: Path, loop: str
) -> None:
    """It lives on, out of reach; the scrape does not wait for it, and the daemon keeps nothing of it."""
    path = program(
        "setsid sh -c 'echo $$ >> pids; exec sleep 300' & while ! test -s pids; do :; done; echo 'a 1'"
    )
    with commanded(path, loop, working_dir=str(tmp_path)) as daemon:
        with nothing_left(daemon):
            reply = daemon.get("/x/metrics").expect_ok(b"a 1\n")
            assert 0.9 < reply.ended_after_seconds < 2 + reply.stalled_seconds
        (pid,) = written_pids(tmp_path / "pids", 1)
        assert is_alive(pid)
        os.kill(pid, signal.SIGKILL)


def test_fifty_children_go_at_once(program: Callable[..., str], tmp_path: Path) -> None:
    path = program("for i in $(seq 50); do sleep 300 & echo $! >> pids; done; wait")
    with commanded(path, timeout="4s", working_dir=str(tmp_path)) as daemon, nothing_left(daemon):
        failed(daemon, "timeout", 504)
        pids = written_pids(tmp_path / "pids", 50)
        wait_until(lambda: not any(map(is_alive, pids)), "all fifty are gone")


def test_what_prints_without_end_is_cut_within_bounds(program: Callable[..., str], tmp_path: Path) -> None:
    """1 GB of good lines; the daemon's memory stays as it is, and others get their turn."""
    path = program(
        "echo $$ >> pids; yes 'endless_line_of_output{label=\"value\"} 123456789' | head -c 1000000000"
    )
    entry: dict[str, Any] = {"max_response_bytes": "64MiB", "working_dir": str(tmp_path), "timeout": "60s"}
    began = time.monotonic()
    with commanded(path, **entry) as daemon, nothing_left(daemon):
        before = daemon.rss_bytes()
        daemon.reset_peak_rss()
        reply = daemon.get("/x/metrics", timeout_seconds=30)
        reply.expect_cut()
        daemon.wait_for_metric(1, ERRORS, exporter="x", reason="too_large")
        # What is shared in flight (8 MiB) is held, and copies of its pieces; not the 64 MiB.
        grown = (daemon.peak_rss_bytes() - before) / 2**20
        assert grown < 40, f"grew by {grown:.0f} MiB"
        assert daemon.metric("exporter_proxy_loop_lag_seconds") < 0.3 + stalled_since(began)


def test_much_on_stderr_is_taken_and_forgotten(program: Callable[..., str]) -> None:
    path = program("yes 'a line for nobody' | head -c 50000000 >&2; echo 'a 1'")
    with commanded(path) as daemon, nothing_left(daemon):
        before = daemon.rss_bytes()
        daemon.reset_peak_rss()
        daemon.get("/x/metrics").expect_ok(b"a 1\n")
        assert daemon.peak_rss_bytes() - before < 10 * 2**20


def test_too_large_before_anything_was_sent(program: Callable[..., str]) -> None:
    with commanded(program("seq 10000"), max_response_bytes="1KiB") as daemon, nothing_left(daemon):
        assert "max_response_bytes" in failed(daemon, "too_large")


def test_a_long_page_comes_whole_to_a_slow_reader(program: Callable[..., str]) -> None:
    """Beyond what is shared; the command is long gone when the last of its output is read."""
    path = program("seq 1 20000 | sed 's/.*/a_series_of_some_length{number=\"&\"} &/'")
    with commanded(path, share_max_bytes="1KiB") as daemon, nothing_left(daemon):
        with daemon.connect(receive_buffer_bytes=4096) as wire:
            wire.send(request("/x/metrics")).read_head()
            time.sleep(1.3)  # longer than the grace between exit and end of output
            body = wire.read_reply().expect_ok().body
        assert len(body.splitlines()) == 20000
        assert body.splitlines()[-1] == b'a_series_of_some_length{number="20000"} 20000'


def test_a_late_failure_cuts_a_long_page(program: Callable[..., str]) -> None:
    path = program("seq 1 60000 | sed 's/.*/a_series_of_some_length{number=\"&\"} &/'; exit 1")
    with commanded(path, share_max_bytes="1KiB") as daemon, nothing_left(daemon):
        daemon.get("/x/metrics").expect_cut()
        daemon.wait_for_metric(1, ERRORS, exporter="x", reason="command_failed")


@contextmanager
def waiting(daemon: Daemon, scrapes: int) -> Iterator[list[Wire]]:
    """So many scrapes under way."""
    with ExitStack() as stack:
        wires = [stack.enter_context(daemon.connect()) for _ in range(scrapes)]
        for wire in wires:
            wire.send(request("/x/metrics"))
        daemon.wait_for_metric(scrapes, "exporter_proxy_scrapes_in_flight", exporter="x")
        yield wires


GATED = "echo $$ >> pids; while ! test -e go; do sleep 0.02; done; echo 'a 1'"


@pytest.mark.parametrize("loop", LOOPS)
def test_twenty_scrapes_share_one_run(program: Callable[..., str], tmp_path: Path, loop: str) -> None:
    with commanded(program(GATED), loop, working_dir=str(tmp_path)) as daemon, nothing_left(daemon):
        with waiting(daemon, 20) as wires:
            (tmp_path / "go").touch()
            for wire in wires:
                wire.read_reply().expect_ok(b"a 1\n")
        assert len(written_pids(tmp_path / "pids", 1)) == 1
        daemon.wait_for_metric(19, SHARED, exporter="x")
        daemon.get("/x/metrics").expect_ok(b"a 1\n")
        assert len(written_pids(tmp_path / "pids", 2)) == 2, "an answer was kept that was not to be"


def test_a_run_ends_when_the_last_who_waits_leaves(program: Callable[..., str], tmp_path: Path) -> None:
    with commanded(program(GATED), working_dir=str(tmp_path)) as daemon, nothing_left(daemon):
        with waiting(daemon, 3) as (first, second, third):
            (pid,) = written_pids(tmp_path / "pids", 1)
            first.close()
            second.close()
            daemon.wait_for_metric(2, ERRORS, exporter="x", reason="client_gone")
            assert is_alive(pid)
            third.close()
            wait_until(lambda: not is_alive(pid), "the run ended", 5.0)
        daemon.wait_for_metric(3, ERRORS, exporter="x", reason="client_gone")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stop_lets_a_run_finish_and_ends_what_hangs(
    program: Callable[..., str], tmp_path: Path, loop: str
) -> None:
    with commanded(program(GATED), loop, working_dir=str(tmp_path)) as daemon, waiting(daemon, 1) as (wire,):
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for_log("msg=stopping")
        (tmp_path / "go").touch()
        wire.read_reply().expect_ok(b"a 1\n")
        assert daemon.process.wait(5) == 0
    (tmp_path / "pids").unlink()
    stubborn = program("trap '' TERM; echo $$ >> pids; while :; do sleep 300; done")
    top = {"shutdown_timeout": "200ms"}
    with commanded(stubborn, loop, top, working_dir=str(tmp_path)) as daemon, waiting(daemon, 1) as (wire,):
        (pid,) = written_pids(tmp_path / "pids", 1)
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        wire.read_reply().expect_refusal(503, "draining", "x")
        assert daemon.process.wait(10) == 0
        assert time.monotonic() - began < 4
        assert not is_alive(pid)


def test_a_reload_changes_the_command_and_lets_the_old_one_finish(
    program: Callable[..., str], tmp_path: Path
) -> None:
    with commanded(program(GATED), working_dir=str(tmp_path)) as daemon, nothing_left(daemon):
        with waiting(daemon, 1) as (wire,):
            daemon.write_config({"exporters": {"x": {"command": [program("echo 'b 1'", name="other")]}}})
            assert "config reloaded" in daemon.reload()
            daemon.get("/x/metrics").expect_ok(b"b 1\n")
            (tmp_path / "go").touch()
            wire.read_reply().expect_ok(b"a 1\n")
        daemon.write_config({"exporters": {"x": {"command": [str(tmp_path / "none")]}}})
        assert "there is no such program" in daemon.reload()
        daemon.get("/x/metrics").expect_ok(b"b 1\n")


def test_many_runs_at_once_where_they_are_wanted(program: Callable[..., str], tmp_path: Path) -> None:
    """``max_concurrent`` counts those that cannot be shared: here, pages over ``share_max_bytes``."""
    text = "echo $$ >> pids; while ! test -e go; do sleep 0.02; done; seq 1 100 | sed 's/.*/a{n=\"&\"} 1/'"
    entry: dict[str, Any] = {"max_concurrent": 3, "share_max_bytes": "10B", "working_dir": str(tmp_path)}
    replies: list[Reply] = []
    with commanded(program(text), **entry) as daemon, nothing_left(daemon):
        (tmp_path / "go").touch()
        threads = [
            threading.Thread(target=lambda: replies.append(daemon.get("/x/metrics"))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(reply.expect_ok().body.splitlines()) for reply in replies] == [100] * 6
        assert len(written_pids(tmp_path / "pids", 6)) == 6


def test_scrape_and_check_know_commands(program: Callable[..., str], tmp_path: Path) -> None:
    path = program("echo 'a 1'")
    (tmp_path / "config.yml").write_text(f"allow_clients: []\nexporters: {{x: {{command: [{path}]}}}}\n")

    checked = run(tmp_path, "check")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "config.yml: OK (1 exporter)\n", "")
    scraped = run(tmp_path, "scrape", "x")
    assert scraped.returncode == 0, scraped.stderr
    for line in (f"exporter:     x at command:{path}", "bytes:        4 on", "series:       1 in 1 families"):
        assert line in scraped.stdout
    program("echo no >&2; exit 4")
    scraped = run(tmp_path, "scrape", "x")
    assert scraped.returncode == 1
    assert "exited with status 4" in scraped.stdout
