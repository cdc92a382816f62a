"""``rate_limit`` of web_config_file: it counts every request, and whoever is over it waits."""

from __future__ import annotations

import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import yaml

from tests.daemon import proxied, wait_until
from tests.fakes.hashing import hash_of
from tests.wire import request


def write_web(directory: Path, **content: Any) -> str:
    (directory / "web.yml").write_text(yaml.safe_dump(content))
    return str(directory / "web.yml")


def test_over_the_rate_everything_is_429_probes_included(tmp_path: Path) -> None:
    web = write_web(tmp_path, rate_limit={"interval": "1h", "burst": 4})
    with proxied(web_config_file=web, access_log={"format": "json"}) as (daemon, exporter):
        daemon.get("/x/metrics").expect_ok()
        daemon.get("/nowhere").expect_refusal(404, "not_found")
        daemon.get("/-/healthy").expect_ok()
        with daemon.connect() as wire:
            wire.exchange(request("/x/metrics")).expect_ok()
            for path in ("/x/metrics", "/-/healthy", "/", "/nowhere"):
                reply = wire.exchange(request(path)).expect_refusal(429, "rate_limited")
                assert b"rate_limit" in reply.body
                assert 3590 <= int(reply.header("retry-after") or 0) <= 3600
                assert reply.header("connection") is None
        assert len(exporter.requests) == 2
        wait_until(
            lambda: sum("rate_limited" in line for line in daemon.output_lines) == 4, "they were logged"
        )
        # The same limit: a reload gives nobody more.
        assert "config reloaded" in daemon.reload()
        daemon.get("/x/metrics").expect_refusal(429, "rate_limited")
        write_web(tmp_path, rate_limit={"interval": "1h", "burst": 5})
        assert "config reloaded" in daemon.reload()
        assert daemon.metric("exporter_proxy_requests_denied_total", reason="rate_limited") == 5


def test_the_rate_comes_before_credentials(tmp_path: Path) -> None:
    right = "Authorization", "Basic " + b64encode(b"ann:of ann").decode()
    users = {"ann": hash_of(b"of ann")}
    web = write_web(tmp_path, basic_auth_users=users, rate_limit={"interval": "1h", "burst": 2})
    with proxied(web_config_file=web) as (daemon, _):
        daemon.get("/x/metrics").expect_refusal(401, "unauthorized")
        daemon.get("/x/metrics", right).expect_ok()
        for headers in ((), (right,)):
            daemon.get("/x/metrics", *headers).expect_refusal(429, "rate_limited")


def test_the_rate_lets_in_one_each_interval(tmp_path: Path) -> None:
    web = write_web(tmp_path, rate_limit={"interval": "300ms", "burst": 1})
    with proxied(web_config_file=web) as (daemon, _):
        started = time.monotonic()
        daemon.get("/x/metrics").expect_ok()
        assert daemon.get("/x/metrics").expect_refusal(429, "rate_limited").header("retry-after") == "1"
        wait_until(lambda: daemon.get("/x/metrics").status == 200, "there was room again")
        assert time.monotonic() - started >= 0.29
