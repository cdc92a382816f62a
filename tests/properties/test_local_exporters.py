"""Exporters that are files or programs: whatever is in the one and comes out of the other.

A page as it is, several made one, or an error in words; never an exception that nobody expected.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from exporter_proxy.scrape.exposition import Malformed, verifier_for
from exporter_proxy.scrape.exposition.merge import Clash, Merger
from tests.inprocess import Answered, Parts, parts
from tests.properties.test_exposition_verdicts import pages

fuzz = settings(max_examples=100, deadline=None)

# Merging


def is_good(page: bytes) -> bool:
    verifier = verifier_for("text/plain", None, max_decoded_bytes=1 << 20)
    assert verifier is not None
    try:
        verifier.feed(page)
        verifier.finish()
    except Malformed:
        return False
    return True


def merged(several: list[bytes]) -> bytes:
    merger = Merger()
    for number, page in enumerate(several):
        for _ in merger.add(f"{number}.prom", page):
            pass
    for _ in merger.merge():
        pass
    return merger.page


@settings(max_examples=250, deadline=None)
@given(st.lists(pages(), min_size=1, max_size=3))
def test_good_pages_make_a_good_one_or_clash(several: list[bytes]) -> None:
    several = [page for page in several if is_good(page)]
    try:
        page = merged(several)
    except Clash as clash:
        assert str(clash).isprintable()
        assert len(clash.excerpt) <= 120
        return
    assert is_good(page)
    assert merged([page]) == page, "a page that is merged already stays as it is"


LABEL_VALUE = st.text('ab,={}"\\\n# é', max_size=5)
SAMPLE = st.tuples(
    st.sampled_from(["a", "a_sum", "b_total", "h_bucket", "h_count", "h", "x:y"]),
    st.dictionaries(st.sampled_from(["l", "le", "m"]), LABEL_VALUE.filter(bool), max_size=2),
)
TYPES = {"a": "gauge", "b_total": "counter", "h": "histogram"}


def line_of(name: str, labels: dict[str, str], value: int) -> str:
    escaped = {
        key: text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        for key, text in labels.items()
    }
    inside = ",".join(f'{key}="{text}"' for key, text in escaped.items())
    return f"{name}{{{inside}}} {value}\n" if inside else f"{name} {value}\n"


def samples_of(page: str) -> Counter[tuple[str, frozenset[tuple[str, str]], float]]:
    return Counter(
        (sample.name, frozenset(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    )


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(SAMPLE, max_size=5), min_size=1, max_size=4),
    st.lists(st.sampled_from(sorted(TYPES)), max_size=4),
)
def test_a_merged_page_has_all_samples_once_and_no_others(
    several: list[list[tuple[str, dict[str, str]]]], typed: list[str]
) -> None:
    texts = []
    for number, samples in enumerate(several):
        text = "".join(f"# TYPE {name} {TYPES[name]}\n" for name in dict.fromkeys(typed[number : number + 2]))
        texts.append(text + "".join(line_of(*sample, value) for value, sample in enumerate(samples)))
    series = [(name, frozenset(labels.items())) for samples in several for name, labels in samples]
    try:
        page = merged([text.encode() for text in texts]).decode()
    except Clash:
        assert len(set(series)) < len(series)
        return
    assert len(set(series)) == len(series)
    assert samples_of(page) == sum((samples_of(text) for text in texts), Counter())
    families = [family.name for family in text_string_to_metric_families(page)]
    assert len({line for line in page.splitlines() if line.startswith("# TYPE")}) == page.count("# TYPE")
    assert len(families) >= len(set(families))


# Scraped


@dataclass
class Local:
    """Both sorts of exporters on a directory, without a connection on either side."""

    runner: asyncio.Runner
    made: Parts
    directory: Path
    log: Path

    def scrape(self, name: str, method: str = "GET") -> Answered:
        route = next(route for route in self.made.proxy.running.routes.routes if route.exporter.name == name)
        answered = self.made.request(method)
        answered.exchange.path = route.path
        self.runner.run(self.made.scrape(answered))
        log = self.log.read_text()
        assert "defect" not in log, log
        return answered


SCRIPT = 'cat out; cat err >&2; exit "$(cat status)"'


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    directory, log = tmp_path_factory.mktemp("local"), tmp_path_factory.mktemp("log") / "log"
    command = {
        "command": ["/bin/sh", "-c", SCRIPT],
        "env": {"PATH": "/usr/bin:/bin"},
        "working_dir": str(directory),
    }
    files = {"file": f"{directory}/*.prom", "max_response_bytes": "2KiB"}
    with asyncio.Runner() as runner:
        context = parts(log, {"files": files, "command": {**command, "max_response_bytes": "2KiB"}})
        made = runner.run(context.__aenter__())
        yield Local(runner, made, directory, log)
        runner.run(context.__aexit__(None, None, None))


NAMES = st.binary(min_size=1, max_size=8).filter(lambda name: not set(name) & {0, ord("/")})
BODIES = st.one_of(
    pages(),
    st.sampled_from([b"a 1\n", b"b 2\n", b"# TYPE a gauge\n", b"", b"\0", b"x" * 3000]),
    st.binary(max_size=40),
)


@fuzz
@given(files=st.dictionaries(NAMES, BODIES, max_size=4), method=st.sampled_from(["GET", "HEAD"]))
def test_any_files_are_a_page_or_an_error(local: Local, files: dict[bytes, bytes], method: str) -> None:
    shutil.rmtree(local.directory)
    local.directory.mkdir()
    written = []
    for name, body in sorted(files.items()):
        path = Path(str(local.directory), (name + b".prom").decode("utf-8", "surrogateescape"))
        path.write_bytes(body)
        if not name.startswith(b"."):
            written.append(body)
    answered = local.scrape("files", method)
    exchange = answered.exchange
    assert answered.is_complete
    if exchange.reason is None:
        assert answered.status == 200
        assert written
        if method == "HEAD":
            assert not answered.body
        elif len(written) == 1:
            assert answered.body == written[0]
        else:
            assert answered.body == merged(written)
    else:
        assert exchange.reason in ("connect", "malformed", "file_conflict", "too_large")
        assert (exchange.message + exchange.excerpt).isprintable()
        assert answered.status == 502


@settings(max_examples=30, deadline=None)
@given(
    out=BODIES,
    err=st.binary(max_size=60)
    | st.sampled_from([b"\x1b[31mred\n", b"a\nb\nc\nd\n", b"\xff" * 500, b"x\r\0y"]),
    status=st.sampled_from([0, 0, 0, 1, 127]),
    method=st.sampled_from(["GET", "GET", "HEAD"]),
)
def test_whatever_a_program_prints_is_a_page_or_an_error(
    local: Local, out: bytes, err: bytes, status: int, method: str
) -> None:
    for name, content in (("out", out), ("err", err), ("status", b"%d" % status)):
        (local.directory / name).write_bytes(content)
    answered = local.scrape("command", method)
    exchange = answered.exchange
    assert answered.is_complete
    assert (exchange.message + exchange.excerpt).isprintable()
    if exchange.reason is None:
        assert (answered.status, status) == (200, 0)
        assert answered.body == (b"" if method == "HEAD" else out)
    else:
        assert answered.status == 502
        wrong = {"command_failed": status != 0, "malformed": not is_good(out), "too_large": len(out) > 2048}
        assert wrong[exchange.reason]
    if status != 0 or len(out) > 2048 or (method == "GET" and not is_good(out)):
        assert exchange.reason is not None
