"""How long it takes from the start of the process to the first scrape that is served."""

from __future__ import annotations

import time

import yaml

from tests.bench.figures import OURS, Budget, Figure
from tests.bench.load import Scraper
from tests.bench.processes import START_SECONDS, NotMeasured, free_port
from tests.bench.run import Run


def start(run: Run) -> list[Figure]:
    """The first start compiles and caches; it is not counted."""
    return [
        run.take(
            "start",
            "exec to the first served scrape",
            "s",
            {OURS: lambda: _seconds_to_first_scrape(run)},
            Budget(plus=0.8),
            prepare=lambda: _seconds_to_first_scrape(run),
        )
    ]


def _seconds_to_first_scrape(run: Run) -> float:
    file, port = run.site.file(".yml"), free_port()
    file.write_text(yaml.safe_dump(run.site.config()))
    page = run.site.bodies["page"]
    started = time.monotonic()
    with run.site.launch(file, port) as program:
        while True:
            try:
                with Scraper(port) as scraper:
                    body = scraper.scrape("/page/metrics")
                break
            except NotMeasured:
                program.check_running()
                if time.monotonic() - started > START_SECONDS:
                    raise
                time.sleep(0.002)
        if body != page:
            raise NotMeasured("the first scrape got something else than the page")
        return time.monotonic() - started
