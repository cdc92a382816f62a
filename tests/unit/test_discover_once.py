"""``discover --write``: what becomes of a file, and what is said where nothing can become of it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter_proxy.config import ConfigError
from exporter_proxy.discover import FoundExporter
from exporter_proxy.discover_once import write

FOUND = [FoundExporter("node_exporter", "http://127.0.0.1:9100/metrics", 9100, None, None)]

KNOWN = "exporters:\n  a: {url: http://127.0.0.1:1/metrics}\n"
NO_ID = 0xFFFFFFFF
ACCESS = "system.posix_acl_access"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A directory that the test may not look into; root may everywhere, so it becomes nobody for a while."""
    directory = tmp_path / "locked"
    directory.mkdir(mode=0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield directory
    finally:
        if is_root:
            os.seteuid(0)


def refusal(file: Path | str, found: list[FoundExporter] = FOUND) -> str:
    with pytest.raises(ConfigError) as caught:
        write(found, str(file), asked_all=False)
    return str(caught.value)


def test_a_place_out_of_reach(locked: Path) -> None:
    for file in (locked / "config.yml", locked / "below" / "config.yml"):
        assert refusal(file) == f"{file}: not written: Permission denied"


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    for file in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "config.yml"):
        assert refusal(file) == f"{file}: not written: File name too long"


def acl(group: int, mask: int) -> bytes:
    """As the kernel has it: nobody may read; the group and the mask have these rights."""
    entries = ((1, 6, NO_ID), (2, 4, 65534), (4, group, NO_ID), (0x10, mask, NO_ID), (0x20, 0, NO_ID))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_acl(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip("this file system has no ACLs")


def test_the_acl_stays_and_the_group_gets_no_more_than_it_had(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(KNOWN)
    set_acl(file, ACCESS, acl(group=0, mask=4))
    os.setxattr(file, "user.note", b"ours")
    before = file.stat().st_mode
    assert write(FOUND, str(file), asked_all=False).startswith(f"{file}: added 1 exporter")
    assert os.getxattr(file, ACCESS) == acl(group=0, mask=4)
    assert os.getxattr(file, "user.note") == b"ours"
    assert file.stat().st_mode == before


def test_a_directory_gives_a_file_no_acl_that_it_had_not(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(KNOWN)
    set_acl(tmp_path, "system.posix_acl_default", acl(group=6, mask=6))
    write(FOUND, str(file), asked_all=False)
    assert ACCESS not in os.listxattr(file)


def test_exporters_of_included_files_are_known(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.yml").write_text("exporters: {b: {url: 'http://127.0.0.1:9100/metrics'}}\n")
    (tmp_path / "conf.d" / "broken.yml").write_text("exporters: [\n")
    (tmp_path / "conf.d" / "odd.yml").mkdir()
    file = tmp_path / "config.yml"
    text = f"{KNOWN}include: [conf.d/*.yml, nowhere.yml]\n"
    file.write_text(text)
    assert write(FOUND, str(file), asked_all=False) == f"{file}: nothing to add, 1 exporter found"
    assert file.read_text() == text


def test_names_and_paths_that_are_taken_elsewhere_are_not_given_again(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("exporters: {node_exporter: {url: 'http://127.0.0.1:1/'}}\n")
    file = tmp_path / "config.yml"
    for route in ("/node_exporter_9100/metrics", "{path: /node_exporter_9100/metrics}"):
        file.write_text(f"include: [a.yml]\nmodule_route: {route}\n")
        assert write(FOUND, str(file), asked_all=False) == f"{file}: added 1 exporter: node_exporter_9101"


def test_mistakes_have_their_places_in_the_file_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    text = f"{KNOWN}  b: {{url: 'http://127.0.0.1:2/', nonsense: 1}}\naccess_log: {{nonsense: 2}}\n"
    file.write_text(text)
    first, second, last = refusal(file).splitlines()
    assert first.startswith(f"{file}:3:35: exporters.b.nonsense: unknown key")
    assert second.startswith(f"{file}:4:14: access_log.nonsense: unknown key")
    assert last == f"{file}: nothing was written; correct this first"
    assert file.read_text() == text


def test_a_mistake_that_the_new_lines_would_bring_has_no_place(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(KNOWN)
    found = [FoundExporter("no name", "http://127.0.0.1:9100/metrics", 9100, None, None)]
    first, last = refusal(file, found).splitlines()
    assert first.startswith(f"{file}: exporters.no name: ")
    assert last == f"{file}: nothing was written; correct this first"


def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/null")):
        assert refusal(file) == f"{file}: not a regular file; name another with --write"
    assert refusal(tmp_path) == f"{tmp_path}: is a directory; name the file in it with --write"


@pytest.mark.parametrize("text", ["", "# Ours.\n"])
def test_a_file_without_a_word_gets_the_section(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yml"
    file.write_text(text)
    assert write(FOUND, str(file), asked_all=False) == f"{file}: added 1 exporter: node_exporter"
    added = "exporters:\n  node_exporter:\n    url: http://127.0.0.1:9100/metrics\n"
    assert file.read_text() == text + added


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "localhost", socket.gethostname(), "[::1]"])
def test_an_exporter_is_known_by_each_name_of_this_host(tmp_path: Path, host: str) -> None:
    file = tmp_path / "config.yml"
    file.write_text(f"exporters: {{a: {{url: 'http://{host}:9100/metrics'}}}}\n")
    assert write(FOUND, str(file), asked_all=False) == f"{file}: nothing to add, 1 exporter found"
