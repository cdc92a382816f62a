"""Resident memory: idle, in front of slow readers, and after very many scrapes."""

from __future__ import annotations

import select
import socket
import time

from tests.bench.figures import OURS, Budget, Figure
from tests.bench.load import SCRAPE_SECONDS, raw_request, run_wrk
from tests.bench.processes import LOOPBACK, NotMeasured, peak_rss_bytes, reset_peak_rss, rss_bytes
from tests.bench.run import Run
from tests.bench.site import Proxy

MIB = 1 << 20
READERS = 16
SLOW_READ_BYTES = 32_768
SLOW_PAUSE_SECONDS = 0.02
FLAT_SCRAPES, FLAT_SCRAPES_QUICK = 200_000, 20_000
WARM_UP_SHARE = 0.1


def memory(run: Run) -> list[Figure]:
    """Each figure on daemons of its own, so that none sees what another has left behind."""
    scrapes = FLAT_SCRAPES_QUICK if run.is_quick else FLAT_SCRAPES
    return [
        run.take("memory", "idle, after one scrape", "MiB", {OURS: lambda: _idle(run)}, Budget(plus=40)),
        run.take(
            "memory",
            f"peak, {READERS} slow readers of 60 MB each",
            "MiB",
            {OURS: lambda: _slow_readers(run)},
            Budget(plus=56),
            rounds=1,
        ),
        run.take(
            "memory",
            f"growth over {scrapes:,} scrapes",
            "MiB",
            {OURS: lambda: _growth(run, scrapes)},
            Budget(plus=1),
            rounds=1,
        ),
    ]


def _idle(run: Run) -> float:
    with run.site.daemon(run.site.config()) as ours:
        run.site.check(ours, "page", times=1)
        return rss_bytes(ours.pid) / MIB


def _slow_readers(run: Run) -> float:
    with run.site.daemon(run.site.config({"timeout": "2m"})) as ours:
        run.site.check(ours, "page")
        reset_peak_rss(ours.pid)
        read_slowly_then_fast(ours, "huge", len(run.site.bodies["huge"]), slow_seconds=2.0 + run.seconds)
        return peak_rss_bytes(ours.pid) / MIB


def read_slowly_then_fast(ours: Proxy, body: str, body_bytes: int, slow_seconds: float) -> None:
    """Scrape one page over 16 connections whose readers take little at a time, and all that is left at last.

    Raises NotMeasured where one of them does not get everything.
    """
    readers = [socket.create_connection((LOOPBACK, ours.port), SCRAPE_SECONDS) for _ in range(READERS)]
    try:
        for reader in readers:
            reader.sendall(raw_request(ours.path(body), timeout_seconds=120, close=True))
        received = dict.fromkeys(readers, 0)
        buffer = bytearray(MIB)
        slow_until = time.monotonic() + slow_seconds
        give_up_at = slow_until + SCRAPE_SECONDS * 2
        reading = list(readers)
        while reading and time.monotonic() < give_up_at:
            is_slow = time.monotonic() < slow_until
            for reader in select.select(reading, [], [], 1.0)[0]:
                count = reader.recv_into(buffer, SLOW_READ_BYTES if is_slow else MIB)
                received[reader] += count
                if not count:
                    reading.remove(reader)
            if is_slow:
                time.sleep(SLOW_PAUSE_SECONDS)
    except OSError as error:
        raise NotMeasured(f"a slow reader was not served: {error}") from error
    finally:
        for reader in readers:
            reader.close()
    short = [count for count in received.values() if count < body_bytes]
    if short:
        raise NotMeasured(f"{len(short)} of {READERS} slow readers got less than {body_bytes} bytes: {short}")


def _growth(run: Run, scrapes: int) -> float:
    body_bytes = len(run.site.bodies["page"])
    with run.site.daemon(run.site.config()) as ours:
        run.site.check(ours, "page")

        def scrape(count: int) -> int:
            done = 0
            while done < count:
                # About so many seconds as are left at 5,000 scrapes a second.
                seconds = max(1, min(10, (count - done) // 5000))
                done += run_wrk(ours.port, ours.path("page"), READERS, seconds, body_bytes).requests
            return done

        done = scrape(round(scrapes * WARM_UP_SHARE))
        before = rss_bytes(ours.pid)
        scrape(scrapes - done)
        return (rss_bytes(ours.pid) - before) / MIB
