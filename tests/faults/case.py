"""What a case is: what the exporter does, what the scraper sends, how that is judged, and where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.fakes.exporter import Script, respond
from tests.faults.points import COMMAND, FILE, PUSHPROX, TLS, UNIX, WAYS
from tests.faults.seen import Judge, Seen
from tests.faults.target import Page, Target

Exporter = Callable[[Page], Sequence[Script]]
"""One script for each request that comes; the last one repeats."""
Sends = Callable[[Target], bytes]
Reasons = Mapping[str, str]
"""Ways or programs, and why a case says nothing of them."""


def whole(page: Page) -> Sequence[Script]:
    """The page, as it should be."""
    return [respond(headers=page.headers, body=page.body)]


def get(*headers: tuple[str, str], **options: str) -> Sends:
    """A request for the page; the options are those of ``Target.get``."""
    return lambda target: target.get(*headers, **options)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    point: int
    name: str
    judge: Judge
    sends: Sends = Target.get
    exporter: Exporter = whole
    scene: Callable[[Seen, Sends], None] = Seen.ask
    """What the scraper does with the request: by default it sends it and reads the answer."""
    command: str = ""
    """The same fault as a shell script, where a command is asked; "": it prints the page."""
    file: bytes = b""
    """The same fault as what is in a file; b"": the page."""
    not_for: Reasons = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.point:02} {self.name}"


NOTHING_IS_SENT: Reasons = {FILE: "nothing is sent to a file", COMMAND: "nothing is sent to a command"}
NO_HTTP: Reasons = {FILE: "a file does not answer in HTTP", COMMAND: "a command does not answer in HTTP"}
NOT_PUSHPROX: Reasons = {PUSHPROX: "it is the PushProx proxy that reads what the scraper sends"}
PUSHPROX_WAITS: Reasons = {PUSHPROX: "nothing in its protocol says that a scraper has left"}
FILES_ARE_THERE: Reasons = {FILE: "a regular file is read at once"}
ONLY_TLS: Reasons = {way: "there is no close_notify without TLS" for way in WAYS if way != TLS}
NOT_UNIX: Reasons = {UNIX: "where nobody accepts on it, the kernel refuses at once"}
