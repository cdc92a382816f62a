"""``exporter_proxy discover``: what it prints of real exporters, and what it adds to which file.

Other tests have exporters on this host, too: only those that a test has started are looked at.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon import REPOSITORY, wait_until
from tests.e2e.debian_exporters import PACKAGED, started
from tests.e2e.processes import MODULE, Exporter
from tests.e2e.test_discover import listeners_in_range
from tests.own_network import alone, skip_without_own_network

EIGHT = (
    *("node_exporter", "mysqld_exporter", "redis_exporter", "postgres_exporter"),
    *("blackbox_exporter", "process_exporter", "exporter_exporter", "apache_exporter"),
)
PATIENCE_SECONDS = 30.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


Result = subprocess.CompletedProcess[str]


LEFT_OUT = re.compile(rb"exporter_proxy: left out: .* did not answer within 2\.5 s\r?\n")
"""Other tests have sockets that do not answer."""


def run(directory: Path, *arguments: str) -> Result:
    """Without the lines of LEFT_OUT."""
    result = subprocess.run(
        [*MODULE, "discover", *arguments],
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    said = LEFT_OUT.sub(b"", result.stderr).decode()
    return Result(result.args, result.returncode, result.stdout.decode(), said)


def discover(directory: Path, *arguments: str, status: int = 0) -> Result:
    result = run(directory, *arguments)
    assert result.returncode == status, result.stderr
    return result


def repeated(
    directory: Path, *arguments: str, has_found: Callable[[Result], bool], status: int = 0
) -> Result:
    """``discover`` until it has found what there is: on a busy machine that may not answer in time."""
    results: list[Result] = []

    def is_complete() -> bool:
        results.append(run(directory, *arguments))
        return has_found(results[-1])

    wait_until(is_complete, "the exporter was found", PATIENCE_SECONDS)
    assert results[-1].returncode == status, results[-1].stderr
    return results[-1]


def refused(directory: Path, *arguments: str) -> Result:
    """``discover`` that fails, and not because it found nothing."""
    return repeated(
        directory, *arguments, has_found=lambda one: "no exporter was found" not in one.stderr, status=1
    )


def check(file: Path) -> None:
    subprocess.run([*MODULE, "check", f"--config.file={file}"], env=ENVIRONMENT, check=True, timeout=20)


def origin(url: str) -> str:
    return "/".join(url.split("/")[:3])


def entries(text: str) -> dict[str, str]:
    """URL's origin to name, of a configuration."""
    return {origin(entry["url"]): name for name, entry in yaml.safe_load(text)["exporters"].items()}


def is_named(found: str, name: str, url: str) -> bool:
    """Another test may have an exporter of that name, which makes them both carry their ports."""
    return found in (name, f"{name}_{url.rpartition(':')[2]}")


def test_eight_of_debians_exporters_are_all_named(tmp_path: Path) -> None:
    packaged = [PACKAGED[name] for name in EIGHT]
    missing = sorted({package for one in packaged for package in one.missing})
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"not installed: {', '.join(missing)}")
    with started(packaged) as host:
        assert not host.failures
        urls = {name: origin(host.urls[name]) for name in EIGHT}
        found: dict[str, str] = {}

        def are_all_named() -> bool:
            # On a busy machine one of them may not answer in time.
            printed = json.loads(discover(tmp_path, "--format=json").stdout)
            found.clear()
            found.update({origin(one["url"]): one["name"] for one in printed})
            return all(is_named(found.get(url, ""), name, url) for name, url in urls.items())

        wait_until(are_all_named, f"{urls} were all named", PATIENCE_SECONDS)


def test_a_configuration_and_a_table_of_the_same(tmp_path: Path) -> None:
    with Exporter("node_exporter") as exporter:

        def has_it(result: Result) -> bool:
            return exporter.url() in result.stdout

        text = repeated(tmp_path, has_found=has_it).stdout
        assert is_named(entries(text)[exporter.url("")], "node_exporter", exporter.url(""))
        config = tmp_path / "config.yml"
        config.write_text(text)
        check(config)
        table = repeated(tmp_path, "--format=table", has_found=has_it).stdout.splitlines()
        assert table[0].split() == ["NAME", "URL", "PID", "PROCESS"]
        row = next(line.split() for line in table if exporter.url() in line)
        assert row[2:] == [str(exporter.process.pid), "prometheus-node-exporter"]


# Exporters of other tests must not be asked as well, so this host has a network of its own.
ALONE = """
import http.server, json, subprocess, sys, threading

asked = []

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"magrathea_planets 1\\n")

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
threading.Thread(target=server.serve_forever, daemon=True).start()
for flags in ([], ["--all"]):
    command = [sys.executable, "-m", "exporter_proxy", "discover", "--format=json", *flags]
    found = subprocess.check_output(command)
    print(json.dumps([server.server_port, json.loads(found), asked]))
"""


def test_all_asks_also_where_no_exporter_is_to_be_expected(tmp_path: Path) -> None:
    skip_without_own_network()
    command = alone(sys.executable, "-c", ALONE)
    every: list[Any] = []

    def has_found_one() -> bool:
        printed = subprocess.check_output(command, cwd=tmp_path, env=ENVIRONMENT, timeout=PATIENCE_SECONDS)
        usual, every[:] = (json.loads(line) for line in printed.splitlines())
        assert usual[1:] == [[], []]
        return bool(every[1])

    wait_until(has_found_one, "it was found", PATIENCE_SECONDS)
    port, found, asked = every
    assert [(one["name"], one["url"]) for one in found] == [
        (f"port_{port}", f"http://127.0.0.1:{port}/metrics")
    ]
    assert asked == ["/metrics"]


NONE_FOUND = "no exporter was found; --all asks every socket of this host, not only those like exporters'"
ALL_ASKED = "no exporter was found, and every socket of this host was asked"


@pytest.mark.parametrize(
    ("arguments", "printed", "said", "status"),
    [
        (["--format=table"], "NAME  URL  PID  PROCESS\n", f"exporter_proxy: {NONE_FOUND}\n", 0),
        (["--format=json", "--all"], "[]\n", f"exporter_proxy: {ALL_ASKED}\n", 0),
        (["--write=new.yml"], "", f"new.yml: not created: {NONE_FOUND}\n", 1),
    ],
)
def test_on_a_host_without_exporters_it_says_so_and_what_to_try(
    tmp_path: Path, arguments: list[str], printed: str, said: str, status: int
) -> None:
    skip_without_own_network()
    result = subprocess.run(
        alone(*MODULE, "discover", *arguments),
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (result.stdout, result.stderr, result.returncode) == (printed, said, status)
    assert not [*tmp_path.iterdir()]


def test_a_socket_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with listeners_in_range("127.0.0.1") as listeners:
        url = f"http://127.0.0.1:{listeners[0].getsockname()[1]}/metrics"
        result = subprocess.run(
            [*MODULE, "discover"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
    lines = [line for line in result.stderr.splitlines(keepends=True) if f" {url} ".encode() in line]
    assert len(lines) == 1
    assert LEFT_OUT.fullmatch(lines[0])
    assert url not in result.stdout.decode()


def test_who_serves_what_was_found_is_told_what_was_left_out(tmp_path: Path) -> None:
    with listeners_in_range("127.0.0.1") as listeners:
        port = listeners[0].getsockname()[1]
        serving = subprocess.Popen(
            [*MODULE, "serve", "--discover", "--web.listen-address=127.0.0.1:0"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert serving.stdout
            lines = list(takewhile(lambda line: line != "Ctrl-C stops it.\n", serving.stdout))
        finally:
            serving.terminate()
            serving.communicate(timeout=PATIENCE_SECONDS)
    begin = f"  left out: http://127.0.0.1:{port}/metrics"
    assert [line.startswith(begin) for line in lines].count(True) == 1


def discover_on_a_terminal(directory: Path) -> tuple[bytes, bytes]:
    """What it shows there, and what it prints."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MODULE, "discover"],
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:
        pass  # EIO: the other end is closed
    os.close(ours)
    return LEFT_OUT.sub(b"", shown), process.communicate(timeout=PATIENCE_SECONDS)[0]


def test_a_terminal_shows_progress_on_one_line_and_then_nothing_of_it(tmp_path: Path) -> None:
    said: list[tuple[bytes, bytes]] = []

    def all_were_asked() -> bool:
        said.append(discover_on_a_terminal(tmp_path))
        return re.search(rb"asked (\d+) of \1 sockets\r\x1b\[K$", said[-1][0]) is not None

    with Exporter("node_exporter"):
        wait_until(all_were_asked, "all sockets were asked in time", PATIENCE_SECONDS)
    shown, printed = said[-1]
    lines = shown.split(b"\r\x1b[K")
    assert b"\n" not in shown
    assert lines[0] == lines[-1] == b""
    total = lines[1].split()[3]
    assert lines[1] == b"asked 0 of %b sockets" % total
    assert lines[-2] == b"asked %b of %b sockets" % (total, total)
    assert b"\x1b" not in printed


COMMENTED = """# Ours.
listen: "127.0.0.1:0"

exporters:
    # The machine.
    redis_exporter: {{url: {kept}}}   # moved
    #later:

# Logs.
access_log: {{}}
"""


def test_write_adds_what_is_new_and_keeps_the_rest(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    link = tmp_path / "link.yml"
    link.symlink_to("config.yml")
    with Exporter("node_exporter") as exporter, Exporter("redis_exporter", "--redis.addr=unix:///x") as new:
        text = COMMENTED.format(kept=exporter.url("/elsewhere"))
        config.write_text(text)
        config.chmod(0o640)

        def has_added_it(_: Result) -> bool:
            if new.url() in config.read_text():
                return True
            config.write_text(text)
            return False

        result = repeated(tmp_path, "--write=link.yml", has_found=has_added_it)
        written = config.read_text()
        # The name is another one's, so this one carries its port.
        name = f"redis_exporter_{new.url('').rpartition(':')[2]}"
        assert result.stdout.startswith("link.yml: added ")
        assert name in result.stdout
        assert entries(written)[new.url("")] == name
        assert entries(written)[exporter.url("")] == "redis_exporter"
        begin, _, end = text.partition("    #later:\n")
        assert written.startswith(f"{begin}    #later:\n    # ")
        assert written.endswith(end)
        assert f"\n    {name}:\n      url: {new.url()}\n" in written
        assert link.is_symlink()
        assert config.stat().st_mode & 0o7777 == 0o640
        check(config)
        # Once more, and both are known.
        repeated(tmp_path, "--write=config.yml", has_found=lambda one: one.returncode == 0)
        assert config.read_text().startswith(written[: -len(end)])
        assert list(entries(config.read_text())).count(new.url("")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yml", "link.yml"]


def test_write_creates_a_file_that_is_not_there(tmp_path: Path) -> None:
    with Exporter("node_exporter") as exporter:
        new = tmp_path / "new.yml"

        def has_it(result: Result) -> bool:
            if exporter.url() in result.stdout:
                return True
            new.unlink(missing_ok=True)
            return False

        result = repeated(tmp_path, "--write=new.yml", "--format=json", has_found=has_it)
        assert result.stderr.startswith("new.yml: created with ")
        assert exporter.url() in [one["url"] for one in json.loads(result.stdout)]
    assert exporter.url("") in entries(new.read_text())
    check(tmp_path / "new.yml")


UNWRITABLE: list[tuple[str, str]] = [
    ("exporters: {a: {url: 'http://127.0.0.1:1/'}}\n", "it is not a mapping with one exporter a line"),
    ("exporters:\n  a: {url: 'http://127.0.0.1:1/', nonsense: 1}\n", "exporters.a.nonsense: unknown key"),
    ("exporters: [\n", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "why"), UNWRITABLE)
def test_a_file_that_cannot_be_added_to_stays_as_it_is(tmp_path: Path, text: str, why: str) -> None:
    config = tmp_path / "config.yml"
    config.write_text(text)
    with Exporter("node_exporter"):
        result = refused(tmp_path, "--write=config.yml")
    assert why in result.stderr.splitlines()[0]
    assert all(line.startswith("config.yml:") for line in result.stderr.splitlines())
    assert result.stdout == ""
    assert config.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.yml"]


def test_a_directory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with Exporter("node_exporter"):
        result = refused(tmp_path, "--write=no/config.yml")
    assert result.stderr == f"no/config.yml: not written: there is no directory {tmp_path.resolve()}/no\n"


def test_usage(tmp_path: Path) -> None:
    assert "--format" in discover(tmp_path, "--format=xml", status=2).stderr
