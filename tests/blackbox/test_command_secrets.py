"""What a command is given, as an argument or in its environment, never shows.

As ``test_secrets.py`` has it for exporters that are asked over HTTP: each row of ``planted_commands.py`` in
each situation, then all that was written anywhere is searched.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from exporter_proxy.config import ConfigError, parse_config
from exporter_proxy.config.schema import ACCESS_LOG_FIELDS, CommandSource
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.upstreams import make_upstream
from exporter_proxy.upstreams.redacted import redacted
from tests.blackbox.test_secrets import run_command
from tests.daemon import Daemon
from tests.inprocess import parts, run, until
from tests.planted import Keys, search
from tests.planted_commands import COMMAND_ROWS, SITUATIONS, situated

SECRETS = {name: row.make(name) for name, row in COMMAND_ROWS.items()}
MISTAKES = [(name, mistake) for name, row in COMMAND_ROWS.items() for mistake in row.mistakes]
STATUS = {"ok": 200, "late": 200, "hung": 504}
PAGES = ("/", "/-/exporters", "/metrics", "/-/sd", "/nowhere")
TYPES = ("text/html", "application/json", "text/plain", "application/openmetrics-text")


def absent(text: str, where: str) -> None:
    search(text, where, SECRETS)


def config(directory: Path) -> Keys:
    exporters = {
        f"{name.replace(' ', '_')}.{situation}": situated(
            directory, row.plant(directory, SECRETS[name]), situation
        )
        for name, row in COMMAND_ROWS.items()
        for situation in SITUATIONS
    }
    return {"access_log": {"format": "json", "fields": list(ACCESS_LOG_FIELDS)}, "exporters": exporters}


@pytest.fixture(params=["uvloop", "asyncio"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """ "asyncio" in its debug mode, which logs what runs."""
    environment = {"EXPORTER_PROXY_LOOP": request.param, "PYTHONFAULTHANDLER": "1"}
    if request.param == "asyncio":
        environment["PYTHONASYNCIODEBUG"] = "1"
    flags = ("--log.level=debug", "--web.enable-lifecycle")
    with Daemon({"module_route": "/proxy", **config(tmp_path)}, *flags, environment=environment) as daemon:
        yield daemon


def test_no_secret_of_a_command_shows_while_the_daemon_runs(daemon: Daemon) -> None:
    good = (daemon.directory / "config.yml").read_text()
    for name in yaml.safe_load(good)["exporters"]:
        situation = name.rpartition(".")[2]
        for target in (f"/{name}/metrics", f"/proxy?module={name}"):
            reply = daemon.get(target)
            assert reply.status == STATUS.get(situation, 502), (name, reply)
            absent(reply.raw.decode("latin-1"), f"the answer of {name}")
            if situation in ("stderr", "killed"):
                assert b"***" in reply.body, "what the program said is shown but for that"
    for path in PAGES:
        for accepted in TYPES:
            absent(daemon.get(path, ("Accept", accepted)).raw.decode("latin-1"), f"{path} as {accepted}")
    for name, mistake in MISTAKES:
        keys = COMMAND_ROWS[name].mistakes[mistake](daemon.directory, SECRETS[name])
        daemon.write_config(yaml.safe_dump({"exporters": {"x": keys}}, width=10_000))
        answer = daemon.get("/-/reload", method="POST")
        assert answer.status == 500, mistake
        absent(answer.raw.decode("latin-1"), f"/-/reload with {mistake}")
    (daemon.directory / "config.yml").write_text(good)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for_log('"config reloaded"')  # behind the last mistake's line, which may come late
    daemon.get("/last")
    daemon.wait_for_output('"path": "/last"')
    absent("\n".join(daemon.log_lines), "the log")
    absent("\n".join(daemon.output_lines), "the access log")


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_each_mistake_is_told_without_the_secret(name: str, mistake: str, tmp_path: Path) -> None:
    keys = COMMAND_ROWS[name].mistakes[mistake](tmp_path, SECRETS[name])
    data = yaml.safe_dump({"exporters": {"x": keys}}, width=10_000).encode()
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "config.yml")
    absent(f"{caught.value} {caught.value!r} {caught.value.args}", mistake)


def test_check_scrape_and_prometheus_config_show_no_secret(tmp_path: Path) -> None:
    given = config(tmp_path)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(given, width=10_000))
    for arguments in (("check",), ("prometheus-config",), ("prometheus-config", "--format=file-sd")):
        status, output = run_command(tmp_path, *arguments)
        assert status == 0, output
        absent(output, " ".join(arguments))
    for name in COMMAND_ROWS:
        for situation in ("ok", "stderr", "malformed", "not_started"):
            status, output = run_command(tmp_path, "scrape", f"{name.replace(' ', '_')}.{situation}")
            assert status == (situation != "ok"), output
            absent(output, f"scrape {name} {situation}")


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    parsed = parse_config(yaml.safe_dump(config(tmp_path), width=10_000).encode(), "config.yml")
    routes = build_routes(parsed, make_upstream)
    shown: list[object] = [parsed, parsed.exporters, routes, routes.routes]
    for route in routes.routes:
        shown += [route, route.exporter, route.exporter.command, route.transport, route.record, route.url]
    for value in shown:
        absent(f"{value!r} {value} {[value]}", type(value).__name__)


@pytest.mark.parametrize("name", COMMAND_ROWS)
def test_no_repr_of_what_runs_shows_a_secret(name: str, tmp_path: Path) -> None:
    """Of every task, and of everything that a run holds or hands over."""
    entry = situated(tmp_path, COMMAND_ROWS[name].plant(tmp_path, SECRETS[name]), "hung")

    async def scenario() -> None:
        async with parts(tmp_path / "log", {"x": entry}) as made:
            runs = vars(made.route.transport)["_runs"]
            scrape = asyncio.ensure_future(made.scrape(made.request()))
            await until(lambda: any(vars(one)["_pidfd"] >= 0 for one in runs), "it runs")
            held = [value for one in runs for key, value in vars(one).items() if key != "_process"]
            for value in (*asyncio.all_tasks(), *runs, *held):
                absent(repr(value), type(value).__name__)
            await scrape

    run(scenario)
    absent((tmp_path / "log").read_text(), "the log")


@pytest.mark.parametrize(
    ("arguments", "env", "said", "shown"),
    [
        (("--password", "s3cr3t"), (), "unknown option --password s3cr3t", "unknown option --password ***"),
        (("--password=s3cr3t",), (), "--password=s3cr3t: no", "--password=***: no"),
        (("-ps3cr3t",), (), "bad -ps3cr3t", "bad -p***"),
        (("--all", "-x"), (), "bad --all, -x", "bad --all, -x"),
        (("--x s3cr3t",), (), "bad --x s3cr3t", "bad ***"),
        ((), (("A", "s3cr3t"), ("B", "s3cr3t and more")), "s3cr3t and more", "***"),
        ((), (("KEY", "first line\nsecond line\n"),), "second line, first line", "***, ***"),
        ((), (("LANG", "C"), ("N", "1")), "Cannot do 1 thing", "Cannot do 1 thing"),
        (("",), (("A", ""),), "nothing", "nothing"),
    ],
)
def test_what_is_masked(
    arguments: tuple[str, ...], env: tuple[tuple[str, str], ...], said: str, shown: str
) -> None:
    assert redacted(said, CommandSource("/x", arguments, env, "/")) == shown
