"""Calls that never come back, from a resolver and from a file system: what else has to go on, and the end.

A FIFO that nobody writes to stands in for a file on a mount that is gone.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.daemon import REPOSITORY, Daemon, parse_logfmt, wait_until
from tests.fakes.hashing import hash_of
from tests.own_network import skip_without_own_network, unanswered
from tests.standin import StandIn
from tests.wire import CONNECTION_CLOSE, Wire, request

AT_ONCE_SECONDS = 5.0
"""Far below any time that a resolver or file is given here, which is none."""
BROWSER = ("Accept", "text/html")
CONFIG = {"exporters": {"x": {"url": "http://127.0.0.1:1/metrics"}}}
SLOW_RESOLVER = """
import os, socket
socket.getfqdn = lambda *_: open(os.environ["NAMES"]).read()
"""


def wait_for_reader(path: Path) -> int:
    """Until somebody opens it; the descriptor keeps them waiting for what is written."""
    opened: list[int] = []

    def is_open() -> bool:
        try:
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    wait_until(is_open, f"{path.name} is being read")
    return opened[0]


def test_a_resolver_that_hangs_holds_up_neither_reload_nor_page_nor_stop(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_RESOLVER)
    names = tmp_path / "names"
    os.mkfifo(names)
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "NAMES": str(names)}
    with StandIn() as proxy:
        config = {**CONFIG, "pushprox": {"proxy_url": proxy.url}}
        with Daemon(config, environment=environment, is_watched=False) as daemon:
            writer = wait_for_reader(names)
            try:
                assert "config reloaded" in daemon.reload()
                assert b"<!doctype html>" in daemon.get("/", BROWSER).expect_ok().body.lower()
                assert daemon.stop(timeout_seconds=AT_ONCE_SECONDS) == 0
                assert daemon.logged("stopped")
            finally:
                os.close(writer)


def test_names_that_nobody_resolves_hold_up_neither_other_exporters_nor_a_stop(tmp_path: Path) -> None:
    skip_without_own_network()
    named = {f"x{number}": {"url": f"http://x{number}.example.org:9100/metrics"} for number in range(3)}
    config = {
        # Only the second is reached from outside its network; by the first it asks itself.
        "listen": ["127.0.0.1:9099", f"unix:{tmp_path / 'http.sock'}"],
        "shutdown_timeout": "100ms",
        "exporters": {**named, "itself": {"url": "http://localhost:9099/metrics"}},
    }
    with Daemon(config, launcher=unanswered(tmp_path)) as daemon, ExitStack() as stack:
        (path,) = daemon.unix_paths
        in_flight = "exporter_proxy_scrapes_in_flight"
        for name in named:
            wire = stack.enter_context(daemon.connect(path))
            wire.send(request(f"/{name}/metrics", ("X-Prometheus-Scrape-Timeout-Seconds", "60")))
        wait_until(
            lambda: all(
                daemon.metrics(address=path)[in_flight, frozenset({("exporter", name)})] for name in named
            ),
            "all names are being asked for",
        )
        patience = ("X-Prometheus-Scrape-Timeout-Seconds", f"{AT_ONCE_SECONDS}")
        daemon.get("/itself/metrics", patience, address=path).expect_ok()
        assert daemon.stop(timeout_seconds=AT_ONCE_SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_configuration_that_cannot_be_read_to_its_end_holds_up_no_page_and_no_stop(
    number: signal.Signals,
) -> None:
    with Daemon(CONFIG) as daemon:
        config = daemon.directory / "config.yml"
        config.unlink()
        os.mkfifo(config)
        daemon.process.send_signal(signal.SIGHUP)
        writer = wait_for_reader(config)
        try:
            assert b"<!doctype html>" in daemon.get("/", BROWSER).expect_ok().body.lower()
            assert daemon.stop(number, timeout_seconds=AT_ONCE_SECONDS) == 0
            assert daemon.logged("stopped")
        finally:
            os.close(writer)


def test_a_password_that_is_hashed_for_a_minute_holds_up_no_stop(tmp_path: Path) -> None:
    hashed = hash_of(b"right").replace("$04$", "$20$")
    web = tmp_path / "web.yml"
    web.write_text(f"basic_auth_users: {{u: {hashed}}}\n")
    with Daemon({**CONFIG, "web_config_file": str(web)}) as daemon:
        authorization = ("Authorization", "Basic " + base64.b64encode(b"u:wrong").decode())
        patience = ("X-Prometheus-Scrape-Timeout-Seconds", "0.2")
        daemon.get("/x/metrics", authorization, patience).expect_refusal(429, "rate_limited")
        assert daemon.stop(timeout_seconds=AT_ONCE_SECONDS) == 0
        assert daemon.logged("stopped")


def test_a_reload_that_is_asked_for_while_it_starts_does_no_harm(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    os.mkfifo(config)
    command = [sys.executable, "-m", "exporter_proxy", "serve", f"--config.file={config}"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        try:
            with config.open("w") as writer:  # once it is being read
                process.send_signal(signal.SIGHUP)
                entry = {"command": [shutil.which("grep"), "^SigIgn", "/proc/self/status"]}
                yaml.safe_dump({"listen": "127.0.0.1:0", "exporters": {"x": entry}}, writer)
            assert process.stderr is not None
            listening = next(line for line in process.stderr if "msg=listening" in line)
            address, _, port = parse_logfmt(listening)["address"].rpartition(":")
            with Wire((address, int(port))) as wire:
                ignored = wire.exchange(request("/x/metrics", CONNECTION_CLOSE)).expect_ok().body.split()[1]
            assert not int(ignored, 16) & 1 << signal.SIGHUP - 1, "a command has it as any process has"
            process.terminate()
            assert process.wait(AT_ONCE_SECONDS) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_configuration_that_cannot_be_read_to_its_end_holds_up_no_stop(
    number: signal.Signals, tmp_path: Path
) -> None:
    config = tmp_path / "config.yml"
    os.mkfifo(config)
    command = [sys.executable, "-m", "exporter_proxy", "serve", f"--config.file={config}"]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        try:
            writer = wait_for_reader(config)
            try:
                process.send_signal(number)
                assert process.wait(AT_ONCE_SECONDS) == 0
            finally:
                os.close(writer)
        finally:
            process.kill()
