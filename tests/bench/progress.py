"""What the benchmark is doing, on standard error: a run takes minutes, and the table comes last."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
