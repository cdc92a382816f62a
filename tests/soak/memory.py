"""What the daemon's memory came to: flat, once its process has warmed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.soak.watch import Look

MIB = 1 << 20
WARM_UP_SECONDS = 120.0
"""Until pages of each size have been asked for by many at once."""
LEAST_SECONDS = 180.0
"""What has to be left of a life after that to tell anything of a slope."""
GROWTH_MIB = 4.0
"""From the first quarter after the warm-up to the last one; pages of several MB come and go."""
GROWTH_MIB_PER_HOUR = 8.0
"""Besides."""
MOST_MIB = 96.0
"""At any time, with everything switched on and under libfaketime."""


@dataclass(frozen=True)
class Memory:
    """Of the process that lived longest, and of all. Sizes in MiB, resident."""

    seconds: float
    """How long that life was."""
    first: float | None
    """Median of the first quarter after the warm-up; ``None`` where the life was too short to have one."""
    last: float
    """Median of the last quarter."""
    most: float
    """Of all processes."""

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Memory:
        (pid, _), *_ = Counter(look.pid for look in looks).most_common(1)
        life = [look for look in looks if look.pid == pid]
        warm = [look for look in life if look.at > life[0].at + WARM_UP_SECONDS]
        is_long = bool(warm) and warm[-1].at - warm[0].at >= LEAST_SECONDS
        considered = warm if is_long else life
        quarter = max(1, len(considered) // 4)
        first, last = (
            median(one.resident_bytes for one in part) / MIB
            for part in (considered[:quarter], considered[-quarter:])
        )
        most = max(look.resident_bytes for look in looks) / MIB
        return cls(life[-1].at - life[0].at, first if is_long else None, last, most)

    @property
    def problems(self) -> list[str]:
        found = []
        if self.first is not None:
            allowed = GROWTH_MIB + GROWTH_MIB_PER_HOUR * self.seconds / 3600
            if self.last - self.first > allowed:
                found.append(f"{self.first:.1f} MiB resident became {self.last:.1f} in {self.seconds:.0f} s")
        if self.most > MOST_MIB:
            found.append(f"{self.most:.1f} MiB resident, {MOST_MIB:g} are allowed")
        return found

    def __str__(self) -> str:
        of_longest = f"{self.last:.1f} MiB at the end of the longest life, {self.seconds:.0f} s"
        warm = "" if self.first is None else f" ({self.first:.1f} after its warm-up)"
        return f"{of_longest}{warm}; {self.most:.1f} at most"
