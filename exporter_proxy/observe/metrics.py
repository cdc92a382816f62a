"""The daemon's own metrics: every family's name, help and labels, and how they are rendered.

Counts live as plain numbers in ``history.py`` and the proxy; here they become families when
``/metrics`` is asked. prometheus-client formats them, in slices, since a thousand routes in
one go would hold the event loop for half a second.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from exporter_proxy import __version__
from exporter_proxy.observe.history import DURATION_BUCKETS_SECONDS, ExporterRecord
from exporter_proxy.observe.pushprox import PushProxRecord
from exporter_proxy.reasons import Reason

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RECORDS_PER_SLICE = 8
"""About a millisecond's work: a scrape takes a few turns of the loop, and waits for a slice at each."""
SAMPLES_PER_SLICE = 100
_EOF = b"# EOF\n"


@dataclass(frozen=True, slots=True)
class DaemonNumbers:
    """What the daemon knows of itself at one moment."""

    denied: dict[Reason, int]
    connections: int
    loop_lag_seconds: float
    log_lines_lost: int
    is_reload_successful: bool
    last_reload_success: float
    config_fingerprint: str
    """Hex digest of the configuration, see ``Config.fingerprint``."""
    certificate_expiries: dict[str, float]
    """Unix time by kind."""
    file_mtimes: Mapping[str, Mapping[str, float]]
    """Unix time by file, by exporter; of those whose pages are in files."""
    pushprox: PushProxRecord | None = None
    """``None``: no PushProx proxy is polled."""


def _scrapes(records: Sequence[ExporterRecord]) -> Metric:
    family = CounterMetricFamily(
        "exporter_proxy_scrapes", "Scrapes by exporter and the status answered.", labels=["exporter", "code"]
    )
    for record in records:
        for code, count in sorted(record.scrapes_by_code.items()):
            family.add_metric([record.name, str(code)], count)
    return family


def _scrape_errors(records: Sequence[ExporterRecord]) -> Metric:
    family = CounterMetricFamily(
        "exporter_proxy_scrape_errors",
        "Failed scrapes by exporter and reason.",
        labels=["exporter", "reason"],
    )
    for record in records:
        for reason, count in record.error_counts.items():
            family.add_metric([record.name, reason.value], count)
    return family


def _duration(records: Sequence[ExporterRecord]) -> Metric:
    family = HistogramMetricFamily(
        "exporter_proxy_scrape_duration_seconds",
        "Time from a scrape's request to the end of its answer.",
        labels=["exporter"],
    )
    for record in records:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip(
            (*map(str, DURATION_BUCKETS_SECONDS), "+Inf"), record.bucket_counts, strict=True
        ):
            total += count
            buckets.append((bound, total))
        family.add_metric([record.name], buckets, record.duration_sum_seconds)
    return family


def _response_bytes(records: Sequence[ExporterRecord]) -> Metric:
    family = CounterMetricFamily(
        "exporter_proxy_scrape_response_bytes", "Body bytes received from the exporter.", labels=["exporter"]
    )
    for record in records:
        family.add_metric([record.name], record.received_bytes)
    return family


def _shared(records: Sequence[ExporterRecord]) -> Metric:
    family = CounterMetricFamily(
        "exporter_proxy_shared_scrapes", "Scrapes answered from another scrape.", labels=["exporter"]
    )
    for record in records:
        family.add_metric([record.name], record.shared_scrapes)
    return family


def _in_flight(records: Sequence[ExporterRecord]) -> Metric:
    family = GaugeMetricFamily(
        "exporter_proxy_scrapes_in_flight", "Scrapes under way or waiting.", labels=["exporter"]
    )
    for record in records:
        family.add_metric([record.name], record.in_flight)
    return family


def _up(records: Sequence[ExporterRecord]) -> Metric:
    family = GaugeMetricFamily(
        "exporter_proxy_exporter_up",
        "Whether the last scrape got a complete answer; absent until the first.",
        labels=["exporter"],
    )
    for record in records:
        if record.up is not None:
            family.add_metric([record.name], float(record.up))
    return family


def _last_success(records: Sequence[ExporterRecord]) -> Metric:
    family = GaugeMetricFamily(
        "exporter_proxy_exporter_last_success_timestamp_seconds",
        "When the last scrape succeeded; 0 for never.",
        labels=["exporter"],
    )
    for record in records:
        family.add_metric([record.name], record.last_success)
    return family


EXPORTER_FAMILIES: tuple[Callable[[Sequence[ExporterRecord]], Metric], ...] = (
    _scrapes,
    _scrape_errors,
    _duration,
    _response_bytes,
    _shared,
    _in_flight,
    _up,
    _last_success,
)


def _daemon_families(numbers: DaemonNumbers) -> Iterator[Metric]:
    denied = CounterMetricFamily(
        "exporter_proxy_requests_denied", "Requests answered without asking an exporter.", labels=["reason"]
    )
    for reason, count in numbers.denied.items():
        denied.add_metric([reason.value], count)
    yield denied
    yield GaugeMetricFamily(
        "exporter_proxy_connections", "Open connections from scrapers.", numbers.connections
    )
    yield GaugeMetricFamily(
        "exporter_proxy_loop_lag_seconds",
        "How late the event loop was at worst within the last 15 seconds.",
        numbers.loop_lag_seconds,
    )
    yield CounterMetricFamily(
        "exporter_proxy_log_lines_lost", "Log lines that could not be written.", numbers.log_lines_lost
    )
    yield GaugeMetricFamily(
        "exporter_proxy_config_last_reload_successful",
        "Whether the last attempt to load the configuration succeeded.",
        float(numbers.is_reload_successful),
    )
    yield GaugeMetricFamily(
        "exporter_proxy_config_last_reload_success_timestamp_seconds",
        "When a configuration was last loaded.",
        numbers.last_reload_success,
    )
    yield GaugeMetricFamily(
        "exporter_proxy_config_hash",
        "First 48 bits of a hash of the configuration, included files and the web.config.file, to compare "
        "over a fleet.",
        int(numbers.config_fingerprint[:12], 16),
    )
    expiries = GaugeMetricFamily(
        "exporter_proxy_certificate_not_after_timestamp_seconds",
        "When the first certificate of this kind expires.",
        labels=["kind"],
    )
    for kind, not_after in numbers.certificate_expiries.items():
        expiries.add_metric([kind], not_after)
    yield expiries
    build = GaugeMetricFamily(
        "exporter_proxy_build_info", "A metric with the constant value 1.", labels=["version", "python"]
    )
    build.add_metric([__version__, platform.python_version()], 1)
    yield build
    if numbers.pushprox is not None:
        yield from _pushprox_families(numbers.pushprox)
    # Made for each rendering: it holds nothing, and the registry it would join is not used.
    yield from ProcessCollector(registry=None).collect()


def _file_mtimes(samples: Sequence[tuple[str, str, float]]) -> Metric:
    family = GaugeMetricFamily(
        "exporter_proxy_file_mtime_seconds",
        "When a file was written, as the exporter's last scrape found it.",
        labels=["exporter", "file"],
    )
    for exporter, file, mtime in samples:
        family.add_metric([exporter, file], mtime)
    return family


def _pushprox_families(record: PushProxRecord) -> Iterator[Metric]:
    for name, help_text, counts in (
        ("polls", "Polls of PushProx proxies by how they ended.", record.polls),
        ("pushes", "Answers pushed to PushProx proxies by how that ended.", record.pushes),
    ):
        family = CounterMetricFamily(f"exporter_proxy_pushprox_{name}", help_text, labels=["result"])
        for result, count in counts.items():
            family.add_metric([result], count)
        yield family
    yield GaugeMetricFamily(
        "exporter_proxy_pushprox_connected",
        "PushProx proxies that hold a poll of this host.",
        record.connected,
    )
    yield GaugeMetricFamily(
        "exporter_proxy_pushprox_last_poll_timestamp_seconds",
        "When a poll last brought a scrape; 0 for never.",
        record.last_poll,
    )


class _OneFamily:
    """What the library's renderers take for a registry."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def render(
    records: Sequence[ExporterRecord], numbers: DaemonNumbers, is_openmetrics: bool
) -> Iterator[bytes]:
    """The exposition in slices, each cheap enough to be made between two scrapes."""
    for family in _daemon_families(numbers):
        yield _text_of(family, is_openmetrics)
    for make_family in EXPORTER_FAMILIES:
        for start in range(0, len(records), RECORDS_PER_SLICE):
            text = _text_of(make_family(records[start : start + RECORDS_PER_SLICE]), is_openmetrics)
            yield _without_metadata(text) if start else text
    mtimes = iter([(name, *pair) for name, files in numbers.file_mtimes.items() for pair in files.items()])
    yield _text_of(_file_mtimes(list(islice(mtimes, SAMPLES_PER_SLICE))), is_openmetrics)
    while more := list(islice(mtimes, SAMPLES_PER_SLICE)):
        yield _without_metadata(_text_of(_file_mtimes(more), is_openmetrics))
    if is_openmetrics:
        yield _EOF


def _text_of(family: Metric, is_openmetrics: bool) -> bytes:
    if is_openmetrics:
        text: bytes = generate_openmetrics(_OneFamily(family))  # type: ignore[no-untyped-call]
        return text.removesuffix(_EOF)
    return generate_text(_OneFamily(family))


def _without_metadata(text: bytes) -> bytes:
    """A family's later slices continue it: one HELP and TYPE are all it may have."""
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"# "))


def content_type_of(is_openmetrics: bool) -> str:
    """The Content-Type of what ``render`` gives."""
    return OPENMETRICS_TYPE if is_openmetrics else TEXT_TYPE
