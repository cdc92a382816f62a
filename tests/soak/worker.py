"""A thread that goes on beside the faults until it is stopped."""

from __future__ import annotations

import threading
import traceback
from abc import ABC, abstractmethod

from tests.soak.ledger import Ledger


class Worker(ABC):
    """From ``start`` to ``stop``; to end before is a violation: what it would have seen, nobody sees."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        self._ledger = ledger
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Until ``_stopping`` is set."""

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception:
            self._ledger.blame(f"the {self._thread.name} ended before its time: {traceback.format_exc()}")
