"""What happens to the daemon: reloads, certificates, logs, clock, descriptors, and its own death.

But for the last few none of them may cost a single scrape.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import socket
import ssl
import time
from collections import Counter
from typing import ClassVar

from tests.daemon import wait_until
from tests.soak.certificates import HOST
from tests.soak.checker import Checker
from tests.soak.client import Samples
from tests.soak.faults import RECOVERY_SECONDS, DaemonFault, Fault
from tests.soak.ledger import EVERYTHING, Cost
from tests.soak.site import ACCESS_LOG, FILLER, HOSTILE, Site
from tests.soak.supervisor import NOW
from tests.soak.watch import LOST, Watch, descriptors

RELOADED = ("exporter_proxy_config_last_reload_successful", frozenset[tuple[str, str]]())
LAST_SUCCESS = "exporter_proxy_exporter_last_success_timestamp_seconds"
DAY_SECONDS = 86_400
UNWRITTEN_SECONDS = 1.0
"""Lines are written within 0.1 s; those of the last moments before a kill are lost with it."""


class Reloaded(DaemonFault):
    """SIGHUP with another good configuration."""

    name = "config reloaded"
    _variant = 0

    def inject(self, subject: str, chance: random.Random) -> None:
        self._variant += 1
        variant = self._variant
        self.site.write_config(variant)
        self.site.daemon.signal(signal.SIGHUP)
        gone = frozenset({("exporter", f"gone_after_{variant}")})
        name = "exporter_proxy_scrapes_in_flight"
        self.wait_for(lambda samples: (name, gone) in samples, "the new config is in force")


class ReloadedBad(DaemonFault):
    """SIGHUP with a configuration that has mistakes, then with a good one."""

    name = "bad config reloaded"
    _variant = 0
    _bad: ClassVar[list[object]] = [
        "exporters: {a: {url: 1}}",
        [],
        {"listen": "systemd", "exporters": {"a": {"url": "ftp://127.0.0.1/"}}},
        {"exporters": {"a": {"url": "http://127.0.0.1:1/"}}, "no_such_key": 1},
        {"tls": {"certfile": "server.crt", "keyfile": "none.key"}, "exporters": {}},
    ]

    def inject(self, subject: str, chance: random.Random) -> None:
        self.site.write_raw_config(chance.choice(self._bad))
        self.site.daemon.signal(signal.SIGHUP)
        self.wait_for(lambda samples: samples[RELOADED] == 0.0, "the bad config was noticed")

    def heal(self, subject: str) -> None:
        self._variant += 1
        self.site.write_config(self._variant)
        self.site.daemon.signal(signal.SIGHUP)
        self.wait_for(lambda samples: samples[RELOADED] == 1.0, "the good config was taken")


class CertificateRenewed(DaemonFault):
    """A new certificate and key, without a reload."""

    name = "certificate renewed"

    def __init__(self, site: Site, watch: Watch, checker: Checker) -> None:
        super().__init__(site, watch)
        self._checker = checker

    def inject(self, subject: str, chance: random.Random) -> None:
        self.site.certificates.renew()

    def heal(self, subject: str) -> None:
        wait_until(
            lambda: self._checker.serial == self.site.certificates.serial,
            "the new certificate is shown",
            RECOVERY_SECONDS,
        )


class CertificateSpoilt(CertificateRenewed):
    """A key that does not belong to the certificate: the old pair stays in use until there is a good one."""

    name = "certificate spoilt"

    def inject(self, subject: str, chance: random.Random) -> None:
        self.site.certificates.spoil()
        self.wait_for(lambda samples: samples[RELOADED] == 0.0, "the spoilt pair was noticed")

    def heal(self, subject: str) -> None:
        self.site.certificates.renew()
        self.wait_for(lambda samples: samples[RELOADED] == 1.0, "the good pair was taken")
        super().heal(subject)


class LogRotated(DaemonFault):
    """The access log is renamed and the daemon told, as logrotate does it: no line is lost."""

    name = "log rotated"
    _number = 0

    def inject(self, subject: str, chance: random.Random) -> None:
        self._number += 1
        self._rotated = self.site.log_disk / f"{ACCESS_LOG}.{self._number:05}"
        (self.site.log_disk / ACCESS_LOG).rename(self._rotated)
        self.site.daemon.signal(signal.SIGHUP)

    def heal(self, subject: str) -> None:
        """Once the daemon has let go of the old file, it is moved off the disk."""
        old = str(self._rotated)
        wait_until(
            lambda: old not in descriptors(self.site.daemon.pid),
            "it lets go of the old log",
            RECOVERY_SECONDS,
        )
        (self.site.kept_logs / self._rotated.name).write_bytes(self._rotated.read_bytes())
        self._rotated.unlink()


class LogDiskFull(DaemonFault):
    """The disk of the access log is filled up, and emptied: lines are lost, and counted."""

    name = "log disk full"
    costs = Cost(lines=True)

    def inject(self, subject: str, chance: random.Random) -> None:
        lost_before = max((one.lost_lines for one in self.watch.readings[-1:]), default=0)
        with (self.site.log_disk / FILLER).open("wb", buffering=0) as filler:
            block = bytes(1 << 16)
            try:
                while True:
                    filler.write(block)
            except OSError:  # full
                pass
        self.wait_for(lambda samples: samples[LOST] > lost_before, "lines are lost")

    def heal(self, subject: str) -> None:
        (self.site.log_disk / FILLER).unlink()


class ClockStepped(DaemonFault):
    """The wall clock is some days ahead, then some days behind, then right again.

    Whole days: so that the access log's times can be told from real ones and set right.
    """

    name = "clock stepped"

    def inject(self, subject: str, chance: random.Random) -> None:
        forward, back = chance.randint(1, 300), chance.randint(1, 300)
        self._step(f"+{forward}d", forward)
        time.sleep(chance.uniform(0.5, 2.0))
        self._step(f"-{back}d", -back)

    def heal(self, subject: str) -> None:
        self._step(NOW, 0)

    def _step(self, offset: str, days: int) -> None:
        self.site.daemon.set_clock(offset)
        self.wait_for(lambda samples: _days_off(samples) == days, f"its clock was {days} days off")


class Crowd(DaemonFault):
    """More connections than there may be, none of which asks for anything: they make room for each other.

    They come some at a time, and each time the last one's handshake is over before there are more: all
    at once they may make a scraper's handshake, which waits for a CPU, the one that has idled longest.
    """

    name = "crowd of idle connections"
    hold_seconds = (2.0, 4.0)
    count = 160
    at_once = 20

    def inject(self, subject: str, chance: random.Random) -> None:
        self._held: list[socket.socket] = []
        tls = ssl.create_default_context(cafile=str(self.site.certificates.ca_file))
        while len(self._held) < self.count:
            self._held += [_connection(self.site.daemon.port) for _ in range(self.at_once)]
            with contextlib.suppress(OSError):  # over is over: scrapes are judged, not this one
                self._held.append(tls.wrap_socket(self._held.pop(), server_hostname=HOST))

    def heal(self, subject: str) -> None:
        for one in self._held:
            one.close()


class OutOfDescriptors(DaemonFault):
    """A limit just above what it has open, and a crowd to use it up."""

    name = "out of descriptors"
    costs = Cost(scrapes_of=EVERYTHING, is_unseen=True)
    hold_seconds = (2.0, 4.0)
    further = 6

    def inject(self, subject: str, chance: random.Random) -> None:
        pid = self.site.daemon.pid
        self._usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        limit = len(descriptors(pid)) + self.further
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, self._usual[1]))
        self._held = [_connection(self.site.daemon.port) for _ in range(40)]

    def heal(self, subject: str) -> None:
        for one in self._held:
            one.close()
        resource.prlimit(self.site.daemon.pid, resource.RLIMIT_NOFILE, self._usual)


class Ended(DaemonFault):
    """SIGKILL. Whoever comes before the next process is there waits in the socket's queue."""

    name = "daemon killed"
    costs = Cost(scrapes_of=EVERYTHING, is_unseen=True, lines=True, sent=True)
    hold_seconds = (0.0, 0.0)
    is_for_long_lives = False
    number = signal.SIGKILL

    def inject(self, subject: str, chance: random.Random) -> None:
        time.sleep(UNWRITTEN_SECONDS)
        self.site.daemon.end(self.number)

    def heal(self, subject: str) -> None:
        self.wait_for(lambda samples: True, "the next daemon answers")


class EndedGracefully(Ended):
    """SIGTERM: what is under way is finished, and no line is lost."""

    name = "daemon restarted"
    costs = Cost(scrapes_of=EVERYTHING, is_unseen=True)
    number = signal.SIGTERM

    def inject(self, subject: str, chance: random.Random) -> None:
        ended = self.site.daemon.current
        self.site.daemon.end(self.number)
        assert ended.status == 0, f"its exit status was {ended.status}"
        assert not ended.left, f"{ended.left} processes that it had started outlived it"


def daemon_faults(site: Site, watch: Watch, checker: Checker) -> list[Fault]:
    return [
        *(Reloaded(site, watch), ReloadedBad(site, watch)),
        *(CertificateRenewed(site, watch, checker), CertificateSpoilt(site, watch, checker)),
        *(LogRotated(site, watch), LogDiskFull(site, watch)),
        *(ClockStepped(site, watch), Crowd(site, watch), OutOfDescriptors(site, watch)),
        *(Ended(site, watch), EndedGracefully(site, watch)),
    ]


def _days_off(samples: Samples) -> int | None:
    """By how many days the daemon's clock is wrong, as most exporters' last success shows it."""
    now = time.time()
    offsets = Counter(
        round((at - now) / DAY_SECONDS) for (name, _), at in samples.items() if name == LAST_SUCCESS and at
    )
    return max(offsets, key=offsets.__getitem__, default=None)


def _connection(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=RECOVERY_SECONDS, source_address=(HOSTILE, 0))
