"""What an exporter or a PushProx proxy is shown: the Authorization header and the TLS material of its
files, as they are now.

Read again for each new configuration and whenever a file changes. Two readings are equal where
nothing changed, so that a route can tell whether its connections may live on.
"""

from __future__ import annotations

import hashlib
import ssl
import threading
from base64 import b64encode
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from exporter_proxy.config.certificates import check_authorities, check_pair, check_readable, load_pair
from exporter_proxy.config.problems import ConfigError, Problem
from exporter_proxy.config.schema import BasicAuth, ClientTls, Pem
from exporter_proxy.config.secrets import read_password, read_token
from exporter_proxy.config.values import BadValue

_MAX_CONTEXTS = 64
"""Exporters with the same material share one; beyond this many, those not asked for lately are let go."""


class Shown(Protocol):
    """Who is shown credentials: an exporter, or the PushProx proxies."""

    @property
    def key_path(self) -> str:
        """Where in the configuration its keys are."""

    @property
    def basic_auth(self) -> BasicAuth | None:
        """``None``: no password is sent."""

    @property
    def bearer_token_file(self) -> str | None:
        """``None``: no token is sent."""

    @property
    def tls(self) -> ClientTls | None:
        """``None``: the defaults of that section."""

    @property
    def insecure_skip_verify(self) -> bool:
        """Whether any certificate will do."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What was read for one of them; without secrets in its ``repr``."""

    authorization: bytes | None = field(default=None, repr=False)
    """The value of the Authorization header; ``None``: none is sent."""
    tls_digest: str | None = None
    """Of the contents of the TLS files; ``None``: there are none."""


_NONE = Credentials()


def read_credentials(who: Shown) -> Credentials:
    """What ``who`` is shown, as its files are now.

    Raises ConfigError where a file cannot be used; whose configuration it is, is for the caller to add.
    """
    if who.basic_auth is None and who.bearer_token_file is None and who.tls is None:
        return _NONE
    return Credentials(_authorization(who), _tls_digest(who))


def _authorization(who: Shown) -> bytes | None:
    key = "basic_auth.password_file"
    try:
        if who.basic_auth is not None:
            return _basic(who.basic_auth)
        if who.bearer_token_file is not None:
            key = "bearer_token_file"
            return b"Bearer " + read_token(who.bearer_token_file).encode("ascii")
    except BadValue as bad:
        raise _unusable(who, key, bad.why) from None
    return None


def _basic(auth: BasicAuth) -> bytes:
    """RFC 7617, in UTF-8 as Prometheus has it, whether or not the exporter said so (section 2.1)."""
    password = auth.password
    if password is None:
        assert auth.password_file is not None, "one of the two is set"
        password = read_password(auth.password_file)
    return b"Basic " + b64encode(f"{auth.username}:{password}".encode())


def _tls_digest(who: Shown) -> str | None:
    tls = who.tls or ClientTls()
    files = {"tls.ca_file": tls.ca_file, "tls.cert_file": tls.cert_file, "tls.key_file": tls.key_file}
    if not any(files.values()):
        return None
    digest = hashlib.sha256()
    for key, path in files.items():
        digest.update(b"," if path is None else hashlib.sha256(_read(who, key, path)).digest())
    return digest.hexdigest()


def _read(who: Shown, key: str, path: str) -> bytes:
    wrong = check_readable(path)
    if wrong is None:
        try:
            return Path(path).read_bytes()
        except OSError as error:
            wrong = f"not readable ({error.strerror})"
    raise _unusable(who, key, wrong)


def _unusable(who: Shown, key: str, why: str) -> ConfigError:
    return ConfigError([Problem("", None, None, f"{who.key_path}.{key}", why)])


class _Contexts:
    """The contexts in use, by what they were made of. Reloads come in a thread of their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str | None, bool], ssl.SSLContext] = OrderedDict()

    def get(self, key: tuple[str | None, bool]) -> ssl.SSLContext | None:
        with self._lock:
            context = self._kept.get(key)
            if context is not None:
                self._kept.move_to_end(key)
            return context

    def keep(self, key: tuple[str | None, bool], context: ssl.SSLContext) -> None:
        with self._lock:
            self._kept[key] = context
            while len(self._kept) > _MAX_CONTEXTS:
                self._kept.popitem(last=False)


_contexts = _Contexts()


def client_context(who: Shown, credentials: Credentials) -> ssl.SSLContext:
    """The context for connections to an https exporter, shared where files and rules are the same.

    TLS 1.2 at least. Without ``ca_file`` the system's CAs count, where OpenSSL was built to look
    for them; the environment (SSL_CERT_FILE, SSL_CERT_DIR, SSLKEYLOGFILE) has no say, so that
    ``scrape NAME`` in a shell trusts whom the daemon trusts. Raises ConfigError where the files
    are of no use or changed since ``credentials`` were read.
    """
    key = (credentials.tls_digest, who.insecure_skip_verify)
    context = _contexts.get(key)
    if context is not None:
        return context
    try:
        context = _new_context(who)
    except OSError as error:  # ssl.SSLError is one
        raise _unusable(who, "tls", f"its files changed while they were read: {error}") from None
    if _tls_digest(who) != credentials.tls_digest:
        raise _unusable(who, "tls", "its files changed while they were read, try again")
    _contexts.keep(key, context)
    return context


def _new_context(who: Shown) -> ssl.SSLContext:
    tls = who.tls or ClientTls()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if who.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.ca_file is not None:
        wrong = check_authorities(Pem(file=tls.ca_file))
        if wrong is not None:
            raise _unusable(who, "tls.ca_file", wrong)
        context.load_verify_locations(tls.ca_file)
        # What the file names is trusted, be it an intermediate CA or the exporter's own certificate.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    elif not who.insecure_skip_verify:
        _load_system_authorities(context)
    if tls.cert_file is not None and tls.key_file is not None:
        cert, key = Pem(file=tls.cert_file), Pem(file=tls.key_file)
        bad = check_pair(cert, key, "tls.cert_file")
        if bad is not None:
            raise _unusable(who, f"tls.{bad[0]}_file", bad[1])
        load_pair(context, cert, key)
    return context


def _load_system_authorities(context: ssl.SSLContext) -> None:
    """As ``load_default_certs`` does, without asking the environment."""
    paths = ssl.get_default_verify_paths()
    file = paths.openssl_cafile if Path(paths.openssl_cafile).is_file() else None
    directory = paths.openssl_capath if Path(paths.openssl_capath).is_dir() else None
    if file or directory:
        context.load_verify_locations(file, directory)
