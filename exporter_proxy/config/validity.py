"""Until when certificates are valid: the one thing that is read out of their DER here.

Python's ``ssl`` tells it for certificates that it has verified and for CAs in a context, not
for the certificate that a server shows.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import re
import time
from pathlib import Path

from exporter_proxy.config.schema import Config, Pem

_CERTIFICATE = re.compile(
    rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.*?)-----END \1-----", re.DOTALL
)
_INTEGER = 0x02
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18
_SEQUENCE = 0x30
_VERSION = 0xA0
# RFC 5280 section 4.1.2.5: both end in Z, seconds are always there, fractions never.
_TIME_FORMS = {_UTC_TIME: re.compile(rb"[0-9]{12}Z"), _GENERALIZED_TIME: re.compile(rb"[0-9]{14}Z")}


def not_after_timestamp_seconds(pem: bytes) -> float | None:
    """The Unix time at which the first of the certificates in a PEM text expires.

    ``None`` where it has no certificate. Raises ValueError for a certificate that is not one
    (RFC 5280 section 4.1).
    """
    ends = [_not_after(_der(block)) for _, block in _CERTIFICATE.findall(pem)]
    return min(ends, default=None)


def _der(block: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(block.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _not_after(der: bytes) -> float:
    """Certificate: (tbsCertificate: ([0] version, serial, signature, issuer, validity, ...), ...)."""
    certificate, _ = _expect(der, _SEQUENCE)
    tbs, _ = _expect(certificate, _SEQUENCE)
    if tbs[:1] == bytes((_VERSION,)):
        _, tbs = _expect(tbs, _VERSION)
    for tag in (_INTEGER, _SEQUENCE, _SEQUENCE):
        _, tbs = _expect(tbs, tag)
    validity, _ = _expect(tbs, _SEQUENCE)
    tag, not_before, validity = _element(validity)
    _timestamp(tag, not_before)
    tag, not_after, rest = _element(validity)
    if rest:
        raise ValueError("something follows notAfter")
    return _timestamp(tag, not_after)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first element, and what follows it (X.690 section 10.1: definite lengths)."""
    if len(der) < 2:
        raise ValueError("ends early")
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        size = length & 0x7F
        start += size
        if not 1 <= size <= 4 or len(der) < start:
            raise ValueError("a length that is none")
        length = int.from_bytes(der[2:start], "big")
    if len(der) < start + length:
        raise ValueError("ends early")
    return tag, der[start : start + length], der[start + length :]


def _expect(der: bytes, expected: int) -> tuple[bytes, bytes]:
    """Content of the first element, which has to be of this kind, and what follows it."""
    tag, content, rest = _element(der)
    if tag != expected:
        raise ValueError(f"tag {tag:#04x} where {expected:#04x} belongs")
    return content, rest


def _timestamp(tag: int, text: bytes) -> float:
    form = _TIME_FORMS.get(tag)
    if form is None or not form.fullmatch(text):
        raise ValueError("notBefore or notAfter is not a time")
    digits = text[:-1].decode("ascii")
    if tag == _UTC_TIME:
        digits = ("19" if digits >= "50" else "20") + digits
    return float(calendar.timegm(time.strptime(digits, "%Y%m%d%H%M%S")))


def certificate_expiries(config: Config) -> dict[str, float]:
    """When the first certificate of each kind expires, as Unix time; only kinds that are in use.

    ``server`` is what this daemon shows to scrapers, ``client_ca`` what scrapers' certificates
    have to come from; ``exporter_ca`` and ``exporter_client`` are those for asking exporters,
    ``pushprox_ca`` and ``pushprox_client`` those for polling PushProx proxies.
    """
    tls = config.server_tls
    pushprox = config.pushprox.tls if config.pushprox is not None else None
    exporters = [exporter.tls for exporter in config.exporters if exporter.tls is not None]
    kinds: dict[str, list[Pem | None]] = {
        "server": [tls.cert if tls is not None else None],
        "client_ca": [tls.client_ca if tls is not None else None],
        "exporter_ca": [Pem(file=one.ca_file) for one in exporters],
        "exporter_client": [Pem(file=one.cert_file) for one in exporters],
        "pushprox_ca": [Pem(file=pushprox.ca_file) if pushprox is not None else None],
        "pushprox_client": [Pem(file=pushprox.cert_file) if pushprox is not None else None],
    }
    found = {
        kind: [at for pem in set(pems) if (at := _expiry(pem)) is not None] for kind, pems in kinds.items()
    }
    return {kind: min(ends) for kind, ends in found.items() if ends}


def _expiry(pem: Pem | None) -> float | None:
    """``None`` also for what cannot be read: whoever uses it has said so."""
    try:
        if pem is not None and pem.file is not None:
            return not_after_timestamp_seconds(Path(pem.file).read_bytes())
        return not_after_timestamp_seconds((pem.text or "").encode()) if pem is not None else None
    except (OSError, ValueError):
        return None
