"""The guard: rate and credentials as values in and decisions out, and its place in the pipeline."""

from __future__ import annotations

import inspect
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from exporter_proxy.config import Config, ConfigError, parse_config
from exporter_proxy.config.schema import RateLimit, WebConfig
from exporter_proxy.front.auth import BearerTokens, Guard, TokenBucket
from exporter_proxy.reasons import Denied, Reason
from tests.fakes.hashing import Hashing, hash_of
from tests.inprocess import run

BASE = parse_config(b"exporters: {a: {url: 'http://127.0.0.1:9100/metrics'}}", "config.yml")
USERS = (("ann", hash_of(b"of ann")), ("colon", hash_of(b"a:b:")))
BASIC = (b"WWW-Authenticate", b'Basic realm="exporter_proxy"')
BEARER = (b"WWW-Authenticate", b'Bearer realm="exporter_proxy"')

Pair = tuple[bytes, bytes]


def web(users: tuple[tuple[str, str], ...] = (), limit: RateLimit | None = None) -> WebConfig:
    return WebConfig("web.yml", tls=None, headers=(), basic_auth_users=users, rate_limit=limit)


def config(path: Path | None = None, **changes: Any) -> Config:
    return replace(
        BASE, web=web(**changes) if changes else None, bearer_tokens_file=None if path is None else str(path)
    )


def guard_of(made_from: Config, previous: Guard | None = None) -> Guard:
    guard = Guard.of(made_from, previous)
    assert guard is not None
    return guard


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    (tmp_path / "tokens").write_text("# two of them\nt0ken-1\nt0ken-2==\n")
    return tmp_path / "tokens"


def basic(user_and_password: bytes, scheme: bytes = b"Basic") -> Pair:
    return b"authorization", scheme + b" " + b64encode(user_and_password)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashing]:
    observed = Hashing()
    monkeypatch.setattr(bcrypt, "checkpw", observed)
    yield observed
    observed.free.set()


async def judge(guard: Guard, *headers: Pair) -> Denied | None:
    """How the guard refuses these headers, ``None`` where it lets them in."""
    try:
        hashing = guard.check_credentials(headers)
        if hashing is not None:
            await hashing
    except Denied as denied:
        return denied
    return None


# -- the bucket


@pytest.mark.parametrize(
    ("interval", "burst", "asked"),
    [
        # Pairs of a time and how long until the next is let in.
        (1.0, 3, [(0, 0), (0, 0), (0, 0), (0, 1), (0.25, 0.75), (1, 0), (1, 1), (2.5, 0), (2.5, 0.5)]),
        (1.0, 2, [(0, 0), (100, 0), (100, 0), (100, 1)]),
        (10.0, 1, [(0, 0), (9.9, 0.1), (10, 0), (19.9, 0.1), (20, 0)]),
        (0.001, 1, [(0, 0), (0.0005, 0.0005), (0.001, 0)]),
        # As golang.org/x/time/rate: no burst, nobody.
        (1.0, 0, [(0, 1), (100, 1)]),
    ],
)
def test_the_bucket_gains_one_each_interval_up_to_its_burst(
    interval: float, burst: int, asked: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(RateLimit(interval, burst), 1000.0)
    assert [bucket.take(1000.0 + at) for at, _ in asked] == pytest.approx([wait for _, wait in asked])


def test_many_small_gains_make_a_whole_one() -> None:
    bucket = TokenBucket(RateLimit(1.0, 1), 0.0)
    assert bucket.take(0.0) == 0
    waits = [bucket.take(step / 10) for step in range(1, 11)]
    assert [wait > 0 for wait in waits] == [True] * 9 + [False]


@pytest.mark.parametrize(("interval", "retry_after"), [(0.9, 1), (60.0, 60), (3600.0, 3600)])
def test_over_the_rate_is_429_with_whole_seconds_to_wait(interval: float, retry_after: int) -> None:
    guard = guard_of(config(limit=RateLimit(interval, 2)))
    guard.check_rate()
    guard.check_rate()
    with pytest.raises(Denied, match="rate_limit of web_config_file") as caught:
        guard.check_rate()
    assert (caught.value.reason, caught.value.status) == (Reason.RATE_LIMITED, 429)
    assert caught.value.headers == ((b"Retry-After", b"%d" % retry_after),)


# -- what is made of a configuration


@pytest.mark.parametrize("made_from", [config(), config(users=()), config(limit=RateLimit(0.0, 5))])
def test_nothing_configured_is_no_guard(made_from: Config) -> None:
    assert Guard.of(made_from) is None
    assert Guard.of(made_from, guard_of(config(users=USERS, limit=RateLimit(1.0, 1)))) is None


def test_bucket_and_remembered_passwords_survive_a_change_of_something_else(
    tokens: Path, hashing: Hashing
) -> None:
    async def scenario() -> None:
        limit = RateLimit(3600.0, 1)
        first = guard_of(config(users=USERS, limit=limit))
        first.check_rate()
        assert await judge(first, basic(b"ann:of ann")) is None
        second = guard_of(config(tokens, users=tuple(USERS), limit=RateLimit(3600.0, 1)), first)
        with pytest.raises(Denied):
            second.check_rate()
        assert second.check_credentials([basic(b"ann:of ann")]) is None
        assert await judge(second, (b"authorization", b"Bearer t0ken-1")) is None
        assert hashing.begun == [b"of ann"]
        third = guard_of(config(users=USERS[:1], limit=RateLimit(3600.0, 2)), second)
        third.check_rate()
        third.check_rate()
        assert await judge(third, basic(b"ann:of ann")) is None
        assert hashing.begun == [b"of ann"] * 2, "other users: nobody is remembered"
        assert await judge(third, basic(b"colon:a:b:")) is not None
        assert await judge(third, (b"authorization", b"Bearer t0ken-1")) is not None

    run(scenario)


def test_a_tokens_file_that_went_bad_is_a_config_error(tokens: Path) -> None:
    tokens.write_text("s3cr3t s3cr3t\n")
    with pytest.raises(ConfigError, match=rf"^{tokens}:1:1: not a bearer token") as caught:
        Guard.of(config(tokens))
    assert "s3cr3t" not in str(caught.value)


def test_users_that_come_later_are_refused_where_an_exporter_would_see_their_passwords(tokens: Path) -> None:
    passing = (replace(BASE.exporters[0], pass_headers=("authorization",)),)
    for made_from in (config(users=USERS), config(tokens)):
        with pytest.raises(ConfigError, match=r"^config.yml: exporters.a.pass_headers: Authorization "):
            Guard.of(replace(made_from, exporters=passing))
    assert Guard.of(replace(config(limit=RateLimit(1.0, 1)), exporters=passing)) is not None


# -- credentials

GOOD: list[Pair] = [
    (b"authorization", b"Bearer t0ken-1"),
    (b"authorization", b"Bearer t0ken-2=="),
    (b"authorization", b"bearer  t0ken-1 "),
    (b"authorization", b"BEARER t0ken-1"),
    basic(b"ann:of ann"),
    basic(b"ann:of ann", b"bAsIc"),
    basic(b"colon:a:b:"),
]
BAD: list[tuple[Pair, ...]] = [
    (),
    ((b"authorization", b""),),
    ((b"authorization", b"Bearer"),),
    ((b"authorization", b"Bearer "),),
    ((b"authorization", b"Bearer t0ken-"),),
    ((b"authorization", b"Bearer t0ken-11"),),
    ((b"authorization", b"Bearer T0KEN-1"),),
    ((b"authorization", b"Bearer t0ken-2"),),
    ((b"authorization", b"Bearer t0ken-1, t0ken-2=="),),
    ((b"authorization", b"Bearer \xff\0"),),
    ((b"authorization", b"t0ken-1"),),
    ((b"authorization", b"Token t0ken-1"),),
    ((b"authorization", b"Basic t0ken-1"),),
    ((b"authorization", b"Bearer t0ken-1"),) * 2,
    (basic(b"ann:of ann"), (b"authorization", b"Bearer t0ken-1")),
    ((b"proxy-authorization", b"Bearer t0ken-1"),),
    ((b"cookie", b"access_token=t0ken-1"),),
    (basic(b"ann:wrong"),),
    (basic(b"eve:of ann"),),
    (basic(b":of ann"),),
    (basic(b"ann:"),),
    (basic(b"ann"),),
    (basic(b""),),
    (basic(b"ann:of ann", b"Digest"),),
    ((b"authorization", b"Basic " + b64encode(b"ann:of ann").rstrip(b"=") + b"!"),),
    ((b"authorization", b"Basic YW5uOm9mIGFub"),),  # its padding is missing
    ((b"authorization", b"Basic YW5u\nOm9mIGFubg=="),),
    ((b"authorization", b"Basic ann:of ann"),),
    ((b"authorization", b"Basic \xc3\xa4"),),
    ((b"authorization", b"Basic " + b"A" * 30_000),),
]


@pytest.mark.parametrize("header", GOOD, ids=repr)
def test_users_and_tokens_are_let_in_by_either(tokens: Path, header: Pair) -> None:
    async def scenario() -> None:
        guard = guard_of(config(tokens, users=USERS))
        assert await judge(guard, (b"host", b"a"), header) is None

    run(scenario)


@pytest.mark.parametrize("headers", BAD, ids=lambda headers: repr(headers)[:60])
def test_everything_else_is_401_in_the_same_words(tokens: Path, headers: tuple[Pair, ...]) -> None:
    async def scenario() -> None:
        guard = guard_of(config(tokens, users=USERS))
        missing, denied = await judge(guard), await judge(guard, *headers)
        assert missing is not None
        assert denied is not None
        assert (denied.reason, denied.status) == (Reason.UNAUTHORIZED, 401)
        assert denied.headers == (BASIC, BEARER)
        assert (denied.message, denied.headers) == (missing.message, missing.headers)
        assert "basic_auth_users" in denied.message
        assert "bearer_tokens_file" in denied.message

    run(scenario)


@pytest.mark.parametrize(
    ("has_users", "has_tokens", "challenges"),
    [(True, False, (BASIC,)), (False, True, (BEARER,)), (True, True, (BASIC, BEARER))],
)
def test_what_is_not_configured_is_neither_asked_for_nor_taken(
    tokens: Path, has_users: bool, has_tokens: bool, challenges: tuple[Pair, ...]
) -> None:
    async def scenario() -> None:
        made_from = config(tokens if has_tokens else None, **({"users": USERS} if has_users else {}))
        guard = guard_of(made_from)
        denied = await judge(guard)
        assert denied is not None
        assert denied.headers == challenges
        assert ("basic_auth_users" in denied.message) is has_users
        assert ("bearer_tokens_file" in denied.message) is has_tokens
        assert (await judge(guard, basic(b"ann:of ann")) is None) is has_users
        assert (await judge(guard, (b"authorization", b"Bearer t0ken-1")) is None) is has_tokens

    run(scenario)


def test_a_rate_limit_alone_asks_for_no_credentials() -> None:
    guard = guard_of(config(limit=RateLimit(1.0, 1)))
    assert guard.check_credentials([]) is None
    assert guard.check_credentials([(b"authorization", b"Bearer x")]) is None


def test_only_a_password_that_is_not_remembered_is_waited_for(tokens: Path) -> None:
    async def scenario() -> None:
        guard = guard_of(config(tokens, users=USERS))
        assert guard.check_credentials([(b"authorization", b"Bearer t0ken-1")]) is None
        first = guard.check_credentials([basic(b"ann:of ann")])
        assert inspect.isawaitable(first)
        await first
        assert guard.check_credentials([basic(b"ann:of ann")]) is None

    run(scenario)


@pytest.mark.parametrize(("timeout", "limit"), [(b"0.2", 0.1), (b"100", 5), (b"x", 5), (None, 5)])
def test_a_password_takes_half_of_the_scrapers_time_at_most(
    timeout: bytes | None, limit: float, hashing: Hashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        if limit == 5:
            monkeypatch.setattr("exporter_proxy.front.auth.CHECK_SECONDS", 0.15)
        hashing.free.clear()
        guard = guard_of(config(users=USERS))
        headers = [] if timeout is None else [(b"x-prometheus-scrape-timeout-seconds", timeout)]
        denied = await judge(guard, *headers, basic(b"ann:of ann"))
        hashing.free.set()
        assert denied is not None
        assert denied.reason is Reason.RATE_LIMITED
        assert f"longer than {0.15 if limit == 5 else limit:g} s" in denied.message

    run(scenario)


def test_every_token_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def compare(one: bytes, other: bytes) -> bool:
        assert len(one) == len(other) == 32
        compared.append(1)
        return one == other

    monkeypatch.setattr("exporter_proxy.front.auth.compare_digest", compare)
    known = BearerTokens(("a", "bb", "ccc"))
    assert [known.has(token) for token in (b"a", b"bb", b"ccc", b"d", b"")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert len(compared) == 15


def test_nothing_shows_a_token(tokens: Path) -> None:
    guard = guard_of(config(tokens, users=USERS))
    assert "t0ken" not in f"{guard!r} {guard.bucket!r} {guard.passwords!r} {config(tokens, users=USERS)!r}"
