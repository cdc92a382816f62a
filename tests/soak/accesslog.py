"""Reads the access log, all its rotated files, as the lines that are whole in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.client import TAG
from tests.soak.site import ACCESS_LOG

DAY_SECONDS = 86_400
PAGE_BYTES = 4096
_TAG = re.compile(rf"(?:^|&){TAG}=([0-9]+)$")


@dataclass(frozen=True)
class Line:
    """One request as the daemon saw it. Times are real Unix times, whatever its clock showed."""

    began: float
    ended: float
    status: int
    reason: str
    path: str
    exporter: str
    remote: str
    agent: str
    number: int | None
    """Of the soak's own requests."""
    is_counted_lost: bool
    """Whether only its line break found no room on a full disk: it was counted as lost, and became whole with
    the next line.
    """

    @property
    def is_up(self) -> bool:
        """Whether the daemon takes it for a success."""
        return self.status == 200 and not self.reason

    def __str__(self) -> str:
        return (
            f"{self.status} {self.reason or 'ok'} {self.path} {self.ended - self.began:.3f} s {self.remote}"
        )


def read_lines(directory: Path, epoch: float) -> list[Line]:
    """All whole lines, in the order in which they were written.

    The daemon's clock was wrong by whole days at times. ``epoch`` is a real time before all of them, not a
    day before the last.
    """
    rotated = sorted(directory.glob(f"{ACCESS_LOG}.*"))
    return [line for file in (*rotated, directory / ACCESS_LOG) for line in _lines_of(file, epoch)]


def _lines_of(file: Path, epoch: float) -> Iterator[Line]:
    at = 0
    for text in file.read_bytes().splitlines(keepends=True):
        at += len(text)
        try:
            fields = json.loads(text)
        except ValueError:  # a piece of one: the disk was full
            continue
        if text.endswith(b"\n"):
            yield _line(fields, epoch, is_counted_lost=at % PAGE_BYTES == 1)


def _line(fields: dict[str, Any], epoch: float, is_counted_lost: bool) -> Line:
    ended = epoch + (fields["time_nsec"] / 1e9 - epoch) % DAY_SECONDS
    tag = _TAG.search(fields["query"])
    return Line(
        began=ended - fields["reqtime_nsec"] / 1e9,
        ended=ended,
        status=fields["status"],
        reason=fields["reason"],
        path=fields["path"],
        exporter=fields["exporter"],
        remote=fields["remote"],
        agent=fields["user_agent"],
        number=int(tag[1]) if tag else None,
        is_counted_lost=is_counted_lost,
    )
