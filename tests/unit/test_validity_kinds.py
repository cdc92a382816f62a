"""Which certificates' ends are told, by kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from exporter_proxy.config import parse_config
from exporter_proxy.config.validity import certificate_expiries

NOW = datetime.now(UTC).replace(microsecond=0)


def write(authority: trustme.CA, directory: Path, name: str, days: int) -> float:
    """A pair that is valid for so many days; when it expires."""
    end = NOW + timedelta(days=days)
    issued = authority.issue_cert("127.0.0.1", not_after=end)
    issued.cert_chain_pems[0].write_to_path(directory / f"{name}.crt")
    issued.private_key_pem.write_to_path(directory / f"{name}.key")
    return end.timestamp()


def test_each_kind_has_its_first_end(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    server, early, late = (write(authority, tmp_path, *pair) for pair in (("s", 90), ("a", 5), ("b", 9)))
    pair = "tls: {{ca_file: ca.crt, cert_file: {0}.crt, key_file: {0}.key}}"
    config = parse_config(
        f"""
tls: {{certfile: s.crt, keyfile: s.key}}
exporters:
  late: {{url: "https://127.0.0.1:9100/metrics", {pair.format("b")}}}
  early: {{url: "https://127.0.0.1:9101/metrics", {pair.format("a")}}}
  plain: {{url: "http://127.0.0.1:9102/metrics"}}
""".encode(),
        "config.yml",
        base_dir=tmp_path,
    )
    expiries = certificate_expiries(config)
    assert expiries.keys() == {"server", "exporter_ca", "exporter_client"}
    assert expiries["server"] == server
    assert expiries["exporter_client"] == early < late
    (tmp_path / "a.crt").unlink()
    assert certificate_expiries(config)["exporter_client"] == late


def test_nothing_where_there_is_no_certificate() -> None:
    config = parse_config(b'exporters: {a: {url: "http://127.0.0.1:9100/metrics"}}', "config.yml")
    assert certificate_expiries(config) == {}
