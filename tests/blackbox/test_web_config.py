"""A web.config.file at work: handshakes, client certificates and their names, headers of every answer."""

from __future__ import annotations

import ipaddress
import re
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.daemon import Daemon, wait_until
from tests.fakes.exporter import PAGE, FakeExporter, respond
from tests.fakes.ports import refusing_port
from tests.wire import Reply, request

EXPORTERS = {"x": {"url": "http://127.0.0.1:9/"}}
HEALTHY = request("/-/healthy")
FAILED = (ssl.SSLError, ConnectionError)
"""With TLS 1.3 a client learns only at its first read that its certificate was not taken."""


class Site:
    """A directory with a server's certificate and its CA, and the means to make clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.stranger = trustme.CA()
        issued = self.authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
        issued.private_key_pem.write_to_path(directory / "key.pem")
        self.authority.cert_pem.write_to_path(directory / "ca.pem")
        self._files = 0

    def web_config(self, tls: dict[str, Any] | None = None, **sections: Any) -> str:
        """The name of a new web.config.file; paths in it are relative to its directory."""
        pair = {"cert_file": "cert.pem", "key_file": "key.pem"}
        self._files += 1
        path = self.directory / f"web{self._files}.yml"
        path.write_text(yaml.safe_dump({"tls_server_config": {**pair, **(tls or {})}, **sections}))
        return str(path)

    def client(self, kind: str = "none") -> ssl.SSLContext:
        """A client that trusts the server; its own certificate is ``good``, of a ``stranger`` or ``none``."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if kind != "none":
            authority = self.authority if kind == "good" else self.stranger
            authority.issue_cert("client.example.org").configure_cert(context)
        return context

    def named_client(self, *names: x509.GeneralName) -> ssl.SSLContext:
        """A client whose certificate has these subject alternative names, or none; trustme has no URIs."""
        authority = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        authority_key = serialization.load_pem_private_key(self.authority.private_key_pem.bytes(), None)
        assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(authority.not_valid_before_utc)
            .not_valid_after(authority.not_valid_after_utc)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(authority_key, hashes.SHA256())
        self._files += 1
        path = self.directory / f"client{self._files}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = self.client()
        context.load_cert_chain(path)
        return context


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def serve(web_config: str, **config: Any) -> Daemon:
    return Daemon({"exporters": EXPORTERS, **config}, f"--web.config.file={web_config}")


def is_served(daemon: Daemon, client: ssl.SSLContext) -> bool:
    try:
        daemon.exchange(HEALTHY, tls=client).expect_ok()
    except FAILED:
        return False
    return True


SERVED = {
    "NoClientCert": {"none": True, "good": True, "stranger": True},
    "RequestClientCert": {"none": True, "good": True, "stranger": True},
    "VerifyClientCertIfGiven": {"none": True, "good": True, "stranger": False},
    "RequireAndVerifyClientCert": {"none": False, "good": True, "stranger": False},
}


@pytest.mark.parametrize("auth_type", SERVED)
def test_who_gets_in_by_client_auth_type(auth_type: str, site: Site) -> None:
    authorities = {} if auth_type == "NoClientCert" else {"client_ca_file": "ca.pem"}
    with serve(site.web_config({"client_auth_type": auth_type, **authorities})) as daemon:
        found = {kind: is_served(daemon, site.client(kind)) for kind in SERVED[auth_type]}
    assert found == SERVED[auth_type]


def test_without_a_client_ca_the_hosts_own_authorities_count(site: Site, tmp_path: Path) -> None:
    """As with exporter-toolkit. OpenSSL finds them where SSL_CERT_FILE says."""
    shutil.copy(site.directory / "ca.pem", tmp_path / "host.pem")
    web_config = site.web_config({"client_auth_type": "RequireAndVerifyClientCert"})
    environment = {"SSL_CERT_FILE": str(tmp_path / "host.pem"), "SSL_CERT_DIR": str(tmp_path)}
    daemon = Daemon({"exporters": EXPORTERS}, f"--web.config.file={web_config}", environment=environment)
    with daemon:
        assert is_served(daemon, site.client("good"))
        assert not is_served(daemon, site.client("stranger"))
        daemon.wait_for_log("takes certificates of every CA that this host trusts")


ALLOWED_SANS = [
    *("scraper.example.org", "10.0.0.5", "2001:DB8:0::5"),
    *("ops@example.org", "spiffe://example.org/prometheus"),
]
GOOD_NAMES: list[list[x509.GeneralName]] = [
    [x509.DNSName("scraper.example.org")],
    [x509.IPAddress(ipaddress.ip_address("10.0.0.5"))],
    [x509.IPAddress(ipaddress.ip_address("2001:db8::5"))],
    [x509.RFC822Name("ops@example.org")],
    [x509.UniformResourceIdentifier("spiffe://example.org/prometheus")],
    [x509.DNSName("other.example.org"), x509.RFC822Name("ops@example.org")],
]
WRONG_NAMES: list[list[x509.GeneralName]] = [
    [x509.DNSName("other.example.org")],
    [x509.DNSName("*.example.org")],
    [x509.DNSName("Scraper.example.org")],
    [x509.DNSName("scraper.example.org.evil.test"), x509.DNSName("example.org")],
    [x509.IPAddress(ipaddress.ip_address("10.0.0.6"))],
    [x509.RFC822Name("root@example.org")],
    [x509.UniformResourceIdentifier("spiffe://example.org/prometheus/other")],
    [],
]


@pytest.fixture(scope="module")
def choosy(site: Site) -> Iterator[Daemon]:
    rules = {
        "client_auth_type": "RequireAndVerifyClientCert",
        "client_ca_file": "ca.pem",
        "client_allowed_sans": ALLOWED_SANS,
    }
    headers = {"headers": {"X-Frame-Options": "deny"}}
    with serve(site.web_config(rules, http_server_config=headers), access_log={"format": "logfmt"}) as daemon:
        yield daemon


def denied_count(daemon: Daemon, client: ssl.SSLContext) -> float:
    page = daemon.get("/metrics", tls=client).expect_ok().body.decode()
    found = re.search(r'^exporter_proxy_requests_denied_total\{reason="forbidden"\} (\S+)$', page, re.M)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("names", GOOD_NAMES, ids=str)
def test_a_client_with_an_allowed_name_is_served(
    names: list[x509.GeneralName], choosy: Daemon, site: Site
) -> None:
    with choosy.connect(tls=site.named_client(*names)) as wire:
        for _ in range(2):
            wire.exchange(HEALTHY).expect_ok()


@pytest.mark.parametrize("names", WRONG_NAMES, ids=str)
def test_a_client_without_an_allowed_name_is_told_so_and_counted(
    names: list[x509.GeneralName], choosy: Daemon, site: Site
) -> None:
    good = site.named_client(*GOOD_NAMES[0])
    before = denied_count(choosy, good)
    with choosy.connect(tls=site.named_client(*names)) as wire:
        reply = wire.exchange(HEALTHY).expect_refusal(403, "forbidden")
        assert wire.closes_within(2.0)
    assert "client_allowed_sans" in reply.body.decode()
    assert (reply.header("x-frame-options"), reply.header("connection")) == ("deny", "close")
    assert denied_count(choosy, good) == before + 1
    choosy.wait_for_output("reason=forbidden")


def test_names_are_looked_at_again_after_a_reload(site: Site) -> None:
    """Also on connections that are open: a keep-alive connection would outlive the rule for ever."""
    rules = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}
    path = site.web_config({**rules, "client_allowed_sans": ["scraper.example.org"]})
    with serve(path) as daemon, daemon.connect(tls=site.named_client(*GOOD_NAMES[0])) as wire:
        wire.exchange(HEALTHY).expect_ok()
        text = Path(path).read_text()
        Path(path).write_text(text.replace("scraper.example.org", "other.example.org"))
        assert "config reloaded" in daemon.reload()
        wire.exchange(HEALTHY).expect_refusal(403, "forbidden")


def test_a_connection_from_before_tls_has_no_name(site: Site) -> None:
    with Daemon({"exporters": EXPORTERS}) as daemon:
        with daemon.connect() as wire:
            wire.exchange(HEALTHY).expect_ok()
            rules = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}
            path = site.web_config({**rules, "client_allowed_sans": ["scraper.example.org"]})
            listen = f"127.0.0.1:{daemon.port}"
            daemon.write_config({"listen": listen, "web_config_file": path, "exporters": EXPORTERS})
            daemon.reload()
            wire.exchange(HEALTHY).expect_refusal(403, "forbidden")
        assert is_served(daemon, site.named_client(*GOOD_NAMES[0]))


def test_connections_from_before_a_certificate_was_wanted_have_shown_none(site: Site) -> None:
    """Whoever had one open would be let in without for as long as he keeps it open."""
    path = site.web_config()
    with Daemon({"exporters": EXPORTERS}) as daemon, daemon.connect() as plain:
        plain.exchange(HEALTHY).expect_ok()
        listen = f"127.0.0.1:{daemon.port}"
        daemon.write_config({"listen": listen, "web_config_file": path, "exporters": EXPORTERS})
        assert "config reloaded" in daemon.reload()
        with daemon.connect(tls=site.client()) as without, daemon.connect(tls=site.client("good")) as good:
            for wire in (plain, without, good):
                wire.exchange(HEALTHY).expect_ok()
            rules = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}
            shutil.copy(site.web_config(rules), path)
            assert "config reloaded" in daemon.reload()
            for wire in (plain, without, good):
                reply = wire.exchange(HEALTHY).expect_refusal(403, "forbidden")
                assert "client_auth_type" in reply.body.decode()
        assert is_served(daemon, site.client("good"))


def test_a_resumed_session_keeps_its_name(choosy: Daemon, site: Site) -> None:
    """OpenSSL keeps the client's certificate in the session; without, the second would be refused."""
    client = site.named_client(*GOOD_NAMES[0])
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with choosy.connect(tls=client) as first:
        first.exchange(HEALTHY).expect_ok()
        assert isinstance(first.sock, ssl.SSLSocket)
        session = first.sock.session
    with choosy.connect() as second:
        second.sock = client.wrap_socket(second.sock, server_hostname="127.0.0.1", session=session)
        assert second.sock.session_reused
        second.exchange(HEALTHY).expect_ok()


def restricted(
    client: ssl.SSLContext, version: str = "", ciphers: str = "", curve: str = ""
) -> ssl.SSLContext:
    """A client that offers only this."""
    if version:
        client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
    if ciphers:
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(ciphers)
    if curve:
        client.set_ecdh_curve(curve)
    return client


AES_128, AES_256 = "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"
BOTH_SUITES = ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]
# What the file says; what a client offers that is served; what one offers that is not.
HANDSHAKES: list[tuple[dict[str, Any], list[dict[str, str]], list[dict[str, str]]]] = [
    ({}, [{"version": "TLSv1_2"}, {"version": "TLSv1_3"}], []),
    ({"max_version": "TLS12"}, [{"version": "TLSv1_2"}], [{"version": "TLSv1_3"}]),
    ({"min_version": "TLS13"}, [{"version": "TLSv1_3"}], [{"version": "TLSv1_2"}]),
    (
        {"cipher_suites": BOTH_SUITES[1:]},
        [{"ciphers": AES_256}, {"ciphers": f"{AES_128}:{AES_256}"}, {"version": "TLSv1_3"}],
        [{"ciphers": AES_128}],
    ),
    (
        {"cipher_suites": ["TLS_AES_128_GCM_SHA256"]},
        [{"version": "TLSv1_3"}],
        [{"version": "TLSv1_2"}],
    ),
    (
        {"curve_preferences": ["CurveP384"]},
        [{"curve": "secp384r1"}, {"version": "TLSv1_2"}, {}],
        [{"curve": "prime256v1"}, {"curve": "X25519"}],
    ),
    ({"curve_preferences": ["X25519"]}, [{"curve": "X25519"}], [{"curve": "secp521r1"}]),
]


@pytest.mark.parametrize(("tls", "served", "refused"), HANDSHAKES, ids=lambda value: str(value)[:60])
def test_handshakes_are_limited_as_the_file_says(
    tls: dict[str, Any], served: list[dict[str, str]], refused: list[dict[str, str]], site: Site
) -> None:
    with serve(site.web_config(tls)) as daemon:
        for offer in served:
            assert is_served(daemon, restricted(site.client(), **offer)), offer
        for offer in refused:
            assert not is_served(daemon, restricted(site.client(), **offer)), offer


@pytest.mark.parametrize(("prefer_server", "chosen"), [(True, AES_128), (False, AES_256)])
def test_whose_order_of_suites_counts(prefer_server: bool, chosen: str, site: Site) -> None:
    tls = {"cipher_suites": BOTH_SUITES, "prefer_server_cipher_suites": prefer_server}
    client = restricted(site.client(), ciphers=f"{AES_256}:{AES_128}")
    with serve(site.web_config(tls)) as daemon, daemon.connect(tls=client) as wire:
        assert isinstance(wire.sock, ssl.SSLSocket)
        cipher = wire.sock.cipher()
        assert cipher is not None
        assert cipher[0] == chosen


def test_no_session_tickets_follow_a_handshake(site: Site) -> None:
    """Nothing keeps them, and each would be one more message to a scraper that has not asked yet."""
    client = restricted(site.client(), version="TLSv1_3")
    with serve(site.web_config()) as daemon, daemon.connect(tls=client) as wire:
        wire.exchange(HEALTHY).expect_ok()
        assert isinstance(wire.sock, ssl.SSLSocket)
        assert wire.sock.session is None or not wire.sock.session.has_ticket


def test_a_client_that_would_rather_speak_http2_gets_http1(site: Site) -> None:
    client = site.client()
    client.set_alpn_protocols(["h2", "http/1.1"])
    with serve(site.web_config(http_server_config={"http2": True})) as daemon:
        assert is_served(daemon, client)


def test_inline_certificates_serve(site: Site) -> None:
    inline = {name: (site.directory / f"{name}.pem").read_text() for name in ("cert", "key")}
    tls = {**inline, "cert_file": "", "key_file": "", "client_ca": (site.directory / "ca.pem").read_text()}
    with serve(site.web_config({**tls, "client_auth_type": "RequireAndVerifyClientCert"})) as daemon:
        assert is_served(daemon, site.client("good"))
        assert not is_served(daemon, site.client("stranger"))
        assert "BEGIN" not in daemon.log_tail()


def test_paths_are_relative_to_the_file_and_the_key_to_the_working_directory(site: Site) -> None:
    """The daemon runs in a directory of its own, where there is no cert.pem."""
    site.web_config()
    with Daemon({"exporters": EXPORTERS}) as daemon:
        (daemon.directory / "tls").mkdir()
        for name in ("cert.pem", "key.pem"):
            shutil.copy(site.directory / name, daemon.directory / "tls" / name)
        text = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"
        (daemon.directory / "tls" / "web.yml").write_text(text)
        listen = f"127.0.0.1:{daemon.port}"
        daemon.write_config({"listen": listen, "web_config_file": "tls/web.yml", "exporters": EXPORTERS})
        assert "config reloaded" in daemon.reload()
        assert is_served(daemon, site.client())


def test_a_broken_file_changes_nothing_at_a_reload(site: Site) -> None:
    path = site.web_config(http_server_config={"headers": {"X-Frame-Options": "deny"}})
    with serve(path) as daemon:
        good = Path(path).read_text()
        Path(path).write_text(good.replace("cert.pem", "gone.pem").replace("deny", "allow"))
        line = daemon.reload()
        assert "not reloaded" in line
        assert f"{path}:" in line
        daemon.wait_for_log("tls_server_config.cert_file")
        daemon.wait_for_log("http_server_config.headers.X-Frame-Options")
        assert daemon.exchange(HEALTHY, tls=site.client()).header("x-frame-options") == "deny"
        Path(path).write_text(good.replace("deny", "sameorigin"))
        assert "config reloaded" in daemon.reload()
        assert daemon.exchange(HEALTHY, tls=site.client()).header("x-frame-options") == "sameorigin"


def test_a_change_is_in_use_without_a_reload_and_a_broken_file_is_not(site: Site) -> None:
    path = Path(site.web_config(http_server_config={"headers": {"X-Frame-Options": "deny"}}))
    with serve(str(path)) as daemon:

        def frame_options() -> str | None:
            return daemon.exchange(HEALTHY, tls=site.client()).header("x-frame-options")

        assert frame_options() == "deny"
        good = path.read_text()
        path.write_text(good.replace("deny", "sameorigin"))
        wait_until(lambda: frame_options() == "sameorigin", "the new header is sent", 15.0)
        path.write_text(good.replace("deny", "allow"))
        line = daemon.wait_for_log("changed files not used", 15.0)
        assert f"{path}:" in line
        assert frame_options() == "sameorigin"


HEADERS = {
    "Content-Security-Policy": "default-src 'self'",
    "X-Frame-Options": "deny",
    "X-Content-Type-Options": "nosniff",
    "X-XSS-Protection": "0",
    "Strict-Transport-Security": "max-age=60",
}


@pytest.fixture(scope="module")
def adorned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, FakeExporter]]:
    """Plain HTTP with all five headers; of the exporters one is down."""
    web_config = tmp_path_factory.mktemp("adorned") / "web.yml"
    web_config.write_text(yaml.safe_dump({"http_server_config": {"headers": HEADERS}}))
    with FakeExporter() as exporter, refusing_port() as port:
        entries = {
            "x": {"url": exporter.url(), "allow_params": []},
            "down": {"url": f"http://127.0.0.1:{port}/"},
        }
        config = {"exporters": entries, "allow_clients": ["127.0.0.1"], "max_header_bytes": 1024}
        with serve(str(web_config), **config) as daemon:
            yield daemon, exporter


def expect_headers(reply: Reply) -> None:
    assert {name: reply.get_all(name) for name in HEADERS} == {
        name: [value] for name, value in HEADERS.items()
    }


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("/x/metrics"), 200),
        (request("/x/metrics", method="HEAD"), 200),
        (request("/x/metrics", version="1.0", host=None), 200),
        (request("/"), 200),
        (request("/metrics"), 200),
        (HEALTHY, 200),
        (request("/x/metrics?a=1"), 403),
        (request("/-/reload", method="POST"), 403),
        (request("/nowhere"), 404),
        (request("/x/metrics", method="POST"), 405),
        (request("/down/metrics"), 502),
        (request("/x/metrics", host=None), 400),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", 400),
        (request("/x/metrics", ("X-Long", "x" * 2000)), 431),
    ],
    ids=lambda value: str(value)[:40],
)
def test_headers_are_on_every_answer_once(
    data: bytes, status: int, adorned: tuple[Daemon, FakeExporter]
) -> None:
    daemon, exporter = adorned
    exporter.play(respond(body=PAGE))
    reply = daemon.exchange(data)
    assert reply.status == status
    expect_headers(reply)


def test_headers_are_on_the_answer_to_an_address_that_is_not_let_in(
    adorned: tuple[Daemon, FakeExporter],
) -> None:
    daemon, _ = adorned
    reply = daemon.exchange(HEALTHY, source="127.0.0.2").expect_refusal(403, "forbidden")
    expect_headers(reply)


def test_they_replace_an_exporters_own(adorned: tuple[Daemon, FakeExporter]) -> None:
    daemon, exporter = adorned
    own = [("x-frame-options", "sameorigin"), ("X-Other", "stays"), ("Content-Security-Policy", "none")]
    exporter.play(respond(body=PAGE, headers=own))
    reply = daemon.exchange(request("/x/metrics")).expect_ok(PAGE)
    expect_headers(reply)
    assert reply.header("x-other") == "stays"
