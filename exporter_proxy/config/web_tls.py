"""The ``tls_server_config`` section of a web.config.file.

Accepts what exporter-toolkit accepts, unless it would have no effect here or could never
work: README's table of differences has each such case.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from exporter_proxy.config.certificates import check_authorities, check_pair, check_readable
from exporter_proxy.config.ciphers import CIPHER_SUITE, CURVE, OPENSSL_NAMES
from exporter_proxy.config.problems import quoted
from exporter_proxy.config.schema import Pem, ServerTls
from exporter_proxy.config.sections import Section
from exporter_proxy.config.values import BOOLEAN, FILE_PATH, BadValue, Kind

TLS_SERVER_KEYS = (
    "cert_file",
    "key_file",
    "client_ca_file",
    "cert",
    "key",
    "client_ca",
    "client_auth_type",
    "client_allowed_sans",
    "min_version",
    "max_version",
    "cipher_suites",
    "prefer_server_cipher_suites",
    "curve_preferences",
)
BLANK_IS_ABSENT = ("cert_file", "key_file", "client_ca_file", "cert", "key", "client_ca", "client_auth_type")
"""Where exporter-toolkit takes an empty text as if the key were not there."""

CLIENT_AUTH_TYPES = (
    "NoClientCert",
    "RequestClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
)
_UNVERIFIED = ("RequireAnyClientCert", "RequireClientCert")

# Numbers are file names here, too, as for a Go program.
_FILE = replace(FILE_PATH, only_text=False)


def _parse_pem(text: str) -> str:
    if "-----BEGIN " not in text:
        raise BadValue('it begins "-----BEGIN"; for a file there is the key that ends in _file', secret=True)
    return text


_PEM = Kind("the text of a PEM file", _parse_pem)


def _parse_client_auth_type(text: str) -> str:
    if text in _UNVERIFIED:
        raise BadValue(
            "Python cannot ask for a certificate without verifying it; use RequireAndVerifyClientCert "
            "with client_ca_file"
        )
    if text not in CLIENT_AUTH_TYPES:
        raise BadValue
    return text


_CLIENT_AUTH_TYPE = Kind(f"one of {', '.join(CLIENT_AUTH_TYPES)}", _parse_client_auth_type)


def _parse_tls_version(text: str) -> str:
    if text in ("TLS10", "TLS11"):
        raise BadValue("OpenSSL's default security level leaves no cipher for TLS 1.0 and 1.1")
    if text not in ("TLS12", "TLS13"):
        raise BadValue
    return text


_TLS_VERSION = Kind("TLS12 or TLS13", _parse_tls_version)


def _parse_san(text: str) -> str:
    if not text:
        raise BadValue
    return text


_SAN = Kind("a DNS name, an IP address, an e-mail address or a URI", _parse_san)


@dataclass(frozen=True, slots=True)
class _Given:
    """A PEM that is configured under ``key``; ``pem`` is ``None`` where it cannot be used."""

    key: str
    pem: Pem | None


def read_server_tls(top: Section, directory: str) -> ServerTls | None:
    """How TLS is spoken, if it is; ``None`` also where problems were reported.

    Relative paths are taken from ``directory``, the one that the web config file is in.
    """
    section = top.section("tls_server_config", TLS_SERVER_KEYS)
    if section is None or all(key in BLANK_IS_ABSENT and section.is_blank(key) for key in section):
        return None
    cert = _read_pem(section, "cert", directory)
    key = _read_pem(section, "key", directory)
    client_ca = _read_pem(section, "client_ca", directory)
    for name, given in (("cert", cert), ("key", key)):
        if given is None:
            section.report_missing(
                f"{name}_file", f"missing, TLS needs a certificate and its key: {name}_file or {name}"
            )
    client_auth_type, client_allowed_sans = _read_client_rules(section, client_ca)
    min_version, max_version, ciphers = _read_versions_and_ciphers(section)
    prefer_server_ciphers = section.get("prefer_server_cipher_suites", BOOLEAN, True)
    curve = _read_curve(section)
    if cert is None or key is None or cert.pem is None or key.pem is None:
        return None
    bad = check_pair(cert.pem, key.pem, section.key_path(cert.key))
    if bad is not None:
        which, message = bad
        section.report(cert.key if which == "cert" else key.key, message)
    return ServerTls(
        cert=cert.pem,
        key=key.pem,
        client_ca=client_ca.pem if client_ca is not None else None,
        client_auth_type=client_auth_type or "NoClientCert",
        client_allowed_sans=client_allowed_sans,
        min_version=min_version,
        max_version=max_version,
        ciphers=ciphers,
        prefer_server_ciphers=prefer_server_ciphers,
        curve=curve,
    )


def _read_pem(section: Section, name: str, directory: str) -> _Given | None:
    """What is under ``NAME_file``, or else the text under ``NAME``; ``None``: neither."""
    text = None if section.is_blank(name) else section.get(name, _PEM, None)
    file_key = f"{name}_file"
    if section.is_blank(file_key):
        return None if section.is_blank(name) else _Given(name, None if text is None else Pem(text=text))
    given = section.get(file_key, _FILE, None)
    if given is None:
        return _Given(file_key, None)
    path = os.path.join(directory, given)  # noqa: PTH118 - keeps "./x" as it was written
    wrong = check_readable(path)
    if wrong is not None:
        section.report(file_key, f"{quoted(path)}: {wrong}")
        return _Given(file_key, None)
    return _Given(file_key, Pem(file=path))


def _read_client_rules(section: Section, client_ca: _Given | None) -> tuple[str | None, tuple[str, ...]]:
    """``client_auth_type``, ``None`` where it is wrong, and ``client_allowed_sans``."""
    auth_type: str | None = "NoClientCert"
    if not section.is_blank("client_auth_type"):
        auth_type = section.get("client_auth_type", _CLIENT_AUTH_TYPE, None)
    if client_ca is not None:
        if auth_type == "NoClientCert":
            section.report(
                client_ca.key, "clients are asked for a certificate only if client_auth_type says so"
            )
        wrong = check_authorities(client_ca.pem) if client_ca.pem is not None else None
        if wrong is not None:
            section.report(client_ca.key, wrong)
    sans = section.get_list("client_allowed_sans", _SAN, None)
    if section.is_empty_list("client_allowed_sans"):
        section.report("client_allowed_sans", "the list is empty, so every client would be refused")
    elif sans is not None and auth_type not in (None, "RequireAndVerifyClientCert"):
        # As exporter-toolkit: with any other type a client may come without a certificate, and so
        # without a name.
        section.report(
            "client_allowed_sans",
            "it needs client_auth_type RequireAndVerifyClientCert, or nobody is checked",
        )
    return auth_type, sans or ()


def _read_versions_and_ciphers(section: Section) -> tuple[str, str, tuple[str, ...]]:
    """The lowest and highest version, and the suites for TLS 1.2 under OpenSSL's names."""
    lowest = section.get("min_version", _TLS_VERSION, "TLS12")
    highest = section.get("max_version", _TLS_VERSION, "TLS13")
    if lowest > highest:
        section.report("max_version", f"it is {highest}, below min_version, which is {lowest}")
    suites = section.get_list("cipher_suites", CIPHER_SUITE, ())
    ciphers = tuple(dict.fromkeys(OPENSSL_NAMES[suite] for suite in suites if suite in OPENSSL_NAMES))
    if suites and not ciphers:
        # A list that names suites of TLS 1.3 alone leaves TLS 1.2 without any, and so does Go's.
        if highest == "TLS12":
            section.report("cipher_suites", "none of them is for TLS 1.2, the only version that is left")
        lowest = "TLS13"
    return lowest, highest, ciphers


def _read_curve(section: Section) -> str | None:
    curves = tuple(dict.fromkeys(section.get_list("curve_preferences", CURVE, ())))
    if len(curves) > 1:
        section.report("curve_preferences", "Python can be told one curve only; keep the one you prefer")
    return curves[0] if curves else None
