"""A scraper that does nothing wrong, at work while somebody else does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from tests.daemon import Daemon, wait_until
from tests.fakes.exporter import PAGE
from tests.stalls import stalled_since
from tests.wire import CONNECTION_CLOSE, Wire, request

PAUSE_SECONDS = 0.01
GIVE_UP_SECONDS = 10.0


class HonestScraper:
    """Scrapes one path over and over, each time on a connection of its own."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self._address = address
        self._request = request(path, CONNECTION_CLOSE)
        self._stop = threading.Event()
        self.count = 0
        self.slowest_seconds = 0.0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._scrape_until_stopped, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def expect_undisturbed(self, within_seconds: float) -> None:
        """All scrapes so far were answered 200, and in that time; there was at least one."""
        assert self.failures == []
        assert self.count > 0
        assert self.slowest_seconds < within_seconds, f"one took {self.slowest_seconds:.2f} s"

    def _scrape_until_stopped(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            started = time.monotonic()
            try:
                with Wire(self._address, timeout_seconds=GIVE_UP_SECONDS) as wire:
                    wire.exchange(self._request).expect_ok(PAGE)
            except (AssertionError, OSError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            took_seconds = time.monotonic() - started - stalled_since(started)
            self.slowest_seconds = max(self.slowest_seconds, took_seconds)
            self.count += 1


@contextlib.contextmanager
def honest_scraper(
    daemon: Daemon, path: str = "/honest/metrics", within_seconds: float = 3.0
) -> Iterator[HonestScraper]:
    """One at work from before the block to behind it; fails where it was ever refused or slow."""
    scraper = HonestScraper(daemon.addresses[0], path)
    try:
        wait_until(lambda: scraper.count > 0, "the honest scraper began")
        yield scraper
        seen = scraper.count
        wait_until(lambda: scraper.count > seen + 1, "the honest scraper went on", GIVE_UP_SECONDS * 2)
    finally:
        scraper.stop()
    scraper.expect_undisturbed(within_seconds)
