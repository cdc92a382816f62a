"""What is known of the PushProx proxies that are polled: counts for the metrics, states for the pages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

POLL_RESULTS = ("ok", "evicted", "refused", "malformed", "failed")
"""A scrape came; another client polls by the same name (408); another status; no request; no answer."""
PUSH_RESULTS = ("ok", "refused", "failed")
"""Delivered; answered with another status than 200; not answered, or not in time."""


@dataclass(slots=True)
class ProxyState:
    """One proxy. ``since`` is when it came to be so, as Unix time."""

    is_connected: bool = False
    """Whether a poll waits there, as far as that can be known."""
    problem: str = ""
    """What keeps it from being polled; "" while nothing does or is known."""
    since: float = field(default_factory=time.time)

    @property
    def word(self) -> str:
        """``connected``, ``failing``, or ``connecting`` before there is either."""
        if self.problem:
            return "failing"
        return "connected" if self.is_connected else "connecting"


class PushProxRecord:
    """Everything counted since the daemon started, and the state of each proxy that is polled now."""

    __slots__ = ("fqdn", "last_poll", "polls", "proxies", "pushes")

    def __init__(self) -> None:
        self.fqdn = ""
        """The name that is polled by; "" until the host has told it."""
        self.proxies: dict[str, ProxyState] = {}
        """By URL."""
        self.polls = dict.fromkeys(POLL_RESULTS, 0)
        self.pushes = dict.fromkeys(PUSH_RESULTS, 0)
        self.last_poll = 0.0
        """When a proxy last answered with a scrape, as Unix time; 0: never."""

    @property
    def connected(self) -> int:
        """How many proxies hold a poll of this daemon."""
        return sum(state.is_connected for state in self.proxies.values())
