"""TLS with scrapers: from what the configuration says to a context that handshakes use."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

from exporter_proxy.access import Address, address_of
from exporter_proxy.config.certificates import (
    check_pair,
    check_readable,
    load_authorities,
    load_pair,
)
from exporter_proxy.config.schema import ServerTls
from exporter_proxy.reasons import Denied, Reason

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_VERIFY_MODES = {
    "NoClientCert": ssl.CERT_NONE,
    # OpenSSL's mode that asks without verifying is out of Python's reach: nobody is asked.
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_TEXT_SANS = frozenset(("DNS", "email", "URI"))


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """A new context; a live one is never changed, a mismatched pair would break every later handshake.

    Raises OSError, ssl.SSLError among them, where files and settings do not go together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, tls.cert, tls.key)
    context.minimum_version = _VERSIONS[tls.min_version]
    context.maximum_version = _VERSIONS[tls.max_version]
    if tls.ciphers:
        context.set_ciphers(":".join(tls.ciphers))
    if tls.curve is not None:
        context.set_ecdh_curve(tls.curve)
    if not tls.prefer_server_ciphers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    # Go's servers never renegotiate, and a handshake in the middle of a scrape helps nobody.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Prometheus keeps no sessions: tickets would be two more messages in every handshake, unread.
    context.num_tickets = 0
    _verify_clients(context, tls)
    return context


def why_unusable(tls: ServerTls) -> str | None:
    """Which file or text keeps a context from being made; ``None`` where that does not show."""
    for pem in (tls.cert, tls.key, tls.client_ca):
        if pem is not None and pem.file is not None and (wrong := check_readable(pem.file)) is not None:
            return f"{pem.file}: {wrong}"
    bad = check_pair(tls.cert, tls.key, str(tls.cert.file or "tls_server_config.cert"))
    if bad is None:
        return None
    part, message = bad
    return f"{(tls.cert if part == 'cert' else tls.key).file or f'tls_server_config.{part}'}: {message}"


def _verify_clients(context: ssl.SSLContext, tls: ServerTls) -> None:
    mode = _VERIFY_MODES[tls.client_auth_type]
    if mode is ssl.CERT_NONE:
        return
    context.verify_mode = mode
    # As in Go, whatever certificate is listed as a CA is trusted, an intermediate one, too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if tls.client_ca is not None:
        load_authorities(context, tls.client_ca)
    else:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)


def wants_certificates(tls: ServerTls | None) -> bool:
    """Whether nobody gets through the handshake without one."""
    return tls is not None and _VERIFY_MODES[tls.client_auth_type] is ssl.CERT_REQUIRED


def certificate_problem(
    transport: asyncio.Transport, address: Address | None, is_wanted: bool, allowed: tuple[str, ...]
) -> Denied | None:
    """Why the scraper at the other end may not ask: it has shown no certificate where one is wanted, or
    one with none of the ``allowed`` names.

    The handshake may have been one by other rules. Without TLS, a TCP connection is one from before it
    was configured, and has shown none; a unix socket's (``address`` is ``None``) is let in, as its mode
    decides. With no names, every certificate is.
    """
    if not is_wanted and not allowed:
        return None
    ssl_object = transport.get_extra_info("ssl_object")
    if ssl_object is None and address is None:
        return None
    peercert = ssl_object.getpeercert() if ssl_object is not None else None
    if is_wanted and not peercert:
        return Denied(
            Reason.FORBIDDEN,
            "no client certificate was shown on this connection, and one is wanted by now (client_auth_type)",
        )
    if not allowed or has_allowed_san(peercert, allowed):
        return None
    return Denied(
        Reason.FORBIDDEN,
        "your client certificate has none of the names that may scrape here (client_allowed_sans)",
    )


def has_allowed_san(peercert: Mapping[str, Any] | None, allowed: tuple[str, ...]) -> bool:
    """Whether a verified certificate, as ``getpeercert()`` gives it, carries one of these names.

    DNS names, e-mail addresses and URIs are compared letter by letter, as exporter-toolkit does,
    IP addresses as addresses. No certificate has no name.
    """
    names: tuple[tuple[str, str], ...] = (peercert or {}).get("subjectAltName", ())
    addresses = {address_of(one.strip()) for one in allowed} - {None}
    for kind, name in names:
        if kind in _TEXT_SANS and name in allowed:
            return True
        if kind == "IP Address" and address_of(name.strip()) in addresses:
            return True
    return False
