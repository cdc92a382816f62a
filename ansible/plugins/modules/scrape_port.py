#!/usr/bin/python
"""Ansible module: open one TCP port to the scrapers and to nobody else, in whatever firewall the host has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: scrape_port
short_description: Opens one TCP port to a list of addresses
description:
  - Lets the given addresses reach one TCP port of this host, at once and after every boot.
  - Rules that an earlier run made for another port, for other addresses or in another firewall are taken back.
  - With ufw and firewalld, everyone else is refused by the firewall's own default. With nftables a table of its
    own refuses them, and where another chain drops what it does not know, a rule in that chain lets the scrapers in.
options:
  port:
    description: The port. Required unless I(state=absent).
    type: int
  sources:
    description: Addresses and networks, IPv4 and IPv6, that may connect. Required unless I(state=absent).
    type: list
    elements: str
    default: []
  backend:
    description:
      - The firewall. C(auto) takes ufw where it is active, else firewalld where it runs, else nftables; it is an
        error where firewalld is enabled and does not run.
    type: str
    choices: [auto, nftables, ufw, firewalld]
    default: auto
  zone:
    description: The zone of firewalld. Its default zone if empty.
    type: str
    default: ""
  state:
    description: C(absent) takes back whatever earlier runs did, in every firewall that is there.
    type: str
    choices: [present, absent]
    default: present
author:
  - exporter_proxy developers
"""

EXAMPLES = r"""
- name: Let two Prometheus servers in
  exporter_proxy.fleet.scrape_port:
    port: 9099
    sources: [10.0.0.5, "2001:db8::5"]
"""

RETURN = r"""
backend:
  description: The firewall that holds the rule.
  returned: when I(state=present)
  type: str
changes:
  description: What was changed, or would be in check mode, as commands and files.
  returned: always
  type: list
  elements: str
"""

import ipaddress

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.exporter_proxy.fleet.plugins.module_utils.firewall import Host, Network
from ansible_collections.exporter_proxy.fleet.plugins.module_utils.firewalld import Firewalld
from ansible_collections.exporter_proxy.fleet.plugins.module_utils.nftables import Nftables
from ansible_collections.exporter_proxy.fleet.plugins.module_utils.ufw import Ufw

# In the order in which `auto` tries them: ufw and firewalld are made of nftables themselves.
BACKENDS = {"ufw": Ufw, "firewalld": Firewalld, "nftables": Nftables}


def collapsed(sources: list[str]) -> list[Network]:
    """Networks in order, without those that are part of others: a set of nftables takes no overlaps."""
    networks = [ipaddress.ip_network(source) for source in sources]
    return [
        *ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv4Network)),
        *ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv6Network)),
    ]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int"},
            "sources": {"type": "list", "elements": "str", "default": []},
            "backend": {"type": "str", "default": "auto", "choices": ["auto", *sorted(BACKENDS)]},
            "zone": {"type": "str", "default": ""},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
        },
        required_if=[("state", "present", ("port", "sources"))],
        supports_check_mode=True,
    )
    host = Host(module)
    wanted = module.params["backend"]
    firewalls = {name: kind(host, module.params["zone"]) for name, kind in BACKENDS.items()}
    if module.params["state"] == "absent":
        for firewall in firewalls.values():
            if firewall.is_usable():
                firewall.apply(0, [])
        module.exit_json(changed=bool(host.changes), changes=host.changes)

    try:
        sources = collapsed(module.params["sources"])
    except ValueError as error:
        module.fail_json(msg=f"sources: {error}")
    if not sources:
        module.fail_json(msg="sources: name the addresses of the Prometheus servers")
    if wanted == "auto":
        if not firewalls["ufw"].is_usable() and firewalls["firewalld"].is_stopped():
            module.fail_json(
                msg="firewalld is enabled and does not run: rules in nftables would not hold once it starts. "
                "Start it or disable it, or name the firewall instead of auto"
            )
        wanted = next((name for name, firewall in firewalls.items() if firewall.is_usable()), None)
        if wanted is None:
            module.fail_json(
                msg="no firewall was found on this host: none of ufw, firewalld and nft is there"
            )
    elif not firewalls[wanted].is_usable():
        module.fail_json(msg=f"{wanted} is not in use on this host")
    # What is left of an earlier choice would refuse scrapers that are new since.
    for name, firewall in firewalls.items():
        if name != wanted and firewall.is_usable():
            firewall.apply(0, [])
    firewalls[wanted].apply(module.params["port"], sources)
    module.exit_json(changed=bool(host.changes), backend=wanted, changes=host.changes)


if __name__ == "__main__":
    main()
