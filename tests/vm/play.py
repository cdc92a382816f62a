"""Runs Ansible's playbooks against the guests of a lab, and tells what became of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.lab import Lab
from tests.vm.releases import REPOSITORY

COLLECTION = REPOSITORY / "ansible"
SITE = """\
- name: Play the role
  hosts: exporter_proxy
  gather_facts: false
  roles: [exporter_proxy.fleet.exporter_proxy]
"""
PLAY_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Recap:
    """What ansible-playbook counted for one host."""

    host: str
    ok: int
    changed: int
    unreachable: int
    failed: int


@dataclass(frozen=True, slots=True)
class Played:
    """One run of ansible-playbook."""

    status: int
    output: str
    seconds: float

    @property
    def recaps(self) -> dict[str, Recap]:
        found = re.findall(
            r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)",
            self.output,
            re.MULTILINE,
        )
        return {host: Recap(host, *map(int, counts)) for host, *counts in found}

    @property
    def recap(self) -> Recap:
        """That of the only host."""
        (recap,) = self.recaps.values()
        return recap

    @property
    def summary(self) -> str:
        """The recap's lines and how long it all took."""
        lines = re.findall(r"^\S+\s+: ok=.*$", self.output, re.MULTILINE)
        return "\n".join(" ".join(line.split()) for line in lines) + f" ({self.seconds:.1f} s)"


def tool(name: str) -> Path:
    """A program of Ansible's, beside this Python."""
    return Path(sys.executable).with_name(name)


def collections_path(directory: Path) -> Path:
    """A directory that Ansible finds the collection in, as it is in this tree."""
    place = directory / "collections" / "ansible_collections" / "exporter_proxy"
    place.mkdir(parents=True, exist_ok=True)
    link = place / "fleet"
    if not link.is_symlink():
        link.symlink_to(COLLECTION)
    return directory / "collections"


def environment(directory: Path) -> dict[str, str]:
    """Settings of Ansible for tests: ours only, whatever this machine has."""
    settings = directory / "ansible.cfg"
    settings.write_text("[defaults]\n")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
        "ANSIBLE_CONFIG": str(settings),
        "ANSIBLE_COLLECTIONS_PATH": str(collections_path(directory)),
        "ANSIBLE_HOME": str(directory / "home"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
        "ANSIBLE_DEPRECATION_WARNINGS": "true",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def vaulted(directory: Path, secret: str) -> str:
    """A value of YAML as ansible-vault encrypts it; with what is in the file ``vault`` of ``directory``."""
    (directory / "vault").write_text("a password\n")
    done = subprocess.run(
        [tool("ansible-vault"), "encrypt_string", f"--vault-password-file={directory / 'vault'}", secret],
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    # On one line, so that it fits anywhere.
    lines = done.stdout.removeprefix("!vault |").split()
    return '!vault "' + "\\n".join(lines) + '"'


def play(
    lab: Lab,
    directory: Path,
    variables: dict[str, Any],
    *arguments: str,
    playbook: str = "",
    groups: dict[str, Any] | None = None,
    umask: int = -1,
    killed_after: str = "",
) -> Played:
    """Play the role, or another playbook, in the lab's network; ``variables`` are the group's.

    Args:
        lab: whose guests are the hosts.
        directory: for the inventory and everything else that is written here.
        variables: of the group of guests.
        arguments: further ones of ansible-playbook.
        playbook: the name of another one than the role's own.
        groups: further groups of the inventory.
        umask: of ansible-playbook, and so of root on the guests; -1: that of this process.
        killed_after: the name of a task; as soon as that has changed something, the play is no more.
    """
    inventory = json.loads(lab.write_inventory().read_text())
    inventory["exporter_proxy"]["vars"] = variables
    inventory.update(groups or {})
    (directory / "inventory.yml").write_text(json.dumps(inventory, indent=2))
    (directory / "site.yml").write_text(SITE)
    begun = time.monotonic()
    process = subprocess.Popen(
        lab.command(
            str(tool("ansible-playbook")),
            f"--inventory={directory / 'inventory.yml'}",
            playbook or str(directory / "site.yml"),
            *arguments,
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(directory),
        umask=umask,
        process_group=0,
    )
    alarm = threading.Timer(PLAY_SECONDS, kill_group, [process])
    alarm.start()
    try:
        output = _read_output(process, killed_after)
    finally:
        alarm.cancel()
        kill_group(process)
        process.wait()
    print(output)
    return Played(process.returncode, output, time.monotonic() - begun)


def _read_output(process: subprocess.Popen[str], killed_after: str) -> str:
    """All that it says, until it ends by itself or is to be killed."""
    assert process.stdout is not None
    lines: list[str] = []
    task = ""
    with process.stdout as stdout:
        for line in stdout:
            lines.append(line)
            task = line if line.startswith("TASK [") else task
            if killed_after and f" : {killed_after}]" in task and line.startswith("changed:"):
                kill_group(process)
                break
    if not killed_after:
        process.wait()
    return "".join(lines)


def kill_group(process: subprocess.Popen[str]) -> None:
    """End it and all that it has started, here and on the guests, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of it has ended
