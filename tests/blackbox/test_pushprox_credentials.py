"""What a PushProx proxy is shown and known by: certificates, passwords, tokens."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.daemon import proxied
from tests.fakes.exporter import PAGE, respond
from tests.standin import FQDN, StandIn, polling, url_of

AUTHORITY = trustme.CA()


def pem(directory: Path, name: str) -> str:
    issued = AUTHORITY.issue_cert(name)
    issued.private_key_and_cert_chain_pem.write_to_path(directory / f"{name}.pem")
    issued.private_key_pem.write_to_path(directory / f"{name}.key")
    issued.cert_chain_pems[0].write_to_path(directory / f"{name}.crt")
    AUTHORITY.cert_pem.write_to_path(directory / "ca.crt")
    return str(directory / f"{name}.pem")


def test_over_tls_with_a_ca_and_a_client_certificate(tmp_path: Path) -> None:
    server = pem(tmp_path, "proxy.test")
    pem(tmp_path, "vm1.test")
    options = ("--tls", server, "--client-ca", str(tmp_path / "ca.crt"))
    keys = {"ca_file": str(tmp_path / "ca.crt"), "server_name": "proxy.test"}
    shown = {"cert_file": str(tmp_path / "vm1.test.crt"), "key_file": str(tmp_path / "vm1.test.key")}
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(pem(tmp_path, "scraper.test"))
    with StandIn(*options) as proxy:
        section = {"proxy_url": proxy.url, "fqdn": FQDN, "tls": {**keys, **shown}}
        with proxied(pushprox=section) as (daemon, exporter):
            exporter.play(respond())
            proxy.get(url_of(daemon), tls=context).expect_ok(PAGE)
            kinds = {
                dict(labels)["kind"]
                for name, labels in daemon.metrics()
                if name == "exporter_proxy_certificate_not_after_timestamp_seconds"
            }
            assert kinds == {"pushprox_ca", "pushprox_client"}
        for wrong, words in (
            ({**keys}, "client certificate"),
            ({**shown}, "set tls.ca_file"),
            ({**keys, **shown, "server_name": "other.test"}, "it is not for other.test"),
        ):
            with proxied(pushprox={**section, "tls": wrong}) as (daemon, _):
                assert words in daemon.wait_for_log("pushprox failing", 10)


CREDENTIALS: dict[str, tuple[dict[str, Any], str]] = {
    "password": ({"basic_auth": {"username": "vm1", "password": "s3cr3t"}}, "Basic dm0xOnMzY3IzdA=="),
    "token": ({"bearer_token_file": "token"}, "Bearer s3cr3t"),
}


@pytest.mark.parametrize("case", CREDENTIALS)
def test_credentials_are_shown_with_polls_and_pushes(case: str, tmp_path: Path) -> None:
    keys, header = CREDENTIALS[case]
    (tmp_path / "token").write_text("s3cr3t\n")
    keys = {key: str(tmp_path / value) if isinstance(value, str) else value for key, value in keys.items()}
    with polling("--authorization", header, **keys) as (proxy, daemon, exporter):
        exporter.play(respond())
        proxy.get(url_of(daemon)).expect_ok(PAGE)
        for path in ("/poll", "/push"):
            for message in proxy.recorded(path):
                assert ["Authorization", header] in message["headers"]
    with polling("--authorization", "Bearer another", **keys) as (_, daemon, _):
        assert "it answered 401" in daemon.wait_for_log("pushprox failing", 10)
        assert "s3cr3t" not in "".join(daemon.log_lines)


def test_a_changed_token_is_used_without_a_reload(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    with polling("--authorization", "Bearer new", bearer_token_file=str(token)) as (proxy, daemon, exporter):
        exporter.play(respond())
        daemon.wait_for_log("pushprox failing")
        token.write_text("new\n")
        proxy.get(url_of(daemon), timeout=15).expect_ok(PAGE)
        daemon.wait_for_log("changed files are in use")
