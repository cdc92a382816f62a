"""ufw: one rule per address, marked by its comment. ufw itself keeps rules over a reboot."""

from __future__ import annotations

import shlex

from ansible_collections.exporter_proxy.fleet.plugins.module_utils.firewall import (
    NAME,
    Host,
    Network,
    address,
)


class Ufw:
    """The rules of ufw that carry our comment."""

    def __init__(self, host: Host, zone: str) -> None:
        self.host = host

    def is_usable(self) -> bool:
        """Whether ufw is on. Its unit may be active all the same while it is off."""
        return self.host.has("ufw") and "Status: active" in self.host.ask("ufw", "status")

    def apply(self, port: int, sources: list[Network]) -> None:
        """Have exactly these rules; none for no sources."""
        there = [
            words[1:]
            for words in map(shlex.split, self.host.ask("ufw", "show", "added").splitlines())
            if words[:1] == ["ufw"] and words[-2:] == ["comment", NAME]
        ]
        wanted = [_rule(port, source) for source in sources]
        for rule in wanted:
            if rule not in there:
                # At the top: a rule that denies, further down, does not come first.
                self.host.change("ufw", "prepend", *rule)
        for rule in there:
            if rule not in wanted:
                self.host.change("ufw", "delete", *rule[:-2])


def _rule(port: int, source: Network) -> list[str]:
    """A rule as ``ufw show added`` spells it."""
    return ["allow", "from", address(source), "to", "any", "port", str(port), "proto", "tcp", "comment", NAME]
