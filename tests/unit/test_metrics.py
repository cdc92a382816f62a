"""The daemon's own metrics: valid in both formats, in slices as in one go, each slice cheap."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Sequence

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter_proxy import __version__
from exporter_proxy.observe import metrics
from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.observe.history import DURATION_BUCKETS_SECONDS, ExporterRecord
from exporter_proxy.observe.metrics import DaemonNumbers, render
from exporter_proxy.reasons import DENIAL_STATUS, SCRAPE_ERROR_STATUS, Reason

CONTRACT = {
    "exporter_proxy_scrapes_total": ("exporter", "code"),
    "exporter_proxy_scrape_errors_total": ("exporter", "reason"),
    "exporter_proxy_scrape_duration_seconds_count": ("exporter",),
    "exporter_proxy_scrape_duration_seconds_sum": ("exporter",),
    "exporter_proxy_scrape_duration_seconds_bucket": ("exporter", "le"),
    "exporter_proxy_scrape_response_bytes_total": ("exporter",),
    "exporter_proxy_scrapes_in_flight": ("exporter",),
    "exporter_proxy_shared_scrapes_total": ("exporter",),
    "exporter_proxy_exporter_up": ("exporter",),
    "exporter_proxy_exporter_last_success_timestamp_seconds": ("exporter",),
    "exporter_proxy_requests_denied_total": ("reason",),
    "exporter_proxy_connections": (),
    "exporter_proxy_loop_lag_seconds": (),
    "exporter_proxy_log_lines_lost_total": (),
    "exporter_proxy_config_last_reload_successful": (),
    "exporter_proxy_config_last_reload_success_timestamp_seconds": (),
    "exporter_proxy_config_hash": (),
    "exporter_proxy_certificate_not_after_timestamp_seconds": ("kind",),
    "exporter_proxy_build_info": ("version", "python"),
    "exporter_proxy_file_mtime_seconds": ("exporter", "file"),
}
"""Names and labels that dashboards and alerts rely on."""

SHA256 = "0123456789abcdef" * 4


def numbers() -> DaemonNumbers:
    return DaemonNumbers(
        denied=dict.fromkeys(DENIAL_STATUS, 0) | {Reason.METHOD: 7},
        connections=3,
        loop_lag_seconds=0.001,
        log_lines_lost=2,
        is_reload_successful=True,
        last_reload_success=1_700_000_000.5,
        config_fingerprint=SHA256,
        certificate_expiries={"server": 1_800_000_000.0, "client_ca": 1_900_000_000.0},
        file_mtimes={"backup": {"/x/a.prom": 1_700_000_000.5, '/x/"b".prom': 1.0}, "none": {}},
    )


def scraped(
    record: ExporterRecord, status: int = 200, reason: Reason | None = None, seconds: float = 0.02
) -> None:
    exchange = Exchange("127.0.0.1", "GET", b"/x", b"", 0.0)
    exchange.ended_nsec = time.time_ns()
    exchange.status, exchange.reason, exchange.total_seconds = status, reason, seconds
    record.add(exchange)


def busy(name: str) -> ExporterRecord:
    """One that has seen every outcome there is."""
    record = ExporterRecord(name)
    for reason, status in SCRAPE_ERROR_STATUS.items():
        scraped(record, status, reason, 0.3)
    for code in (200, 204, 404, 500):
        scraped(record, code)
    record.in_flight, record.shared_scrapes, record.received_bytes = 2, 5, 12_000
    return record


def rendered(records: Sequence[ExporterRecord], is_openmetrics: bool = False) -> bytes:
    return b"".join(render(records, numbers(), is_openmetrics))


def families(text: bytes, is_openmetrics: bool = False) -> dict[str, Metric]:
    parse = parse_openmetrics if is_openmetrics else parse_text
    found: Iterable[Metric] = parse(text.decode())
    made = list(found)
    named = {family.name: family for family in made}
    assert len(named) == len(made), "a family occurs twice"
    return named


def samples(text: bytes, is_openmetrics: bool = False) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name to label values, in the contract's order, to value."""
    table: dict[str, dict[tuple[str, ...], float]] = {}
    for family in families(text, is_openmetrics).values():
        for sample in family.samples:
            row = table.setdefault(sample.name, {})
            key = tuple(sample.labels[label] for label in CONTRACT.get(sample.name, sample.labels))
            assert key not in row, f"{sample.name}{sample.labels} occurs twice"
            row[key] = sample.value
    return table


FORMATS = pytest.mark.parametrize("is_openmetrics", [False, True], ids=["text", "openmetrics"])


@FORMATS
def test_names_and_labels(is_openmetrics: bool) -> None:
    labels: dict[str, frozenset[str]] = {}
    for family in families(rendered([busy("a")], is_openmetrics), is_openmetrics).values():
        for sample in family.samples:
            labels[sample.name] = frozenset(sample.labels)
    ours = {name: found for name, found in labels.items() if name.startswith("exporter_proxy_")}
    assert ours == {name: frozenset(wanted) for name, wanted in CONTRACT.items()}
    others = {name for name in labels if name not in ours}
    assert all(name.startswith("process_") for name in others), others
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= others


@FORMATS
def test_values(is_openmetrics: bool) -> None:
    table = samples(rendered([busy("a"), ExporterRecord("b")], is_openmetrics), is_openmetrics)
    assert table["exporter_proxy_scrapes_total"]["a", "502"] == sum(
        status == 502 for status in SCRAPE_ERROR_STATUS.values()
    )
    assert table["exporter_proxy_scrapes_total"]["b", "200"] == 0
    assert table["exporter_proxy_scrape_errors_total"]["a", "timeout"] == 1
    assert table["exporter_proxy_requests_denied_total"]["method",] == 7
    assert table["exporter_proxy_scrape_response_bytes_total"]["a",] == 12_000
    assert table["exporter_proxy_scrapes_in_flight"] == {("a",): 2, ("b",): 0}
    assert table["exporter_proxy_shared_scrapes_total"] == {("a",): 5, ("b",): 0}
    assert table["exporter_proxy_connections"][()] == 3
    assert table["exporter_proxy_log_lines_lost_total"][()] == 2
    assert table["exporter_proxy_config_last_reload_successful"][()] == 1
    assert table["exporter_proxy_config_last_reload_success_timestamp_seconds"][()] == 1_700_000_000.5
    expiries = table["exporter_proxy_certificate_not_after_timestamp_seconds"]
    assert expiries == {("server",): 1_800_000_000, ("client_ca",): 1_900_000_000}
    assert table["exporter_proxy_config_hash"][()] == int(SHA256[:12], 16)
    ((version, _), one), *_ = table["exporter_proxy_build_info"].items()
    assert (version, one) == (__version__, 1)


def test_the_hash_of_a_configuration_is_exact_as_a_float() -> None:
    """48 bits: Prometheus stores float64, and two fleets' values are compared."""
    highest = int("f" * 12, 16)
    assert int(float(highest)) == highest


def test_the_duration_histogram() -> None:
    record = ExporterRecord("a")
    for seconds in (0.001, 0.005, 0.0051, 9.9, 10.0, 11.0):
        scraped(record, seconds=seconds)
    table = samples(rendered([record]))
    buckets = table["exporter_proxy_scrape_duration_seconds_bucket"]
    assert [float(bound) for _, bound in buckets] == [*DURATION_BUCKETS_SECONDS, float("inf")]
    assert buckets["a", "0.005"] == 2, "a bound belongs to its bucket"
    assert buckets["a", "0.01"] == 3
    assert buckets["a", "10.0"] == 5
    assert buckets["a", "+Inf"] == table["exporter_proxy_scrape_duration_seconds_count"]["a",] == 6
    total = table["exporter_proxy_scrape_duration_seconds_sum"]["a",]
    assert total == pytest.approx(30.9111)


@FORMATS
def test_whatever_can_occur_exists_at_zero_from_the_start(is_openmetrics: bool) -> None:
    table = samples(rendered([ExporterRecord("new")], is_openmetrics), is_openmetrics)
    assert table["exporter_proxy_scrape_errors_total"] == {
        ("new", reason): 0 for reason in SCRAPE_ERROR_STATUS
    }
    assert set(table["exporter_proxy_requests_denied_total"]) == {(reason,) for reason in DENIAL_STATUS}
    assert table["exporter_proxy_scrapes_total"] == {("new", "200"): 0}


@FORMATS
def test_an_exporter_that_was_never_scraped_is_neither_up_nor_down(is_openmetrics: bool) -> None:
    fresh, scraped_once, failed = ExporterRecord("fresh"), ExporterRecord("good"), ExporterRecord("bad")
    scraped(scraped_once)
    scraped(failed, 502, Reason.CONNECT)
    table = samples(rendered([fresh, scraped_once, failed], is_openmetrics), is_openmetrics)
    assert table["exporter_proxy_exporter_up"] == {("good",): 1, ("bad",): 0}
    last = table["exporter_proxy_exporter_last_success_timestamp_seconds"]
    assert last["fresh",] == last["bad",] == 0
    assert abs(last["good",] - time.time()) < 60


@FORMATS
def test_no_created_series(is_openmetrics: bool) -> None:
    assert b"_created" not in rendered([busy("a")], is_openmetrics)


def test_openmetrics_ends_once_and_text_never() -> None:
    records = [busy(f"exporter_{number}") for number in range(90)]
    text = rendered(records, is_openmetrics=True)
    assert text.endswith(b"\n# EOF\n")
    assert text.count(b"# EOF") == 1
    assert b"# EOF" not in rendered(records)


@FORMATS
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_slices_are_the_same_as_one_go(
    is_openmetrics: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [busy(f"exporter_{number}") for number in range(count)]

    def ours() -> list[bytes]:
        return [line for line in rendered(records, is_openmetrics).splitlines() if b"process_" not in line]

    in_slices = ours()
    monkeypatch.setattr(metrics, "RECORDS_PER_SLICE", 1_000_000)
    assert in_slices == ours()
    monkeypatch.setattr(metrics, "RECORDS_PER_SLICE", 1)
    assert in_slices == ours()


@FORMATS
def test_no_slice_of_a_thousand_exporters_holds_the_loop(is_openmetrics: bool) -> None:
    """20 ms of this thread's own time at most, the fastest of three runs being what is measured."""
    records = [busy(f"exporter_{number}") for number in range(1000)]
    worst = []
    for _ in range(3):
        slices = render(records, numbers(), is_openmetrics)
        longest, done = 0.0, False
        while not done:
            started = time.thread_time()
            done = next(slices, None) is None
            longest = max(longest, time.thread_time() - started)
        worst.append(longest)
    assert min(worst) < 0.020


@FORMATS
def test_no_slice_is_large(is_openmetrics: bool) -> None:
    """It is held in memory until it is sent."""
    records = [busy(f"exporter_{number}") for number in range(1000)]
    assert max(map(len, render(records, numbers(), is_openmetrics))) < 256 * 1024


def test_promtool_has_nothing_to_say() -> None:
    records = [busy("node_exporter"), busy("mysqld_exporter"), ExporterRecord("never_scraped")]
    try:
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=rendered(records),
            capture_output=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("promtool is not installed")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
