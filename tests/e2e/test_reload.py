"""Reload, by SIGHUP and over HTTP: the new configuration as a whole, or the old one and every problem."""

from __future__ import annotations

import hashlib
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.daemon import Daemon, parse_logfmt, wait_until
from tests.fakes.exporter import EXPOSITION, PAGE, FakeExporter, head, respond, send, wait_for
from tests.wire import CONNECTION_CLOSE, Reply, request

BAD_FILES = {
    "mistakes": (
        'listen: "127.0.0.1:0"\nexporters:\n  a: {url: ftp://x/}\n  b:\n    url: http://127.0.0.1:1/\n'
        "    timeout: 10 seconds\n",
        ["config.yml:3:12: exporters.a.url: ", "config.yml:6:14: exporters.b.timeout: "],
    ),
    "not YAML": ('listen: "127.0.0.1:0"\nexporters: [\n', ["config.yml:3:1: not valid YAML: "]),
    "empty": ("", ["config.yml"]),
    "gone": (None, ["config.yml: no such file"]),
}
SUCCESSFUL = "exporter_proxy_config_last_reload_successful"
SUCCESS_TIME = "exporter_proxy_config_last_reload_success_timestamp_seconds"


@pytest.fixture
def old() -> Iterator[FakeExporter]:
    with FakeExporter(respond(body=b"old 1\n")) as exporter:
        yield exporter


@pytest.fixture
def new() -> Iterator[FakeExporter]:
    with FakeExporter(respond(body=b"new 1\n")) as exporter:
        yield exporter


def exporters(**entries: FakeExporter) -> dict[str, Any]:
    return {"exporters": {name: {"url": exporter.url()} for name, exporter in entries.items()}}


def ask_to_reload(daemon: Daemon, method: str = "POST") -> Reply:
    return daemon.get("/-/reload", method=method)


def write_bad(daemon: Daemon, text: str | None) -> None:
    if text is None:
        (daemon.directory / "config.yml").unlink()
    else:
        (daemon.directory / "config.yml").write_text(text)


def exporters_with_series(daemon: Daemon) -> set[str]:
    return {value for _, labels in daemon.metrics() for label, value in labels if label == "exporter"}


def test_sighup_replaces_the_configuration_and_counters_go_on(old: FakeExporter, new: FakeExporter) -> None:
    with Daemon(exporters(kept=old, moved=old, gone=old)) as daemon:
        for name in ("kept", "moved", "gone"):
            daemon.get(f"/{name}/metrics").expect_ok(b"old 1\n")
        first_success = daemon.metric(SUCCESS_TIME)
        assert exporters_with_series(daemon) == {"kept", "moved", "gone"}

        daemon.write_config(exporters(kept=old, moved=new, added=new))
        assert parse_logfmt(daemon.reload())["names"] == "kept,moved,added"

        daemon.get("/kept/metrics").expect_ok(b"old 1\n")
        daemon.get("/moved/metrics").expect_ok(b"new 1\n")
        daemon.get("/added/metrics").expect_ok(b"new 1\n")
        daemon.get("/gone/metrics").expect_refusal(404, "not_found")
        assert exporters_with_series(daemon) == {"kept", "moved", "added"}
        for name, scrapes in (("kept", 2), ("moved", 2), ("added", 1)):
            daemon.wait_for_metric(scrapes, "exporter_proxy_scrapes_total", exporter=name, code="200")
        assert daemon.metric(SUCCESSFUL) == 1
        assert daemon.metric(SUCCESS_TIME) > first_success
        digest = hashlib.sha256((daemon.directory / "config.yml").read_bytes()).hexdigest()
        assert daemon.metric("exporter_proxy_config_hash") == int(digest[:12], 16)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_reload_over_http_where_it_is_enabled(old: FakeExporter, new: FakeExporter, method: str) -> None:
    with Daemon(exporters(old=old), "--web.enable-lifecycle") as daemon:
        daemon.write_config(exporters(new=new))
        ask_to_reload(daemon, method).expect_ok()
        daemon.get("/new/metrics").expect_ok(b"new 1\n")
        daemon.get("/old/metrics").expect_refusal(404, "not_found")


def test_reload_over_http_is_off_by_default(old: FakeExporter, new: FakeExporter) -> None:
    with Daemon(exporters(old=old)) as daemon:
        daemon.write_config(exporters(new=new))
        reply = ask_to_reload(daemon).expect_refusal(403, "forbidden")
        assert b"--web.enable-lifecycle" in reply.body
        daemon.get("/old/metrics").expect_ok()
        daemon.get("/-/reload").expect_refusal(405, "method")
        assert daemon.get("/-/reload").header("allow") == "POST, PUT"


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_changes_nothing_and_every_problem_is_told(old: FakeExporter, name: str) -> None:
    text, problems = BAD_FILES[name]
    with Daemon(exporters(old=old), "--web.enable-lifecycle") as daemon:
        first_success = daemon.metric(SUCCESS_TIME)
        write_bad(daemon, text)

        reply = ask_to_reload(daemon)
        assert (reply.status, reply.complete) == (500, True)
        for problem in problems:
            assert sum(line.startswith(problem) for line in reply.body.decode().splitlines()) == 1, reply.body
        daemon.reload()

        def logged() -> list[str]:
            return [
                parse_logfmt(line).get("problem", "") for line in [*daemon.log_lines] if "level=error" in line
            ]

        wait_until(lambda: len(logged()) >= 2 * len(problems), "every problem was logged each time")
        for problem in problems:
            assert sum(line.startswith(problem) for line in logged()) == 2, logged()
        daemon.get("/old/metrics").expect_ok(b"old 1\n")
        assert (daemon.metric(SUCCESSFUL), daemon.metric(SUCCESS_TIME)) == (0, first_success)

        daemon.write_config(exporters(old=old))
        ask_to_reload(daemon).expect_ok()
        assert daemon.metric(SUCCESSFUL) == 1
        assert daemon.metric(SUCCESS_TIME) > first_success


Change = Callable[[FakeExporter, FakeExporter], dict[str, Any]]
CHANGES: dict[str, Change] = {
    "gone": lambda old, new: exporters(other=new),
    "elsewhere": lambda old, new: exporters(x=new),
    "other path": lambda old, new: {"exporters": {"x": {"url": old.url(), "path": "/y"}}},
    "nobody allowed": lambda old, new: {**exporters(x=old), "allow_clients": []},
    "shorter timeout": lambda old, new: {**exporters(x=old), "defaults": {"timeout": "1ms"}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_scrape_in_flight_finishes_on_the_old_configuration(
    old: FakeExporter, new: FakeExporter, name: str
) -> None:
    go_on = threading.Event()
    length = ("Content-Length", str(len(PAGE)))
    old.play([send(head(headers=[EXPOSITION, length]) + PAGE[:10]), wait_for(go_on), send(PAGE[10:])])
    with Daemon({**exporters(x=old), "keep_alive_timeout": "1m"}) as daemon, daemon.connect() as wire:
        wire.send(request("/x/metrics")).read_head()
        daemon.write_config(CHANGES[name](old, new))
        assert "config reloaded" in daemon.reload()
        go_on.set()
        wire.read_reply().expect_ok(PAGE)
        assert len(old.requests) == 1


def test_connections_made_before_obey_the_new_rules(old: FakeExporter) -> None:
    with Daemon(exporters(x=old)) as daemon, daemon.connect() as before:
        before.exchange(request("/x/metrics")).expect_ok()
        daemon.write_config({**exporters(x=old), "allow_clients": ["192.0.2.1"]})
        daemon.reload()
        before.exchange(request("/x/metrics")).expect_refusal(403, "forbidden")
        daemon.get("/x/metrics").expect_refusal(403, "forbidden")


def test_a_changed_listen_asks_for_a_restart_and_the_rest_is_in_force(
    old: FakeExporter, new: FakeExporter
) -> None:
    with Daemon(exporters(old=old)) as daemon:
        daemon.write_config({"listen": "127.0.0.1:1", **exporters(new=new)})
        daemon.reload()
        line = parse_logfmt(daemon.wait_for_log("restart"))
        assert (line["level"], line["listen"]) == ("warn", "127.0.0.1:1")
        daemon.get("/new/metrics").expect_ok()


def test_reloads_in_quick_succession_end_with_the_last_file(old: FakeExporter, new: FakeExporter) -> None:
    with Daemon(exporters(x=old)) as daemon:
        for _ in range(10):
            daemon.process.send_signal(signal.SIGHUP)
        daemon.write_config(exporters(x=new))
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: daemon.get("/x/metrics").body == b"new 1\n", "the last file was in force")
        assert daemon.running


def test_reloads_that_wait_for_one_another_are_one(old: FakeExporter, new: FakeExporter) -> None:
    """And it begins after the last of them was asked for. A FIFO is a file that takes its time."""
    config = {**exporters(x=old), "access_log": {"format": "json", "fields": ["path", "reason"]}}
    with Daemon(config, "--web.enable-lifecycle") as daemon, ThreadPoolExecutor(2) as pool:
        text = (daemon.directory / "config.yml").read_text()
        (daemon.directory / "config.yml").unlink()
        os.mkfifo(daemon.directory / "config.yml")
        first = pool.submit(ask_to_reload, daemon)
        with (daemon.directory / "config.yml").open("w") as fifo:
            for _ in range(40):
                with daemon.connect() as wire:
                    wire.send(request("/-/reload", method="POST"))
            wait_until(lambda: len(daemon.output_lines) == 40, "all of them were asked for")
            stays = pool.submit(ask_to_reload, daemon)
            (daemon.directory / "config.yml").unlink()
            daemon.write_config(exporters(x=new))
            fifo.write(text)
        first.result().expect_ok()
        stays.result().expect_ok()
        daemon.get("/x/metrics").expect_ok(b"new 1\n")
        ask_to_reload(daemon).expect_ok()
        daemon.stop()
        assert len(daemon.logged("config reloaded")) in (3, 4), "first, those who waited, stays, the last"


def test_scrapes_go_on_without_an_error_during_reloads(old: FakeExporter) -> None:
    with Daemon(exporters(x=old)) as daemon, daemon.connect() as wire:
        over = threading.Event()

        def reload_again_and_again() -> None:
            variants = [{**exporters(x=old), "defaults": {"max_concurrent": n}} for n in (1, 2)]
            for count in range(10):
                daemon.write_config(variants[count % 2])
                daemon.reload()
            over.set()

        reloading = threading.Thread(target=reload_again_and_again)
        reloading.start()
        scrapes = 0
        while not over.is_set() or scrapes < 10:
            wire.exchange(request("/x/metrics")).expect_ok(b"old 1\n")
            scrapes += 1
        reloading.join()


def certificate(directory: Path, authority: trustme.CA, name: str) -> dict[str, Any]:
    """Write a pair for 127.0.0.1 under the names that stay the same; gives the ``tls`` section."""
    pair = authority.issue_cert("127.0.0.1", common_name=name)
    pair.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    pair.private_key_pem.write_to_path(directory / "key.pem")
    return {"tls": {"certfile": str(directory / "cert.pem"), "keyfile": str(directory / "key.pem")}}


def test_a_reload_brings_a_new_certificate_and_refuses_a_mismatched_pair(
    old: FakeExporter, tmp_path: Path
) -> None:
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls = certificate(tmp_path, authority, "first")
    with Daemon({**exporters(x=old), **tls}, "--web.enable-lifecycle") as daemon:

        def presented() -> Any:
            with daemon.connect(tls=trusting) as wire:
                wire.exchange(request("/x/metrics", CONNECTION_CLOSE)).expect_ok()
                assert isinstance(wire.sock, ssl.SSLSocket)
                subject: Any = (wire.sock.getpeercert() or {})["subject"]
                return dict(pair for part in subject for pair in part)["commonName"]

        assert presented() == "first"
        with daemon.connect(tls=trusting) as before:
            certificate(tmp_path, authority, "second")
            daemon.reload()
            assert presented() == "second"
            before.exchange(request("/x/metrics")).expect_ok()

        certificate(tmp_path, authority, "third")
        (tmp_path / "key.pem").write_bytes(authority.issue_cert("127.0.0.1").private_key_pem.bytes())
        reply = daemon.get("/-/reload", method="POST", tls=trusting)
        assert reply.status == 500
        assert b"config.yml:" in reply.body
        assert presented() == "second"


@pytest.mark.parametrize(
    "logs",
    [
        {"access_log": {"path": "missing/x.log"}},
        {"access_log": {"path": "new.log"}, "error_log": {"path": "missing/x.log"}},
    ],
    ids=["access log", "error log"],
)
def test_a_log_that_cannot_be_opened_keeps_the_old_configuration(
    old: FakeExporter, logs: dict[str, Any]
) -> None:
    with Daemon(exporters(x=old), "--web.enable-lifecycle") as daemon:
        daemon.write_config({**exporters(y=old), **logs})
        reply = ask_to_reload(daemon)
        assert reply.status == 500
        assert b"missing/x.log" in reply.body
        daemon.get("/x/metrics").expect_ok()
        before = daemon.fd_count()
        for _ in range(3):
            ask_to_reload(daemon)
        wait_until(lambda: daemon.fd_count() <= before, "descriptors were as many as before")


def test_reloads_leak_neither_descriptors_nor_threads(old: FakeExporter) -> None:
    both = [{**exporters(x=old), "access_log": {"path": name}} for name in ("one.log", "two.log")]
    with Daemon(both[0]) as daemon:

        def threads() -> int:
            return len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir()))

        def turn() -> tuple[int, int]:
            for config in reversed(both):
                daemon.write_config(config)
                daemon.reload()
                daemon.get("/x/metrics").expect_ok()
            return daemon.fd_count(), threads()

        turn()
        after_one = turn()
        for _ in range(5):
            turn()
        wait_until(lambda: turn() <= after_one, "descriptors and threads were as many as before")
