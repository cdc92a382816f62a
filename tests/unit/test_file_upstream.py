"""What is read from files, and what is not: links, pipes, devices, files that change or hang."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from exporter_proxy.config.schema import FileSource
from exporter_proxy.reasons import Reason, ScrapeError
from exporter_proxy.upstreams.file import MAX_FILES, read_files
from tests.inprocess import parts, run

MIB = 1 << 20
SOON = (b"x-prometheus-scrape-timeout-seconds", b"0.3")


def source(path: Path, pattern: str = "*.prom", follow_symlinks: bool = True) -> FileSource:
    return FileSource(str(path / pattern), None, follow_symlinks)


def read(where: FileSource, max_bytes: int = MIB) -> dict[str, bytes]:
    return {Path(file.path).name: file.content for file in read_files(where, max_bytes)}


def refusal(where: FileSource, max_bytes: int = MIB) -> tuple[Reason, str]:
    with pytest.raises(ScrapeError) as caught:
        read_files(where, max_bytes)
    return caught.value.reason, caught.value.message


def test_files_that_match_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.prom", "a.prom", "c.prom.tmp", ".hidden.prom", "B.PROM"):
        (tmp_path / name).write_text(name)
    assert list(read(source(tmp_path))) == ["a.prom", "b.prom"]
    assert list(read(source(tmp_path, "?.prom"))) == ["a.prom", "b.prom"]
    assert list(read(source(tmp_path, ".h*"))) == [".hidden.prom"]
    assert read(source(tmp_path, "a.prom")) == {"a.prom": b"a.prom"}


@pytest.mark.parametrize("pattern", ["*.prom", "x.prom"])
def test_nothing_there_is_told(tmp_path: Path, pattern: str) -> None:
    reason, message = refusal(source(tmp_path, pattern))
    assert reason is Reason.CONNECT
    assert message.startswith(f"cannot read {tmp_path}/{pattern}: no ")


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    assert refusal(source(tmp_path / "gone"))[1] == f"cannot read {tmp_path}/gone: No such file or directory"


@pytest.mark.parametrize("pattern", ["*.prom", "x.prom"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "device"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, pattern: str) -> None:
    path = tmp_path / "x.prom"
    listening = socket.socket(socket.AF_UNIX)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        listening.bind(str(path))
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    began = time.monotonic()
    assert refusal(source(tmp_path, pattern))[1] == f"cannot read {path}: not a regular file"
    assert time.monotonic() - began < 10
    listening.close()


def test_links_stay_in_the_directory_where_they_are_told_to(tmp_path: Path) -> None:
    inside, outside = tmp_path / "metrics", tmp_path / "metrics-of-others"
    for directory in (inside, outside):
        directory.mkdir()
    (outside / "secret").write_text("secret 1\n")
    (inside / "real").write_text("real 1\n")
    (inside / "a.prom").symlink_to("real")
    (tmp_path / "link").symlink_to(inside)
    assert read(source(tmp_path / "link", follow_symlinks=False)) == {"a.prom": b"real 1\n"}
    (inside / "b.prom").symlink_to(outside / "secret")
    assert set(read(source(inside))) == {"a.prom", "b.prom"}
    assert refusal(source(inside, follow_symlinks=False))[1] == (
        f"cannot read {inside}/b.prom: a symbolic link out of its directory (follow_symlinks: false)"
    )
    (inside / "b.prom").unlink()
    (inside / "b.prom").symlink_to(outside)
    assert "not a regular file" in refusal(source(inside, follow_symlinks=False))[1]


def test_the_size_is_that_of_all_files_together(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.prom").write_bytes(b"#" * 1000)
    assert len(read(source(tmp_path), 3000)) == 3
    assert refusal(source(tmp_path), 2999)[0] is Reason.TOO_LARGE
    assert refusal(source(tmp_path, "a.prom"), 999)[0] is Reason.TOO_LARGE


def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.prom").touch()
    assert refusal(source(tmp_path))[0] is Reason.TOO_LARGE
    (tmp_path / "0.prom").unlink()
    assert len(read(source(tmp_path))) == MAX_FILES


def test_names_are_shown_in_one_line_of_utf8(tmp_path: Path) -> None:
    (tmp_path / "a\nb\udcff.prom").write_text("a 1\n")
    (file,) = read_files(source(tmp_path), MIB)
    assert file.path == f"{tmp_path}/a\\nb\\xff.prom"


def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is written in place: what is seen of it is not half old and half new."""
    path = tmp_path / "x.prom"
    path.write_bytes(b"old 1\n" * 400_000)
    real_read = os.read
    reads: list[int] = []

    def read_and_change(descriptor: int, size: int) -> bytes:
        reads.append(size)
        data = real_read(descriptor, size)
        if len(reads) == 1:
            path.write_bytes(b"new 1\n" * 400_000)
        return data

    monkeypatch.setattr(os, "read", read_and_change)
    assert read(source(tmp_path), 64 * MIB) == {"x.prom": b"new 1\n" * 400_000}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_file_system_that_hangs_holds_one_thread_and_its_own_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    free = threading.Event()
    dead, alive = tmp_path / "dead", tmp_path / "alive"
    for directory in (dead, alive):
        directory.mkdir()
        (directory / "x.prom").write_text("a 1\n")
    real_listdir = os.listdir

    def listdir(path: str) -> list[str]:
        if path == str(dead):
            free.wait(20)
        return real_listdir(path)

    monkeypatch.setattr(os, "listdir", listdir)
    exporters = {
        "a": {"file": f"{dead}/*.prom"},
        "b": {"file": f"{alive}/*.prom"},
    }

    others = set(threading.enumerate())

    def reading() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one not in others and one.name == "files of a"]

    async def scenario() -> None:
        async with parts(tmp_path / "log", exporters) as inside:
            for _ in range(3):
                answered = await inside.scrape(inside.request(), [SOON])
                assert (answered.status, answered.exchange.reason) == (504, Reason.TIMEOUT)
                assert len(reading()) == 1
            other = inside.request()
            other.exchange.path = b"/b/metrics"
            assert (await inside.scrape(other)).body == b"a 1\n"
            free.set()
            assert (await inside.scrape(inside.request())).body == b"a 1\n"

    try:
        run(scenario, loop)
    finally:
        free.set()
