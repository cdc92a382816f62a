"""Load as Prometheus makes it: wrk for many scrapes, http.client for single ones, the headers for both."""

from __future__ import annotations

import http.client
import re
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.bench.processes import LOOPBACK, NotMeasured, cpu_seconds, executable

SCRAPE_SECONDS = 20.0
PROMETHEUS_HEADERS = {
    "User-Agent": "Prometheus/2.42.0",
    "Accept": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
    "X-Prometheus-Scrape-Timeout-Seconds": "10",
}
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk says about one run. ``trouble`` is its line on failed requests, "" where there were none."""

    requests: int
    bytes_read: float
    p50_ms: float
    p99_ms: float
    trouble: str


def parse_wrk(output: str) -> WrkResult:
    """Read what ``wrk --latency`` prints. Raises NotMeasured where that is no result."""
    total = re.search(r"^\s*(\d+) requests in \S+, ([\d.]+)(\w+) read", output, re.MULTILINE)
    latency = {int(percent): (number, unit) for percent, number, unit in _LATENCY.findall(output)}
    if total is None or not {50, 99} <= latency.keys():
        raise NotMeasured(f"wrk: {' / '.join(output.split(chr(10))[:3]).strip(' /') or 'it said nothing'}")
    trouble = re.findall(r"^\s*((?:Non-2xx|Socket errors).*?)\s*$", output, re.MULTILINE)
    p50, p99 = (float(latency[percent][0]) * MILLISECONDS[latency[percent][1]] for percent in (50, 99))
    return WrkResult(int(total[1]), float(total[2]) * BYTES[total[3]], p50, p99, "; ".join(trouble))


_LATENCY = re.compile(r"^\s*(\d+)%\s+([\d.]+)(us|ms|s|m)\s*$", re.MULTILINE)


def run_wrk(
    port: int,
    path: str,
    connections: int,
    seconds: int,
    body_bytes: int,
    script: Path | None = None,
    *,
    tls: bool = False,
    close: bool = False,
) -> WrkResult:
    """Scrape for ``seconds`` over so many connections, each as fast as it is answered.

    With ``close`` every scrape is over a connection of its own. Raises NotMeasured unless every
    answer was a success and as long as it has to be.
    """
    wrk = executable("wrk")
    if wrk is None:
        raise NotMeasured("wrk is not installed")
    headers = [part for name, value in _headers(close).items() for part in ("-H", f"{name}: {value}")]
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", f"{SCRAPE_SECONDS:.0f}s"]
    lua = ["-s", str(script)] if script is not None else []
    finished = subprocess.run(
        [wrk, *options, *headers, *lua, f"{'https' if tls else 'http'}://{LOOPBACK}:{port}{path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    result = parse_wrk(finished.stdout + finished.stderr)
    if result.trouble:
        raise NotMeasured(f"port {port}, {path}: {result.trouble}")
    if not result.requests:
        raise NotMeasured(f"port {port}, {path}: not one scrape finished")
    # wrk rounds what it has read to a hundredth of the unit that it prints.
    if result.bytes_read < 0.98 * body_bytes * result.requests:
        raise NotMeasured(f"port {port}, {path}: answers shorter than {body_bytes} bytes")
    return result


def cpu_per_scrape(
    pid: int,
    port: int,
    path: str,
    connections: int,
    seconds: int,
    body_bytes: int,
    script: Path | None = None,
    *,
    tls: bool = False,
    close: bool = False,
) -> float:
    """Microseconds of CPU that the process spends on a scrape under load."""
    before = cpu_seconds(pid)
    result = run_wrk(port, path, connections, seconds, body_bytes, script, tls=tls, close=close)
    return (cpu_seconds(pid) - before) / result.requests * 1e6


def raw_request(path: str, *, timeout_seconds: int = 10, close: bool = False) -> bytes:
    """A scrape as bytes, for connections that are not read as a client reads them."""
    headers = {
        "Host": LOOPBACK,
        **_headers(close),
        "X-Prometheus-Scrape-Timeout-Seconds": str(timeout_seconds),
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _headers(close: bool) -> dict[str, str]:
    return {**PROMETHEUS_HEADERS, **({"Connection": "close"} if close else {})}


class Scraper:
    """One keep-alive connection that scrapes at the caller's pace."""

    def __init__(self, port: int, headers: Mapping[str, str] | None = None, *, tls: bool = False) -> None:
        self._port = port
        self._headers = {**PROMETHEUS_HEADERS, **(headers or {})}
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=SCRAPE_SECONDS)
        if tls:  # whose certificate that is, is not what is measured
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self._connection = http.client.HTTPSConnection(
                LOOPBACK, port, timeout=SCRAPE_SECONDS, context=context
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def scrape(self, path: str) -> bytes:
        """The body as it came over the wire. Raises NotMeasured for anything but a complete 200."""
        try:
            self._connection.request("GET", path, headers=self._headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotMeasured(f"port {self._port}, {path}: {error!r}") from error
        if response.status != 200:
            raise NotMeasured(f"port {self._port}, {path}: status {response.status}: {body[:200]!r}")
        return body


def expect_body(port: int, path: str, expected: bytes, times: int, *, tls: bool = False) -> None:
    """See that the right bytes come, and let the connections and caches on the way warm up."""
    with Scraper(port, tls=tls) as scraper:
        for _ in range(times):
            body = scraper.scrape(path)
            if body != expected:
                raise NotMeasured(f"port {port}, {path}: {len(body)} bytes, not the {len(expected)} served")
