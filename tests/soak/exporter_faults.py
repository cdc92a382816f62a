"""What goes wrong with exporters. Each costs the scrapes of its exporter, and nobody else's."""

from __future__ import annotations

import random

from tests.soak.exporter import BROKEN
from tests.soak.exporters import CHECKSUM, COMMAND, HANGS
from tests.soak.faults import Fault
from tests.soak.ledger import Cost
from tests.soak.site import Site


class ExporterFault(Fault):
    """One that concerns an exporter that is a process."""

    hold_seconds = (1.0, 4.0)

    def subject(self, chance: random.Random) -> str:
        return chance.choice(list(self.site.exporters))

    def cost(self, subject: str) -> Cost:
        return Cost(scrapes_of=subject)


class Killed(ExporterFault):
    """SIGKILL; it is started again where it was."""

    name = "exporter killed"

    def inject(self, subject: str, chance: random.Random) -> None:
        self.site.exporters[subject].kill()

    def heal(self, subject: str) -> None:
        self.site.exporters[subject].start()


class Stopped(ExporterFault):
    """SIGSTOP, then SIGCONT: it accepts connections and says nothing."""

    name = "exporter stopped"

    def inject(self, subject: str, chance: random.Random) -> None:
        self.site.exporters[subject].suspend()

    def heal(self, subject: str) -> None:
        self.site.exporters[subject].resume()


class Restarted(ExporterFault):
    """SIGTERM, and started again at once."""

    name = "exporter restarted"
    hold_seconds = (0.0, 0.0)

    def inject(self, subject: str, chance: random.Random) -> None:
        self.site.exporters[subject].terminate()

    def heal(self, subject: str) -> None:
        self.site.exporters[subject].start()


class Broken(ExporterFault):
    """Truncated bodies, resets, stalls, garbage: all that an exporter can do to an answer."""

    name = "exporter broken"
    hold_seconds = (4.0, 8.0)

    def subject(self, chance: random.Random) -> str:
        return CHECKSUM

    def inject(self, subject: str, chance: random.Random) -> None:
        (self.site.directory / BROKEN).touch()

    def heal(self, subject: str) -> None:
        (self.site.directory / BROKEN).unlink()


class CommandHangs(ExporterFault):
    """The command does not end, and has a child that does not either."""

    name = "command hangs"

    def subject(self, chance: random.Random) -> str:
        return COMMAND

    def inject(self, subject: str, chance: random.Random) -> None:
        (self.site.directory / HANGS).touch()

    def heal(self, subject: str) -> None:
        (self.site.directory / HANGS).unlink()


def exporter_faults(site: Site) -> list[Fault]:
    return [Killed(site), Stopped(site), Restarted(site), Broken(site), CommandHangs(site)]
