"""nftables: a table of our own that refuses, and rules that let in where another chain would refuse.

An ``accept`` is only the end of its own chain, and any other chain may still drop the packet; a ``drop`` is
final. So strangers are dropped in a table of our own, and scrapers are accepted at the head of every chain
that drops what it does not know. What runs is changed by one transaction and never flushed, since others
(iptables, Docker, fail2ban) keep their tables there, too.

All of it goes into one file as well, for the next boot. Where nftables.service is on, nftables.conf includes
that file. Where it is off, it stays off: nftables.conf begins with a flush, of what others have loaded, too.
There a unit of our own loads the file, after them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ansible_collections.exporter_proxy.fleet.plugins.module_utils.firewall import (
    NAME,
    Host,
    Network,
    address,
)

RULES_FILE = "/etc/nftables.d/exporter_proxy.nft"
INCLUDE = f'include "{RULES_FILE}"\n'
# What nftables.service loads at boot: Red Hat's place, then Debian's.
CONFIGURATIONS = ("/etc/sysconfig/nftables.conf", "/etc/nftables.conf")
UNIT = f"{NAME}-firewall.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
UNIT_TEXT = """\
# Written by Ansible: changes here are lost.
[Unit]
Description=rules of nftables for the port of exporter_proxy
# Whoever loads rules comes first: iptables-restore, for one, empties the chains that some of ours are in.
After=network-pre.target nftables.service iptables.service ip6tables.service netfilter-persistent.service
After=ufw.service firewalld.service
Before=exporter_proxy.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {rules}

[Install]
WantedBy=multi-user.target
"""
FAMILIES = ("inet", "ip", "ip6")
Chain = tuple[str, str, str]
"""Family, table and name."""
Bases = dict[Chain, str]
"""Base chains, each with where it is hooked in, in nft's spelling."""
ENDS_IN_REFUSAL = ("drop", "reject")


class Nftables:
    """The live ruleset, and the file that it is loaded from at boot."""

    def __init__(self, host: Host, zone: str) -> None:
        self.host = host

    def is_usable(self) -> bool:
        """Whether there is nft, and a kernel that knows it: beside ufw it may be without one."""
        return self.host.has("nft") and self.host.succeeds("nft", "list", "tables")

    def apply(self, port: int, sources: list[Network]) -> None:
        """Have exactly these rules, now and after a boot; none for no sources."""
        objects = json.loads(self.host.ask("nft", "--json", "--handle", "list", "ruleset"))["nftables"]
        ours = [each["rule"] for each in objects if each.get("rule", {}).get("comment", "").startswith(NAME)]
        foreign = [rule for rule in ours if rule["table"] != NAME]
        has_table = any(each.get("table", {}).get("name") == NAME for each in objects)

        if not sources:
            removal = _removal(foreign) + ([f"delete table inet {NAME}"] if has_table else [])
            if removal:
                self.host.change("nft", "-f", "-", stdin="\n".join(removal) + "\n")
            self._forget()
            return

        chains = _refusing_chains(objects)
        mark = f"{NAME} " + hashlib.sha256(f"{port} {sources}".encode()).hexdigest()[:12]
        rules = _own_table(port, sources, mark) + _accept_rules(chains, port, sources, mark)
        expected = [("inet", NAME, "input")] * 2
        expected += [chain for chain in chains for _ in _sets_for(chain[0], sources)]
        there = [(rule["family"], rule["table"], rule["chain"]) for rule in ours]
        if sorted(there) != sorted(expected) or any(rule["comment"] != mark for rule in ours):
            self.host.change("nft", "-f", "-", stdin="\n".join(_removal(foreign) + rules) + "\n")
        self._remember(rules)

    def _configuration(self) -> str:
        return next((path for path in CONFIGURATIONS if self.host.read(path)), CONFIGURATIONS[-1])

    def _remember(self, rules: list[str]) -> None:
        self.host.write(RULES_FILE, "# Written by Ansible; loaded at boot.\n" + "\n".join(rules) + "\n")
        if not self.host.succeeds("systemctl", "is-enabled", "nftables.service"):
            self._exclude()
            self._enable_unit()
            return
        self._remove_unit()
        configuration = self._configuration()
        main = self.host.read(configuration)
        if INCLUDE not in main:
            start = main or "#!/usr/sbin/nft -f\nflush ruleset\n"
            self.host.write(configuration, start + ("" if start.endswith("\n") else "\n") + INCLUDE)

    def _forget(self) -> None:
        self._exclude()
        self._remove_unit()
        self.host.write(RULES_FILE, "")
        self.host.remove_if_empty(str(Path(RULES_FILE).parent))

    def _exclude(self) -> None:
        configuration = self._configuration()
        self.host.write(configuration, self.host.read(configuration).replace(INCLUDE, ""))

    def _enable_unit(self) -> None:
        text = UNIT_TEXT.format(nft=self.host.path("nft"), rules=RULES_FILE)
        if self.host.read(UNIT_FILE) != text or not self.host.succeeds("systemctl", "is-enabled", UNIT):
            self.host.write(UNIT_FILE, text)
            # Not started: the rules are there. It is for the next boot.
            self.host.change("systemctl", "enable", UNIT)

    def _remove_unit(self) -> None:
        if self.host.read(UNIT_FILE):
            self.host.change("systemctl", "disable", "--now", UNIT)
            self.host.write(UNIT_FILE, "")


def _refusing_chains(objects: list[dict[str, Any]]) -> Bases:
    """Those of others that see incoming packets and drop what they do not know."""
    last_rule: dict[Chain, list[dict[str, Any]]] = {}
    for each in objects:
        rule = each.get("rule")
        if rule:
            last_rule[rule["family"], rule["table"], rule["chain"]] = rule["expr"]
    found = {}
    for each in objects:
        chain = each.get("chain", {})
        if chain.get("hook") != "input" or chain.get("type") != "filter" or chain["family"] not in FAMILIES:
            continue
        key = (chain["family"], chain["table"], chain["name"])
        last = last_rule.get(key, [])
        refuses_rest = not any("match" in part for part in last) and any(
            verdict in part for part in last for verdict in ENDS_IN_REFUSAL
        )
        if chain["table"] != NAME and (chain.get("policy") == "drop" or refuses_rest):
            found[key] = f"type filter hook input priority {chain['prio']};"
    return dict(sorted(found.items()))


def _by_version(sources: list[Network]) -> dict[str, str]:
    """``ip`` and ``ip6``, as far as there are sources of it, with these as a set in nft's spelling."""
    sets = {}
    for protocol, version in (("ip", 4), ("ip6", 6)):
        addresses = [address(source) for source in sources if source.version == version]
        if addresses:
            sets[protocol] = "{ " + ", ".join(addresses) + " }"
    return sets


def _sets_for(family: str, sources: list[Network]) -> dict[str, str]:
    """``_by_version``, as far as a table of ``family`` can speak of it."""
    return {protocol: each for protocol, each in _by_version(sources).items() if family in ("inet", protocol)}


def _own_table(port: int, sources: list[Network], mark: str) -> list[str]:
    """Two rules, one for each version of IP: whoever is no source is dropped."""
    sets = _by_version(sources)
    rules = []
    for protocol, name in (("ip", "ipv4"), ("ip6", "ipv6")):
        whom = f"{protocol} saddr != {sets[protocol]}" if protocol in sets else f"meta nfproto {name}"
        rules.append(
            f'add rule inet {NAME} input iifname != "lo" tcp dport {port} {whom} drop comment "{mark}"'
        )
    return [
        # Once, so that it can be deleted; then anew.
        f"add table inet {NAME}",
        f"delete table inet {NAME}",
        f"add table inet {NAME}",
        f"add chain inet {NAME} input {{ type filter hook input priority -10; policy accept; }}",
        *rules,
    ]


def _accept_rules(chains: Bases, port: int, sources: list[Network], mark: str) -> list[str]:
    """Rules at the head of others' chains."""
    rules: list[str] = []
    for (family, table, chain), base in chains.items():
        # At boot the chain may not be there, or not yet: that must not keep the rest from being loaded. It is
        # made the base chain that it is, or those who load it later would fail, and leave the host open. No
        # policy is set: where the chain is there already, it keeps its own.
        rules += [f"add table {family} {table}", f"add chain {family} {table} {chain} {{ {base} }}"]
        rules += [
            f"insert rule {family} {table} {chain} {protocol} saddr {addresses} tcp dport {port} accept"
            f' comment "{mark}"'
            for protocol, addresses in _sets_for(family, sources).items()
        ]
    return rules


def _removal(rules: list[dict[str, Any]]) -> list[str]:
    places = [(f"{rule['family']} {rule['table']} {rule['chain']}", rule["handle"]) for rule in rules]
    return [f"delete rule {chain} handle {handle}" for chain, handle in places]
