"""One run of the benchmark: how long and how often, and the loop that takes turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.affinity import apart
from tests.bench.figures import Budget, Figure
from tests.bench.processes import NotMeasured
from tests.bench.progress import say
from tests.bench.site import Proxy, Site

Measure = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Run:
    """What the sections share. ``rounds`` is how often each figure is taken, ``seconds`` for how long."""

    site: Site
    rounds: int
    seconds: int
    is_quick: bool

    def take(
        self,
        section: str,
        what: str,
        unit: str,
        measures: Mapping[str, Measure],
        budget: Budget | None = None,
        *,
        prepare: Callable[[], object] | None = None,
        rounds: int | None = None,
        isolated: Sequence[Proxy] = (),
    ) -> Figure:
        """A figure of several rounds in each of which everything has its turn.

        ``isolated`` are the proxies that get a CPU apart from the load's and the exporters'.
        Whatever makes one of the measurements worthless makes the whole row so.
        """
        say(f"{section}: {what}")
        samples: dict[str, list[float]] = {name: [] for name in measures}
        try:
            if prepare is not None:
                prepare()
            with apart([proxy.pid for proxy in isolated], self.site.origin_pids):
                for _ in range(rounds or self.rounds):
                    for name, measure in measures.items():
                        samples[name].append(measure())
        except NotMeasured as trouble:
            return Figure(section, what, unit, samples, budget, failure=str(trouble))
        return Figure(section, what, unit, samples, budget)
