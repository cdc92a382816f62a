"""The oracle: a real Prometheus judges some hundred pages, and the verifier must agree.

What Prometheus takes in must never be found malformed, and what it cannot parse should be.
The pages: the tables of the unit tests, what some of Debian's exporters (for all see
``test_debian_exporters.py``) and Prometheus itself have to say, the same with mistakes made
in it, and generated ones. One small server has them all, each at a path of its own that is
a target of its own; the verdict is the target's ``lastError``.

Prometheus 2.42 is older than names in quotes: the tables mark what only a version 3 takes.
"""

from __future__ import annotations

import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from exporter_proxy.scrape.exposition import Malformed, verifier_for
from tests.daemon import wait_until
from tests.e2e.processes import (
    EXPORTER_COMMANDS,
    Exporter,
    Prometheus,
    listening_port,
    redis_server,
    start_process,
)
from tests.testdata.exposition.headers import CONTENT_TYPE_PAGES, ENCODED_PAGES
from tests.testdata.exposition.mistakes import MISTAKES, generated
from tests.testdata.exposition.pages import (
    OPENMETRICS,
    OPENMETRICS_PAGES,
    PROTOBUF,
    TEXT,
    TEXT_PAGES,
    Page,
    Taken,
    stored,
    zipped,
)
from tests.testdata.exposition.protobuf import PROTOBUF_PAGES

pytestmark = [
    pytest.mark.needs_prometheus,
    pytest.mark.xdist_group("exposition"),
    pytest.mark.timeout(300),
]

PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.25
"""The answer has some hundred KiB: asking all the time would slow the scrapes down."""
GENERATED_PAGES = 250
MAX_MISS_RATIO = 0.1
"""Of generated pages, some of which have names in quotes."""

LENIENT = ("a trailing comma", "a NUL at the start of a line")
"""In OpenMetrics a version 3 takes the one; the other depends on the line before."""

ACCEPTS = {
    "text": "text/plain;version=0.0.4",
    "openmetrics": "application/openmetrics-text;version=1.0.0",
    "protobuf": PROTOBUF,
}
TABLES = [*TEXT_PAGES, *OPENMETRICS_PAGES, *PROTOBUF_PAGES, *CONTENT_TYPE_PAGES, *ENCODED_PAGES]

NOT_PARSING = re.compile("invalid metric name or label names|is not unique|does not support exemplars")
"""In ``lastError``: the page was parsed, and what it says refused; for exemplars by 2.x only."""


@dataclass(frozen=True)
class Case:
    """A page, where it comes from, and what both sides say of it."""

    source: str
    """``table``, ``real``, ``generated``, or the name of a mistake."""
    page: Page
    last_error: str = ""
    """Prometheus's verdict; empty where it took the page in."""

    @property
    def fault(self) -> Malformed | None:
        """The verifier's verdict."""
        verifier = verifier_for(self.page.content_type, self.page.content_encoding, max_decoded_bytes=1 << 26)
        assert verifier is not None
        try:
            verifier.feed(self.page.body)
            verifier.finish()
        except Malformed as fault:
            return fault
        return None

    @property
    def parsed(self) -> bool:
        """Whether Prometheus could parse it."""
        return not self.last_error or NOT_PARSING.search(self.last_error) is not None

    def __str__(self) -> str:
        said = f"Prometheus says {self.last_error[:100]!r}, the verifier {str(self.fault)!r}"
        return f"{self.source}: {self.page} as {self.page.content_type}: {said}"


@contextmanager
def served(pages: list[Page]) -> Iterator[str]:
    """A server that has each page at the path of its number; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages[int(self.path[1:])]
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(page.body)))
            if page.content_type is not None:
                self.send_header("Content-Type", page.content_type)
            if page.content_encoding is not None:
                self.send_header("Content-Encoding", page.content_encoding)
            self.end_headers()
            with suppress(ConnectionError):  # Prometheus has given up, and asks again later
                self.wfile.write(page.body)

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def last_errors(pages: list[Page]) -> list[str]:
    """What Prometheus's ``lastError`` is for each page, once it has scraped all."""
    with served(pages) as address:
        targets = [
            {"targets": [address], "labels": {"__metrics_path__": f"/{number}", "page": str(number)}}
            for number in range(len(pages))
        ]
        job = {"job_name": "pages", "static_configs": targets}
        with Prometheus([job], scrape_interval="2s", scrape_timeout="2s") as prometheus:
            active = scraped_targets(prometheus, len(pages))
    errors = {int(one["labels"]["page"]): one["lastError"] for one in active}
    return [errors[number] for number in range(len(pages))]


def scraped_targets(prometheus: Prometheus, count: int) -> list[dict[str, Any]]:
    """The targets once each has been scraped, on a later try where it took too long."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        with suppress(urllib.error.HTTPError):  # 503: it is still starting
            targets = prometheus.targets()
            unscraped = [
                one for one in targets if one["health"] == "unknown" or one["lastError"].startswith('Get "')
            ]
            if len(targets) == count and not unscraped:
                return targets
        assert time.monotonic() < end, "some pages were not scraped"
        time.sleep(POLL_SECONDS)


@contextmanager
def idle_prometheus(directory: Path) -> Iterator[str]:
    """A Prometheus for the sake of its own metrics; gives their URL."""
    config = directory / "prometheus.yml"
    config.write_text("{}")
    options = (
        f"--config.file={config}",
        f"--storage.tsdb.path={directory}",
        "--web.listen-address=127.0.0.1:0",
    )
    process = start_process(["prometheus", *options])
    try:
        yield f"http://127.0.0.1:{listening_port(process)}/metrics"
    finally:
        process.kill()
        process.wait()


def real_pages(directory: Path) -> list[Page]:
    """What Debian's exporters and Prometheus itself say, to whoever asks for each format."""
    modules = directory / "blackbox.yml"
    modules.write_text(yaml.safe_dump({"modules": {"tcp": {"prober": "tcp", "timeout": "1s"}}}))
    with ExitStack() as stack:
        arguments = {
            "redis_exporter": [f"--redis.addr={stack.enter_context(redis_server())}"],
            "blackbox_exporter": [f"--config.file={modules}"],
        }
        exporters = {
            name: stack.enter_context(Exporter(name, *arguments.get(name, []))) for name in EXPORTER_COMMANDS
        }
        urls = [exporter.url() for exporter in exporters.values()]
        urls.append(exporters["blackbox_exporter"].url("/probe?module=tcp&target=127.0.0.1:1"))
        prometheus_url = stack.enter_context(idle_prometheus(directory))
        wait_until(
            lambda: fetched(prometheus_url, "text") is not None, "Prometheus was ready", PATIENCE_SECONDS
        )
        urls.append(prometheus_url)
        pages = [fetched(url, wish) for url in urls for wish in ACCEPTS]
    return [page for page in pages if page is not None]


def fetched(url: str, wish: str) -> Page | None:
    """The page at ``url``, ``None`` while it is not served."""
    request = urllib.request.Request(url, headers={"Accept": ACCEPTS[wish]})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
            return Page(response.read(), response.headers["Content-Type"])
    except OSError:
        return None


def broken_pages(real: list[Page]) -> Iterator[Case]:
    """Every mistake in the longest pages that are there in each of the line-based formats."""
    spoilt = [Page(stored("jmx_exporter.txt"), TEXT), Page(stored("openmetrics.txt"), OPENMETRICS)]
    for media_type in ("text/plain", "application/openmetrics-text"):
        of_type = {page.body: page for page in real if str(page.content_type).startswith(media_type)}
        spoilt += sorted(of_type.values(), key=lambda page: len(page.body))[-3:]
    for page in spoilt:
        for name, mistake in MISTAKES.items():
            yield Case(name, replace(page, body=mistake(page.body)))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    real = real_pages(tmp_path_factory.mktemp("real"))
    packed = [replace(page, body=zipped(page.body, 1), content_encoding="gzip") for page in real]
    chance = random.Random(20_240_229)
    cases = [Case("table", page) for page in TABLES]
    cases += [Case("real", page) for page in (*real, *packed)]
    cases += broken_pages(real)
    cases += [
        Case("generated", Page(generated(chance), chance.choice((TEXT, TEXT, OPENMETRICS))))
        for _ in range(GENERATED_PAGES)
    ]
    errors = last_errors([case.page for case in cases])
    return [replace(case, last_error=error) for case, error in zip(cases, errors, strict=True)]


def listed(cases: list[Case]) -> str:
    return "\n".join(map(str, cases))


def test_the_tables_say_what_prometheus_does(judged: list[Case]) -> None:
    table = [case for case in judged if case.source == "table"]
    assert len(table) == len(TABLES)
    assert not listed([case for case in table if (case.last_error == "") != (case.page.taken is Taken.BY_2)])
    refused = [case for case in table if case.page.taken is Taken.IF_RELABELLED]
    assert refused
    assert not listed([case for case in refused if not case.parsed])


def test_real_exporters_are_taken_by_both(judged: list[Case]) -> None:
    real = [case for case in judged if case.source == "real"]
    assert len(real) == 2 * len(ACCEPTS) * (len(EXPORTER_COMMANDS) + 2)
    assert not listed([case for case in real if case.last_error or case.fault])


def test_nothing_that_prometheus_takes_is_malformed(judged: list[Case]) -> None:
    assert len(judged) > 700
    assert not listed([case for case in judged if not case.last_error and case.fault])


def test_every_mistake_that_prometheus_finds_is_found(judged: list[Case]) -> None:
    broken = [case for case in judged if case.source in MISTAKES]
    found = {case.source for case in broken if not case.parsed}
    assert len(found) > len(MISTAKES) * 3 / 4
    missed = [case for case in broken if not case.parsed and not case.fault]
    assert not listed([case for case in missed if case.source not in LENIENT])


def test_few_of_the_generated_pages_are_missed(judged: list[Case]) -> None:
    unparsed = [case for case in judged if case.source == "generated" and not case.parsed]
    missed = [case for case in unparsed if not case.fault]
    print(f"missed {len(missed)} of {len(unparsed)} generated pages that Prometheus does not parse:")
    print(listed(missed))
    assert len(unparsed) > GENERATED_PAGES / 4
    assert len(missed) <= MAX_MISS_RATIO * len(unparsed)
