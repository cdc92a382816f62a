"""What is remembered of an exporter: counts, recent scrapes, and which change of state is worth a line."""

from __future__ import annotations

import time

import pytest

from exporter_proxy.observe.exchange import Exchange
from exporter_proxy.observe.history import (
    DURATION_BUCKETS_SECONDS,
    HOUR_MINUTES,
    ExporterRecord,
    HourCount,
    StateChange,
)
from exporter_proxy.observe.recent import RECENT_SCRAPES
from exporter_proxy.reasons import SCRAPE_ERROR_STATUS, Reason

NOT_THE_EXPORTER = {
    Reason.CLIENT_GONE,
    Reason.CLIENT_SLOW,
    Reason.DRAINING,
    Reason.SATURATED,
    Reason.INTERNAL,
}
FAILURES = [reason for reason in SCRAPE_ERROR_STATUS if reason not in NOT_THE_EXPORTER]


def outcome(status: int = 200, reason: Reason | None = None, seconds: float = 0.02) -> Exchange:
    exchange = Exchange("127.0.0.1", "GET", b"/x", b"", 0.0)
    exchange.status, exchange.reason, exchange.total_seconds = status, reason, seconds
    exchange.ended_nsec = time.time_ns()
    exchange.message = f"because of {reason}" if reason else ""
    exchange.received_bytes = 100
    exchange.connect_seconds, exchange.first_byte_seconds = 0.001, 0.01
    return exchange


def failure(reason: Reason) -> Exchange:
    return outcome(SCRAPE_ERROR_STATUS[reason], reason)


@pytest.fixture
def record() -> ExporterRecord:
    return ExporterRecord("x")


def test_a_new_record_knows_nothing(record: ExporterRecord) -> None:
    assert record.up is None
    assert record.last_success == 0
    assert record.scrapes_by_code == {200: 0}
    assert record.error_counts == dict.fromkeys(SCRAPE_ERROR_STATUS, 0)
    assert len(record.bucket_counts) == len(DURATION_BUCKETS_SECONDS) + 1


def test_a_good_scrape(record: ExporterRecord) -> None:
    before = time.time()
    assert record.add(outcome()) is None
    assert record.up is True
    assert before <= record.last_success <= time.time()
    assert record.scrapes_by_code == {200: 1}
    (recent,) = record.recent
    assert (recent.status, recent.reason, recent.message, recent.received_bytes) == (200, None, "", 100)
    assert (recent.connect_seconds, recent.first_byte_seconds, recent.total_seconds) == (0.001, 0.01, 0.02)
    assert before <= recent.at <= time.time()


@pytest.mark.parametrize("reason", FAILURES)
def test_an_exporter_that_fails_and_recovers(record: ExporterRecord, reason: Reason) -> None:
    """A line when it starts, none while it goes on, one when it is over."""
    record.add(outcome())
    assert record.add(failure(reason)) == StateChange("exporter failing", reason)
    assert record.add(failure(reason)) is None
    assert record.up is False
    assert record.error_counts[reason] == 2
    assert record.last_failures[reason].message == f"because of {reason}"
    assert record.add(outcome()) == StateChange("exporter recovered", reason)
    assert record.up is True
    assert record.add(outcome()) is None


def test_another_reason_is_worth_a_line(record: ExporterRecord) -> None:
    changes = [record.add(failure(reason)) for reason in (Reason.CONNECT, Reason.TIMEOUT, Reason.CONNECT)]
    assert changes == [
        StateChange("exporter failing", Reason.CONNECT),
        StateChange("exporter failing", Reason.TIMEOUT),
        StateChange("exporter failing", Reason.CONNECT),
    ]
    assert record.add(outcome()) == StateChange("exporter recovered", Reason.CONNECT)


@pytest.mark.parametrize("was_up", [None, True, False])
@pytest.mark.parametrize("reason", sorted(NOT_THE_EXPORTER))
def test_what_is_not_the_exporters_doing_says_nothing_of_it(
    record: ExporterRecord, reason: Reason, was_up: bool | None
) -> None:
    if was_up is not None:
        record.add(outcome() if was_up else failure(Reason.CONNECT))
    last_success = record.last_success
    assert record.add(failure(reason)) is None
    assert record.up is was_up
    assert record.last_success == last_success
    assert record.error_counts[reason] == 1
    assert reason in record.last_failures
    # Neither a recovery nor a new failure follows from it.
    assert record.add(failure(Reason.CONNECT)) == (
        None if was_up is False else StateChange("exporter failing", Reason.CONNECT)
    )


def test_only_the_recent_scrapes_are_kept(record: ExporterRecord) -> None:
    for number in range(RECENT_SCRAPES + 10):
        record.add(outcome(seconds=float(number)))
    assert [recent.total_seconds for recent in record.recent] == [
        float(number) for number in range(10, RECENT_SCRAPES + 10)
    ]


def test_the_last_failure_of_each_reason_is_kept(record: ExporterRecord) -> None:
    record.add(failure(Reason.TIMEOUT))
    for _ in range(RECENT_SCRAPES * 2):
        record.add(outcome())
    record.add(failure(Reason.CONNECT))
    assert set(record.last_failures) == {Reason.TIMEOUT, Reason.CONNECT}


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.005, 0), (0.00501, 1), (0.01, 1), (10.0, 10), (10.1, 11), (500.0, 11)],
)
def test_buckets(record: ExporterRecord, seconds: float, bucket: int) -> None:
    record.add(outcome(seconds=seconds))
    assert record.bucket_counts.index(1) == bucket
    assert record.duration_sum_seconds == seconds


# -- The last hour

MINUTE_NSEC = 60 * 10**9
NOON_NSEC = 1_800_000_000 * 10**9


def scraped_at(record: ExporterRecord, minutes: float, exchange: Exchange) -> None:
    exchange.ended_nsec = NOON_NSEC + int(minutes * MINUTE_NSEC)
    record.add(exchange)


@pytest.mark.parametrize(
    ("asked_at", "count"),
    [
        (10.5, HourCount(5, 3)),
        (59.9, HourCount(5, 3)),
        (60.0, HourCount(3, 2)),
        (69.9, HourCount(3, 2)),
        (70.0, HourCount(0, 0)),
        (1e6, HourCount(0, 0)),
        (-1.0, HourCount(0, 0)),  # the clock was set back
    ],
)
def test_scrapes_count_for_an_hour(record: ExporterRecord, asked_at: float, count: HourCount) -> None:
    scraped_at(record, 0.0, outcome())
    scraped_at(record, 0.5, failure(Reason.TIMEOUT))
    scraped_at(record, 10.0, outcome())
    scraped_at(record, 10.1, outcome(204, Reason.UPSTREAM_STATUS))
    scraped_at(record, 10.2, outcome())
    assert record.last_hour(NOON_NSEC + int(asked_at * MINUTE_NSEC)) == count


def test_an_hour_of_a_busy_exporter_takes_no_more_than_its_minutes(record: ExporterRecord) -> None:
    for number in range(600):
        scraped_at(record, number / 4, outcome() if number % 4 else failure(Reason.CONNECT))
    assert record.last_hour(NOON_NSEC + 149 * MINUTE_NSEC) == HourCount(240, 180)
    assert len(record._minutes) <= HOUR_MINUTES


def test_a_clock_that_was_set_back_hides_nothing_that_follows(record: ExporterRecord) -> None:
    scraped_at(record, 1000, failure(Reason.CONNECT))
    scraped_at(record, 0, outcome())
    scraped_at(record, 1, outcome())
    assert record.last_hour(NOON_NSEC + MINUTE_NSEC) == HourCount(2, 2)


# -- Why it is down


def test_the_latest_failure_is_that_of_the_state(record: ExporterRecord) -> None:
    assert record.latest_failure is None
    record.add(outcome())
    record.add(failure(Reason.CLIENT_GONE))
    assert record.latest_failure is None
    record.add(failure(Reason.CONNECT))
    record.add(outcome(204, Reason.UPSTREAM_STATUS))
    record.add(failure(Reason.CLIENT_GONE))
    latest = record.latest_failure
    assert latest is not None
    assert (latest.status, latest.reason) == (204, Reason.UPSTREAM_STATUS)
    record.add(failure(Reason.TIMEOUT))
    for _ in range(RECENT_SCRAPES):
        record.add(failure(Reason.SATURATED))
    assert record.latest_failure == record.last_failures[Reason.TIMEOUT]
    record.add(outcome())
    assert record.latest_failure is None
