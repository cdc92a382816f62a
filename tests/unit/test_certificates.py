"""Certificates and keys: how they are judged, and that text reaches OpenSSL without lying around."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from exporter_proxy.config import Pem
from exporter_proxy.config.certificates import check_authorities, check_pair, load_authorities, load_pair
from tests.daemon import REPOSITORY
from tests.inprocess import open_descriptors, opened_since

AUTHORITY = trustme.CA()
ISSUED = AUTHORITY.issue_cert("localhost")
CERT = ISSUED.cert_chain_pems[0].bytes().decode()
KEY = ISSUED.private_key_pem.bytes().decode()


def forms(text: str, directory: Path) -> list[Pem]:
    """The same PEM as a file and as text."""
    file = directory / f"{hash(text)}.pem"
    file.write_text(text)
    return [Pem(file=str(file)), Pem(text=text)]


def encrypted_key() -> str:
    key = serialization.load_pem_private_key(KEY.encode(), None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"s3cr3t"),
    ).decode()


def weak_pair(directory: Path) -> tuple[str, str]:
    """An RSA key of 1024 bits: Go serves with it, OpenSSL at its default level does not."""
    command = "openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=localhost -keyout weak.key -out weak.crt"
    subprocess.run(command.split(), cwd=directory, capture_output=True, timeout=60, check=True)
    return (directory / "weak.crt").read_text(), (directory / "weak.key").read_text()


def test_a_good_pair(tmp_path: Path) -> None:
    for cert in forms(CERT, tmp_path):
        for key in forms(KEY, tmp_path):
            assert check_pair(cert, key, "cert") is None
    both = CERT + KEY
    assert check_pair(Pem(text=both), Pem(text=both), "cert") is None


def test_what_is_wrong_with_a_pair(tmp_path: Path) -> None:
    other = trustme.CA().issue_cert("x").private_key_pem.bytes().decode()
    weak_cert, weak_key = weak_pair(tmp_path)
    for cert, key, which, words in (
        (CERT, other, "key", "this key does not belong to the certificate in tls.here"),
        (KEY, KEY, "cert", "no PEM certificate in this"),
        (CERT, CERT, "key", "no PEM private key in this"),
        (CERT, "", "key", "no PEM private key in this"),
        (CERT, encrypted_key(), "key", "protected by a password"),
        (weak_cert, weak_key, "cert", "too weak for OpenSSL's security level (ee_key_too_small)"),
    ):
        for cert_pem, key_pem in zip(forms(cert, tmp_path), forms(key, tmp_path), strict=True):
            found = check_pair(cert_pem, key_pem, "tls.here")
            assert found is not None
            assert found[0] == which
            assert words in found[1]
            if words.endswith(" this"):
                assert f"{words} {'text' if cert_pem.file is None else 'file'}" in found[1]


def test_authorities(tmp_path: Path) -> None:
    authority = AUTHORITY.cert_pem.bytes().decode()
    for text, is_good in ((authority, True), (authority * 2, True), (KEY, False), ("", False)):
        for pem in forms(text, tmp_path):
            assert (check_authorities(pem) is None) is is_good


def test_a_key_with_a_password_never_asks_for_it() -> None:
    """On a terminal of its own, where OpenSSL would write its question."""
    code = (
        "import sys; from exporter_proxy.config import Pem\n"
        "from exporter_proxy.config.certificates import check_pair\n"
        "print(check_pair(Pem(text=sys.argv[1]), Pem(text=sys.argv[2]), 'c'))"
    )
    terminal, side = os.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-c", code, CERT, encrypted_key()],
            cwd=REPOSITORY,
            stdin=side,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            start_new_session=True,
        )
    finally:
        os.close(terminal)
        os.close(side)
    assert "protected by a password" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("memory", ["memfd", "refused", "absent"])
def test_text_leaves_neither_files_nor_descriptors(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory; where the kernel has none for it, in a file that only its owner may read, for a moment."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def refuse(name: str) -> int:
        raise PermissionError("seccomp")

    if memory == "refused":
        monkeypatch.setattr(os, "memfd_create", refuse)
    elif memory == "absent":
        monkeypatch.delattr(os, "memfd_create")
    before = open_descriptors()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    seen: list[tuple[str, int]] = []

    class Watched(ssl.SSLContext):
        def load_cert_chain(self, certfile, keyfile=None, password=None):  # type: ignore[no-untyped-def]
            seen.extend((path, Path(path).stat().st_mode & 0o777) for path in (certfile, keyfile))
            super().load_cert_chain(certfile, keyfile, password)

    load_pair(Watched(ssl.PROTOCOL_TLS_SERVER), Pem(text=CERT), Pem(text=KEY))
    load_authorities(context, Pem(text=AUTHORITY.cert_pem.bytes().decode()))
    assert len(context.get_ca_certs()) == 1
    assert list(tmp_path.iterdir()) == []
    assert not opened_since(before)
    for path, mode in seen:
        assert path.startswith("/proc/self/fd/" if memory == "memfd" else str(tmp_path))
        assert memory == "memfd" or mode == 0o600
