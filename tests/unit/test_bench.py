"""The benchmark's arithmetic: what wrk says, what is held against what, and the pages that are scraped."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.bench import pages
from tests.bench.__main__ import SECTIONS, parser
from tests.bench.affinity import apart
from tests.bench.figures import OURS, Budget, Figure, Verdict, missed, shown, summary, table
from tests.bench.load import parse_wrk, raw_request
from tests.bench.processes import NotMeasured, cpu_seconds, rss_bytes

WRK = """Running 1s test @ http://127.0.0.1:8080/page
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.02ms  310.00us   9.52ms   90.10%
    Req/Sec    15.40k   801.00     16.9k    70.00%
  Latency Distribution
     50%  {p50}
     75%    1.10ms
     90%    1.30ms
     99%  {p99}
  {total}
{trouble}Requests/sec:  15321.10
Transfer/sec:    836.01MB
"""
TOTAL = "15400 requests in 1.01s, 840.31MB read"
NON_2XX = "  Non-2xx or 3xx responses: 7\n"
SOCKET_ERRORS = "  Socket errors: connect 0, read 3, write 0, timeout 1\n"


def wrk_says(p50: str = "  980.00us", p99: str = "    2.50ms", total: str = TOTAL, trouble: str = "") -> str:
    return WRK.format(p50=p50, p99=p99, total=total, trouble=trouble)


def figure(ours: float | None = None, budget: Budget | None = None, **others: float) -> Figure:
    samples = {name: [value] for name, value in others.items()}
    return Figure("cpu", "57 KB", "us", {**({} if ours is None else {OURS: [ours]}), **samples}, budget)


def test_wrk_result() -> None:
    result = parse_wrk(wrk_says())
    assert result.requests == 15400
    assert result.bytes_read == pytest.approx(840.31 * 1024 * 1024)
    assert (result.p50_ms, result.p99_ms) == pytest.approx((0.98, 2.5))
    assert result.trouble == ""


@pytest.mark.parametrize(
    ("printed", "milliseconds"), [("103.00us", 0.103), ("4.20ms", 4.2), ("1.50s", 1500.0), ("2.00m", 120_000)]
)
def test_wrk_latency_units(printed: str, milliseconds: float) -> None:
    assert parse_wrk(wrk_says(p99=printed)).p99_ms == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("printed", "read_bytes"),
    [("0.00B", 0), ("512.00B", 512), ("1.50KB", 1536), ("2.00GB", 2 * 1024**3), ("1.00TB", 1024**4)],
)
def test_wrk_byte_units(printed: str, read_bytes: int) -> None:
    result = parse_wrk(wrk_says(total=f"3 requests in 1.00s, {printed} read"))
    assert (result.requests, result.bytes_read) == (3, read_bytes)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (NON_2XX, "Non-2xx or 3xx responses: 7"),
        (SOCKET_ERRORS, "Socket errors: connect 0, read 3, write 0, timeout 1"),
        (
            SOCKET_ERRORS + NON_2XX,
            "Socket errors: connect 0, read 3, write 0, timeout 1; Non-2xx or 3xx responses: 7",
        ),
    ],
)
def test_wrk_trouble_is_kept(trouble: str, said: str) -> None:
    assert parse_wrk(wrk_says(trouble=trouble)).trouble == said


@pytest.mark.parametrize(
    "output", ["", "unable to connect to 127.0.0.1:1 Connection refused\n", wrk_says()[:300]]
)
def test_wrk_without_result(output: str) -> None:
    with pytest.raises(NotMeasured, match="wrk: "):
        parse_wrk(output)


@pytest.mark.parametrize(
    ("budget", "allowed", "text"),
    [
        (Budget("nginx", 1.6), 160.0, "<= nginx x 1.6"),
        (Budget("nginx", plus=0.2), 100.2, "<= nginx + 0.2 us"),
        (Budget("nginx", 1.5, 1.0), 151.0, "<= nginx x 1.5 + 1 us"),
        (Budget(plus=40), 40.0, "<= 40 us"),
    ],
)
def test_budget(budget: Budget, allowed: float, text: str) -> None:
    assert budget.allowed({OURS: 1.0, "nginx": 100.0}) == pytest.approx(allowed)
    assert budget.describe("us") == text
    assert figure(allowed - 0.01, budget, nginx=100.0).verdict is Verdict.MET
    assert figure(allowed + 0.01, budget, nginx=100.0).verdict is Verdict.MISSED


def test_verdict_at_the_bar_itself() -> None:
    assert figure(40.0, Budget(plus=40)).verdict is Verdict.MET


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (figure(90.0, nginx=100.0), Verdict.INFORMATION),
        (figure(), Verdict.FAILED),
        (figure(budget=Budget(plus=40)), Verdict.FAILED),
        (figure(nginx=100.0, budget=Budget("nginx", 4)), Verdict.FAILED),
        (figure(1.0, Budget("nginx", 4), HAProxy=100.0), Verdict.FAILED),
        (Figure("cpu", "x", "us", {OURS: [1.0]}, Budget(plus=2), failure="status 502"), Verdict.FAILED),
        (Figure("cpu", "x", "us", {OURS: [1.0]}, failure="status 502"), Verdict.FAILED),
        (Figure("verify", "x", "us", is_built=False), Verdict.NOT_BUILT),
    ],
)
def test_verdict(one: Figure, verdict: Verdict) -> None:
    assert one.verdict is verdict
    assert (missed([one]) == []) == (verdict is Verdict.INFORMATION)
    assert json.loads(json.dumps(one.as_json()))["is_missed"] == (verdict is not Verdict.INFORMATION)


def test_medians_and_ratio() -> None:
    samples = {OURS: [9.0, 1.0, 2.0], "nginx": [4.0, 5.0, 90.0], "HAProxy": [1.0]}
    one = Figure("cpu", "57 KB", "us", samples, Budget("nginx", 1.6))
    assert one.medians == {OURS: 2.0, "nginx": 5.0, "HAProxy": 1.0}
    assert one.peers == {"nginx": 5.0, "HAProxy": 1.0}
    assert one.ratio == pytest.approx(0.4)
    assert figure(2.0, Budget(plus=40), nginx=5.0).ratio is None
    assert figure(2.0, nginx=0.0).ratio is None


def test_table() -> None:
    figures = [
        figure(1234.5, Budget("nginx", 1.6), nginx=1000.0, HAProxy=58.21),
        Figure("memory", "idle", "MiB", {OURS: [41.26]}, Budget(plus=40)),
        Figure("start", "first scrape", "s", failure="it said nothing"),
    ]
    lines = table(figures).splitlines()
    assert lines[0].split() == ["what", "ours", "peers", "ratio", "budget", "verdict"]
    assert [line for line in lines if line.startswith("[")] == ["[cpu]", "[memory]", "[start]"]
    rows = [line for line in lines if "met" in line or "MISSED" in line]
    assert "1,234 us  nginx 1,000, HAProxy 58.2" in rows[0]
    assert rows[0].endswith("<= nginx x 1.6  met")
    assert rows[1].endswith("<= 40 MiB       MISSED")
    assert rows[2].endswith("MISSED: not measured")
    at = lines[0].index("verdict")
    assert all(row[at - 2 : at] == "  " and row[at] != " " for row in rows)
    assert lines[-1] == "first scrape: it said nothing"
    assert summary(figures) == "1 of 3 budgets met; MISSED: memory: idle; start: first scrape"


def test_summary_where_all_is_met() -> None:
    assert summary([figure(1.0, Budget(plus=2)), figure(90.0, nginx=1.0)]) == "1 of 1 budgets met"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.234, "0.23"), (9.999, "10.00"), (12.34, "12.3"), (99.96, "100.0"), (30261.4, "30,261")],
)
def test_shown(value: float, text: str) -> None:
    assert shown(value) == text


PAGE = b"""# HELP go_goroutines Number of goroutines.
# TYPE go_goroutines gauge
go_goroutines 8
# HELP node_load1 1m load average.
# TYPE node_load1 gauge
node_load1 0.5
# HELP rpc_seconds Latency.
# TYPE rpc_seconds summary
rpc_seconds{quantile="0.5"} 1
rpc_seconds_sum 2
rpc_seconds_count 3
"""


@pytest.mark.parametrize("size_bytes", [100, 1000, 57_000])
def test_fitted_page(size_bytes: int) -> None:
    page = pages.fitted(PAGE, size_bytes)
    assert size_bytes - 100 < len(page) <= size_bytes
    names = [family.name for family in text_string_to_metric_families(page.decode())]
    assert len(names) == page.count(b"# HELP ") == len(set(names))


def test_fitted_page_begins_with_the_original() -> None:
    assert pages.fitted(PAGE, 2 * len(PAGE)).startswith(PAGE)
    assert pages.fitted(PAGE, 10) == b""
    with pytest.raises(ValueError, match="HELP"):
        pages.fitted(b"up 1\n", 1000)


def test_renamed_family() -> None:
    family = pages.families(PAGE)[1]
    assert pages.renamed(family, b"copy1_") == (
        b"# HELP copy1_node_load1 1m load average.\n# TYPE copy1_node_load1 gauge\ncopy1_node_load1 0.5\n"
    )


def test_repeated_and_tiny() -> None:
    assert pages.repeated(b"abc", 7) == b"abcabca"
    assert len(pages.TINY) == 19


def test_chunked_body() -> None:
    assert pages.chunked(b"x" * 17, 16) == b"10\r\n" + b"x" * 16 + b"\r\n1\r\nx\r\n0\r\n\r\n"


def test_raw_request() -> None:
    head = raw_request("/hung/metrics", timeout_seconds=110, close=True)
    assert head.startswith(b"GET /hung/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert b"\r\nX-Prometheus-Scrape-Timeout-Seconds: 110\r\n" in head
    assert head.endswith(b"\r\nConnection: close\r\n\r\n")


def test_cpu_clock_of_a_process() -> None:
    before, ours_before = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - ours_before < 0.02:
        pass
    spent, ours = cpu_seconds(os.getpid()) - before, time.process_time() - ours_before
    assert spent == pytest.approx(ours, abs=0.01)
    assert rss_bytes(os.getpid()) > 1 << 20


def test_apart() -> None:
    cpus = os.sched_getaffinity(0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as measured:
        with apart([measured.pid], []):
            last = {max(cpus)} if len(cpus) > 1 else cpus
            assert os.sched_getaffinity(measured.pid) == last
            assert os.sched_getaffinity(0) == (cpus - last or cpus)
        assert os.sched_getaffinity(measured.pid) == os.sched_getaffinity(0) == cpus


def test_options() -> None:
    options = parser().parse_args(["--only", "cpu", "--only", "start", "--rounds", "3", "--json", "x.json"])
    assert (options.only, options.rounds, options.seconds, options.quick) == (["cpu", "start"], 3, 1, False)
    assert parser().parse_args([]).json.name == "bench.json"
    assert {"cpu", "verify", "latency", "pair", "memory", "routes", "hung", "start", "tls"} == set(SECTIONS)


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--rounds", "0"], ["--seconds", "x"]])
def test_wrong_options(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parser().parse_args(wrong)
    assert exit_.value.code == 2
