"""The daemon's certificate, renewed again and again by the same authority, and who may scrape."""

from __future__ import annotations

from pathlib import Path

import trustme
import yaml
from cryptography import x509

from tests.fakes.hashing import hash_of

USER, PASSWORD = "prometheus", "of the soak"
HOST = "127.0.0.1"


class Certificates:
    """The files of the web.config.file in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self._cert, self._key = directory / "server.crt", directory / "server.key"
        self.ca_file = directory / "ca.crt"
        self._authority.cert_pem.write_to_path(self.ca_file)
        self.serial = 0
        """Of the certificate that was put there last."""
        self.renew()
        web = {
            "tls_server_config": {"cert_file": self._cert.name, "key_file": self._key.name},
            "basic_auth_users": {USER: hash_of(PASSWORD.encode())},
        }
        (directory / "web.yml").write_text(yaml.safe_dump(web))

    def renew(self) -> None:
        """A new pair, each of its files put in place by renaming, as certbot and others do it."""
        issued = self._authority.issue_cert(HOST)
        chain = issued.cert_chain_pems[0].bytes()
        _replace(self._cert, chain)
        _replace(self._key, issued.private_key_pem.bytes())
        self.serial = x509.load_pem_x509_certificate(chain).serial_number

    def spoil(self) -> None:
        """A key that belongs to another certificate. ``renew`` mends it."""
        _replace(self._key, self._authority.issue_cert(HOST).private_key_pem.bytes())


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)
