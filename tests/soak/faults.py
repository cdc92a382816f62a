"""The faults: what each does, how it is healed, what it may cost; and how one comes after the other.

Two lanes run side by side, one for the exporters and one for the daemon, so that what is wrong with an
exporter meets whatever happens to the daemon. Within a lane each fault is healed before the next one comes.
"""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from tests.daemon import wait_until
from tests.soak import starvation
from tests.soak.client import Samples
from tests.soak.ledger import EVERYTHING, NOTHING, Cost, Window
from tests.soak.prometheus import Prometheus
from tests.soak.site import OWN, Site
from tests.soak.watch import Watch

RECOVERY_SECONDS = 60.0
"""Within it, scrapes go well again; generous, for busy machines."""
POLL_SECONDS = 0.2
BETWEEN_SECONDS = (0.2, 2.0)
"""Between two faults of a lane."""


class Fault(ABC):
    """One kind. ``inject`` and ``heal`` return when it is in effect, and over."""

    name: str
    hold_seconds: tuple[float, float]
    """How long it stays, at least and at most."""
    is_for_long_lives = True
    """Whether the daemon's process outlives it."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @abstractmethod
    def subject(self, chance: random.Random) -> str:
        """Which exporter it is for; "" for the daemon."""

    @abstractmethod
    def cost(self, subject: str) -> Cost:
        """What may be missing because of it."""

    @abstractmethod
    def inject(self, subject: str, chance: random.Random) -> None:
        """Raises AssertionError where the site did not take notice."""

    @abstractmethod
    def heal(self, subject: str) -> None:
        """Raises AssertionError where it did not get well."""


class DaemonFault(Fault):
    """One that concerns the daemon as a whole. Unless it says otherwise, no scrape should notice."""

    hold_seconds = (0.5, 2.0)
    costs = NOTHING

    def __init__(self, site: Site, watch: Watch) -> None:
        super().__init__(site)
        self.watch = watch

    def subject(self, chance: random.Random) -> str:
        return ""

    def cost(self, subject: str) -> Cost:
        return self.costs

    def heal(self, subject: str) -> None:
        """Nothing to be done."""

    def wait_for(self, condition: Callable[[Samples], bool], what: str) -> None:
        """Until the daemon's own metrics are so."""

        def holds() -> bool:
            time.sleep(POLL_SECONDS)
            samples = self.watch.read()
            return samples is not None and condition(samples)

        wait_until(holds, what, RECOVERY_SECONDS)


class Lane:
    """A thread that brings one fault after the other, each kind once before any comes again."""

    def __init__(
        self, name: str, site: Site, prometheus: Prometheus, faults: Sequence[Fault], seed: int, until: float
    ) -> None:
        """``until``: no further fault after that (on ``time.monotonic``'s clock), once each has come."""
        self._site = site
        self._prometheus = prometheus
        self._faults = faults
        self._chance = random.Random(seed)
        self._until = until
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name)
        self._stopping = threading.Event()
        self.defect: BaseException | None = None
        """What has ended it before its time."""

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """End it before its time, once the fault under way is over."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._bring(self._faults)
            while not self._is_over:
                # A process that is to be looked at for leaks has to live: the last third is one life.
                is_late = time.monotonic() > self._began + (self._until - self._began) * 2 / 3
                self._bring(
                    [one for one in self._faults if one.is_for_long_lives or not is_late],
                    lambda: self._is_over,
                )
        except BaseException as defect:
            self.defect = defect

    @property
    def _is_over(self) -> bool:
        return time.monotonic() > self._until or self._stopping.is_set()

    def _bring(self, faults: Sequence[Fault], is_enough: Callable[[], bool] = lambda: False) -> None:
        for fault in self._chance.sample(faults, len(faults)):
            if self._stopping.wait(self._chance.uniform(*BETWEEN_SECONDS)) or is_enough():
                return
            self._break(fault)

    def _break(self, fault: Fault) -> None:
        ledger = self._site.ledger
        subject = fault.subject(self._chance)
        cost = fault.cost(subject)
        window = ledger.open(fault.name, subject, cost)
        with ledger.blaming(f"{window.title} could not be brought about"):
            fault.inject(subject, self._chance)
        self._stopping.wait(self._chance.uniform(*fault.hold_seconds))
        with ledger.blaming(f"{window.title} did not heal"):
            fault.heal(subject)
        ledger.heal(window)
        with ledger.blaming(f"{window.title} was not followed by scrapes that go well"):
            self._wait_until_well(window)
        ledger.close(window)

    def _wait_until_well(self, window: Window) -> None:
        """Until Prometheus has scraped all that may have suffered, after it was healed, and finds it up."""
        everyone = [*self._site.names, OWN]
        of = window.cost.scrapes_of
        suffering = everyone if of == EVERYTHING else [of] if of else []
        if window.cost.lines:
            time.sleep(1.0)  # the lines of the last moments are on their way

        def is_well(name: str) -> bool:
            time.sleep(POLL_SECONDS)
            if self._is_suffering_otherwise(name, window):
                return True
            at, is_up = self._prometheus.up().get(name, (0.0, False))
            return at > window.healed and is_up

        for name in suffering:
            wait_until(lambda name=name: is_well(name), f"{name} is up again", RECOVERY_SECONDS)  # type: ignore[misc]

    def _is_suffering_otherwise(self, name: str, window: Window) -> bool:
        now = time.time()
        others = [
            one for one in self._site.ledger.windows if one is not window and one.fault != starvation.FAULT
        ]
        return any(one.covers(now, now, name) for one in others)
