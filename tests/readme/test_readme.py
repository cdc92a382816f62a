"""What README.md shows is what happens: transcripts, configurations and Prometheus's side of it.

Its tables are compared with the program in test_tables.py, its first sections in test_quick_start.py,
test_three_commands.py and tests/packaging/test_readme_install.py.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from exporter_proxy.config.web import WEB_KEYS
from tests.daemon import REPOSITORY, wait_until
from tests.e2e.processes import MODULE, Prometheus, start_process
from tests.readme.document import Block, blocks, difference, steps
from tests.readme.site import PROXY, SERVE, Host, host

ELSEWHERE = {
    "Quick start": "quick start",
    "To Prometheus in three commands": "three commands",
    "Install": "install",
}
"""By its section, the kind of a transcript that another file tests."""
BLOCKS = list(blocks())
TERMINAL_COLUMNS = 120
PICTURE_COLUMNS = 80
PATIENCE_SECONDS = 30.0


def kind_of(block: Block) -> str:
    """What a block is and so how it is tested; anything else is an error."""
    if block.language == "console":
        return ELSEWHERE.get(block.section, "transcript")
    if block.language == "yaml":
        keys = yaml.safe_load(block.text).keys()
        if keys <= set(WEB_KEYS):
            return "web config"
        return "prometheus" if keys == {"scrape_configs"} else "config" if "exporters" in keys else ""
    if block.language == "text":
        return {"": "picture", "Command line": "synopsis"}.get(block.section, "")
    return ""


def of_kind(kind: str) -> list[Block]:
    return [block for block in BLOCKS if kind_of(block) == kind]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    unknown = [f"{block}: {block.language} in {block.section!r}" for block in BLOCKS if not kind_of(block)]
    assert not unknown, "no test knows what to do with " + ", ".join(unknown)
    # A kind without blocks would mean tests without cases.
    kinds = {kind_of(block) for block in BLOCKS}
    assert kinds == {
        *ELSEWHERE.values(),
        *("transcript", "config", "web config", "prometheus", "picture", "synopsis"),
    }


SECTIONS = list(dict.fromkeys(block.section for block in of_kind("transcript")))


@pytest.fixture
def readme_host(tmp_path: Path) -> Iterator[Host]:
    """The host that the sections after the quick start speak of, untouched by other sections."""
    commands = [step.command for block in of_kind("transcript") for step in steps(block)]
    serve_command = next(command for command in commands if SERVE.match(command))
    with host(of_kind("config")[0].text, serve_command, tmp_path) as ready:
        yield ready


@pytest.mark.parametrize("section", SECTIONS)
def test_transcripts_are_what_happens(section: str, readme_host: Host) -> None:
    for block in of_kind("transcript"):
        if block.section == section:
            for step in steps(block):
                readme_host.run(step)


def write_files(directory: Path) -> None:
    """The files that the configurations name."""
    authority = trustme.CA()
    client = authority.issue_cert("prometheus@example.org")
    authority.cert_pem.write_to_path(directory / "ca.crt")
    client.cert_chain_pems[0].write_to_path(directory / "client.crt")
    client.private_key_pem.write_to_path(directory / "client.key")
    for name in ("node_exporter.password", "redis_exporter.token"):
        (directory / name).write_text("s3cr3t\n")
    (directory / "lib").mkdir()
    (directory / "bin").mkdir()
    (directory / "bin" / "raid_metrics").write_text("#!/bin/sh\n")
    (directory / "bin" / "raid_metrics").chmod(0o755)


@pytest.mark.parametrize("block", of_kind("config"), ids=str)
def test_configurations_pass_check(block: Block, tmp_path: Path) -> None:
    # Not even a warning.
    assert check(block.text, tmp_path) == (0, "")


def check(config: str, directory: Path, *flags: str) -> tuple[int, str]:
    """Exit status of ``exporter_proxy check``, and what it complains of."""
    config = config.replace("/var/lib/exporter_proxy", f"{directory}/lib")
    (directory / "config.yml").write_text(config.replace("/usr/local/bin", f"{directory}/bin"))
    write_files(directory)
    result = subprocess.run(
        [*MODULE, "check", *flags],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize("block", of_kind("web config"), ids=str)
def test_web_config_files_pass_check(block: Block, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "web.yml").write_text(block.text)
    config = of_kind("config")[0].text
    assert check(config, tmp_path, "--web.config.file=web.yml") == (0, "")


@pytest.mark.parametrize("block", of_kind("prometheus"), ids=str)
def test_prometheus_takes_the_scrape_configurations(block: Block, tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(block.text)
    with (tmp_path / "output").open("wb") as output:
        command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
        status = start_process(command, output=output).wait(PATIENCE_SECONDS)
    assert status == 0, (tmp_path / "output").read_text()


Labels = set[tuple[str, ...]]
# For each block of kind "prometheus": labels to look at, and their values with that of "up". The host of the
# test stands for vm1.example.org; there, mysqld_exporter is down.
TARGETS: tuple[tuple[tuple[str, ...], Callable[[str], Labels]], ...] = (
    (
        ("job", "exporter", "instance"),
        lambda proxy: {
            ("vm", "node_exporter", proxy, "1"),
            ("vm", "redis_exporter", proxy, "1"),
            ("vm", "mysqld_exporter", proxy, "0"),
            ("exporter_proxy", "", proxy, "1"),
        },
    ),
)


@pytest.mark.parametrize(
    ("block", "labels", "expected"),
    [(block, *targets) for block, targets in zip(of_kind("prometheus"), TARGETS, strict=True)],
    ids=map(str, of_kind("prometheus")),
)
def test_a_real_prometheus_scrapes_all_of_it(
    block: Block, labels: tuple[str, ...], expected: Callable[[str], Labels], readme_host: Host
) -> None:
    proxy = readme_host.addresses[PROXY]
    text = block.text.replace("vm1.example.org", "127.0.0.1").replace("9099", proxy.rpartition(":")[2])
    scrape_configs: list[dict[str, Any]] = yaml.safe_load(text)["scrape_configs"]
    with Prometheus(scrape_configs, scrape_interval="1s", scrape_timeout="1s") as prometheus:

        def scraped() -> Labels:
            found = prometheus.query("up")
            return {(*(one["metric"].get(label, "") for label in labels), one["value"][1]) for one in found}

        wait_until(lambda: scraped() == expected(proxy), f"{block}: all were as expected", PATIENCE_SECONDS)
        assert len(prometheus.targets()) == len(expected(proxy))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_blocks_look_right_on_a_terminal(block: Block) -> None:
    assert block.text.isascii()
    assert block.text.isprintable() or not re.search(r"[^\n\x20-\x7e]", block.text)
    assert not re.search(r"[ \t]$", block.text, re.MULTILINE)
    columns = PICTURE_COLUMNS if kind_of(block) == "picture" else TERMINAL_COLUMNS
    # What a program prints has the length that it has.
    lines = [line for line in block.text.splitlines() if block.language != "console"]
    assert all(len(line) <= columns for line in lines)


@pytest.mark.parametrize(
    ("shown", "printed", "is_same"),
    [
        (["a", "...", "z"], "a\nb\nc\nz\n", True),
        (["a", "...", "z"], "a\nz\n", True),
        (["a", "..."], "b\n", False),
        (["a"], "a\nb\n", False),
        (["status: 502"], "status: 200\n", False),
        (["after 1 ms"], "after 12.5 ms\n", True),
        (["Content-Length: 119"], "Content-Length: 120\r\n", True),
        (["x size=1"], "x size=2 reason=connect\n", False),
        ([], "error\n", False),
    ],
)
def test_only_what_may_change_is_passed_over(shown: list[str], printed: str, is_same: bool) -> None:
    assert (difference(shown, printed) == "") is is_same


def test_an_unknown_program_is_an_error(readme_host: Host) -> None:
    block = Block("x", "console", "$ frobnicate --all\n", 7)
    with pytest.raises(AssertionError, match="does not know how to run frobnicate"):
        readme_host.run(steps(block)[0])
