"""Who may ask, beyond their address: the rate limit, and the credentials of web.config.file and tokens file.

One ``Guard`` is made from each configuration that has any of it. Passwords are hashed in
``passwords.py``; in which order the checks come is the pipeline's business.
"""

from __future__ import annotations

import binascii
import math
import secrets
import time
from collections.abc import Awaitable, Iterable
from hashlib import blake2b
from hmac import compare_digest

from exporter_proxy.config.exporters import PASSED_CREDENTIALS
from exporter_proxy.config.problems import ConfigError, Problem
from exporter_proxy.config.schema import Config, RateLimit
from exporter_proxy.config.tokens import read_tokens
from exporter_proxy.front.passwords import CHECK_SECONDS, Login, Passwords
from exporter_proxy.reasons import Denied, Reason
from exporter_proxy.scrape.deadline import parse_scrape_timeout
from exporter_proxy.scrape.headers import SCRAPE_TIMEOUT_HEADER

Headers = Iterable[tuple[bytes, bytes]]


class TokenBucket:
    """golang.org/x/time/rate's: full at first, one token more each interval, never more than ``burst``."""

    def __init__(self, limit: RateLimit, now: float) -> None:
        self.limit = limit
        self._tokens = float(limit.burst)
        self._counted_at = now

    def take(self, now: float) -> float:
        """Take a token: 0.0, or the seconds until there is one. ``now`` is on a monotonic clock."""
        limit = self.limit
        gained = (now - self._counted_at) / limit.interval_seconds
        self._counted_at = now
        self._tokens = min(float(limit.burst), self._tokens + gained)
        if self._tokens >= 1 - 1e-9:  # the gains of many small steps add up to a hair less
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) * limit.interval_seconds


class BearerTokens:
    """The tokens that let in, as keyed digests: all of one length, and useless to whoever sees them."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self._key = secrets.token_bytes(32)
        self._digests = tuple(self._digest(token.encode()) for token in tokens)

    def has(self, token: bytes) -> bool:
        """In the same time whichever token it is, or none: every one is compared."""
        digest = self._digest(token)
        found = False
        for known in self._digests:
            found |= compare_digest(digest, known)
        return found

    def _digest(self, token: bytes) -> bytes:
        return blake2b(token, key=self._key, digest_size=32).digest()


class Guard:
    """The rate limit and the credentials of one configuration; ``None`` in place of each that it lacks."""

    def __init__(
        self, bucket: TokenBucket | None, passwords: Passwords | None, tokens: BearerTokens | None
    ) -> None:
        self.bucket = bucket
        self.passwords = passwords
        self._tokens = tokens
        wanted: list[str] = []
        challenges: list[tuple[bytes, bytes]] = []
        if passwords is not None:
            wanted.append("a user and password (basic_auth_users)")
            challenges.append((b"WWW-Authenticate", b'Basic realm="exporter_proxy"'))
        if tokens is not None:
            wanted.append("a bearer token (bearer_tokens_file)")
            challenges.append((b"WWW-Authenticate", b'Bearer realm="exporter_proxy"'))
        self._needs_credentials = bool(wanted)
        self._unauthorized_text = f"credentials wanted: {' or '.join(wanted)}; none came that are right"
        self._challenges = tuple(challenges)

    @classmethod
    def of(cls, config: Config, previous: Guard | None = None) -> Guard | None:
        """The guard that ``config`` asks for, ``None`` where it asks for none.

        The bucket and the remembered passwords of ``previous`` stay where their limit or users
        did not change. Reads the tokens file. Raises ConfigError.
        """
        limit = None if config.web is None else config.web.rate_limit
        users = () if config.web is None else config.web.basic_auth_users
        path = config.bearer_tokens_file
        tokens = None if path is None else BearerTokens(read_tokens(path))
        bucket = None if previous is None else previous.bucket
        if limit is None or limit.interval_seconds <= 0:
            bucket = None
        elif bucket is None or bucket.limit != limit:
            bucket = TokenBucket(limit, time.monotonic())
        passwords = None if previous is None else previous.passwords
        if not users:
            passwords = None
        elif passwords is None or passwords.users != users:
            passwords = Passwords(users)
        if bucket is None and passwords is None and tokens is None:
            return None
        if passwords is not None or tokens is not None:
            _refuse_passing_on(config)
        return cls(bucket, passwords, tokens)

    def check_rate(self) -> None:
        """Take part in the rate limit. Raises Denied over it."""
        if self.bucket is None:
            return
        wait_seconds = self.bucket.take(time.monotonic())
        if wait_seconds:
            limit = self.bucket.limit
            raise Denied(
                Reason.RATE_LIMITED,
                f"over the rate_limit of web_config_file: {limit.burst} requests at once (burst), "
                f"one more each {limit.interval_seconds:g} s (interval)",
                headers=((b"Retry-After", b"%d" % math.ceil(wait_seconds)),),
            )

    def check_credentials(self, headers: Headers) -> Awaitable[None] | None:
        """Raises Denied without right ones; an awaitable where a password is yet to be hashed.

        ``headers`` have lower-case names. Credentials in the query are not looked at: they would
        end up in logs (RFC 6750 section 5.3).
        """
        if not self._needs_credentials:
            return None
        scheme, credentials = _authorization(headers)
        if scheme == b"bearer" and self._tokens is not None and self._tokens.has(credentials):
            return None
        if scheme == b"basic" and self.passwords is not None:
            user, colon, password = _user_and_password(credentials).partition(b":")
            if colon:
                login = self.passwords.login(user, password)
                return None if login is None else self._check(self.passwords, login, headers)
        raise self._unauthorized()

    async def _check(self, passwords: Passwords, login: Login, headers: Headers) -> None:
        wanted = next((value for name, value in headers if name == SCRAPE_TIMEOUT_HEADER), None)
        scrape_timeout = parse_scrape_timeout(wanted)
        # Half of the scraper's time: the other half is for the scrape, or for the answer that says why not.
        seconds = CHECK_SECONDS if scrape_timeout is None else min(CHECK_SECONDS, scrape_timeout / 2)
        if not await passwords.check(login, seconds):
            raise self._unauthorized()

    def _unauthorized(self) -> Denied:
        """The same whatever was wrong: a guesser learns nothing from it."""
        return Denied(Reason.UNAUTHORIZED, self._unauthorized_text, headers=self._challenges)


def _refuse_passing_on(config: Config) -> None:
    """Raises ConfigError where an exporter would see credentials.

    The configuration was checked for it, but users may have come since, in a file of their own.
    """
    problems = [
        Problem(config.source, None, None, f"exporters.{exporter.name}.pass_headers", PASSED_CREDENTIALS)
        for exporter in config.exporters
        if "authorization" in exporter.pass_headers
    ]
    if problems:
        raise ConfigError(problems)


def _authorization(headers: Headers) -> tuple[bytes, bytes]:
    """Scheme in lower case, and credentials; both empty without exactly one Authorization line."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        return b"", b""
    scheme, _, credentials = values[0].strip(b" \t").partition(b" ")
    return scheme.lower(), credentials.strip(b" ")


def _user_and_password(credentials: bytes) -> bytes:
    """``user:password`` (RFC 7617 section 2); empty where it is no base64."""
    try:
        return binascii.a2b_base64(credentials, strict_mode=True)
    except binascii.Error:
        return b""
