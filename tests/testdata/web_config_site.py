"""The files that web configurations of ``testdata/web_config`` name, good and bad."""

from __future__ import annotations

from pathlib import Path

import trustme


def write_site(directory: Path) -> Path:
    """A certificate, its key (twice), its CA, another key, half a certificate, and what is no PEM."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    (directory / "tls").mkdir()
    for path in ("key.pem", "tls/key.pem"):
        issued.private_key_pem.write_to_path(directory / path)
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("other").private_key_pem.write_to_path(directory / "other.key")
    (directory / "half.pem").write_bytes(issued.cert_chain_pems[0].bytes()[:300])
    (directory / "garbage.pem").write_bytes(b"\xff\x00garbage\n")
    return directory
