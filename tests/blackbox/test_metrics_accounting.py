"""What the daemon counts of itself: every scrape once, under the right words, and nothing left in flight."""

from __future__ import annotations

import gzip
import json
import threading

import pytest

from exporter_proxy.reasons import DENIAL_STATUS, SCRAPE_ERROR_STATUS
from tests.daemon import Daemon, proxied, wait_until
from tests.fakes.exporter import PAGE, FakeExporter, Script, close, reset, respond, send, stall, wait_for
from tests.wire import request

SCRAPES = "exporter_proxy_scrapes_total"
ERRORS = "exporter_proxy_scrape_errors_total"
DENIED = "exporter_proxy_requests_denied_total"
IN_FLIGHT = "exporter_proxy_scrapes_in_flight"
DURATION = "exporter_proxy_scrape_duration_seconds"
BYTES = "exporter_proxy_scrape_response_bytes_total"
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def test_every_reason_exists_at_zero_from_the_start() -> None:
    with proxied() as (daemon, _):
        metrics = daemon.metrics()
        errors = {
            dict(labels)["reason"]: value for (name, labels), value in metrics.items() if name == ERRORS
        }
        denials = {
            dict(labels)["reason"]: value for (name, labels), value in metrics.items() if name == DENIED
        }
        assert errors == {reason.value: 0 for reason in SCRAPE_ERROR_STATUS}
        assert denials == {reason.value: 0 for reason in DENIAL_STATUS}
        assert metrics[SCRAPES, frozenset({("exporter", "x"), ("code", "200")})] == 0
        assert metrics[IN_FLIGHT, frozenset({("exporter", "x")})] == 0
        assert not [name for name, _ in metrics if name.endswith("_created")]


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        (respond(), "200", None),
        (respond(status=204, body=b""), "204", "upstream_status"),
        (respond(status=503), "503", "upstream_status"),
        (respond(status=302), "502", "redirect"),
        ([reset()], "502", "connect"),
        ([send(b"nonsense\r\n\r\n"), stall()], "502", "protocol"),
        ([send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"), close()], None, "truncated"),
    ],
    ids=["200", "204", "503", "302", "reset", "nonsense", "truncated"],
)
def test_a_scrape_is_counted_once_with_its_code_and_its_reason(
    daemon: Daemon, exporter: FakeExporter, script: Script, code: str | None, reason: str | None
) -> None:
    exporter.play(script)
    before = daemon.metrics()
    daemon.get("/x/metrics")

    def counted(name: str) -> dict[str, float]:
        """By code or by reason, what has been added since."""
        label = {SCRAPES: "code", ERRORS: "reason"}[name]
        grown = {key: value - before.get(key, 0) for key, value in daemon.metrics().items() if key[0] == name}
        return {dict(labels)[label]: growth for (_, labels), growth in grown.items() if growth}

    wait_until(lambda: bool(counted(SCRAPES)), "the scrape was counted")
    assert list(counted(SCRAPES).values()) == [1]
    assert code is None or counted(SCRAPES) == {code: 1}
    assert counted(ERRORS) == ({reason: 1} if reason else {})
    assert daemon.metric(IN_FLIGHT, exporter="x") == 0


def test_in_flight_counts_what_is_running_and_returns_to_zero() -> None:
    free = threading.Event()
    with proxied([wait_for(free), *respond()]) as (daemon, exporter):
        wires = [daemon.connect() for _ in range(3)]
        for wire in wires:
            wire.send(request("/x/metrics"))
        exporter.wait_for_requests(3)
        assert daemon.metric(IN_FLIGHT, exporter="x") == 3
        free.set()
        for wire in wires:
            wire.read_reply().expect_ok(PAGE)
            wire.close()
        daemon.wait_for_metric(0, IN_FLIGHT, exporter="x")
        assert daemon.metric(SCRAPES, exporter="x", code="200") == 3


def test_bytes_and_durations_are_those_of_the_body() -> None:
    with proxied(respond(body=b"x" * 100_000)) as (daemon, _):
        for _ in range(3):
            daemon.get("/x/metrics").expect_ok()
        daemon.wait_for_metric(300_000, BYTES, exporter="x")
        daemon.wait_for_metric(3, f"{DURATION}_count", exporter="x")
        assert 0 < daemon.metric(f"{DURATION}_sum", exporter="x") < 3


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (request("/nobody"), "not_found"),
        (request("/x/metrics", method="PUT"), "method"),
        (request("/x/metrics", host=None), "bad_request"),
        (request("/x/metrics", ("A", "a" * 40_000)), "bad_request"),
    ],
    ids=["not_found", "method", "malformed", "too-large"],
)
def test_a_denied_request_is_counted_once_and_is_no_scrape(
    daemon: Daemon, exporter: FakeExporter, sent: bytes, reason: str
) -> None:
    def sums() -> dict[str, float]:
        metrics = daemon.metrics()
        return {
            kind: sum(v for (name, _), v in metrics.items() if name == kind)
            for kind in (SCRAPES, ERRORS, DENIED)
        }

    before, denied = sums(), daemon.metric(DENIED, reason=reason)
    daemon.exchange(sent)
    daemon.wait_for_metric(denied + 1, DENIED, reason=reason)
    assert sums() == {**before, DENIED: before[DENIED] + 1}


def test_exporter_up_follows_the_last_scrape() -> None:
    nonsense = [send(b"nonsense\r\n\r\n"), close()]
    with proxied(respond(), nonsense, respond(status=500), respond()) as (daemon, _):
        for expected in (1, 0, 0, 1):
            daemon.get("/x/metrics")
            daemon.wait_for_metric(expected, "exporter_proxy_exporter_up", exporter="x")


def test_the_own_path_of_metrics_is_not_a_scrape(daemon: Daemon) -> None:
    before = {key: value for key, value in daemon.metrics().items() if key[0] in (SCRAPES, DENIED)}
    assert {key: value for key, value in daemon.metrics().items() if key[0] in (SCRAPES, DENIED)} == before


@pytest.mark.parametrize("target", ["/", "/metrics", "/-/exporters", "/-/ready", "/-/sd", "/nowhere", "*"])
def test_a_head_is_over_with_its_headers(target: str) -> None:
    """Its client has all that there is to have and may leave, be the page long; no byte of that was sent."""
    access_log = {"format": "json", "fields": ["method", "status", "size", "reason"]}
    with proxied(access_log=access_log) as (daemon, _):
        reply = daemon.get(target, method="HEAD")
        line = json.loads(daemon.wait_for_output("HEAD"))
        assert line == {"method": "HEAD", "status": reply.status, "size": 0, "reason": reply.error or ""}
        assert daemon.metric(DENIED, reason="client_gone") == 0


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ((), False),
        (("*/*",), False),
        (("text/html",), False),
        (("text/plain;version=0.0.4;q=0.5,*/*;q=0.1",), False),
        (("application/openmetrics-text; version=1.0.0; charset=utf-8",), True),
        ((PROMETHEUS_2,), True),
        ((PROMETHEUS_3,), True),
        (("Application/OpenMetrics-Text",), True),
        (("text/plain;q=0.4", "application/openmetrics-text;q=0.5"), True),
        (("text/plain;q=0.5,application/openmetrics-text;q=0.4",), False),
        (("text/plain, application/openmetrics-text;q=0",), False),
        (("application/openmetrics-text;q=0",), False),
        (("application/openmetrics-texts",), False),
    ],
)
def test_own_metrics_are_in_the_format_that_is_wanted(
    daemon: Daemon, accept: tuple[str, ...], is_openmetrics: bool
) -> None:
    """By the weights of RFC 9110 section 12.5.1, as Prometheus gives them to its ``scrape_protocols``."""
    reply = daemon.get("/metrics", *(("Accept", line) for line in accept)).expect_ok()
    wanted = "application/openmetrics-text" if is_openmetrics else "text/plain; version=0.0.4"
    assert (reply.header("content-type") or "").startswith(wanted)
    assert reply.body.endswith(b"# EOF\n") is is_openmetrics


@pytest.mark.parametrize(
    ("accept_encoding", "is_gzip"),
    [
        ((), False),
        (("",), False),
        (("gzip",), True),
        (("GZip;Q=0.5",), True),
        (("deflate", "gzip"), True),
        (("*",), True),
        (("gzip;q=1.0, identity; q=0.5",), True),
        (("gzip;q=0",), False),
        (("gzip; q=0.000, *",), False),
        (("identity, gzip;q=0.5",), False),
        (("gzip;q=much",), False),
        (("gzipped",), False),
    ],
)
def test_own_metrics_are_compressed_for_who_wants_that(
    daemon: Daemon, accept_encoding: tuple[str, ...], is_gzip: bool
) -> None:
    """By the weights of RFC 9110 section 12.5.3; one of 0 forbids it."""
    reply = daemon.get("/metrics", *(("Accept-Encoding", line) for line in accept_encoding)).expect_ok()
    assert reply.header("content-encoding") == ("gzip" if is_gzip else None)
    assert reply.header("vary") == "Accept, Accept-Encoding"
    page = gzip.decompress(reply.body) if is_gzip else reply.body
    assert b"exporter_proxy_build_info{" in page
