"""packaging/MIGRATION.md is what happens: its files in place, its commands run, beside what they replace.

Each section is a host of its own, on addresses that nobody else has, so that ports can stay as they are
written. Addresses and directories are put in on the way to the shell and taken out of what it prints.
``systemctl`` is the one command that is played, by starting and stopping the real programs. A Prometheus
scrapes what the section shows, before and after, and notices nothing but what the section says.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.daemon import REPOSITORY, wait_until
from tests.e2e.processes import (
    Prometheus,
    listening_port,
    own_loopback_address,
    redis_server,
    start_process,
)
from tests.e2e.test_import import samples
from tests.readme.document import README, Block, blocks, code_words, difference, sections, steps, tables
from tests.readme.site import printed
from tests.wire import CONNECTION_CLOSE, Reply, Wire, request

pytestmark = pytest.mark.needs_prometheus

GUIDE = (REPOSITORY / "packaging/MIGRATION.md").read_text(encoding="utf-8")
BLOCKS = list(blocks(GUIDE, "packaging/MIGRATION.md"))
GO, EXPEXP, NGINX = "From the Go original", "From exporter_exporter", "From nginx"
EXPEXP_PROGRAM = "prometheus-exporter-exporter"
EXPORTER_PORTS = {
    9100: ["prometheus-node-exporter"],
    9121: ["prometheus-redis-exporter"],
    9115: ["prometheus-blackbox-exporter", "--config.file=/etc/prometheus/blackbox.yml"],
}
PATIENCE_SECONDS = 30.0
DIRECTORIES = {
    "/etc/exporter_proxy": "etc/exporter_proxy",
    "/etc/prometheus/exporter": "etc/prometheus/exporter",
    "/etc/nginx/conf.d": "etc/nginx/conf.d",
    "/var/log/exporter_proxy": "log",
    "/usr/local/bin/smart": "bin/smart",
}
CONFIG = "/etc/exporter_proxy/config.yml"
IMPORTED = "/etc/exporter_proxy/imported.yml"
NGINX_AROUND = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    include {directory}/etc/nginx/conf.d/*.conf;
}}
"""


def kind_of(block: Block) -> str:
    """What a block is, and so what is done with it."""
    if block.language == "console":
        return "commands"
    if block.language == "nginx":
        return "nginx"
    keys = yaml.safe_load(block.text).keys() if block.language == "yaml" else {}
    for key, kind in (("scrape_configs", "prometheus"), ("modules", "expexp"), ("exporters", "config")):
        if key in keys:
            return kind
    return ""


def of_kind(section: str, kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.section == section and kind_of(block) == kind]


class Place:
    """One section's host: the daemon, and what it replaces, at ``proxy``, exporters at ``behind``."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.proxy, self.behind = own_loopback_address(), own_loopback_address()
        self._stack = stack
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.units: dict[str, Callable[[], list[str]]] = {}
        for path in ("etc/exporter_proxy", "etc/prometheus", "etc/nginx/conf.d", "log", "bin", "programs"):
            (directory / path).mkdir(parents=True)
        script = directory / "programs" / "exporter_proxy"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m exporter_proxy "$@"\n')
        script.chmod(0o755)
        # There need be no such user here.
        self.owners = directory / "owners"
        chown = script.with_name("chown")
        chown.write_text(f'#!/bin/sh\necho "$*" >>{self.owners}\n')
        chown.chmod(0o755)
        stack.callback(self._stop_all)

    def put_in(self, text: str) -> str:
        for written, real in DIRECTORIES.items():
            text = text.replace(written, f"{self.directory}/{real}")
        text = text.replace("vm1.example.org", self.proxy)
        for port in EXPORTER_PORTS:
            text = re.sub(rf"(127\.0\.0\.1|localhost):{port}\b", f"{self.behind}:{port}", text)
        text = re.sub(r"127\.0\.0\.1:(9099|9999|8080)\b", rf"{self.proxy}:\1", text)
        return text.replace("listen 8080;", f"listen {self.proxy}:8080;")

    def take_out(self, text: str) -> str:
        for written, real in DIRECTORIES.items():
            text = text.replace(f"{self.directory}/{real}", written)
        return text.replace(self.behind, "localhost")

    def write(self, path: str, text: str) -> None:
        Path(self.put_in(path)).write_text(self.put_in(text))

    def read(self, path: str) -> str:
        return self.take_out(Path(self.put_in(path)).read_text())

    def start_exporters(self, *ports: int) -> None:
        for port in ports:
            more = []
            if port == 9121:
                more = [f"-redis.addr={self._stack.enter_context(redis_server())}"]
            listen = f"--web.listen-address={self.behind}:{port}"
            process = start_process([*EXPORTER_PORTS[port], listen, *more])
            self._running[f"exporter {port}"] = process
            listening_port(process)

    def run(self, block: Block) -> None:
        """All commands of a block. Raises AssertionError where something else is printed than is shown."""
        for step in steps(block):
            words = shlex.split(step.command)
            if words[0] == "systemctl":
                assert not step.output
                self._systemctl(*words[1:])
            else:
                assert words[0] in ("exporter_proxy", "curl", "mv", "chown"), (
                    f"{step}: the test does not know {words[0]}"
                )
                shown = printed(self.put_in(step.command), self.directory, self._environment())
                complaint = difference(step.output, self.take_out(shown))
                assert not complaint, f"{step}\n{complaint}"

    def _environment(self) -> dict[str, str]:
        path = f"{self.directory}/programs:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8"}

    def _systemctl(self, verb: str, *arguments: str) -> None:
        (unit,) = (one for one in arguments if one != "--now")
        assert unit in self.units, f"there is no unit {unit}"
        if verb in ("disable", "stop", "restart"):
            assert verb != "disable" or "--now" in arguments
            self.stop(unit)
        if verb in ("start", "restart") or ("--now" in arguments and verb == "enable"):
            # A package has started its daemon, which reads nothing anew because it is started once more.
            assert unit != "exporter_proxy" or verb == "restart"
            self.start(unit)

    def start(self, unit: str) -> None:
        command = ["env", f"--chdir={self.directory}", *self.units[unit]()]
        process = start_process(command, self._environment())
        self._running[unit] = process
        listening_port(process)

    def stop(self, unit: str) -> None:
        """It has to end by itself, and well where it is this program."""
        process = self._running.pop(unit, None)
        if process is None:
            return
        process.terminate()
        status = process.wait(PATIENCE_SECONDS)
        assert unit != "exporter_proxy" or status == 0

    def _stop_all(self) -> None:
        """Not by kill(), which would leave nginx's worker behind."""
        for process in self._running.values():
            process.terminate()
            process.wait(PATIENCE_SECONDS)

    def get(self, port: int, target: str, source: str | None = None) -> Reply:
        """From ``source``, an address of this host, if it is given."""
        with Wire((self.proxy, port), source=source) as wire:
            return wire.exchange(request(target, CONNECTION_CLOSE))

    def scraping(self, block: Block) -> Prometheus:
        """A Prometheus that has what the block shows.

        With the daemon's offset and blackbox_exporter's own, nothing would be left of one second.
        """
        jobs = yaml.safe_load(self.put_in(block.text))["scrape_configs"]
        return Prometheus(jobs, scrape_interval="2s", scrape_timeout="2s")

    def wait_until_up(self, prometheus: Prometheus, block: Block, port: int) -> None:
        """Until every job of the block has its one target up, as an instance on this port."""
        jobs = {job["job_name"] for job in yaml.safe_load(block.text)["scrape_configs"]}
        expected = {(job, f"{self.proxy}:{port}", "1") for job in jobs}

        def is_up() -> bool:
            found = prometheus.query("up")
            return {
                (*(one["metric"][key] for key in ("job", "instance")), one["value"][1]) for one in found
            } == expected

        wait_until(is_up, f"{block}: all were up", PATIENCE_SECONDS)

    def wait_until_probed(self, prometheus: Prometheus) -> None:
        """Until blackbox_exporter, which needs its parameters, has found well what it was asked about."""
        wait_until(lambda: prometheus.value("probe_success") == 1, "the probe was well", PATIENCE_SECONDS)

    def daemon(self, *ports: int, config_flag: str = "--config.file=") -> list[str]:
        """The command of this program's unit; it listens at these ports."""
        listen = [f"--web.listen-address={self.proxy}:{port}" for port in ports]
        config = shlex.split(config_flag + self.put_in(CONFIG))
        return [sys.executable, "-m", "exporter_proxy", *config, *listen]


@pytest.fixture
def place() -> Iterator[Place]:
    """In a directory with a short name: how lists are laid out goes by the length of what is in them."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        yield Place(Path(directory), stack)


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    counted = {
        section: [kind_of(block) for block in BLOCKS if block.section == section]
        for section in (GO, EXPEXP, NGINX)
    }
    assert counted == {
        GO: ["config", "commands", "prometheus"],
        EXPEXP: ["expexp", "commands", "config", "commands", "prometheus", "prometheus", "commands"],
        NGINX: ["nginx", "config", "commands", "prometheus", "prometheus", "commands"],
    }
    assert sum(map(len, counted.values())) == len(BLOCKS)


def test_each_section_says_all_that_one_needs_to_know() -> None:
    found = {
        name: re.findall(r"^### (.+)$", text, re.MULTILINE) for name, text in sections(GUIDE).items() if name
    }
    assert list(found) == [GO, EXPEXP, NGINX]
    for headings in found.values():
        assert [one for one in headings if one != "What you write"] == [
            *("What you have", "What you run", "What changes for Prometheus"),
            *("What is different on purpose", "Back"),
        ]


def test_from_the_go_original(place: Place) -> None:
    (config,), (commands,), (jobs,) = (of_kind(GO, kind) for kind in ("config", "commands", "prometheus"))
    place.write(CONFIG, config.text)
    command = re.search(rf"`ExecStart=/usr/bin/exporter_proxy (-config\s){CONFIG}`", sections(GUIDE)[GO])
    assert command is not None
    place.units["exporter_proxy"] = lambda: place.daemon(9099, config_flag=command[1])
    place.start_exporters(9100, 9121)
    place.run(commands)
    with place.scraping(jobs) as prometheus:
        place.wait_until_up(prometheus, jobs, 9099)
    place.stop("exporter_proxy")
    lines = place.read("/var/log/exporter_proxy/access.log").splitlines()
    fields = yaml.safe_load(config.text)["access_log"]["fields"]
    assert [field.partition(":")[0] for field in lines[0].split("\t")] == fields


def test_from_exporter_exporter(place: Place) -> None:
    (theirs,), (ours,) = of_kind(EXPEXP, "expexp"), of_kind(EXPEXP, "config")
    write, change, back = of_kind(EXPEXP, "commands")
    jobs, own_paths = of_kind(EXPEXP, "prometheus")
    file = "/etc/prometheus/exporter-exporter.yml"
    # localhost is this test's address of exporters; put behind all else in a line, nothing moves.
    place.write(file, re.sub(r"http: \{(.+)\}", rf"http: {{\1, address: {place.behind}}}", theirs.text))
    script = Path(place.put_in("/usr/local/bin/smart_metrics"))
    script.write_text('#!/bin/sh\nuname >/dev/null && echo "smart{arguments=\\"$*\\"} 1"\n')
    script.chmod(0o755)
    place.units = {
        EXPEXP_PROGRAM: lambda: [
            *(EXPEXP_PROGRAM, f"-config.file={place.put_in(file)}"),
            f"-web.listen-address={place.proxy}:9999",
        ],
        "exporter_proxy": lambda: place.daemon(9999, 9099),
    }
    place.start_exporters(9100, 9115)
    place.start(EXPEXP_PROGRAM)
    before = place.get(9999, "/proxy?module=smart").expect_ok().body
    place.write(CONFIG, "# As a package has brought it.\n")
    place.run(write)
    assert place.read(IMPORTED) == ours.text
    assert Path(place.put_in(IMPORTED)).stat().st_mode & 0o777 == 0o600
    with place.scraping(jobs) as prometheus:
        place.run(change)
        assert place.owners.read_text() == f"exporter_proxy: {place.put_in(IMPORTED)}\n"
        assert samples(place.get(9999, "/proxy?module=smart").expect_ok().body) == samples(before)
        place.wait_until_up(prometheus, jobs, 9999)
        place.wait_until_probed(prometheus)
        with place.scraping(own_paths) as other:
            place.wait_until_up(other, own_paths, 9999)
            place.wait_until_probed(other)
        place.run(back)
        place.get(9999, "/proxy?module=node").expect_ok()


def test_from_nginx(place: Place) -> None:
    (theirs,), (ours,) = of_kind(NGINX, "nginx"), of_kind(NGINX, "config")
    change, back = of_kind(NGINX, "commands")
    jobs, own_paths = of_kind(NGINX, "prometheus")
    nginx_config = place.directory / "nginx.conf"
    nginx_config.write_text(NGINX_AROUND.format(directory=place.directory))
    place.write("/etc/nginx/conf.d/exporters.conf", theirs.text)
    place.write(CONFIG, ours.text)
    place.units = {
        "nginx": lambda: ["nginx", "-c", str(nginx_config)],
        "exporter_proxy": lambda: place.daemon(8080),
    }
    place.start_exporters(9100, 9115, 9121)
    place.start("nginx")
    targets = [job["metrics_path"] for job in yaml.safe_load(jobs.text)["scrape_configs"]]

    def pages() -> dict[str, set[str]]:
        """Each page's names of series, and what a stranger is told, and one who asks for another path."""
        found = {
            target: {name for name, _, _ in samples(place.get(8080, target).expect_ok().body)}
            for target in targets
        }
        denied, unknown = place.get(8080, targets[0], "127.0.0.2"), place.get(8080, f"{targets[0]}/")
        return {**found, "denied": {str(denied.status)}, "unknown": {str(unknown.status)}}

    pages()  # the exporters' own counters exist from their first scrape on
    before = pages()
    assert (before["denied"], before["unknown"]) == ({"403"}, {"404"})
    assert all(len(before[target]) > 1 for target in targets)
    with place.scraping(jobs) as prometheus:
        place.run(change)
        assert pages() == before
        place.wait_until_up(prometheus, jobs, 8080)
        place.wait_until_probed(prometheus)
        place.run(back)
        assert pages() == before
    # The last of it: this program's own port and paths.
    without = [line for line in ours.text.splitlines() if not re.match(r"listen:| +path:", line)]
    place.write(CONFIG, "\n".join([*without, ""]))
    place.units["exporter_proxy"] = lambda: place.daemon(9099)
    place.start("exporter_proxy")
    with place.scraping(own_paths) as prometheus:
        place.wait_until_up(prometheus, own_paths, 8080)


def guide_table(first_column: str) -> tuple[tuple[str, ...], ...]:
    return next(one.rows for one in tables(GUIDE) if one.header[0] == first_column)


def test_every_flag_of_exporter_exporter_has_its_row() -> None:
    process = start_process([EXPEXP_PROGRAM, "--help"], output=subprocess.PIPE)
    printed = process.communicate(timeout=PATIENCE_SECONDS)[1].decode()
    flags = set(re.findall(r"^  (-[a-z.-]+)", printed, re.MULTILINE))
    assert len(flags) > 10
    named = [flag for row in guide_table("Flag") for flag in code_words(row[0])]
    assert sorted(named) == sorted(flags)


def test_what_becomes_of_flags_and_metrics_is_there() -> None:
    """Every key, flag and metric that the tables name is one that README.md documents."""
    rows = [*guide_table("Flag"), *guide_table("exporter_exporter")]
    words = [word for row in rows for word in code_words(row[1])]
    assert len(words) > 15
    for word in words:
        name = re.split(r"[={:]", word)[0]
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", README), f"README.md has no {name}"


def test_blocks_look_right_on_a_terminal() -> None:
    for block in BLOCKS:
        assert block.text.isascii()
        assert not re.search(r"[ \t]$", block.text, re.MULTILINE)


def test_links_lead_to_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", GUIDE)
    assert links
    assert [link for link in links if not (REPOSITORY / "packaging" / link).exists()] == []
