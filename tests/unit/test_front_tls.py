"""Names in client certificates, and what a server's context is told that no handshake shows."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trustme

from exporter_proxy.config import Pem, ServerTls
from exporter_proxy.front.tls import has_allowed_san, server_context

ISSUED = trustme.CA().issue_cert("localhost")
TLS = ServerTls(
    Pem(text=ISSUED.cert_chain_pems[0].bytes().decode()), Pem(text=ISSUED.private_key_pem.bytes().decode())
)
ALLOWED = ("a.test", "192.0.2.1", "2001:db8::1", "a@b.test", "spiffe://a.test/x")


@pytest.mark.parametrize(
    ("kind", "name", "is_allowed"),
    [
        ("DNS", "a.test", True),
        ("DNS", "A.test", False),
        ("DNS", "a.test.", False),
        ("DNS", "*.test", False),
        ("DNS", "a.test\0.evil.test", False),
        ("IP Address", "192.0.2.1", True),
        ("IP Address", "192.0.2.2", False),
        ("IP Address", "2001:DB8:0:0:0:0:0:1\n", True),
        ("IP Address", "::ffff:192.0.2.1", True),
        ("IP Address", "<invalid>", False),
        ("email", "a@b.test", True),
        ("email", "b@b.test", False),
        ("URI", "spiffe://a.test/x", True),
        ("URI", "spiffe://a.test/x/", False),
        ("DirName", (("commonName", "a.test"),), False),
        ("othername", "a.test", False),
        ("Registered ID", "192.0.2.1", False),
    ],
)
def test_names(kind: str, name: Any, is_allowed: bool) -> None:
    names = (("DNS", "other.test"), (kind, name), ("IP Address", "127.0.0.1"))
    assert has_allowed_san({"subjectAltName": names}, ALLOWED) is is_allowed
    assert not has_allowed_san({"subjectAltName": ()}, ALLOWED)


@pytest.mark.parametrize("peercert", [None, {}, {"subject": ((("commonName", "a.test"),),)}])
def test_without_a_certificate_or_names_in_it_nobody_is_allowed(peercert: Any) -> None:
    """The common name is no alternative name, as in Go."""
    assert not has_allowed_san(peercert, ALLOWED)


def test_a_context_is_new_each_time_and_never_renegotiates() -> None:
    first, second = server_context(TLS), server_context(TLS)
    assert first is not second
    assert first.options & ssl.OP_NO_RENEGOTIATION
    assert first.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert first.verify_mode is ssl.CERT_NONE
    assert (first.minimum_version, first.maximum_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def test_a_pair_that_does_not_belong_together_is_an_error() -> None:
    other = Pem(text=trustme.CA().issue_cert("x").private_key_pem.bytes().decode())
    with pytest.raises(ssl.SSLError, match="KEY_VALUES_MISMATCH"):
        server_context(ServerTls(TLS.cert, other))
