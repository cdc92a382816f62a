"""TLS with exporters: whom it trusts, what it shows, and that each failure says what to try."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.daemon import Daemon
from tests.fakes.exporter import PAGE, FakeExporter, close, send, stall
from tests.stalls import is_set_within

NOW = datetime.now(UTC)
YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Certificates:
    """An authority that the daemon may be told to trust, another, and files of both in ``directory``."""

    directory: Path
    authority: trustme.CA
    stranger: trustme.CA

    @classmethod
    def made_in(cls, directory: Path) -> Certificates:
        made = cls(directory, trustme.CA(), trustme.CA())
        for name, authority in (("ca", made.authority), ("stranger", made.stranger)):
            authority.cert_pem.write_to_path(directory / f"{name}.crt")
            client = authority.issue_cert("prometheus.test")
            client.private_key_and_cert_chain_pem.write_to_path(directory / f"{name}-client.pem")
        expired = made.authority.issue_cert(
            "prometheus.test", not_before=NOW - YEAR, not_after=NOW - YEAR / 2
        )
        expired.private_key_and_cert_chain_pem.write_to_path(directory / "expired-client.pem")
        return made

    def server(self, *names: str, **options: Any) -> ssl.SSLContext:
        """A context for a server with a certificate for ``names``, also kept as ``NAME.crt``."""
        issued = self.authority.issue_cert(*names, **options)
        issued.cert_chain_pems[0].write_to_path(self.directory / f"{names[0]}.crt")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(context)
        return context

    def demanding_server(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        """A server at 127.0.0.1 that wants a client certificate of the authority."""
        context = self.server("127.0.0.1")
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = version
        self.authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.made_in(tmp_path_factory.mktemp("certificates"))


@dataclass(frozen=True)
class Case:
    """An exporter: the certificate it shows, how it is configured, and what a scrape must say."""

    server: Callable[[Certificates], ssl.SSLContext | None]
    tls: dict[str, str] | None = field(default_factory=lambda: {"ca_file": "ca.crt"})
    says: str = ""
    """Part of the message; "" where the scrape succeeds."""
    host: str = "127.0.0.1"
    entry: dict[str, Any] = field(default_factory=dict)


NOT_FOR = "it is not for {}; set tls.server_name to a name that it is for"
UNKNOWN = "; set tls.ca_file to the CA that issued it"
WANTS = "wants a client certificate; set tls.cert_file and tls.key_file"
REFUSED = "does not accept the client certificate in tls.cert_file"
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def client(name: str) -> dict[str, str]:
    return {"ca_file": "ca.crt", "cert_file": f"{name}-client.pem", "key_file": f"{name}-client.pem"}


CASES: dict[str, Case] = {
    "address": Case(lambda made: made.server("127.0.0.1")),
    "ipv6_address": Case(lambda made: made.server("::1"), host="::1"),
    "name": Case(lambda made: made.server("node.test"), {"ca_file": "ca.crt", "server_name": "node.test"}),
    "wildcard": Case(
        lambda made: made.server("*.vm.test"), {"ca_file": "ca.crt", "server_name": "a.vm.test"}
    ),
    "other_address": Case(
        lambda made: made.server("192.0.2.7"), {"ca_file": "ca.crt", "server_name": "192.0.2.7"}
    ),
    "other_ipv6": Case(
        lambda made: made.server("2001:db8::7"), {"ca_file": "ca.crt", "server_name": "2001:db8:0::7"}
    ),
    "itself": Case(lambda made: made.server("localhost", "127.0.0.1"), {"ca_file": "localhost.crt"}),
    "blind": Case(
        lambda made: made.server("blind.test", not_before=NOW - YEAR, not_after=NOW - YEAR / 2),
        None,
        entry={"insecure_skip_verify": True},
    ),
    "wrong_name": Case(lambda made: made.server("other.test"), says=NOT_FOR.format("127.0.0.1")),
    "wrong_address": Case(lambda made: made.server("127.0.0.2"), says=NOT_FOR.format("127.0.0.1")),
    "wrong_server_name": Case(
        lambda made: made.server("127.0.0.1"),
        {"ca_file": "ca.crt", "server_name": "node.test"},
        says=NOT_FOR.format("node.test"),
    ),
    "unknown_authority": Case(lambda made: made.server("127.0.0.1"), None, says=UNKNOWN),
    "other_authority": Case(lambda made: made.server("127.0.0.1"), {"ca_file": "stranger.crt"}, says=UNKNOWN),
    "expired": Case(
        lambda made: made.server("127.0.0.1", not_before=NOW - YEAR, not_after=NOW - YEAR / 2),
        says="it has expired; renew it",
    ),
    "too_early": Case(
        lambda made: made.server("127.0.0.1", not_before=NOW + YEAR, not_after=NOW + 2 * YEAR),
        says="it is not valid yet; renew it, or see whether the clocks are right",
    ),
    "plain_http": Case(
        lambda made: None, says="does not speak TLS; is it an http exporter? use http:// in url"
    ),
    **{
        f"{name}_{version.name[-3:]}": Case(
            partial(Certificates.demanding_server, version=version), tls, says=says
        )
        for version, wants in ((TLS12, "does it want a client certificate (tls.cert_file"), (TLS13, WANTS))
        for name, tls, says in (
            ("client", client("ca"), ""),
            ("no_client", {"ca_file": "ca.crt"}, wants),
            ("strange_client", client("stranger"), REFUSED),
            ("expired_client", client("expired"), REFUSED),
        )
    },
}

Site = tuple[Daemon, dict[str, FakeExporter]]


@pytest.fixture(scope="module")
def site(certificates: Certificates) -> Iterator[Site]:
    """All the exporters, and one daemon in front of them."""
    with ExitStack() as stack:
        exporters, entries = {}, {}
        for name, case in CASES.items():
            server = case.server(certificates)
            # Someone who does not speak TLS answers in his own way.
            greeting = [send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), close()] if server is None else []
            exporter = stack.enter_context(FakeExporter(tls=server, host=case.host, greeting=greeting))
            exporters[name] = exporter
            entries[name] = {"url": exporter.url().replace("http:", "https:"), **case.entry}
            if case.tls is not None:
                entries[name]["tls"] = {
                    key: str(certificates.directory / value) if key.endswith("_file") else value
                    for key, value in case.tls.items()
                }
        yield stack.enter_context(Daemon({"exporters": entries})), exporters


@pytest.mark.parametrize("name", CASES)
def test_whom_it_trusts_and_what_it_says(site: Site, name: str) -> None:
    daemon, exporters = site
    case, exporter = CASES[name], exporters[name]
    for _ in range(2):
        reply = daemon.get(f"/{name}/metrics")
        if not case.says:
            reply.expect_ok(PAGE)
            continue
        line = reply.expect_refusal(502, "connect", name).body.decode()
        assert case.says in line
        assert exporter.authority in line
    assert len(exporter.connections) == (2 if case.says else 1)
    assert len(exporter.requests) == (0 if case.says else 2)


def test_an_untrusted_exporter_sees_no_credentials(certificates: Certificates) -> None:
    with FakeExporter(tls=certificates.server("other.test")) as exporter:
        entry = {
            "url": exporter.url(),
            "basic_auth": {"username": "u", "password": "s3cr3t"},
            "tls": {"ca_file": str(certificates.directory / "ca.crt")},
        }
        with Daemon({"exporters": {"x": entry}}) as daemon:
            daemon.get("/x/metrics").expect_refusal(502, "connect", "x")
        assert exporter.requests == []


def test_the_server_name_is_sent_as_sni(certificates: Certificates) -> None:
    """And an address is not (RFC 6066 section 3)."""
    asked_for: list[str | None] = []
    context = certificates.server("127.0.0.1", "node.test")
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    ca_file = str(certificates.directory / "ca.crt")
    with FakeExporter(tls=context) as exporter:
        entries = {
            "name": {"url": exporter.url(), "tls": {"ca_file": ca_file, "server_name": "node.test."}},
            "address": {"url": exporter.url(), "tls": {"ca_file": ca_file}},
        }
        with Daemon({"exporters": entries}) as daemon:
            daemon.get("/name/metrics").expect_ok(PAGE)
            daemon.get("/address/metrics").expect_ok(PAGE)
        assert asked_for == ["node.test", None]
        assert [request.header("host") for request in exporter.requests] == [exporter.authority] * 2


@pytest.mark.parametrize("case", ["silent", "half a handshake"])
def test_a_handshake_that_hangs_times_out(certificates: Certificates, case: str) -> None:
    greeting = [stall()] if case == "silent" else [send(b"\x16\x03\x03\x00\x7a"), stall()]
    with FakeExporter(greeting=greeting) as exporter:
        entry = {"url": exporter.url().replace("http:", "https:")}
        with Daemon({"exporters": {"x": entry}}) as daemon:
            reply = daemon.get("/x/metrics", ("X-Prometheus-Scrape-Timeout-Seconds", "0.4"))
            reply.expect_refusal(504, "timeout", "x")
            assert is_set_within(exporter.connections[0].closed_by_peer, 5.0)


def test_a_plain_request_that_is_answered_in_tls(certificates: Certificates) -> None:
    alert = b"\x15\x03\x01\x00\x02\x02\x46"
    with (
        FakeExporter([send(alert), close()]) as exporter,
        Daemon({"exporters": {"x": {"url": exporter.url()}}}) as daemon,
    ):
        line = daemon.get("/x/metrics").expect_refusal(502, "protocol", "x").body.decode()
        assert "speaks TLS, use https:// in url" in line


def test_a_plain_request_to_a_tls_exporter(certificates: Certificates) -> None:
    with FakeExporter(tls=certificates.server("127.0.0.1")) as exporter:
        entry = {"url": exporter.url().replace("https:", "http:")}
        with Daemon({"exporters": {"x": entry}}) as daemon:
            reply = daemon.get("/x/metrics")
    assert (reply.status, reply.error) in ((502, "protocol"), (502, "connect"))
