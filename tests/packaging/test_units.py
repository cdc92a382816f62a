"""The systemd units, judged by systemd itself as far as that goes without it running."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from exporter_proxy.cli import DEFAULT_CONFIG_FILES
from tests.daemon import REPOSITORY
from tests.packaging.artefacts import PACKAGING, needs

UNITS = PACKAGING / "systemd"
SERVICE = UNITS / "exporter_proxy.service"
ROLE = REPOSITORY / "ansible/roles/exporter_proxy"
SOCKET_DROP_IN = Path("exporter_proxy.service.d/10-socket.conf")
PUSHPROX_DROP_IN = Path("exporter_proxy.service.d/20-pushprox.conf")
COMMAND_DROP_IN = Path("exporter_proxy.service.d/30-command.conf")
PROGRAM = "/usr/bin/exporter_proxy"
MAX_EXPOSURE = 1.2


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units where systemd would find them, for a program that is on this machine."""
    directory = tmp_path / "etc/systemd/system"
    shutil.copytree(UNITS, directory)
    service = directory / SERVICE.name
    text = service.read_text()
    assert f"ExecStart={PROGRAM} " in text
    service.write_text(text.replace(PROGRAM, sys.executable))
    return directory


def directives(unit: Path) -> list[tuple[str, str]]:
    return re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("with_socket", [False, True], ids=["alone", "with its socket"])
def test_systemd_understands_every_line(installed: Path, with_socket: bool) -> None:
    if not with_socket:
        shutil.rmtree(installed / SOCKET_DROP_IN.parent)
        (installed / "exporter_proxy.socket").unlink()
    units = sorted(installed.glob("exporter_proxy.s*[et]"))
    result = subprocess.run(
        [needs("systemd-analyze"), "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize(
    "drop_ins",
    [(), (SOCKET_DROP_IN,), (SOCKET_DROP_IN, PUSHPROX_DROP_IN), (SOCKET_DROP_IN, COMMAND_DROP_IN)],
    ids=["alone", "with its socket", "with PushProx", "with commands"],
)
def test_systemd_rates_the_service_as_safe(drop_ins: tuple[Path, ...], tmp_path: Path) -> None:
    # Offline, drop-ins are not looked for: what they add comes last.
    service = tmp_path / SERVICE.name
    sections = [(UNITS / drop_in).read_text() for drop_in in drop_ins]
    service.write_text("\n".join([SERVICE.read_text(), *sections]))
    result = subprocess.run(
        [
            needs("systemd-analyze"),
            "security",
            "--offline=true",
            f"--threshold={MAX_EXPOSURE * 10:.0f}",
            str(service),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for exporter_proxy.service: ([\d.]+)", result.stdout)
    assert found is not None, result.stderr
    assert float(found[1]) <= MAX_EXPOSURE
    assert result.returncode == 0


def test_the_metrics_of_the_process_stay_visible() -> None:
    assert "ProcSubset" not in dict(directives(SERVICE))


def test_the_network_is_closed_only_where_systemd_holds_the_port() -> None:
    assert not [name for name, _ in directives(SERVICE) if name.startswith("IPAddress")]
    drop_in = directives(UNITS / SOCKET_DROP_IN)
    assert [value for name, value in drop_in if name == "IPAddressDeny"] == ["any"]
    assert [value for name, value in drop_in if name == "IPAddressAllow"] == ["localhost"]
    assert ("Requires", "exporter_proxy.socket") in drop_in


def test_the_socket_does_not_wait_for_its_address(installed: Path) -> None:
    """Drop-ins as Ansible's role and README write them change the address and nothing else."""
    socket = UNITS / "exporter_proxy.socket"
    assert ("FreeBind", "yes") in directives(socket)
    assert {name for name, _ in directives(ROLE / "templates/socket.conf.j2")} == {"ListenStream"}

    drop_in = installed / "exporter_proxy.socket.d/50.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Socket]\nListenStream=\nListenStream=192.0.2.7:9099\n")
    result = subprocess.run(
        [needs("systemd-analyze"), "verify", "--man=no", installed / socket.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_pushprox_drop_in_opens_addresses_and_nothing_else() -> None:
    lines = directives(UNITS / PUSHPROX_DROP_IN)
    assert {name for name, _ in lines} == {"IPAddressAllow"}
    # For documentation (RFC 5737, RFC 3849): put into place as it is, it opens nothing that there is.
    assert all(ip_address(value).is_private for _, value in lines)
    assert PUSHPROX_DROP_IN.name > SOCKET_DROP_IN.name, "it is read after the one that it adds to"


def test_commands_get_more_tasks_and_cannot_take_the_daemon_with_them() -> None:
    drop_in = directives(UNITS / COMMAND_DROP_IN)
    assert drop_in == [("TasksMax", "256"), ("OOMScoreAdjust", "0"), ("OOMPolicy", "continue")]
    assert int(dict(drop_in)["TasksMax"]) > int(dict(directives(SERVICE))["TasksMax"])


def test_what_commands_may_need_is_systemds_word_for_it(installed: Path) -> None:
    """Each line that is there to be switched on."""
    drop_in = installed / COMMAND_DROP_IN
    text, count = re.subn(r"(?m)^#(?=[A-Z]\w+=)", "", drop_in.read_text())
    assert count == 11
    drop_in.write_text(text)
    result = subprocess.run(
        [needs("systemd-analyze"), "verify", "--man=no", installed / SERVICE.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_service_reads_the_configuration_that_commands_read() -> None:
    start = dict(directives(SERVICE))["ExecStart"]
    assert start == f"{PROGRAM} serve --config.file={DEFAULT_CONFIG_FILES[-1]}"


def test_the_daemon_comes_back_whatever_happens() -> None:
    service = dict(directives(SERVICE))
    assert (service["Restart"], service["StartLimitIntervalSec"], service["WatchdogSec"]) == (
        "always",
        "0",
        "30s",
    )


def test_what_ends_a_hung_daemon_shows_where_it_hung(tmp_path: Path) -> None:
    name, _, value = dict(directives(SERVICE))["Environment"].partition("=")
    code = "import os, signal\ndef stuck_here(): os.kill(os.getpid(), signal.SIGABRT)\nstuck_here()"
    result = subprocess.run(
        ["sh", "-c", 'ulimit -c 0; exec "$0" -c "$1"', sys.executable, code],
        env={name: value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "in stuck_here" in result.stderr
