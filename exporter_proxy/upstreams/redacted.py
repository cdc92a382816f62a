"""What a command says, without what it was told: its arguments and its environment may hold secrets.

Programs repeat them, in usage messages and under ``set -x``; and what they say goes into answers,
pages and logs.
"""

from __future__ import annotations

from exporter_proxy.config.schema import CommandSource

MASK = "***"
MIN_CHARACTERS = 4
"""Less than that is no secret, and in the middle of too many words."""


def redacted(text: str, source: CommandSource) -> str:
    """``text`` with a mask for each value of ``env`` and each argument; names of options stay.

    Line by line, as a program prints them; the longest first, for one may be part of another.
    """
    values = [value for _, value in source.env] + [_value_of(argument) for argument in source.arguments]
    lines = {line.strip() for value in values for line in value.splitlines()}
    for line in sorted(lines, key=len, reverse=True):
        if len(line) >= MIN_CHARACTERS:
            text = text.replace(line, MASK)
    return text


def _value_of(argument: str) -> str:
    """What of an argument may be secret: all but ``--name``, ``--name=`` and ``-n``."""
    name, equals, value = argument.partition("=")
    if not argument.startswith("-") or " " in name:
        return argument
    if equals:
        return value
    return "" if argument.startswith("--") else argument[2:]
