"""bcrypt as tests need it: cheap hashes, and checks that are counted and can be held up."""

from __future__ import annotations

import threading

import bcrypt

PATIENCE_SECONDS = 30.0


def hash_of(password: bytes, cost: int = 4) -> str:
    """4 is the lowest cost there is: 1 ms."""
    return bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()


class Hashing:
    """Stands for ``bcrypt.checkpw``: counts, and waits while ``free`` is not set."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.begun: list[bytes] = []
        """The passwords, in their order."""
        self._check = bcrypt.checkpw

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        self.begun.append(password)
        assert self.free.wait(PATIENCE_SECONDS)
        return self._check(password, hashed)
