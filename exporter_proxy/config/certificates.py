"""Whether a certificate and its key are there, can be read and belong together.

Only tried, nothing is kept: the context that serves is built elsewhere, later, and again
whenever the files change.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

_NO_CERTIFICATE = 'no PEM certificate in this file (it begins "-----BEGIN CERTIFICATE-----")'


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


def check_pair(
    cert_file: str, key_file: str, cert_key: str = "certfile", key_key: str = "keyfile"
) -> tuple[str, str] | None:
    """``(cert_key or key_key, what is wrong)`` for two readable files; ``None``: a good pair.

    ``cert_key`` and ``key_key`` are what the two are called in the ``tls`` section.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password function OpenSSL asks for one on the terminal, and waits.
        context.load_cert_chain(cert_file, key_file, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return key_key, f"this key does not belong to the certificate in tls.{cert_key}"
        if not _has_certificate(cert_file):
            return cert_key, _NO_CERTIFICATE
        if _is_encrypted(key_file):
            return key_key, "this key is protected by a password, which is not supported, store it without"
        return key_key, 'no PEM private key in this file (it begins "-----BEGIN PRIVATE KEY-----")'
    except OSError as error:
        return cert_key, f"changed while it was being read ({error.strerror}), try again"
    return None


def check_authorities(path: str) -> str | None:
    """What is wrong with a readable file of CA certificates; ``None``: it has at least one."""
    return None if _has_certificate(path) else _NO_CERTIFICATE


def _has_certificate(path: str) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(path)
    except OSError:  # SSLError is one
        return False
    return context.cert_store_stats()["x509"] > 0  # a file of revocation lists loads, too


def _is_encrypted(path: str) -> bool:
    try:
        return b"ENCRYPTED" in Path(path).read_bytes()
    except OSError:  # gone since it was tried
        return False
