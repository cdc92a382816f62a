"""Credentials as others have them: a real Prometheus, curl, and passwords as exporter-toolkit takes them."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon import Daemon, proxied, wait_until
from tests.e2e.processes import Exporter, Prometheus
from tests.fakes.hashing import hash_of
from tests.wire import request

PATIENCE_SECONDS = 30.0
UNAUTHORIZED = "server returned HTTP status 401 Unauthorized"

# Job, what it sends, and whether that is right.
JOBS: dict[str, tuple[dict[str, Any], bool]] = {
    "password": ({"basic_auth": {"username": "ann", "password": "of ann"}}, True),
    "wrong_password": ({"basic_auth": {"username": "ann", "password": "no"}}, False),
    "wrong_user": ({"basic_auth": {"username": "eve", "password": "of ann"}}, False),
    "token": ({"authorization": {"credentials": "t0ken"}}, True),
    "wrong_token": ({"authorization": {"credentials": "t0k"}}, False),
    "none": ({}, False),
}


def write_web(directory: Path, users: dict[str, str]) -> str:
    (directory / "web.yml").write_text(yaml.safe_dump({"basic_auth_users": users}))
    return str(directory / "web.yml")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Wants ann's password, at the cost that htpasswd and most others choose, or a token."""
    directory = tmp_path_factory.mktemp("web")
    (directory / "tokens").write_text("t0ken\n")
    web = write_web(directory, {"ann": hash_of(b"of ann", 10)})
    with proxied(web_config_file=web, bearer_tokens_file=str(directory / "tokens")) as (started, _):
        yield started


@pytest.mark.needs_prometheus
def test_a_real_prometheus_is_up_with_right_credentials_and_down_with_a_401_without(daemon: Daemon) -> None:
    static = [{"targets": [f"127.0.0.1:{daemon.port}"]}]
    jobs = [
        {"job_name": name, "metrics_path": "/x/metrics", "static_configs": static, **credentials}
        for name, (credentials, _) in JOBS.items()
    ]
    expected = {name: (("up", "") if right else ("down", UNAUTHORIZED)) for name, (_, right) in JOBS.items()}
    with Prometheus(jobs, scrape_interval="1s", scrape_timeout="1s") as prometheus:

        def shown() -> dict[str, tuple[str, str]]:
            return {one["labels"]["job"]: (one["health"], one["lastError"]) for one in prometheus.targets()}

        wait_until(lambda: shown() == expected, f"it was {expected}", PATIENCE_SECONDS)

        def up() -> dict[str, float]:
            return {one["metric"]["job"]: float(one["value"][1]) for one in prometheus.query("up")}

        wait_until(lambda: up() == {name: right for name, (_, right) in JOBS.items()}, "up", PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--user", "ann:of ann"], 200),
        (["--anyauth", "--user", "ann:of ann"], 200),
        (["--anyauth", "--user", "ann:no"], 401),
        (["--digest", "--user", "ann:of ann"], 401),
        (["--oauth2-bearer", "t0ken"], 200),
        (["--anyauth", "--oauth2-bearer", "t0ken"], 200),
        (["--oauth2-bearer", "t0k"], 401),
    ],
)
def test_curl_finds_its_way_through_both_challenges(
    daemon: Daemon, arguments: list[str], status: int
) -> None:
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *arguments, f"{daemon.url}/x/metrics"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS)
    assert result.stdout == str(status)


PASSWORDS = [
    (b"x" * 72, b"x" * 72),
    (b"x" * 72, b"x" * 71),
    (b"x" * 72, b"x" * 73),
    (b"x" * 72, b"x" * 72 + b"y" * 500),
    (b"x" * 71, b"x" * 72),
    (b"x" * 71, b"x" * 71 + b"\0yyy"),
    (b"", b""),
    (b"a\0b", b"a\0b"),
    (b"a\0b", b"a\0c"),
    (b"a", b"a\0a"),
    (b"a", b"a\0b"),
    (b"a:b", b"a:b"),
    ("p\u00e4ss".encode(), "p\u00e4ss".encode()),
    ("p\u00e4ss".encode(), "p\u00e4ss".encode("latin-1")),
]


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
def test_passwords_are_right_where_they_are_for_exporter_toolkit(tmp_path: Path, prefix: str) -> None:
    """node_exporter, which has exporter-toolkit, is given the same file and asked the same."""
    hashed = {
        f"user{number}": hash_of(password).replace("$2b$", prefix)
        for number, (password, _) in enumerate(PASSWORDS)
    }
    web = write_web(tmp_path, hashed)
    with (
        Exporter("node_exporter", f"--web.config.file={web}", "--collector.disable-defaults") as theirs,
        proxied(web_config_file=web) as (ours, _),
    ):
        for number, (_, sent) in enumerate(PASSWORDS):
            credentials = "Basic " + b64encode(b"user%d:%b" % (number, sent)).decode()
            reply = ours.exchange(request("/x/metrics", ("Authorization", credentials)))
            assert reply.status == status_of(theirs.url(), credentials), PASSWORDS[number]


def status_of(url: str, credentials: str) -> int:
    asked = urllib.request.Request(url, headers={"Authorization": credentials})
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
