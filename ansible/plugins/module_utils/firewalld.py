"""firewalld: a service for the port, and for each address a rich rule that names the service.

Everything is done twice: for good, and in what runs. Only a service that is new or has another port needs a
reload, since firewalld knows no way to define one in what runs.
"""

from __future__ import annotations

from ansible_collections.exporter_proxy.fleet.plugins.module_utils.firewall import (
    NAME,
    Host,
    Network,
    address,
)

PERMANENT = ("--permanent",)
RUNNING: tuple[str, ...] = ()


class Firewalld:
    """Our service and our rich rules."""

    def __init__(self, host: Host, zone: str) -> None:
        self.host = host
        self.zone = zone

    def is_usable(self) -> bool:
        """Whether firewalld runs."""
        return self.host.has("firewall-cmd") and self.host.succeeds("firewall-cmd", "--state")

    def is_stopped(self) -> bool:
        """Whether firewalld is to run and does not: it starts at the next boot at the latest."""
        return (
            self.host.has("firewall-cmd")
            and not self.is_usable()
            and self.host.succeeds("systemctl", "is-enabled", "firewalld.service")
        )

    def apply(self, port: int, sources: list[Network]) -> None:
        """Have exactly these rules; neither rules nor service for no sources."""
        wanted: set[tuple[str, str]] = set()
        if sources:
            zone = self.zone or self._ask("--get-default-zone").strip()
            wanted = {(zone, _rule(source)) for source in sources}
            self._define_service(f"{port}/tcp")
        for scope in (PERMANENT, RUNNING):
            there = self._rules(scope)
            for zone, rule in sorted(there - wanted):
                self._change(*scope, f"--zone={zone}", f"--remove-rich-rule={rule}")
            for zone, rule in sorted(wanted - there):
                self._change(*scope, f"--zone={zone}", f"--add-rich-rule={rule}")
        if not sources and self._has_service():
            self._change(*PERMANENT, f"--delete-service={NAME}")
            self._change("--reload")

    def _has_service(self) -> bool:
        return NAME in self._ask(*PERMANENT, "--get-services").split()

    def _define_service(self, port: str) -> None:
        ports: list[str] = []
        if self._has_service():
            ports = self._ask(*PERMANENT, f"--service={NAME}", "--get-ports").split()
        else:
            self._change(*PERMANENT, f"--new-service={NAME}")
        if ports != [port]:
            for outdated in ports:
                self._change(*PERMANENT, f"--service={NAME}", f"--remove-port={outdated}")
            self._change(*PERMANENT, f"--service={NAME}", f"--add-port={port}")
            self._change("--reload")

    def _rules(self, scope: tuple[str, ...]) -> set[tuple[str, str]]:
        """Our rich rules as (zone, rule), wherever an earlier run put them."""
        rules: set[tuple[str, str]] = set()
        zone = ""
        for line in self._ask(*scope, "--list-all-zones").splitlines():
            text = line.strip()
            if line and not line[0].isspace():
                zone = text.split()[0]
            elif text.startswith("rule ") and f'service name="{NAME}"' in text:
                rules.add((zone, text))
        return rules

    def _ask(self, *arguments: str) -> str:
        return self.host.ask("firewall-cmd", *arguments)

    def _change(self, *arguments: str) -> None:
        self.host.change("firewall-cmd", "--quiet", *arguments)


def _rule(source: Network) -> str:
    """A rich rule as firewalld lists it."""
    return (
        f'rule family="ipv{source.version}" source address="{address(source)}" service name="{NAME}" accept'
    )
