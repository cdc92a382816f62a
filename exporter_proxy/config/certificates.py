"""Whether certificates and keys are there, can be read and belong together; how ``ssl`` is given them.

Only tried, nothing is kept: the context that serves is built elsewhere, later, and again
whenever the files change.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from exporter_proxy.config.schema import Pem

_TOO_WEAK = frozenset(("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"))


def check_readable(path: str) -> str | None:
    """What keeps the file at ``path`` from being read, and what to do; ``None``: nothing."""
    file = Path(path)
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            # A pipe or a device could hold up whoever reads it for ever.
            return "not a regular file"
        with file.open("rb"):
            return None
    except FileNotFoundError:
        return "no such file"
    except PermissionError:
        return "not readable (permission denied), make it readable for the user that runs exporter_proxy"
    except OSError as error:
        return f"not readable ({error.strerror})"


def check_pair(cert: Pem, key: Pem, cert_key_path: str) -> tuple[str, str] | None:
    """``("cert" or "key", what is wrong)`` for readable PEMs; ``None``: a good pair.

    ``cert_key_path`` is the configuration's key that gives the certificate, for messages.
    """
    try:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return "key", f"this key does not belong to the certificate in {cert_key_path}"
        if error.reason in _TOO_WEAK:
            return "cert", f"too weak for OpenSSL's security level ({error.reason.lower()}), issue a new one"
        if not _has_certificate(cert):
            return (
                "cert",
                f'no PEM certificate in this {_kind(cert)} (it begins "-----BEGIN CERTIFICATE-----")',
            )
        if _is_encrypted(key):
            return "key", "this key is protected by a password, which is not supported, store it without"
        return "key", f'no PEM private key in this {_kind(key)} (it begins "-----BEGIN PRIVATE KEY-----")'
    except OSError as error:
        return "cert", f"changed while it was being read ({error.strerror}), try again"
    return None


def check_authorities(authorities: Pem) -> str | None:
    """What is wrong with the CA certificates in a readable PEM; ``None``: nothing."""
    if _has_certificate(authorities):
        return None
    return f'no PEM certificate in this {_kind(authorities)} (it begins "-----BEGIN CERTIFICATE-----")'


def load_pair(context: ssl.SSLContext, cert: Pem, key: Pem) -> None:
    """Give ``context`` a certificate and its key. Raises OSError, ssl.SSLError among them."""
    with _as_file(cert) as cert_file, _as_file(key) as key_file:
        # Without a password function OpenSSL asks for one on the terminal, and waits.
        context.load_cert_chain(cert_file, key_file, password=lambda: b"")


def load_authorities(context: ssl.SSLContext, authorities: Pem) -> None:
    """Have ``context`` trust these CAs. Raises OSError, ssl.SSLError among them."""
    with _as_file(authorities) as file:
        context.load_verify_locations(file)


@contextlib.contextmanager
def _as_file(pem: Pem) -> Iterator[str]:
    """A path under which OpenSSL finds the PEM: it takes certificates and keys from files only."""
    if pem.file is not None:
        yield pem.file
        return
    file, path = _private_file()
    with file:
        file.write((pem.text or "").encode())
        file.flush()
        yield path


def _private_file() -> tuple[IO[bytes], str]:
    """A file that is gone when it is closed: in memory, or where that cannot be, of mode 0600."""
    try:
        file: IO[bytes] = os.fdopen(os.memfd_create("pem"), "wb")
    except (AttributeError, OSError):  # another kernel, or one that is told to refuse
        pass
    else:
        path = f"/proc/self/fd/{file.fileno()}"
        if Path(path).exists():
            return file, path
        file.close()
    named = tempfile.NamedTemporaryFile(prefix="exporter_proxy-")  # noqa: SIM115 - the caller closes it
    return named, named.name


def _kind(pem: Pem) -> str:
    return "text" if pem.file is None else "file"


def _has_certificate(pem: Pem) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        load_authorities(context, pem)
    except OSError:  # SSLError is one
        return False
    return context.cert_store_stats()["x509"] > 0  # a file of revocation lists loads, too


def _is_encrypted(pem: Pem) -> bool:
    try:
        content = (pem.text or "").encode() if pem.file is None else Path(pem.file).read_bytes()
    except OSError:  # gone since it was tried
        return False
    return b"ENCRYPTED" in content
