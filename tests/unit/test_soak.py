"""The soak's arithmetic: whole pages, scrapes and their lines, excuses, and counters against the log."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemon import REPOSITORY
from tests.soak import pages
from tests.soak.__main__ import parser, summary
from tests.soak.accesslog import Line, read_lines
from tests.soak.alignment import align
from tests.soak.checker import Check
from tests.soak.counters import disagreements, final_disagreement
from tests.soak.exporters import CHECKSUM
from tests.soak.ledger import EVERYTHING, Cost, Window
from tests.soak.memory import MIB, Memory
from tests.soak.prometheus import Scrape
from tests.soak.reckoning import Excuses, reckon_checks, reckon_prometheus
from tests.soak.run import Result
from tests.soak.site import CHECKER
from tests.soak.starvation import STEP_SECONDS, was_busy
from tests.soak.supervisor import is_killed
from tests.soak.watch import COUNTERS, Look, Reading

NODE = "node_exporter"
NO_EXCUSE = Excuses([])


def scrape(second: float, is_up: bool = True, job: str = NODE, samples: int = 9, error: str = "") -> Scrape:
    return Scrape(job, second, 0.1, is_up, samples, error)


def line(second: float, reason: str = "", status: int = 200, number: int | None = None, **other: str) -> Line:
    exporter = other.get("exporter", NODE)
    return Line(
        began=second,
        ended=second + 0.1,
        status=status,
        reason=reason,
        path=f"/{exporter}/metrics" if exporter else "/metrics",
        exporter=exporter,
        remote="127.0.0.1" if number is None else CHECKER,
        agent="Prometheus/2.42.0" if number is None else "",
        number=number,
        is_counted_lost=False,
    )


def window(cost: Cost, began: float, ended: float) -> Excuses:
    return Excuses([Window(1, "a fault", "", cost, began, ended, ended)])


# Pages


@pytest.mark.parametrize("size_bytes", pages.SIZES_BYTES)
def test_a_page_and_a_part_of_it(size_bytes: int) -> None:
    page = pages.page(size_bytes, random.Random(1))
    assert size_bytes <= len(page) < size_bytes + 300
    assert pages.problem(page) is None
    assert sum(not one.startswith(b"#") for one in page.splitlines()) == pages.SAMPLES
    for end in (0, 1, len(page) // 2, len(page) - 20, len(page) - 1):
        assert pages.problem(page[:end])
    middle = len(page) // 2
    assert pages.problem(page[:middle] + b"\0" + page[middle + 1 :])
    assert pages.problem(page[:middle] + page[middle + 1 :])


# Scrapes and lines


def test_alignment_where_nothing_is_missing() -> None:
    scrapes, lines = [scrape(one) for one in range(50)], [line(one + 0.002) for one in range(50)]
    assert align(scrapes, lines) == (list(zip(scrapes, lines, strict=True)), [])
    assert align([], lines) == ([], lines)
    assert align(scrapes, []) == ([(one, None) for one in scrapes], [])
    assert align([], []) == ([], [])


@pytest.mark.parametrize("missing", [[0], [7], [9], [3, 4, 5], [0, 9], list(range(9))])
def test_alignment_where_lines_are_missing(missing: list[int]) -> None:
    scrapes = [scrape(one) for one in range(10)]
    lines = {one: line(one + 0.002) for one in range(10) if one not in missing}
    pairs, left = align(scrapes, list(lines.values()))
    assert pairs == [(one, lines.get(int(one.began))) for one in scrapes]
    assert left == []


def test_alignment_of_a_request_that_waited() -> None:
    """The daemon came to the first one after the second one had begun, whose own line is lost."""
    scrapes = [scrape(1, is_up=False), scrape(2)]
    late = line(2.3, "client_gone", 499)
    assert align(scrapes, [late]) == ([(scrapes[0], late), (scrapes[1], None)], [])


def test_alignment_where_a_line_is_lost_and_another_is_nobodys() -> None:
    """The lines between the two stay with their scrapes."""
    scrapes = [scrape(one) for one in range(1, 60)]
    lines = [line(one) for one in range(1, 60) if one != 30]
    more = line(60, "client_gone", 499)
    pairs, left = align(scrapes, [*lines, more])
    assert [(one.began, found) for one, found in pairs if found is None or found.began != one.began] == [
        (30, None)
    ]
    assert left == [more]


def test_what_is_cut_off_at_the_end_does_not_count() -> None:
    scrapes, lines = [scrape(1), scrape(2, is_up=False)], [line(1), line(2, "client_gone", 499)]
    verdicts, _ = reckon_prometheus(scrapes, lines, NO_EXCUSE, stopped_at=2.05)
    assert (verdicts.scrapes, verdicts.violations) == (1, [])


@pytest.mark.parametrize("second", [0.5, 3.5, 80.0])
def test_alignment_where_a_line_is_nobodys(second: float) -> None:
    scrapes = [scrape(one) for one in range(1, 6)]
    lines = [line(one) for one in range(1, 6)]
    more = line(second, "timeout", 504)
    pairs, left = align(scrapes, sorted([*lines, more], key=lambda one: one.began))
    assert [found for _, found in pairs] == lines
    assert left == [more]


# Excuses


def test_a_scrape_without_an_excuse_is_lost() -> None:
    for scrapes, lines, words in (
        ([scrape(1)], [], "no line of the access log"),
        ([scrape(1, is_up=False)], [], "no line of the access log"),
        ([scrape(1, is_up=False)], [line(1, "timeout", 504)], "outside of any fault"),
        ([scrape(1, is_up=False)], [line(1)], "outside of any fault"),
        ([], [line(1)], "nobody's scrape"),
    ):
        verdicts, _ = reckon_prometheus([*scrapes, scrape(30)], [*lines, line(30)], NO_EXCUSE, 100.0)
        assert verdicts.lost == len(verdicts.violations) == 1
        assert words in verdicts.violations[0]


@pytest.mark.parametrize(
    ("cost", "excused"),
    [
        (Cost(), []),
        (Cost(scrapes_of=NODE), ["failed"]),
        (Cost(scrapes_of="redis_exporter"), []),
        (Cost(scrapes_of=EVERYTHING), ["failed"]),
        (Cost(scrapes_of=EVERYTHING, is_unseen=True), ["failed", "unseen"]),
        (Cost(lines=True), ["unlogged"]),
        (Cost(scrapes_of=EVERYTHING, is_unseen=True, lines=True), ["failed", "unseen", "unlogged"]),
    ],
)
def test_excuses(cost: Cost, excused: list[str]) -> None:
    cases = {
        "failed": (scrape(5, is_up=False), [line(5, "timeout", 504)]),
        "unseen": (scrape(5, is_up=False), []),
        "unlogged": (scrape(5), []),
    }
    for name, (one, lines) in cases.items():
        scrapes, all_lines = [scrape(1), one, scrape(9)], [line(1), *lines, line(9)]
        verdicts, _ = reckon_prometheus(scrapes, all_lines, window(cost, 4.0, 6.0), 100.0)
        assert (verdicts.lost == 0) == (name in excused)
        other_time, _ = reckon_prometheus(scrapes, all_lines, window(cost, 6.5, 7.0), 100.0)
        assert other_time.lost == 1


def test_what_nothing_excuses() -> None:
    everything = window(Cost(EVERYTHING, is_unseen=True, lines=True), 0.0, 100.0)
    for one, of_log, words in (
        (scrape(2), line(2, "truncated"), "200 truncated"),
        (scrape(2, False, error="connect: connection refused"), line(2, "timeout", 504), "all along"),
        (scrape(2, samples=3), line(2), "up 1 with 3 samples"),
    ):
        verdicts, _ = reckon_prometheus(
            [scrape(1), one, scrape(9)], [line(1), of_log, line(9)], everything, 99
        )
        assert len(verdicts.violations) == 1
        assert words in verdicts.violations[0]
    whole = [scrape(one, job=CHECKSUM, samples=pages.SAMPLES) for one in range(1, 9)]
    cut = scrape(9, job=CHECKSUM, samples=pages.SAMPLES - 1)
    lines = [line(one, exporter=CHECKSUM) for one in range(1, 10)]
    verdicts, _ = reckon_prometheus([*whole, cut], lines, everything, 99)
    assert len(verdicts.violations) == 1


def check(status: int = 200, is_complete: bool = True) -> Check:
    return Check(7, NODE, 1.0, 1.1, status, is_complete)


@pytest.mark.parametrize(
    ("one", "lines", "cost", "violations"),
    [
        (check(), [line(1, number=7)], Cost(), 0),
        (check(), [], Cost(), 1),
        (check(), [], Cost(lines=True), 0),
        (check(), [line(1, number=7), line(1, number=7)], Cost(lines=True), 1),
        (check(), [line(1, "truncated", number=7)], Cost(EVERYTHING), 1),
        (check(is_complete=False), [line(1, number=7)], Cost(EVERYTHING, is_unseen=True, lines=True), 1),
        (check(is_complete=False), [line(1, number=7)], Cost(EVERYTHING, sent=True), 0),
        (check(0, is_complete=False), [line(1, number=7)], Cost(EVERYTHING, sent=True), 0),
        (check(is_complete=False), [line(1, number=7)], Cost(sent=True), 1),
        (check(502), [line(1, number=7)], Cost(EVERYTHING, sent=True), 1),
        (check(), [line(1, "truncated", number=7)], Cost(EVERYTHING, sent=True), 1),
        (check(is_complete=False), [line(1, "truncated", number=7)], Cost(EVERYTHING), 0),
        (check(is_complete=False), [line(1, "truncated", number=7)], Cost(), 1),
        (check(502), [line(1, "connect", 502, number=7)], Cost(NODE), 0),
        (check(502), [line(1, "timeout", 504, number=7)], Cost(NODE), 1),
        (check(0, is_complete=False), [], Cost(EVERYTHING, is_unseen=True), 0),
        (check(0, is_complete=False), [], Cost(EVERYTHING), 1),
    ],
)
def test_checks(one: Check, lines: list[Line], cost: Cost, violations: int) -> None:
    assert len(reckon_checks([one], lines, window(cost, 0.0, 5.0)).violations) == violations


def test_a_cut_at_another_time_than_the_fault_that_explains_it() -> None:
    cut, of_log = check(is_complete=False), [line(1, number=7)]
    for began, ended, violations in ((0.0, 0.9, 2), (0.0, 1.0, 0), (1.1, 2.0, 0), (1.2, 2.0, 2)):
        excuses = window(Cost(EVERYTHING, sent=True), began, ended)
        assert len(reckon_checks([cut], of_log, excuses).violations) == violations


def test_a_line_that_is_no_check() -> None:
    assert reckon_checks([], [line(1, number=7)], NO_EXCUSE).lost == 1


# A machine without time


@pytest.mark.parametrize(
    ("step_seconds", "waited", "busy"),
    [
        (STEP_SECONDS, [], False),
        (STEP_SECONDS, [0.06, 0.06, 0.06], False),
        (STEP_SECONDS, [0.01, 0.07], True),
        (0.7, [0.17], False),
        (0.7, [0.18], True),
        (0.8, [], True),
    ],
)
def test_who_waits_for_a_cpu_and_who_is_late(step_seconds: float, waited: list[float], busy: bool) -> None:
    assert was_busy(step_seconds, waited) is busy


WATCHING = """
import json, sys
from pathlib import Path
from tests.soak import starvation
from tests.soak.ledger import Ledger

waited_seconds = starvation.waited_seconds

def looked():
    print("it looks", flush=True)
    return waited_seconds()

starvation.waited_seconds = looked
ledger = Ledger(Path(sys.argv[1]))
with starvation.watching(ledger):
    sys.stdin.read()
print(json.dumps([(one.began, one.ended) for one in ledger.windows]))
"""


def test_a_machine_that_stands_still_is_noticed(tmp_path: Path) -> None:
    """Nobody waits for a CPU in a process that is stopped, as it is when the machine is."""
    log = tmp_path / "faults.log"
    watching = [sys.executable, "-c", WATCHING, str(log)]
    with subprocess.Popen(watching, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"it looks\n"
            began = time.time()
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.5)
            ended = time.time()
        finally:
            process.send_signal(signal.SIGCONT)
        *_, found = process.communicate(timeout=30)[0].splitlines()
    windows = json.loads(found)
    assert any(first < began and ended < last for first, last in windows), (began, ended, windows)


# What outlives the daemon


def test_who_has_been_killed_is_told_from_who_has_not() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert not is_killed(process.pid)
        process.kill()
        assert is_killed(process.pid)  # as long as it is not waited for
    assert not is_killed(process.pid)


# Counters


def reading(number: int, second: float, lost_lines: int = 0, **counts: int) -> Reading:
    """``counts``: scrapes of exporters with status 200, or refusals for a reason."""
    samples = {}
    for name, value in counts.items():
        is_exporter = name == NODE
        labels = {"exporter": name, "code": "200"} if is_exporter else {"reason": name}
        samples[COUNTERS[0 if is_exporter else 1], frozenset(labels.items())] = float(value)
    return Reading(number, second, samples, lost_lines)


def test_counters_and_lines() -> None:
    lines = [line(1), line(2), line(3, "unauthorized", 401, exporter="")]
    read = line(4, number=1, exporter="")
    right = reading(1, 4.0, node_exporter=2, unauthorized=1)
    assert disagreements([*lines, read], [right]) == (1, [])
    for wrong in (
        reading(1, 4.0, node_exporter=1, unauthorized=1),
        reading(1, 4.0, node_exporter=3, unauthorized=1),
        reading(1, 4.0, node_exporter=2),
        reading(1, 4.0, node_exporter=2, unauthorized=1, not_found=1),
        reading(1, 4.0, lost_lines=1, node_exporter=3, unauthorized=2),
    ):
        assert disagreements([*lines, read], [wrong])[1]
    assert not disagreements([*lines, read], [reading(1, 4.0, 1, node_exporter=3, unauthorized=1)])[1]
    # Lost a moment later, and so counted in the next reading; not in one after that.
    late, never = reading(2, 5.0, 1), reading(2, 5.0, 0)
    early = reading(1, 4.0, node_exporter=3, unauthorized=1)
    assert not disagreements([*lines, read], [early, late])[1]
    assert disagreements([*lines, read], [early, never, reading(3, 6.0, 1)])[1]
    # The next reading may be another process's, whose count begins anew.
    known = reading(1, 4.0, 1, node_exporter=3, unauthorized=1)
    assert not disagreements([*lines, read], [known, reading(2, 5.0, 0)])[1]
    # What ended while the page was made may be in it.
    racing = [*lines, line(3.95), read]
    for count in (2, 3):
        assert not disagreements(racing, [reading(1, 4.0, node_exporter=count, unauthorized=1)])[1]


def test_the_final_sum_is_exact() -> None:
    lines = [line(1), line(2), line(4, number=1, exporter="")]
    assert final_disagreement(lines, reading(1, 4.0, node_exporter=2), 0, 0) is None
    assert final_disagreement(lines, reading(1, 4.0, 3, node_exporter=4), 1, 0) is None
    assert final_disagreement(lines, reading(1, 4.0, 3, node_exporter=4), 0, 1) is None
    for lost_lines, pages_, others in ((2, 1, 0), (4, 1, 0), (4, 0, 1), (0, 0, 0)):
        last = reading(1, 4.0, lost_lines, node_exporter=4)
        assert final_disagreement(lines, last, pages_, others) is not None


# Memory


def looks(pid: int, seconds: int, mib: float, mib_per_second: float = 0.0) -> list[Look]:
    return [Look(at, pid, int((mib + at * mib_per_second) * MIB), 30) for at in range(seconds)]


def test_memory() -> None:
    flat = [*looks(1, 100, 40.0, 0.3), *looks(2, 1000, 60.0)]
    assert Memory.of(flat).problems == []
    assert Memory.of(flat).most == pytest.approx(69.7, abs=0.1)
    assert str(Memory.of(flat)).startswith("60.0 MiB at the end of the longest life, 999 s (60.0 after")
    assert Memory.of(looks(1, 200, 40.0, 0.2)).problems == []  # too short to tell
    assert "MiB resident became" in Memory.of(looks(1, 1000, 40.0, 0.02)).problems[0]
    assert Memory.of(looks(1, 3600, 40.0, 0.002)).problems == []
    assert "97.0 MiB resident" in Memory.of(looks(1, 10, 97.0)).problems[0]


# The access log


def test_reading_the_access_log(tmp_path: Path) -> None:
    """Rotated files first; pieces of lines are left out; the clock was wrong by days."""

    def written(second: float, query: str = "", days: int = 0) -> str:
        fields = {"time_nsec": int((1_000_000 + second + days * 86_400) * 1e9), "reqtime_nsec": 500_000_000}
        fields |= {"status": 200, "size": 1}
        text = dict.fromkeys(("path", "method", "reason", "remote", "exporter", "user_agent"), "")
        return json.dumps({**fields, **text, "query": query}) + "\n"

    (tmp_path / "access.log.00001").write_text(written(1, "soak=12") + written(2, days=5)[:-30])
    (tmp_path / "access.log.00002").write_text("\n" + written(3, "soak=x", days=-200))
    (tmp_path / "access.log").write_text(written(4)[:-1])
    found = read_lines(tmp_path, 1_000_000 - 3600)
    assert [one.number for one in found] == [12, None]
    assert [one.ended for one in found] == pytest.approx([1_000_001, 1_000_003])
    assert [one.began for one in found] == pytest.approx([1_000_000.5, 1_000_002.5])


# What is said


def test_options_and_summary() -> None:
    options = parser().parse_args(["--minutes", "0.5", "--seed", "3"])
    assert (options.minutes, options.seed, options.keep) == (0.5, 3, False)
    assert parser().parse_args([]).minutes == 60.0
    said = summary(Result(seconds=90.0, violations=["what broke"]), 3)
    assert "minutes:    1.5, seed 3" in said
    assert "lost:       0" in said
    assert said.endswith("violations: 1\n  what broke")
