"""What happens to a poller in a year: the proxy goes and comes, connections are cut, names clash.

Each time the daemon finds its way back by itself, and says so in one line per change and not per retry.
"""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter_proxy.upstreams.pushprox import MAX_ANSWER_BYTES, PROBE_IDLE_SECONDS
from tests.daemon import REPOSITORY, Daemon, proxied, wait_until
from tests.fakes.exporter import (
    PAGE,
    Connection,
    FakeExporter,
    Script,
    close,
    pause,
    respond,
    send,
    stall,
    wait_for,
)
from tests.standin import FQDN, StandIn, polling, url_of

LONGEST_WAIT_SECONDS = 7.5
BACK_SECONDS = LONGEST_WAIT_SECONDS + 2.5
"""The issue's bar: recovered within ten seconds."""


def changes(daemon: Daemon) -> list[str]:
    """The states that the log tells of, in their order."""
    lines = [line for line in daemon.log_lines if 'msg="pushprox ' in line]
    words = ["connected", "failing", "polling", "stopped", "push failing", "push works again"]
    return [word for line in lines for word in words if f'msg="pushprox {word}"' in line]


def expect_changes(daemon: Daemon, *expected: str) -> None:
    """These and no others: the log is written by a thread, and comes after what it tells of."""
    wait_until(lambda: len(changes(daemon)) >= len(expected), f"{expected} were logged")
    assert changes(daemon) == [*expected]


def poll_ports(proxy: StandIn) -> list[tuple[int, str]]:
    """Local ports of connections with the proxy, and the kernel's timer of each, from /proc/net/tcp."""
    packed = struct.unpack("=I", socket.inet_aton(proxy.host))[0]
    remote = f"{packed:08X}:{proxy.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [(int(row[1].split(":")[1], 16), row[5]) for row in rows if row[2] == remote and row[3] == "01"]


def test_a_proxy_that_is_killed_and_comes_back_is_found_again_in_time() -> None:
    with polling() as (proxy, daemon, exporter):
        exporter.play(respond())
        proxy.get(url_of(daemon)).expect_ok(PAGE)
        daemon.wait_for_metric(1, "exporter_proxy_pushprox_connected")
        proxy.kill()
        daemon.wait_for_metric(0, "exporter_proxy_pushprox_connected")
        assert "failing: connection refused" in daemon.get("/").body.decode()
        failed = daemon.metric("exporter_proxy_pushprox_polls_total", result="failed")
        # Some retries later, of which nothing is said.
        wait_until(
            lambda: daemon.metric("exporter_proxy_pushprox_polls_total", result="failed") >= failed + 2,
            "it tries again",
            20,
        )
        proxy.start()
        began = time.monotonic()
        proxy.get(url_of(daemon), timeout=BACK_SECONDS, timeout_seconds=20).expect_ok(PAGE)
        assert time.monotonic() - began < BACK_SECONDS
        daemon.wait_for_metric(1, "exporter_proxy_pushprox_connected")
        expect_changes(daemon, "polling", "connected", "failing", "connected")


def test_a_proxy_that_restarts_at_once_is_not_worth_a_word() -> None:
    with polling() as (proxy, daemon, exporter):
        exporter.play(respond())
        daemon.wait_for_log("pushprox connected")
        for _ in range(3):
            proxy.kill()
            proxy.start()
            proxy.get(url_of(daemon), timeout=BACK_SECONDS, timeout_seconds=20).expect_ok(PAGE)
        assert daemon.metric("exporter_proxy_pushprox_polls_total", result="failed") >= 3
        said = changes(daemon)
        assert said[:2] == ["polling", "connected"]
        # A start takes a while; where it took longer than the first wait, that was a change.
        assert len(said) <= 2 + 2 * 3


def test_a_proxy_that_is_away_at_the_start_is_waited_for() -> None:
    with StandIn() as proxy:
        proxy.kill()
        with proxied(pushprox={"proxy_url": proxy.url, "fqdn": FQDN}) as (daemon, exporter):
            exporter.play(respond())
            daemon.wait_for_log("pushprox failing")
            assert daemon.metric("exporter_proxy_pushprox_connected") == 0
            assert daemon.metric("exporter_proxy_pushprox_last_poll_timestamp_seconds") == 0
            proxy.start()
            proxy.get(url_of(daemon), timeout=BACK_SECONDS, timeout_seconds=20).expect_ok(PAGE)
            expect_changes(daemon, "polling", "failing", "connected")


def test_the_kernel_looks_after_a_poll_that_waits() -> None:
    """Nobody says anything for hours: without probes a forgotten connection would never be noticed."""
    with polling() as (proxy, daemon, _):
        daemon.wait_for_log("pushprox connected")
        ((_, timer),) = poll_ports(proxy)
        kind, _, left = timer.partition(":")
        assert kind == "02", "the keepalive timer runs"
        assert 0 < int(left, 16) / 100 <= PROBE_IDLE_SECONDS


class FakeProxy(FakeExporter):
    """A proxy that does something other than what PushProx does; it plays scripts as an exporter would."""

    def polled(self) -> list[bytes]:
        return [request.body for request in self.requests if request.target == b"/poll"]


@contextmanager
def misled(*scripts: Script, **options: Any) -> Iterator[tuple[FakeProxy, Daemon]]:
    with FakeProxy(*scripts) as proxy:
        section = {"proxy_url": proxy.url(""), "fqdn": FQDN, **options}
        with proxied(pushprox=section) as (daemon, exporter):
            exporter.play(respond())
            yield proxy, daemon


ODD: dict[str, tuple[Script, str, str]] = {
    "error": (respond(500), "refused", "it answered 500; see its own log"),
    "moved": (respond(301, headers=[("Location", "/")]), "refused", "it answered 301"),
    "not found": (respond(404), "refused", "is the path in proxy_url right?"),
    "unauthorized": (respond(401), "refused", "does it want basic_auth or bearer_token_file?"),
    "web page": (respond(body=b"<html>"), "malformed", "what is no request: no blank line"),
    "empty": (respond(body=b""), "malformed", "what is no request"),
    "no id": (respond(body=b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n"), "malformed", "no Id"),
    "endless": (respond(body=b"x" * (MAX_ANSWER_BYTES + 1)), "failed", "more than 65536 bytes"),
    "no http": (
        [send(b"+OK\r\n"), stall()],
        "failed",
        "does not answer in HTTP; is a PushProx",
    ),
    "cut": ([send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nGET"), close()], "failed", "after 3 of 9"),
    "closed": ([close()], "failed", "closed the connection before it answered; is a PushProx proxy"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_pushprox_is_told_once_and_asked_again(case: str) -> None:
    script, result, words = ODD[case]
    with misled(script) as (proxy, daemon):
        proxy.wait_for_requests(3, 15)
        assert words in daemon.wait_for_log("pushprox failing").replace("\\", "")
        expect_changes(daemon, "polling", "failing")
        assert daemon.metric("exporter_proxy_pushprox_polls_total", result=result) >= 2
        assert set(proxy.polled()) == {FQDN.encode()}
        times = [request.received_at for request in proxy.requests[:3]]
        assert times[1] - times[0] > 0.45, "it waits before it asks again"
        assert times[2] - times[1] > 0.7, "and longer the next time"


def scrape_of(port: int, number: int, timeout: float = 15) -> Script:
    raw = (
        f"GET http://{FQDN}:{port}/x/metrics HTTP/1.1\r\nHost: {FQDN}:{port}\r\n"
        f"X-Prometheus-Scrape-Timeout-Seconds: {timeout:g}\r\nId: {number}\r\n\r\n"
    )
    return respond(body=raw.encode())


@pytest.mark.parametrize("cut", [[close()], [pause(0.2), close()]], ids=["at once", "later"])
def test_a_push_that_is_cut_is_not_repeated(cut: Script) -> None:
    with misled([stall()]) as (proxy, daemon):
        proxy.wait_for_requests(1)
        proxy.play(scrape_of(daemon.port, 1), cut, cut, cut, cut)
        proxy.drop_connections()
        wait_until(
            lambda: daemon.metric("exporter_proxy_pushprox_pushes_total", result="failed") == 1,
            "the push failed",
            15,
        )
        daemon.wait_for_log('"pushprox push failing"')
        wait_until(lambda: len(proxy.polled()) >= 2, "it polls on", 15)
        pushes = [request for request in proxy.requests if request.target == b"/push"]
        assert len(pushes) <= 1


def test_a_proxy_that_takes_no_answers_is_not_asked_without_end() -> None:
    def scrape_or_silence(connection: Connection) -> None:
        if connection.request.target == b"/push":
            connection.wait()
        (answer,) = scrape_of(daemon.port, len(proxy.requests), timeout=1.5)
        answer(connection)

    with FakeProxy([stall()]) as proxy:
        section = {"proxy_url": proxy.url(""), "fqdn": FQDN}
        with proxied(max_connections=2, pushprox=section) as (daemon, exporter):
            exporter.play(respond())
            proxy.wait_for_requests(1)
            proxy.play([scrape_or_silence])
            proxy.drop_connections()
            assert "did not take it within" in daemon.wait_for_log("pushprox push failing", 15)
            # Three were begun, the last of them to be refused; for each that ended there was one more.
            assert len(proxy.polled()) <= 3 + 3
            assert "exporter_proxy" in daemon.get("/metrics").body.decode()


def test_pushes_that_are_refused_are_told_once_for_each_exporter() -> None:
    """Such as by an nginx in front of it that takes a megabyte: large exporters fail, small ones do not."""
    with polling("--max-push-bytes", "5000") as (proxy, daemon, exporter):
        url = url_of(daemon)
        small, large = respond(), respond(body=PAGE * 100)
        for script, result in ((large, "refused"), (large, "refused"), (small, "ok"), (large, "refused")):
            exporter.drop_connections()
            exporter.play(script)
            before = daemon.metric("exporter_proxy_pushprox_pushes_total", result=result)
            reply = proxy.get(url, timeout=1.2)
            assert (reply.status == 200) == (result == "ok")
            daemon.wait_for_metric(before + 1, "exporter_proxy_pushprox_pushes_total", result=result)
        pushes = ("push failing", "push works again", "push failing")
        expect_changes(daemon, "polling", "connected", *pushes)
        assert "client_max_body_size" in daemon.wait_for_log("push failing")
        assert "exporter=x" in daemon.wait_for_log("push failing")


def test_a_push_that_nobody_takes_in_time_is_given_up() -> None:
    with misled([stall()]) as (proxy, daemon):
        proxy.wait_for_requests(1)
        proxy.play(scrape_of(daemon.port, 1, timeout=1.5), [stall()])
        proxy.drop_connections()
        assert "did not take it within 1." in daemon.wait_for_log("pushprox push failing", 15)


def test_another_client_by_the_same_name_is_named_in_the_log() -> None:
    with polling() as (proxy, daemon, _), ExitStack() as stack:
        daemon.wait_for_log("pushprox connected")
        section = {"proxy_url": proxy.url, "fqdn": FQDN}
        other, _ = stack.enter_context(proxied(pushprox=section))
        line = daemon.wait_for_log("pushprox failing", 10)
        assert f"another client polls as {FQDN}" in line
        evicted = ("exporter_proxy_pushprox_polls_total", frozenset({("result", "evicted")}))
        wait_until(lambda: daemon.metrics()[evicted] >= 3, "they evict each other", 30)
        assert daemon.metric("exporter_proxy_pushprox_connected") == 0
        expect_changes(daemon, "polling", "connected", "failing")
        wait_until(lambda: "failing" in changes(other), "the other one says so, too")
        assert changes(other).count("failing") == 1


# Reloads and stops


def test_a_reload_brings_changes_and_removes_the_section() -> None:
    with StandIn() as first, StandIn() as second, FakeExporter() as exporter:
        exporter.play(respond())
        entries = {"exporters": {"x": {"url": exporter.url()}}}
        with Daemon(entries) as daemon:

            def load(**config: Any) -> None:
                daemon.write_config({"listen": f"127.0.0.1:{daemon.port}", **entries, **config})
                assert "config reloaded" in daemon.reload()

            load(pushprox={"proxy_url": first.url, "fqdn": FQDN})
            first.get(url_of(daemon)).expect_ok(PAGE)
            polls = len(first.recorded("/poll"))

            load(pushprox={"proxy_url": first.url, "fqdn": FQDN}, shutdown_timeout="3s")
            assert len(first.recorded("/poll")) == polls, "nothing changed for its poll"

            load(pushprox={"proxy_url": [first.url, second.url], "fqdn": "other.example.org"})
            for proxy in (first, second):
                proxy.get(url_of(daemon).replace(FQDN, "other.example.org")).expect_ok(PAGE)
            assert daemon.metric("exporter_proxy_pushprox_pushes_total", result="ok") == 3

            load()
            wait_until(lambda: not poll_ports(first) + poll_ports(second), "the connections are closed")
            assert not [name for name, _ in daemon.metrics() if "pushprox" in name]
            assert first.get(url_of(daemon), timeout=0.5).status == 500

            load(pushprox={"proxy_url": second.url, "fqdn": FQDN})
            second.get(url_of(daemon)).expect_ok(PAGE)
            assert daemon.metric("exporter_proxy_pushprox_pushes_total", result="ok") == 4, "it counts on"


def test_a_scrape_under_way_is_finished_through_a_reload_that_ends_polling() -> None:
    with polling() as (proxy, daemon, exporter), ThreadPoolExecutor(1) as pool:
        go_on = threading.Event()
        exporter.play([wait_for(go_on), *respond()])
        pending = pool.submit(proxy.get, url_of(daemon), timeout=10)
        exporter.wait_for_requests(1)
        daemon.write_config(
            {"listen": f"127.0.0.1:{daemon.port}", "exporters": {"x": {"url": exporter.url()}}}
        )
        daemon.reload()
        go_on.set()
        pending.result().expect_ok(PAGE)


def test_a_defect_that_ends_polling_is_logged_and_shown_and_a_reload_begins_anew(tmp_path: Path) -> None:
    """A resolver that fails as none should stands in for it, once."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\nhonest = socket.getfqdn\n"
        "def broken(*_):\n    socket.getfqdn = honest\n    raise LookupError('planted')\n"
        "socket.getfqdn = broken\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    with StandIn() as proxy, FakeExporter() as exporter:
        config: dict[str, Any] = {"exporters": {"x": {"url": exporter.url()}}}
        config["pushprox"] = {"proxy_url": proxy.url}
        with Daemon(config, environment=environment, is_watched=False) as daemon:
            assert "planted" in daemon.wait_for_log("defect in exporter_proxy")
            assert "for a defect in exporter_proxy; see its log" in daemon.get("/").expect_ok().body.decode()
            daemon.write_config({**config, "pushprox": {"proxy_url": proxy.url, "map_ports": True}})
            daemon.reload()
            daemon.wait_for_log("pushprox connected")
            assert "for a defect" not in daemon.get("/").expect_ok().body.decode()


def test_a_stop_while_polling_is_clean_and_quick() -> None:
    with polling() as (_, daemon, _):
        daemon.wait_for_log("pushprox connected")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 3
        assert not [line for line in daemon.log_lines if "level=error" in line]


def test_a_stop_while_the_proxy_is_away_is_clean_and_quick() -> None:
    with polling() as (proxy, daemon, _):
        proxy.kill()
        daemon.wait_for_log("pushprox failing", 15)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 3


def test_a_stop_finishes_scrapes_under_way_and_takes_no_more() -> None:
    with polling() as (proxy, daemon, exporter), ThreadPoolExecutor(1) as pool:
        go_on = threading.Event()
        exporter.play([wait_for(go_on), *respond()])
        url = url_of(daemon)
        pending = pool.submit(proxy.get, url, timeout=10)
        exporter.wait_for_requests(1)
        daemon.process.send_signal(signal.SIGTERM)
        assert "scrapes_under_way=1" in daemon.wait_for_log("msg=stopping")
        assert proxy.get(url, timeout=0.5).status == 500
        go_on.set()
        pending.result().expect_ok(PAGE)
        assert daemon.process.wait(10) == 0


def test_what_hangs_at_the_end_of_a_stop_is_answered_with_a_503() -> None:
    with StandIn() as proxy:
        section = {"proxy_url": proxy.url, "fqdn": FQDN}
        with proxied([stall()], shutdown_timeout="300ms", pushprox=section) as (daemon, exporter):
            with ThreadPoolExecutor(1) as pool:
                pending = pool.submit(proxy.get, url_of(daemon), timeout=10)
                exporter.wait_for_requests(1)
                daemon.process.send_signal(signal.SIGTERM)
                pending.result().expect_refusal(503, "draining", "x")
            assert daemon.process.wait(10) == 0
