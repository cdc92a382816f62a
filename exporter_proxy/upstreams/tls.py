"""TLS with an exporter: by which rules, what a failure means, and whether an end was meant.

The rules come from ``credentials.py``; shaking hands is the event loop's business.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

HANDSHAKE_SECONDS = 10.0
"""As long as Prometheus waits for a handshake of its own; most scrapes have given up before."""

NO_PROPER_END = "without TLS's close_notify there may be more: it has to send that, or a Content-Length"
"""Of a body that lasts until the connection closes, cut in any way but by a reset."""

# Numbers of OpenSSL's x509_vfy.h.
_EXPIRED = 10
_NOT_YET_VALID = 9
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_OTHER_NAME = (62, 63, 64)

# The exporter's alert, as OpenSSL calls it -> what it says about our certificate.
_REFUSALS = {
    "CERTIFICATE_REQUIRED": "none was shown",
    "BAD_CERTIFICATE": "bad certificate",
    "UNSUPPORTED_CERTIFICATE": "unsupported certificate",
    "CERTIFICATE_REVOKED": "revoked",
    "CERTIFICATE_EXPIRED": "expired",
    "CERTIFICATE_UNKNOWN": "certificate unknown",
    "UNKNOWN_CA": "unknown CA",
    "ACCESS_DENIED": "access denied",
    "DECRYPT_ERROR": "decrypt error",
}
# Other things that OpenSSL says -> what they mean.
_MEANINGS = {
    "UNSUPPORTED_PROTOCOL": "it only speaks versions before TLS 1.2",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it only speaks versions before TLS 1.2",
    "TLSV1_UNRECOGNIZED_NAME": "it does not know this name; set tls.server_name to one that it knows",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "refused; does it want a client certificate (tls.cert_file, tls.key_file) or only know old ciphers?"
    ),
}
_READ_BYTES = 1 << 16
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")


@dataclass(frozen=True, slots=True)
class Tls:
    """How one https exporter is spoken to."""

    context: ssl.SSLContext
    server_name: str
    """Sent as SNI and looked for in the certificate; an IP address is only looked for."""
    has_client_certificate: bool = False

    def failure(self, backend: str, error: OSError) -> str:
        """What a failed handshake means and what to try. ``backend`` is ``host:port``."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._not_accepted(backend, error)
        reason = (error.reason if isinstance(error, ssl.SSLError) else None) or ""
        alert = reason.rpartition("ALERT_")[2]
        if alert in _REFUSALS and "ALERT_" in reason:
            return self._refused(backend, alert)
        if reason in _NOT_TLS:
            return f"{backend} does not speak TLS; is it an http exporter? use http:// in url"
        if isinstance(error, ConnectionAbortedError) and "handshake" in str(error):
            return (
                f"TLS handshake with {backend} not complete after {HANDSHAKE_SECONDS:g} s; "
                "is it hung, or no https exporter?"
            )
        problem = f"{reason or error.strerror or 'connection lost'}; does it speak https?"
        return f"TLS handshake with {backend} failed: {_MEANINGS.get(reason, problem)}"

    @property
    def advice_after_reset(self) -> str:
        """What a connection that ends without a word of HTTP may be about."""
        if self.has_client_certificate:
            return "does it accept the client certificate? "
        return "does it want a client certificate (tls.cert_file, tls.key_file)? "

    def _not_accepted(self, backend: str, error: ssl.SSLCertVerificationError) -> str:
        problem = error.verify_message.rstrip(".")
        if error.verify_code in _OTHER_NAME:
            problem = f"it is not for {self.server_name}"
            advice = "set tls.server_name to a name that it is for"
        elif error.verify_code in _UNKNOWN_AUTHORITY:
            advice = "set tls.ca_file to the CA that issued it"
        elif error.verify_code in (_EXPIRED, _NOT_YET_VALID):
            problem = "it has expired" if error.verify_code == _EXPIRED else "it is not valid yet"
            advice = "renew it, or see whether the clocks are right"
        else:
            advice = "give it one that this host trusts"
        return f"the certificate of {backend} is not accepted: {problem}; {advice}"

    def _refused(self, backend: str, alert: str) -> str:
        if self.has_client_certificate:
            return (
                f"{backend} does not accept the client certificate in tls.cert_file: {_REFUSALS[alert]}; "
                "has it expired, is it issued by a CA that the exporter trusts?"
            )
        return f"{backend} wants a client certificate; set tls.cert_file and tls.key_file"


def hand_over_rest(received: ssl.SSLObject, take: Callable[[bytes], None]) -> bool:
    """Give ``take`` what can still be read of an ended connection; whether a close_notify is its end."""
    try:
        while part := received.read(_READ_BYTES):
            take(part)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        return False
    return True
