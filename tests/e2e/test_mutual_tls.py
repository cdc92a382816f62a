"""A real Prometheus that shows a certificate and a password; and what it sees with each of them wrong."""

from __future__ import annotations

import base64
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.daemon import proxied, wait_until
from tests.e2e.processes import Prometheus
from tests.fakes.hashing import hash_of

PATIENCE_SECONDS = 30.0
ALLOWED_SAN = "prometheus.example.com"
PASSWORD = {"username": "prometheus", "password": "of prometheus"}


def write_pair(issued: trustme.LeafCert, directory: Path, name: str) -> dict[str, str]:
    """Certificate and key as Prometheus's ``tls_config`` and web.config.file call them."""
    cert, key = directory / f"{name}.crt", directory / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return {"cert_file": str(cert), "key_file": str(key)}


@pytest.mark.needs_prometheus
def test_a_real_prometheus_over_mutual_tls(tmp_path: Path) -> None:
    ours, theirs, strangers = trustme.CA(), trustme.CA(), trustme.CA()
    for name, authority in (("ours", ours), ("theirs", theirs), ("strangers", strangers)):
        authority.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    web = {
        "tls_server_config": {
            **write_pair(ours.issue_cert("127.0.0.1"), tmp_path, "server"),
            "client_ca_file": "theirs.pem",
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_allowed_sans": [ALLOWED_SAN],
        },
        "basic_auth_users": {PASSWORD["username"]: hash_of(PASSWORD["password"].encode(), 4)},
    }
    (tmp_path / "web.yml").write_text(yaml.safe_dump(web))
    good = write_pair(theirs.issue_cert(ALLOWED_SAN), tmp_path, "good")
    other_name = write_pair(theirs.issue_cert("grafana.example.com"), tmp_path, "other")
    stranger = write_pair(strangers.issue_cert(ALLOWED_SAN), tmp_path, "stranger")
    trust = {"ca_file": str(tmp_path / "ours.pem")}

    with proxied(web_config_file=str(tmp_path / "web.yml")) as (daemon, exporter):
        # Job: how it asks, and what has to be in its error; None where it is up, "" where any will do.
        jobs: dict[str, tuple[dict[str, Any], str | None]] = {
            "right": ({"tls_config": {**trust, **good}, "basic_auth": PASSWORD}, None),
            "wrong_password": (
                {
                    "tls_config": {**trust, **good},
                    "basic_auth": {**PASSWORD, "password": "no"},
                },
                "server returned HTTP status 401 Unauthorized",
            ),
            "no_password": (
                {"tls_config": {**trust, **good}},
                "server returned HTTP status 401 Unauthorized",
            ),
            # In TLS 1.3 it may have sent its request by then, and is told by a reset.
            "no_certificate": ({"tls_config": trust, "basic_auth": PASSWORD}, ""),
            "name_not_allowed": (
                {"tls_config": {**trust, **other_name}, "basic_auth": PASSWORD},
                "server returned HTTP status 403 Forbidden",
            ),
            "unknown_authority": (
                {"tls_config": {**trust, **stranger}, "basic_auth": PASSWORD},
                "",
            ),
            "trusts_another": (
                {
                    "tls_config": {"ca_file": str(tmp_path / "strangers.pem"), **good},
                    "basic_auth": PASSWORD,
                },
                "certificate signed by unknown authority",
            ),
            "plain_http": ({"scheme": "http", "basic_auth": PASSWORD}, "EOF"),
        }
        static = [{"targets": [f"127.0.0.1:{daemon.port}"]}]
        scrape_configs = [
            {
                "job_name": name,
                "scheme": "https",
                "metrics_path": "/x/metrics",
                "static_configs": static,
                **config,
            }
            for name, (config, _) in jobs.items()
        ]
        with Prometheus(scrape_configs, scrape_interval="1s", scrape_timeout="1s") as prometheus:
            wrong: list[object] = []

            def are_judged() -> bool:
                up = {one["metric"]["job"]: float(one["value"][1]) for one in prometheus.query("up")}
                shown = {one["labels"]["job"]: one["lastError"] for one in prometheus.targets()}
                wrong[:] = [
                    (name, up.get(name), shown.get(name))
                    for name, (_, error) in jobs.items()
                    if name not in shown
                    or up.get(name) != float(error is None)
                    or (error or "") not in shown[name]
                    or bool(shown[name]) != (error is not None)
                ]
                return not wrong

            try:
                wait_until(are_judged, "each job was judged", PATIENCE_SECONDS)
            except AssertionError as error:
                raise AssertionError(f"{error}: {wrong}") from None
        told = " ".join(fields["error"] for fields in daemon.logged("TLS handshake failed"))
        assert told, "the first failed handshake has a line"
        context = ssl.create_default_context(cafile=trust["ca_file"])
        context.load_cert_chain(good["cert_file"], good["key_file"])
        password = base64.b64encode(":".join(PASSWORD.values()).encode()).decode()
        metrics = daemon.get("/metrics", ("Authorization", f"Basic {password}"), tls=context).expect_ok()
        denied = dict(re.findall(rb'requests_denied_total{reason="(\w+)"} ([0-9.]+)', metrics.body))
        # Four with a wrong or no password or certificate, one with another name, two that speak no TLS to us.
        assert float(denied[b"unauthorized"]) >= 4
        assert float(denied[b"forbidden"]) >= 1
        assert float(denied[b"bad_request"]) >= 2
        assert all("uthorization" not in str(asked) for asked in exporter.requests)
