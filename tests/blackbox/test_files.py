"""``file`` exporters from outside: pages merged or refused, files that come, go and grow old."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, wait_until
from tests.e2e.test_command_line import run
from tests.wire import Reply, request

ERRORS = "exporter_proxy_scrape_errors_total"
MTIME = "exporter_proxy_file_mtime_seconds"
A = '# HELP job_done When.\n# TYPE job_done gauge\njob_done{job="a"} 1\n'
OTHER = "# HELP other O.\n# TYPE other gauge\nother 3\n"
B = f'# HELP job_done When.\n# TYPE job_done gauge\njob_done{{job="b"}} 2\n{OTHER}'
LOG = {"format": "json", "fields": ["status", "reason", "backend", "exporter", "size"]}

Expect = Callable[..., Reply]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    """One daemon over one directory, under several rules."""
    directory = tmp_path_factory.mktemp("textfile")
    pattern = str(directory / "*.prom")
    entries: dict[str, dict[str, Any]] = {
        "x": {"file": pattern},
        "young": {"file": pattern, "max_age": "1h"},
        "strict": {"file": pattern, "follow_symlinks": False},
        "one": {"file": str(directory / "one.prom")},
        "om": {
            "file": str(directory / "one.prom"),
            "content_type": "application/openmetrics-text; version=1.0.0",
        },
        "small": {"file": pattern, "max_response_bytes": "1KiB"},
        "kept": {"file": pattern, "share_for": "60s"},
    }
    with Daemon({"exporters": entries, "access_log": LOG}) as daemon:
        yield daemon, directory


@pytest.fixture
def daemon(serving: tuple[Daemon, Path]) -> Daemon:
    return serving[0]


@pytest.fixture
def directory(serving: tuple[Daemon, Path]) -> Iterator[Path]:
    """Empty before and after the test."""
    yield serving[1]
    for path in serving[1].iterdir():
        path.unlink()


def replace(path: Path, text: str) -> None:
    """As node_exporter's README has it: written beside it and renamed."""
    temporary = path.with_suffix(f".prom.{threading.get_ident()}")
    temporary.write_text(text)
    temporary.rename(path)


def refused(daemon: Daemon, reason: str, *says: str, exporter: str = "x") -> str:
    """The one line of a 502 for this reason, counted and logged as such."""
    before = daemon.metric(ERRORS, exporter=exporter, reason=reason)
    reply = daemon.get(f"/{exporter}/metrics").expect_refusal(502, reason, exporter)
    line = reply.body.decode()
    for word in says:
        assert word in line
    daemon.wait_for_metric(before + 1, ERRORS, exporter=exporter, reason=reason)
    return line


def test_one_file_passes_as_it_is(daemon: Daemon, directory: Path) -> None:
    page = f"# kept\n\n{A}no_line_break_at_the_end 1"
    (directory / "one.prom").write_text(page)
    for path in ("one", "x"):
        reply = daemon.get(f"/{path}/metrics").expect_ok(page.encode())
        assert reply.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    (directory / "one.prom").write_text("")
    daemon.get("/one/metrics").expect_ok(b"")


def test_openmetrics_by_its_content_type(daemon: Daemon, directory: Path) -> None:
    (directory / "one.prom").write_text("a_total 1\n# EOF\n")
    reply = daemon.get("/om/metrics").expect_ok(b"a_total 1\n# EOF\n")
    assert reply.header("content-type") == "application/openmetrics-text; version=1.0.0"
    (directory / "one.prom").write_text("a_total 1\n")
    refused(daemon, "malformed", "one.prom line 1", "# EOF", exporter="om")


def test_files_that_agree_are_one_page(daemon: Daemon, directory: Path) -> None:
    (directory / "b.prom").write_text(B)
    (directory / "a.prom").write_text(A)
    expected = f'{A}job_done{{job="b"}} 2\n{OTHER}'
    daemon.get("/x/metrics").expect_ok(expected.encode())
    promtool = shutil.which("promtool")
    if promtool is None:
        assert os.environ.get("CI") != "true", "promtool is missing"
        pytest.skip("promtool is missing")
    subprocess.run([promtool, "check", "metrics"], input=expected, text=True, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (
            "a 1\n",
            "b 1\n\na 2\n",
            ("a.prom line 1", "b.prom line 3", "the same series; keep it in one of them: a 2"),
        ),
        ("# TYPE a gauge\na 1\n", "# TYPE a counter\n", ("a.prom line 1", "b.prom line 1", "different TYPE")),
        ("# HELP a x\na 1\n", "# HELP a y\n", ("a.prom line 1", "b.prom line 1", "different HELP")),
    ],
    ids=["series", "TYPE", "HELP"],
)
def test_files_that_clash_are_both_named(
    daemon: Daemon, directory: Path, first: str, second: str, says: tuple[str, ...]
) -> None:
    (directory / "a.prom").write_text(first)
    (directory / "b.prom").write_text(second)
    refused(daemon, "file_conflict", *says)


def test_a_malformed_file_is_named_with_its_line(daemon: Daemon, directory: Path) -> None:
    (directory / "a.prom").write_text(A)
    (directory / "b.prom").write_text("b 1\nb is half writ")
    refused(daemon, "malformed", f"{directory}/b.prom line 2", "b is half writ")


def test_nothing_that_matches_is_told_and_heals(daemon: Daemon, directory: Path) -> None:
    refused(daemon, "connect", f"cannot read {directory}/*.prom: no file matches")
    refused(daemon, "connect", f"cannot read {directory}/one.prom: no such file", exporter="one")
    (directory / "one.prom").write_text(A)
    daemon.get("/x/metrics").expect_ok(A.encode())
    daemon.get("/one/metrics").expect_ok(A.encode())
    daemon.wait_for_log("exporter recovered")


def test_an_old_file_is_stale(daemon: Daemon, directory: Path) -> None:
    for name in ("a", "b", "c"):
        (directory / f"{name}.prom").write_text(f"{name} 1\n")
    daemon.get("/young/metrics").expect_ok()
    now = time.time()
    os.utime(directory / "b.prom", (now, now - 7200))
    os.utime(directory / "c.prom", (now, now - 3700))
    refused(
        daemon, "stale", f"{directory}/b.prom (and 1 more)", "2 h ago", "max_age (60 min)", exporter="young"
    )
    daemon.get("/x/metrics").expect_ok()
    mtimes = {
        dict(labels)["file"]: value
        for (name, labels), value in daemon.metrics().items()
        if name == MTIME and ("exporter", "young") in labels
    }
    assert mtimes[f"{directory}/b.prom"] == pytest.approx(now - 7200)
    assert set(mtimes) == {f"{directory}/{name}.prom" for name in "abc"}


def test_modification_times_are_in_the_own_metrics_only(daemon: Daemon, directory: Path) -> None:
    (directory / "one.prom").write_text(A)
    os.utime(directory / "one.prom", (1.0, 1_700_000_000.25))
    page = daemon.get("/one/metrics").expect_ok().body
    assert b"mtime" not in page
    assert daemon.metric(MTIME, exporter="one", file=str(directory / "one.prom")) == pytest.approx(
        1_700_000_000.25
    )
    (directory / "one.prom").unlink()
    daemon.get("/one/metrics")
    assert (
        MTIME,
        frozenset({("exporter", "one"), ("file", str(directory / "one.prom"))}),
    ) not in daemon.metrics()


def test_links_out_of_the_directory(daemon: Daemon, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(A)
    (directory / "a.prom").symlink_to(tmp_path / "elsewhere")
    daemon.get("/x/metrics").expect_ok(A.encode())
    refused(daemon, "connect", f"{directory}/a.prom", "symbolic link", exporter="strict")


def test_a_pipe_does_not_hold_it_up(daemon: Daemon, directory: Path) -> None:
    (directory / "a.prom").write_text(A)
    os.mkfifo(directory / "b.prom")
    began = time.monotonic()
    refused(daemon, "connect", f"{directory}/b.prom: not a regular file")
    assert time.monotonic() - began < 3


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root reads every file")
def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with contextlib.suppress(PermissionError):
        for parent in tmp_path.parents:
            if parent.stat().st_uid == os.geteuid() and len(parent.parts) > 2:
                parent.chmod(parent.stat().st_mode | 0o055)
    (tmp_path / "x.prom").write_text(A)
    (tmp_path / "x.prom").chmod(0)
    launcher = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    with Daemon({"exporters": {"x": {"file": f"{tmp_path}/x.prom"}}}, launcher=launcher) as daemon:
        refused(daemon, "connect", f"cannot read {tmp_path}/x.prom: Permission denied")


def test_too_large(daemon: Daemon, directory: Path) -> None:
    for name in "ab":
        (directory / f"{name}.prom").write_text(f"{name}{'x' * 600} 1\n")
    refused(daemon, "too_large", "max_response_bytes", exporter="small")
    big = "".join(f'big{{number="{number}"}} 1\n' for number in range(400_000))
    (directory / "a.prom").write_text(big)
    refused(daemon, "too_large", "can be merged")
    (directory / "b.prom").unlink()
    assert daemon.get("/x/metrics", timeout_seconds=30).expect_ok().body.decode() == big


def test_no_parameters_and_no_other_methods(daemon: Daemon, directory: Path) -> None:
    (directory / "one.prom").write_text(A)
    daemon.get("/one/metrics?a=1").expect_refusal(403, "param")
    daemon.get("/one/metrics", method="POST").expect_refusal(405, "method")
    head = daemon.get("/one/metrics", method="HEAD")
    assert (head.status, head.error, head.body) == (200, None, b"")
    (directory / "one.prom").unlink()
    head = daemon.get("/one/metrics", method="HEAD")
    assert (head.status, head.error) == (502, "connect")


def test_bytes_and_backend_are_told(daemon: Daemon, directory: Path) -> None:
    (directory / "a.prom").write_text(A)
    name = "exporter_proxy_scrape_response_bytes_total"
    before, seen = daemon.metric(name, exporter="x"), len(daemon.output_lines)
    daemon.get("/x/metrics").expect_ok()
    daemon.wait_for_metric(before + len(A), name, exporter="x")
    expected = {"status": 200, "backend": f"file:{directory}/*.prom", "exporter": "x", "size": len(A)}

    def entries() -> list[dict[str, Any]]:
        return [json.loads(line) for line in daemon.output_lines[seen:]]

    wait_until(lambda: any(expected.items() <= entry.items() for entry in entries()), "it was logged")


def test_an_answer_can_be_kept(daemon: Daemon, directory: Path) -> None:
    (directory / "a.prom").write_text(A)
    daemon.get("/kept/metrics").expect_ok(A.encode())
    (directory / "a.prom").unlink()
    reply = daemon.get("/kept/metrics", ("Accept", "anything"), ("User-Agent", "other")).expect_ok(A.encode())
    assert reply.header("age") == "0"


def test_renamed_files_are_never_seen_by_halves(daemon: Daemon, directory: Path) -> None:
    """Two jobs replace their files as fast as they can while it is scraped from several connections."""
    stopping = threading.Event()

    def page(job: str, version: int) -> str:
        return (
            "# TYPE job gauge\n"
            + f'job{{job="{job}",part="1"}} {version}\n'
            + f'job{{job="{job}",part="2"}} {version}\n'
        )

    def write(job: str) -> None:
        version = 0
        while not stopping.is_set():
            version += 1
            replace(directory / f"{job}.prom", page(job, version))
            time.sleep(0.0005)

    jobs = ("a", "b")
    for job in jobs:
        replace(directory / f"{job}.prom", page(job, 0))
    writers = [threading.Thread(target=write, args=(job,)) for job in jobs]
    for writer in writers:
        writer.start()
    seen: set[bytes] = set()
    try:
        with ExitStack() as stack:
            wires = [stack.enter_context(daemon.connect()) for _ in range(4)]
            for _ in range(50):
                for path, wire in zip(("x", "strict", "x", "young"), wires, strict=True):
                    wire.send(request(f"/{path}/metrics"))
                for wire in wires:
                    body = wire.read_reply().expect_ok().body
                    lines = body.decode().splitlines()
                    assert len(lines) == 5, body
                    assert lines[1].split()[1] == lines[2].split()[1]
                    assert lines[3].split()[1] == lines[4].split()[1]
                    seen.add(body)
    finally:
        stopping.set()
        for writer in writers:
            writer.join()
    assert len(seen) > 20, "the files did not change meanwhile"


def test_a_file_and_a_url_in_turn(tmp_path: Path) -> None:
    """A reload changes what a name stands for; its counters go on."""
    (tmp_path / "a.prom").write_text("a 1\n")
    (tmp_path / "b.prom").write_text("b 1\n")
    with Daemon({"exporters": {"x": {"file": f"{tmp_path}/a.prom"}}}) as daemon:
        daemon.get("/x/metrics").expect_ok(b"a 1\n")
        daemon.write_config({"exporters": {"x": {"file": f"{tmp_path}/b.prom"}}})
        assert "config reloaded" in daemon.reload()
        daemon.get("/x/metrics").expect_ok(b"b 1\n")
        daemon.wait_for_metric(2, "exporter_proxy_scrapes_total", exporter="x", code="200")
        daemon.write_config({"exporters": {"x": {"file": f"{tmp_path}/none/b.prom"}}})
        assert "there is no such directory" in daemon.reload()
        daemon.get("/x/metrics").expect_ok(b"b 1\n")


def test_scrape_and_check_know_files(tmp_path: Path) -> None:
    (tmp_path / "a.prom").write_text(A)
    config = tmp_path / "config.yml"
    config.write_text("allow_clients: []\nexporters: {x: {file: '*.prom'}, none: {file: none.prom}}\n")

    checked = run(tmp_path, "check")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "config.yml: OK (2 exporters)\n", "")
    scraped = run(tmp_path, "scrape", "x")
    assert scraped.returncode == 0, scraped.stderr
    for line in (
        "exporter:     x at file:*.prom",
        f"bytes:        {len(A)} on",
        "series:       1 in 1 families",
    ):
        assert line in scraped.stdout
    missing = run(tmp_path, "scrape", "none")
    assert missing.returncode == 1
    assert "cannot read none.prom: no such file" in missing.stdout
