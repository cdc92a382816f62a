"""A lab: a network namespace with a bridge, and guests on it.

    python -m tests.vm.lab up NAME [--suite bookworm] [--guests 1]    prints the path of an Ansible inventory
    python -m tests.vm.lab reboot|down NAME

Nothing in it can reach the machine's own network, nor be reached from there. The lab's side of the bridge
has two addresses: the scraper's, and a stranger's that firewalls are to refuse.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm.guest import Guest, is_running
from tests.vm.rootfs import SUITES, cache_directory, rootfs

SCRAPER = "10.213.0.1"
STRANGER = "10.213.0.2"
PREFIX_LENGTH = 24


class Lab:
    """Guests by name, and the network that they share with their scraper."""

    def __init__(self, name: str, *, outlives_starter: bool = False) -> None:
        self.name = name
        self.outlives_starter = outlives_starter
        self.netns = f"vm-{name}"
        self.directory = cache_directory() / "labs" / name
        self.guests: dict[str, Guest] = {}
        for state in sorted(self.directory.glob("*/guest.json")):
            guest = Guest.load(state.parent)
            self.guests[guest.name] = guest

    def open(self) -> None:
        """Make the network. A lab of this name that was left behind is taken down first."""
        self.close()
        self.directory.mkdir(parents=True)
        if not self.outlives_starter:
            (self.directory / "starter").write_text(str(os.getpid()))
        within = ("ip", "-netns", self.netns)
        for command in (
            ("ip", "netns", "add", self.netns),
            (*within, "link", "set", "lo", "up"),
            (*within, "link", "add", "bridge", "type", "bridge"),
            (*within, "address", "add", f"{SCRAPER}/{PREFIX_LENGTH}", "dev", "bridge"),
            (*within, "address", "add", f"{STRANGER}/{PREFIX_LENGTH}", "dev", "bridge"),
            (*within, "link", "set", "bridge", "up"),
        ):
            subprocess.run(command, check=True)

    def boot(self, name: str, suite: str) -> Guest:
        """A fresh guest, up and running, under the next free address."""
        guest = Guest(
            name=name,
            rootfs=str(rootfs(suite)),
            state=str(self.directory / name),
            address=f"10.213.0.{11 + len(self.guests)}",
            prefix_length=PREFIX_LENGTH,
            netns=self.netns,
            outlives_starter=self.outlives_starter,
        )
        self.guests[name] = guest
        guest.start()
        return guest

    def close(self) -> None:
        """Take down every guest and the network, and delete what they wrote."""
        for guest in self.guests.values():
            guest.destroy()
        self.guests.clear()
        if Path("/run/netns", self.netns).exists():
            subprocess.run(["ip", "netns", "delete", self.netns], check=True)
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def command(self, *command: str) -> list[str]:
        """``command``, to be run inside the lab's network."""
        return ["ip", "netns", "exec", self.netns, *command]

    def write_inventory(self) -> Path:
        """An Ansible inventory of the guests, in the group ``exporter_proxy``. JSON is YAML."""
        hosts = {
            guest.name: {
                "ansible_connection": "community.docker.nsenter",
                "ansible_nsenter_pid": guest.pid,
                "ansible_python_interpreter": "/usr/bin/python3",
                "guest_address": guest.address,
            }
            for guest in self.guests.values()
        }
        path = self.directory / "inventory.yml"
        path.write_text(json.dumps({"exporter_proxy": {"hosts": hosts}}, indent=2))
        return path


def remove_abandoned_labs() -> None:
    """Take down labs whose starter was killed before it could. Their guests went with it."""
    for note in (cache_directory() / "labs").glob("*/starter"):
        if not is_running(int(note.read_text())):
            Lab(note.parent.name).close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.lab")
    parser.add_argument("action", choices=("up", "reboot", "down"))
    parser.add_argument("name")
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    parser.add_argument("--guests", type=int, default=1)
    arguments = parser.parse_args()
    lab = Lab(arguments.name, outlives_starter=True)
    if arguments.action == "down":
        lab.close()
        return
    if arguments.action == "up":
        try:
            lab.open()
            for number in range(1, arguments.guests + 1):
                lab.boot(f"vm{number}", arguments.suite)
        except BaseException:
            lab.close()
            raise
    else:
        for guest in lab.guests.values():
            guest.reboot()
    sys.stdout.write(f"{lab.write_inventory()}\n")


if __name__ == "__main__":
    main()
