"""Passwords against bcrypt hashes, and the event loop never waits for one.

bcrypt is slow on purpose (50 ms at cost 10, twice that with each step more), so it runs in a
thread and a password that was right is remembered, as a keyed digest. What waits for
the thread is bounded in number and time: a flood of wrong passwords costs one thread, and holds
up neither those who are remembered nor anything else.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable
from hashlib import blake2b

from exporter_proxy.reasons import Denied, Reason
from exporter_proxy.threads import NoThread, Threads

MAX_WAITING = 100
"""Logins that wait for the thread, each a different one; further ones are refused at once."""
CHECK_SECONDS = 5.0
"""The longest that a login waits for its turn and its result."""
MAX_REMEMBERED = 256
MAX_PASSWORD_BYTES = 72
"""bcrypt knows no more of a password. Go's takes longer ones and looks at these bytes alone; so do we."""
RETRY_AFTER_SECONDS = 5


class Login:
    """One user and password that is to be hashed, and those who wait to hear of it."""

    __slots__ = ("_is_user", "digest", "hashed", "is_right", "password", "waiters")

    def __init__(self, digest: bytes, password: bytes, hashed: bytes, is_user: bool) -> None:
        self.digest = digest
        self.password = password
        self.hashed = hashed
        self._is_user = is_user
        self.is_right: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        """``None``: it could not be found out."""
        self.waiters = 0

    def settle(self, matches: bool | None) -> bool | None:
        """Tell those who wait; an unknown user is wrong even with the password of another one."""
        is_right = matches and self._is_user
        self.is_right.set_result(is_right)
        return is_right


class Passwords:
    """The users of one configuration. A change of users makes a new one, which remembers nobody."""

    def __init__(self, users: tuple[tuple[str, str], ...]) -> None:
        """``users``: names and bcrypt hashes, at least one."""
        import bcrypt  # noqa: PLC0415 - 2 MiB that a daemon without passwords does not need

        self.users = users
        self._bcrypt: Callable[[bytes, bytes], bool] = bcrypt.checkpw
        self._hashes = {name.encode(): hashed.encode() for name, hashed in users}
        self._all_hashes = tuple(self._hashes.values())
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, None] = {}
        self._waiting: dict[bytes, Login] = {}
        self._hashing: Login | None = None
        self._threads = Threads(1, "passwords")
        self._task: asyncio.Task[None] | None = None

    def login(self, user: bytes, password: bytes) -> Login | None:
        """What to ``check``, or ``None`` where this user and password were right before.

        Raises Denied where too many wait.
        """
        password = password[:MAX_PASSWORD_BYTES]
        hashed = self._hashes.get(user)
        is_user = hashed is not None
        if hashed is None:
            hashed = self._hash_for_stranger(user)
        digest = self._digest(len(user).to_bytes(4, "big") + user + hashed + password)
        if digest in self._remembered:
            self._remembered[digest] = self._remembered.pop(digest)  # now the last to be forgotten
            return None
        if self._hashing is not None and self._hashing.digest == digest:
            return self._hashing
        login = self._waiting.get(digest)
        if login is None:
            if len(self._waiting) >= MAX_WAITING:
                raise _too_busy(f"{MAX_WAITING} other logins are waiting for theirs")
            login = self._waiting[digest] = Login(digest, password, hashed, is_user)
        return login

    async def check(self, login: Login, timeout_seconds: float) -> bool:
        """Whether the password is right. Raises Denied where that is not known in time.

        Whoever joins a login that is under way shares its result. Once nobody waits for it any
        more, one that has not begun is dropped.
        """
        login.waiters += 1
        try:
            self._hash_next()
            done, _ = await asyncio.wait((login.is_right,), timeout=timeout_seconds)
        finally:
            login.waiters -= 1
            # Not another login that began to wait with the same password after this one was wrong.
            if not login.waiters and self._waiting.get(login.digest) is login:
                del self._waiting[login.digest]
        if not done:
            raise _too_busy(f"it took longer than {timeout_seconds:g} s")
        is_right = login.is_right.result()
        if is_right is None:
            raise _too_busy("no thread can be started for it (TasksMax)")
        return is_right

    def _hash_for_stranger(self, user: bytes) -> bytes:
        """Some user's hash, always the same one: an unknown name takes as long as a known one."""
        number = int.from_bytes(self._digest(user)[:8], "big")
        return self._all_hashes[number % len(self._all_hashes)]

    def _digest(self, data: bytes) -> bytes:
        """Without the key, which nobody knows, a digest says nothing, not even in how long it is found."""
        return blake2b(data, key=self._key, digest_size=32).digest()

    def _hash_next(self) -> None:
        if self._hashing is None and self._waiting:
            self._hashing = login = self._waiting.pop(next(iter(self._waiting)))
            self._task = asyncio.get_running_loop().create_task(self._hash(login))

    async def _hash(self, login: Login) -> None:
        matches: bool | None
        try:
            matches = await self._threads.run(functools.partial(self._matches, login.password, login.hashed))
        except NoThread:
            matches = None
        self._hashing = None
        if login.settle(matches):
            self._remembered[login.digest] = None
            if len(self._remembered) > MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        self._hash_next()

    def _matches(self, password: bytes, hashed: bytes) -> bool:
        """In the thread."""
        try:
            return self._bcrypt(password, hashed)
        except BaseException:
            return False  # no bcrypt hash, or one that makes it panic: it matches nothing


def _too_busy(why: str) -> Denied:
    retry_after = ((b"Retry-After", b"%d" % RETRY_AFTER_SECONDS),)
    return Denied(Reason.RATE_LIMITED, f"the password was not checked, {why}; try again", headers=retry_after)
