"""What the firewalls have in common: commands and files of the host, left alone in check mode."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Union

NAME = "exporter_proxy"
"""Marks every rule as ours, in the form of comment that the firewall has."""
# With `|` it would need Python 3.10, and this runs on the host's: RHEL 9 has 3.9.
Network = Union[IPv4Network, IPv6Network]  # noqa: UP007
# What is printed is read here, and ufw, for one, prints it in the host's language.
UNTRANSLATED = {"LC_ALL": "C", "LANGUAGE": "C"}


def address(network: Network) -> str:
    """As every firewall prints it: a single address without a prefix length."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


class Host:
    """Runs commands and writes files, and remembers what it changed."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.changes: list[str] = []

    def has(self, program: str) -> bool:
        """Whether ``program`` is installed."""
        return self.path(program) is not None

    def path(self, program: str) -> str | None:
        """Where ``program`` is."""
        path: str | None = self.module.get_bin_path(program)
        return path

    def ask(self, *command: str) -> str:
        """What a command prints that changes nothing. Ends the module where it fails."""
        status, stdout, stderr = self._run(command)
        if status:
            self.module.fail_json(msg=f"{' '.join(command)}: {stderr.strip() or stdout.strip()}")
        return str(stdout)

    def succeeds(self, *command: str) -> bool:
        """Whether a command that changes nothing does not fail."""
        return self._run(command)[0] == 0

    def change(self, *command: str, stdin: str | None = None) -> None:
        """Run a command that changes the host, unless in check mode."""
        self.changes.append(" ".join(command) + (f"\n{stdin}" if stdin else ""))
        if self.module.check_mode:
            return
        status, stdout, stderr = self._run(command, stdin)
        if status:
            self.module.fail_json(
                msg=f"{' '.join(command)}: {stderr.strip() or stdout.strip()}\n{stdin or ''}"
            )

    def _run(self, command: tuple[str, ...], stdin: str | None = None) -> tuple[int, str, str]:
        ran: tuple[int, str, str] = self.module.run_command(
            list(command), data=stdin, environ_update=UNTRANSLATED
        )
        return ran

    def read(self, path: str) -> str:
        """The text of a file; empty where there is none."""
        return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""

    def write(self, path: str, text: str) -> None:
        """Make ``text`` what is in a file, all of it or nothing of it; where it is empty, delete the file."""
        if self.read(path) == text:
            return
        self.changes.append(path)
        if self.module.check_mode:
            return
        file = Path(path)
        if not text:
            file.unlink()
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
        beside = Path(f"{path}.{NAME}")
        beside.write_text(text, encoding="utf-8")
        beside.chmod(mode)
        beside.replace(file)

    def remove_if_empty(self, path: str) -> None:
        """Remove a directory that nothing is in any more."""
        directory = Path(path)
        if self.module.check_mode or not directory.is_dir() or any(directory.iterdir()):
            return
        directory.rmdir()
