"""The command line from outside: what it takes, what it prints, the status it exits with."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter_proxy import __version__
from exporter_proxy.cli import DEFAULT_CONFIG_FILES
from tests.daemon import REPOSITORY, Daemon
from tests.e2e.processes import MODULE, serving
from tests.fakes.exporter import FakeExporter, close, head, pause, respond, send, stall
from tests.fakes.ports import refusing_port
from tests.wire import CONNECTION_CLOSE, Wire, request

BAD_CONFIGS = REPOSITORY / "tests/testdata/config/bad"
PATIENCE_SECONDS = 20


def run(directory: Path, *arguments: str, command: list[str] = MODULE) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [*command, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def write_config(directory: Path, name: str = "config.yml", **config: Any) -> Path:
    config.setdefault("listen", "127.0.0.1:0")
    config.setdefault("exporters", {"x": {"url": "http://127.0.0.1:1/metrics"}})
    path = directory / name
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("spelling", ["--version", "-version"])
def test_version(tmp_path: Path, spelling: str) -> None:
    result = run(tmp_path, spelling)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"exporter_proxy {__version__}\n", "")


def test_the_console_script_is_the_module(tmp_path: Path) -> None:
    script = shutil.which("exporter_proxy", path=str(Path(sys.executable).parent))
    if script is None:
        assert os.environ.get("CI") != "true", "exporter_proxy is not installed beside this Python"
        pytest.skip("exporter_proxy is not installed beside this Python")
    assert run(tmp_path, "-version", command=[script]).stdout == f"exporter_proxy {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("serve",),
        ("-config", "other.yml"),
        ("-config=other.yml",),
        ("--config=other.yml",),
        ("--config", "other.yml"),
        ("--config.file=other.yml",),
        ("--config.file", "other.yml"),
        ("serve", "--config.file=other.yml"),
        ("serve", "-config", "other.yml"),
    ],
    ids=" ".join,
)
def test_every_spelling_serves_the_file_it_names(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    named = "other" if "other.yml" in " ".join(arguments) else "config"
    for name in ("config", "other"):
        write_config(tmp_path, f"{name}.yml", exporters={name: {"url": "http://127.0.0.1:1/metrics"}})
    with serving(tmp_path, *arguments) as port, Wire(("127.0.0.1", port)) as wire:
        wire.exchange(request(f"/{named}/metrics")).expect_refusal(502, "connect", named)


def test_flags_beat_their_keys(tmp_path: Path) -> None:
    write_config(tmp_path, listen="127.0.0.1:1", route_prefix="/of-the-file")
    flags = ("--web.listen-address=127.0.0.1:0", "--web.route-prefix=/of-the-flag")
    with serving(tmp_path, *flags) as port, Wire(("127.0.0.1", port)) as wire:
        wire.exchange(request("/of-the-flag/x/metrics")).expect_refusal(502, "connect", "x")
        wire.exchange(request("/of-the-file/x/metrics", CONNECTION_CLOSE)).expect_refusal(404, "not_found")


def test_listens_on_every_address_given(tmp_path: Path) -> None:
    write_config(tmp_path)
    with Daemon((tmp_path / "config.yml").read_text(), "--web.listen-address=127.0.0.2:0") as one:
        assert [host for host, _ in one.addresses] == ["127.0.0.2"]
    config = {"listen": ["127.0.0.1:0", "127.0.0.2:0"], "exporters": {"x": {"url": "http://127.0.0.1:1/"}}}
    with Daemon(config) as two:
        assert [host for host, _ in two.addresses] == ["127.0.0.1", "127.0.0.2"]
        for address in two.addresses:
            with two.connect(address) as wire:
                wire.exchange(request("/-/ready")).expect_ok()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--no-such-flag",),
        ("no-such-command",),
        ("serve", "--log.level=loud"),
        ("serve", "--log.format=xml"),
        ("serve", "--config.file"),
        ("serve", "--config.file="),
        ("check", "--config.file="),
        ("discover", "--write="),
        ("import", "expexp.yml", "--write="),
        ("serve", "extra"),
        ("check", "--web.enable-lifecycle"),
        ("scrape",),
        ("scrape", "nobody"),
    ],
    ids=" ".join,
)
def test_usage_errors_are_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_config(tmp_path)
    result = run(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("exporter_proxy")
    assert "Traceback" not in result.stderr


def test_an_unknown_flag_gets_the_usage_of_its_command(tmp_path: Path) -> None:
    result = run(tmp_path, "check", "--web.enable-lifecycle")
    assert result.stderr.startswith("usage: exporter_proxy check [-h] [--config.file FILE]")
    assert result.stderr.endswith(
        "exporter_proxy check: error: unrecognized arguments: --web.enable-lifecycle\n"
    )


@pytest.mark.skipif(
    Path(DEFAULT_CONFIG_FILES[1]).exists(), reason=f"this host has an {DEFAULT_CONFIG_FILES[1]}"
)
@pytest.mark.parametrize("command", ["", "serve", "check", "scrape x", "prometheus-config"])
def test_without_any_config_one_line_says_how_to_come_by_one(tmp_path: Path, command: str) -> None:
    result = run(tmp_path, *command.split())
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(
        r"exporter_proxy: no configuration: there is neither config\.yml nor /etc/\S+; .* "
        r"exporter_proxy discover --write=config\.yml\n",
        result.stderr,
    )


@pytest.mark.parametrize("command", ["serve", "check", "scrape x"])
def test_a_missing_config_is_status_1_and_one_line(tmp_path: Path, command: str) -> None:
    result = run(tmp_path, *command.split(), "--config.file=nowhere.yml")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"nowhere\.yml: no such file.*\n", result.stderr)


@pytest.mark.parametrize("command", ["serve", "check", "scrape x"])
def test_ten_mistakes_are_ten_positioned_lines(tmp_path: Path, command: str) -> None:
    shutil.copy(BAD_CONFIGS / "ten-mistakes.yml", tmp_path / "config.yml")
    result = run(tmp_path, *command.split())
    assert (result.returncode, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 10
    assert all(re.match(r"config\.yml:\d+:\d+: [\w .\[\]]+: .{10}", line) for line in lines), lines


def test_check_counts_the_exporters(tmp_path: Path) -> None:
    write_config(tmp_path)
    result = run(tmp_path, "check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "config.yml: OK (1 exporter)\n", "")
    entries = {f"x{number}": {"url": f"http://127.0.0.1:{number}/metrics"} for number in range(1, 6)}
    write_config(tmp_path, listen="0.0.0.0:0", exporters=entries)
    result = run(tmp_path, "check", "--config.file=config.yml")
    assert (result.returncode, result.stdout) == (0, "config.yml: OK (5 exporters)\n")
    assert result.stderr.startswith("config.yml: warning: everyone")


def test_an_address_in_use_is_status_1_and_one_line(tmp_path: Path) -> None:
    write_config(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run(tmp_path, f"--web.listen-address={address}")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(
        rf"exporter_proxy: cannot listen on {address}: address already in use.*\n", result.stderr
    )


def test_a_log_that_cannot_be_written_is_status_1_and_one_line(tmp_path: Path) -> None:
    write_config(tmp_path, access_log={"path": "missing/access.log"})
    result = run(tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"exporter_proxy: .*missing/access\.log.*\n", result.stderr)


def scraped(directory: Path, exporter: FakeExporter, **route: Any) -> tuple[int, dict[str, str], str]:
    """``scrape x``: its status, its rows, and the line below them."""
    write_config(directory, exporters={"x": {"url": exporter.url(), **route}})
    result = run(directory, "scrape", "x")
    assert result.stderr == ""
    in_column_14 = re.compile(r"[a-z ]+: +(?<=^.{14})\S")
    rows = [line for line in result.stdout.splitlines() if in_column_14.match(line)]
    rest = [line for line in result.stdout.splitlines() if line not in rows]
    pairs = [line.split(":", 1) for line in rows]
    return result.returncode, {label: value.strip() for label, value in pairs}, "\n".join(rest)


def milliseconds(text: str) -> float:
    return float(text.removesuffix(" ms"))


def test_scrape_of_an_exporter_that_is_up(tmp_path: Path) -> None:
    page = b'# TYPE a counter\na 1\n# TYPE b gauge\nb{c="1"} 1\nb{c="2"} 2\n'
    with FakeExporter([pause(0.05), *respond(body=page)]) as exporter:
        status, rows, rest = scraped(tmp_path, exporter)
        assert exporter.request.header("x-prometheus-scrape-timeout-seconds") is not None
    assert (status, rest) == (0, "")
    assert exporter.url() in rows["exporter"]
    assert rows["status"] == "200"
    assert rows["deadline"] == "9.5 s"
    assert milliseconds(rows["connect"]) < 50 <= milliseconds(rows["first byte"])
    assert milliseconds(rows["first byte"]) <= milliseconds(rows["total"])
    assert rows["bytes"] == f"{len(page)} on the wire, {len(page)} decoded"
    assert rows["content type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert rows["series"] == "3 in 2 families"


@pytest.mark.parametrize(
    ("content_type", "page", "problem"),
    [
        ("text/html", b"<html>\n", "line 1: "),
        ("text/plain", b"a 1\nnot a page {\n", "line 2: "),
        ("application/openmetrics-text; version=1.0.0", b"# TYPE a counter\na_total 1\n", "# EOF"),
    ],
)
def test_scrape_of_a_page_that_prometheus_refuses(
    tmp_path: Path, content_type: str, page: bytes, problem: str
) -> None:
    with FakeExporter(respond(headers=[("Content-Type", content_type)], body=page)) as exporter:
        status, rows, rest = scraped(tmp_path, exporter)
    assert (status, rows["status"], rows["reason"]) == (1, "200", "none")
    assert "series" not in rows
    assert rest.startswith("problem: ")
    assert problem in rest


def test_scrape_of_a_status_that_is_no_200(tmp_path: Path) -> None:
    with FakeExporter([send(b"HTTP/1.1 204 No Content\r\n\r\n"), close()]) as exporter:
        status, rows, rest = scraped(tmp_path, exporter)
    assert (status, rows["status"], rows["reason"]) == (1, "204", "upstream_status")
    assert "answered 204, which is no success to Prometheus" in rest


def test_scrape_shows_no_escapes_of_the_exporters(tmp_path: Path) -> None:
    with FakeExporter(respond(headers=[("Content-Type", "text/plain; a=\x9b2J")])) as exporter:
        _, rows, _ = scraped(tmp_path, exporter)
    assert rows["content type"] == r"text/plain; a=\x9b2J"


def test_scrape_of_nobody_there(tmp_path: Path) -> None:
    with refusing_port() as port:
        write_config(tmp_path, exporters={"x": {"url": f"http://127.0.0.1:{port}/metrics"}})
        result = run(tmp_path, "scrape", "x")
    assert result.returncode == 1
    assert re.search(r"^status: +502$", result.stdout, re.MULTILINE)
    assert re.search(r"^reason: +connect$", result.stdout, re.MULTILINE)
    assert f"connection refused by 127.0.0.1:{port}" in result.stdout.splitlines()[-1]


def test_scrape_of_an_exporter_that_is_too_slow(tmp_path: Path) -> None:
    with FakeExporter([stall()]) as exporter:
        status, rows, rest = scraped(tmp_path, exporter, timeout="300ms")
    assert (status, rows["status"], rows["reason"], rows["deadline"]) == (1, "504", "timeout", "0.3 s")
    assert 300 <= milliseconds(rows["total"]) < 1500
    assert rest.startswith("x: ")
    assert "0.3 s" in rest


def test_scrape_of_an_exporter_that_breaks_off(tmp_path: Path) -> None:
    truncated = [send(head(headers=[("Content-Length", "100")]) + b"a 1\n"), close()]
    with FakeExporter(truncated) as exporter:
        status, rows, rest = scraped(tmp_path, exporter)
    assert (status, rows["reason"]) == (1, "truncated")
    assert "4 of 100" in rest


def test_scrape_gives_the_advice_of_the_error_body(tmp_path: Path) -> None:
    with refusing_port() as port:
        exporters = {"x": {"url": f"http://127.0.0.1:{port}/metrics"}}
        write_config(tmp_path, exporters=exporters)
        said = run(tmp_path, "scrape", "x").stdout.splitlines()[-1]
        with Daemon({"exporters": exporters}) as daemon:
            body = daemon.get("/x/metrics").body.decode()
    without_time = re.compile(r"\d+ ms")
    assert without_time.sub("", f"exporter_proxy: {said}\n") == without_time.sub("", body)
