"""Passwords: what Go's bcrypt takes as right, hashed once, in bounded room and time, beside the loop."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import bcrypt
import pytest

from exporter_proxy.front.passwords import MAX_REMEMBERED, MAX_WAITING, Login, Passwords
from exporter_proxy.reasons import Denied, Reason
from tests.daemon import REPOSITORY, wait_until
from tests.fakes.hashing import PATIENCE_SECONDS, Hashing, hash_of
from tests.inprocess import LOOPS, run, until


async def is_right(passwords: Passwords, user: bytes, password: bytes) -> bool:
    login = passwords.login(user, password)
    return login is None or await passwords.check(login, PATIENCE_SECONDS)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashing]:
    observed = Hashing()
    monkeypatch.setattr(bcrypt, "checkpw", observed)
    yield observed
    observed.free.set()


USERS = (("ann", hash_of(b"of ann")), ("bob", hash_of(b"of bob")), ("zoë", hash_of("pässwörd".encode())))


@pytest.mark.parametrize(
    ("user", "password", "expected"),
    [
        (b"ann", b"of ann", True),
        (b"bob", b"of bob", True),
        ("zoë".encode(), "pässwörd".encode(), True),
        ("zoë".encode("latin-1"), "pässwörd".encode(), False),
        (b"ann", b"of bob", False),
        (b"ann", b"", False),
        (b"ann", b"of ann ", False),
        (b"Ann", b"of ann", False),
        (b"", b"of ann", False),
        (b"eve", b"", False),
        (b"ann\0", b"of ann", False),
    ],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_right_and_wrong(loop: str, user: bytes, password: bytes, expected: bool) -> None:
    async def scenario() -> None:
        passwords = Passwords(USERS)
        for _ in range(2):
            assert await is_right(passwords, user, password) is expected

    run(scenario, loop)


@pytest.mark.parametrize("user", [f"stranger{number}".encode() for number in range(8)])
def test_a_stranger_is_wrong_with_every_users_password(user: bytes) -> None:
    """An unknown name is hashed against some user's hash, which must not be of any help."""

    async def scenario() -> None:
        passwords = Passwords(USERS)
        for password in (b"of ann", b"of bob", "pässwörd".encode()):
            for _ in range(2):
                assert not await is_right(passwords, user, password)

    run(scenario)


@pytest.mark.parametrize(
    ("hashed", "sent", "expected"),
    [
        (b"x" * 72, b"x" * 72, True),
        (b"x" * 72, b"x" * 71, False),
        (b"x" * 72, b"x" * 73, True),
        (b"x" * 72, b"x" * 72 + b"y" * 1000, True),
        (b"x" * 71, b"x" * 72, False),
        (b"x" * 71, b"x" * 71 + b"\0" + b"y" * 1000, True),
        (b"", b"", True),
        (b"", b"a", False),
        (b"a\0b", b"a\0b", True),
        (b"a\0b", b"a\0c", False),
        # The key schedule goes round: NUL ends a password, and repeating it all changes nothing.
        (b"a", b"a\0a", True),
        (b"a", b"a\0b", False),
    ],
    ids=str,
)
def test_long_passwords_and_nuls_are_as_with_go(hashed: bytes, sent: bytes, expected: bool) -> None:
    """As golang.org/x/crypto/bcrypt compares; tests/e2e/test_credentials.py asks a program that uses it."""

    async def scenario() -> None:
        assert await is_right(Passwords((("ann", hash_of(hashed)),)), b"ann", sent) is expected

    run(scenario)


@pytest.mark.parametrize("hashed", ["", "plain", "$2y$10$short", "$1$" + "a" * 57, "$2y$99$" + "a" * 53])
def test_what_is_no_hash_lets_nobody_in(hashed: str) -> None:
    async def scenario() -> None:
        passwords = Passwords((("ann", hashed),))
        for password in (b"", b"plain", hashed.encode()):
            assert not await is_right(passwords, b"ann", password)

    run(scenario)


def test_an_unknown_user_takes_as_long_as_a_wrong_password() -> None:
    async def timed(passwords: Passwords, user: bytes, password: bytes) -> float:
        before = time.process_time()
        assert not await is_right(passwords, user, password)
        return time.process_time() - before

    async def scenario() -> None:
        passwords = Passwords((("ann", hash_of(b"of ann", 9)),))
        pairs = [
            (await timed(passwords, b"ann", b"%d" % number), await timed(passwords, b"eve%d" % number, b"x"))
            for number in range(7)
        ]
        known, unknown = (min(times) for times in zip(*pairs, strict=True))
        assert min(known, unknown) > 0.5 * max(known, unknown)
        assert known > 0.005, "too short to tell anything"

    run(scenario)


def test_a_right_password_is_hashed_once_and_a_wrong_one_each_time(hashing: Hashing) -> None:
    async def scenario() -> None:
        passwords = Passwords(USERS)
        for _ in range(3):
            assert await is_right(passwords, b"ann", b"of ann")
        assert hashing.begun == [b"of ann"]
        for _ in range(3):
            assert not await is_right(passwords, b"ann", b"no")
        assert hashing.begun == [b"of ann", b"no", b"no", b"no"]

    run(scenario)


def test_what_is_remembered_is_one_user_with_one_password() -> None:
    """Where the name ends and the password begins counts."""

    async def scenario() -> None:
        passwords = Passwords((("a", hash_of(b"bc")), ("ab", hash_of(b"x"))))
        assert await is_right(passwords, b"a", b"bc")
        assert not await is_right(passwords, b"ab", b"c")

    run(scenario)


def test_only_so_many_are_remembered_and_those_not_seen_for_longest_go(hashing: Hashing) -> None:
    async def scenario() -> None:
        shared = hash_of(b"same")
        names = [f"user{number}" for number in range(MAX_REMEMBERED + 1)]
        passwords = Passwords(tuple((name, shared) for name in names))
        for name in names[:-1]:
            assert await is_right(passwords, name.encode(), b"same")
        assert passwords.login(b"user0", b"same") is None
        assert await is_right(passwords, names[-1].encode(), b"same")
        assert passwords.login(b"user0", b"same") is None
        assert len(hashing.begun) == MAX_REMEMBERED + 1
        assert await is_right(passwords, b"user1", b"same")
        assert len(hashing.begun) == MAX_REMEMBERED + 2

    run(scenario)


@pytest.mark.parametrize(("password", "expected"), [(b"of ann", True), (b"no", False)])
@pytest.mark.parametrize("loop", LOOPS)
def test_many_identical_logins_at_once_hash_once(
    loop: str, password: bytes, expected: bool, hashing: Hashing
) -> None:
    async def scenario() -> None:
        hashing.free.clear()
        passwords = Passwords(USERS)
        checks = [asyncio.ensure_future(is_right(passwords, b"ann", password)) for _ in range(50)]
        await until(lambda: bool(hashing.begun), "one is being hashed")
        checks += [asyncio.ensure_future(is_right(passwords, b"ann", password)) for _ in range(50)]
        await asyncio.sleep(0)
        hashing.free.set()
        assert await asyncio.gather(*checks) == [expected] * 100
        assert hashing.begun == [password]

    run(scenario, loop)


async def fill(passwords: Passwords, hashing: Hashing) -> list[asyncio.Task[bool]]:
    """One wrong login in the thread and as many as may wait."""
    hashing.free.clear()
    checks = [asyncio.create_task(is_right(passwords, b"eve", b"%d" % n)) for n in range(MAX_WAITING + 1)]
    await until(lambda: len(hashing.begun) == 1, "one is being hashed")
    return checks


def expect_busy(attempt: Callable[[], object]) -> None:
    with pytest.raises(Denied) as caught:
        attempt()
    assert caught.value.reason is Reason.RATE_LIMITED
    assert caught.value.status == 429
    assert int(dict(caught.value.headers)[b"Retry-After"]) >= 1


def all_logins() -> list[Login]:
    """Not by isinstance, which asks what it looks at for its class."""
    return [one for one in gc.get_objects() if type(one) is Login]


@pytest.fixture
def logins() -> Callable[[], list[Login]]:
    """Those that there are, but for what other tests have left."""
    others = all_logins()
    return lambda: [one for one in all_logins() if one not in others]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_flood_of_wrong_passwords_is_bounded_and_holds_up_nobody_who_is_known(
    loop: str, hashing: Hashing, logins: Callable[[], list[Login]]
) -> None:
    async def scenario() -> None:
        passwords = Passwords(USERS)
        assert await is_right(passwords, b"ann", b"of ann")
        hashing.begun.clear()
        checks = await fill(passwords, hashing)
        for number in range(1000):
            expect_busy(lambda number=number: passwords.login(b"eve", b"more %d" % number))  # type: ignore[misc]
        expect_busy(lambda: passwords.login(b"bob", b"of bob"))
        assert passwords.login(b"ann", b"of ann") is None
        assert len(logins()) == MAX_WAITING + 1
        joined = asyncio.create_task(is_right(passwords, b"eve", b"50"))
        hashing.free.set()
        assert await asyncio.gather(*checks, joined) == [False] * (MAX_WAITING + 2)
        assert len(hashing.begun) == MAX_WAITING + 1
        assert await is_right(passwords, b"bob", b"of bob")
        del checks, joined
        gc.collect()
        # The thread may have the last one still: it has told the loop before it lets go of it.
        await until(lambda: not logins(), "none is kept")

    run(scenario, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_who_leaves_while_waiting_costs_nothing_more(loop: str, hashing: Hashing) -> None:
    async def scenario() -> None:
        passwords = Passwords(USERS)
        checks = await fill(passwords, hashing)
        stays = asyncio.create_task(is_right(passwords, b"eve", b"7"))  # joins one of them
        await asyncio.sleep(0)
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        bob = asyncio.create_task(is_right(passwords, b"bob", b"of bob"))  # there is room again
        await asyncio.sleep(0)
        hashing.free.set()
        assert await bob
        assert not await stays
        assert hashing.begun == [b"0", b"7", b"of bob"]

    run(scenario, loop)


def test_a_login_that_takes_too_long_is_told_so_and_remembered_when_it_is_done(hashing: Hashing) -> None:
    async def scenario() -> None:
        passwords = Passwords(USERS)
        hashing.free.clear()
        login = passwords.login(b"ann", b"of ann")
        assert login is not None
        with pytest.raises(Denied, match=r"longer than 0\.05 s") as caught:
            await passwords.check(login, 0.05)
        assert caught.value.status == 429
        hashing.free.set()
        await until(lambda: passwords.login(b"ann", b"of ann") is None, "it was remembered")
        assert len(hashing.begun) == 1

    run(scenario)


def test_a_wrong_login_that_is_tried_again_as_its_answer_comes_gets_an_answer_too(hashing: Hashing) -> None:
    """The first one's end must not take the second out of the queue."""

    async def scenario() -> None:
        passwords = Passwords(USERS)
        hashing.free.clear()
        first = passwords.login(b"ann", b"no")
        assert first is not None
        again: list[asyncio.Task[bool]] = []

        def try_again(_: object) -> None:
            hashing.free.clear()  # bob's holds the thread meanwhile
            again.append(asyncio.create_task(is_right(passwords, b"ann", b"no")))

        first.is_right.add_done_callback(try_again)
        checking = asyncio.create_task(passwords.check(first, PATIENCE_SECONDS))
        await until(lambda: hashing.begun == [b"no"], "the first is being hashed")
        bob = asyncio.create_task(is_right(passwords, b"bob", b"of bob"))
        await asyncio.sleep(0)
        hashing.free.set()
        assert not await checking
        hashing.free.set()
        assert await bob
        assert not await asyncio.wait_for(again[0], PATIENCE_SECONDS)

    run(scenario)


def test_the_loop_goes_on_while_a_password_is_hashed() -> None:
    async def scenario() -> None:
        passwords = Passwords((("ann", hash_of(b"of ann", 11)),))
        check = asyncio.create_task(is_right(passwords, b"ann", b"of ann"))
        turns = 0
        while not check.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert await check
        assert turns >= 20

    run(scenario)


@pytest.fixture
def threads() -> Callable[[], list[str]]:
    """The names of the threads that hash passwords, but for those that other tests have left."""
    others = set(threading.enumerate())
    return lambda: [
        one.name for one in threading.enumerate() if one not in others and one.name.startswith("passwords")
    ]


def test_there_is_one_thread_as_long_as_there_is_a_password_to_hash(
    hashing: Hashing, threads: Callable[[], list[str]]
) -> None:
    async def scenario() -> None:
        passwords = Passwords(USERS)
        assert not threads()
        checks = await fill(passwords, hashing)
        assert len(threads()) == 1
        hashing.free.set()
        assert not any(await asyncio.gather(*checks))
        await until(lambda: not threads(), "the thread ended")
        assert await is_right(passwords, b"ann", b"of ann")
        await until(lambda: not threads(), "the thread ended")

    run(scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_thread_that_cannot_be_started_is_refused_logins_and_no_more(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        passwords = Passwords(USERS)
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_thread)
            checks = [is_right(passwords, *pair) for pair in ((b"ann", b"of ann"), (b"ann", b"no"))]
            for refused in await asyncio.gather(*checks, return_exceptions=True):
                assert isinstance(refused, Denied)
                assert refused.status == 429
                assert "no thread" in refused.message
            leaving = asyncio.create_task(is_right(passwords, b"bob", b"of bob"))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
        assert await is_right(passwords, b"ann", b"of ann")
        assert not await is_right(passwords, b"ann", b"no")

    run(scenario, loop)


class Panic(BaseException):
    """As the library's own, which is no Exception either."""


def test_a_hash_that_makes_bcrypt_panic_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(password: bytes, hashed: bytes) -> bool:
        raise Panic

    async def scenario() -> None:
        monkeypatch.setattr(bcrypt, "checkpw", panic)
        passwords = Passwords(USERS)
        for _ in range(2):
            assert not await is_right(passwords, b"ann", b"of ann")

    run(scenario)


def test_a_loop_that_has_ended_meanwhile_is_no_error(
    hashing: Hashing, caplog: pytest.LogCaptureFixture, threads: Callable[[], list[str]]
) -> None:
    hashing.free.clear()
    kept: list[Passwords] = []

    async def scenario() -> None:
        kept.append(Passwords(USERS))
        check = asyncio.create_task(is_right(kept[0], b"ann", b"of ann"))
        await until(lambda: bool(hashing.begun), "it is being hashed")
        check.cancel()

    run(scenario)
    assert len(threads()) == 1
    hashing.free.set()
    kept.clear()
    gc.collect()
    wait_until(lambda: not threads(), "the thread ended")
    assert caplog.records == []


def test_a_daemon_without_passwords_does_not_load_bcrypt() -> None:
    program = "import sys, exporter_proxy.cli, exporter_proxy.daemon; print('bcrypt' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


def test_nothing_shows_a_password_or_hash() -> None:
    async def scenario() -> None:
        passwords = Passwords(USERS)
        login = passwords.login(b"ann", b"s3cr3t")
        shown = f"{passwords!r} {login!r}"
        assert "s3cr3t" not in shown
        assert "$2b$" not in shown

    run(scenario)
