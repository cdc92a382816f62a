"""Cipher suites and curves: from the names that Go gives them to OpenSSL's.

Which suites a server may be given is exporter-toolkit's rule: those that Go counts as secure
(crypto/tls ``CipherSuites``) and no others. Whether the OpenSSL of this host has one is tried.
"""

from __future__ import annotations

import difflib
import functools
import ssl

from exporter_proxy.config.values import BadValue, Kind

OPENSSL_NAMES = {
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
"""The suites for TLS 1.2. Since Go 1.22 those with RSA key exchange count as insecure, too."""

TLS13_SUITES = frozenset(("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"))
"""May be listed and change nothing: neither Go nor Python lets anyone choose among them."""

INSECURE_SUITES = frozenset(
    (
        "TLS_RSA_WITH_RC4_128_SHA",
        "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
        "TLS_RSA_WITH_AES_128_CBC_SHA256",
        "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
        "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
        "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
        "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
        "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    )
)
"""Known to Go, refused by exporter-toolkit."""

CURVES = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}


@functools.cache
def is_available(openssl_name: str) -> bool:
    """Whether the OpenSSL of this host can do a suite."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(openssl_name)
    except ssl.SSLError:
        return False
    return True


def _parse_cipher_suite(text: str) -> str:
    """Go's name, as it is written."""
    if text in TLS13_SUITES:
        return text
    if text in INSECURE_SUITES:
        raise BadValue("it is not secure any more, and exporter-toolkit refuses it, too; remove it")
    if text not in OPENSSL_NAMES:
        near = difflib.get_close_matches(text[:60], [*OPENSSL_NAMES, *TLS13_SUITES], n=1)
        raise BadValue(f'did you mean "{near[0]}"?' if near else "there is no such suite")
    if not is_available(OPENSSL_NAMES[text]):
        raise BadValue(f"{ssl.OPENSSL_VERSION} of this host does not have it; remove it")
    return text


CIPHER_SUITE = Kind('a cipher suite such as "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"', _parse_cipher_suite)


def _parse_curve(text: str) -> str:
    """OpenSSL's name."""
    if text not in CURVES:
        raise BadValue
    return CURVES[text]


CURVE = Kind(f"one of {', '.join(CURVES)}", _parse_curve)
