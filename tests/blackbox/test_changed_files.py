"""Certificates that are replaced while the daemon runs: used without a restart, and never half."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tests.daemon import Daemon, wait_until
from tests.fakes.exporter import PAGE, FakeExporter, respond
from tests.wire import Wire, request

NOTICED_SECONDS = 15.0
"""Generous: files are looked at each second, and a change is acted on when they have been quiet as long."""


class Certificate:
    """Certificate and key in two files, which are replaced one after the other, as certbot does."""

    def __init__(self, authority: trustme.CA, directory: Path) -> None:
        self._authority = authority
        self.certfile, self.keyfile = directory / "cert.pem", directory / "key.pem"
        self.renew()

    @property
    def section(self) -> dict[str, str]:
        return {"certfile": str(self.certfile), "keyfile": str(self.keyfile)}

    def renew(self) -> None:
        issued = self._authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(self.certfile)
        issued.private_key_pem.write_to_path(self.keyfile)

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certfile.read_text())


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> Certificate:
    return Certificate(authority, tmp_path)


@pytest.fixture
def daemon(certificate: Certificate) -> Iterator[Daemon]:
    with FakeExporter() as exporter:
        exporter.play(respond())
        with Daemon({"tls": certificate.section, "exporters": {"x": {"url": exporter.url()}}}) as started:
            yield started


def shown_to(wire: Wire) -> bytes:
    assert isinstance(wire.sock, ssl.SSLSocket)
    return wire.sock.getpeercert(binary_form=True) or b""


@contextmanager
def scraping(daemon: Daemon, trusting: ssl.SSLContext, certificates: set[bytes]) -> Iterator[list[str]]:
    """Scrapes without a pause, each over a connection of its own; gives what went wrong."""
    failures: list[str] = []
    enough = threading.Event()

    def scrape() -> None:
        while not enough.is_set():
            try:
                with daemon.connect(tls=trusting) as wire:
                    certificates.add(shown_to(wire))
                    wire.exchange(request("/x/metrics")).expect_ok(PAGE)
            except (OSError, AssertionError) as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=scrape) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def test_a_renewed_certificate_is_used_and_no_scrape_fails(
    daemon: Daemon, certificate: Certificate, trusting: ssl.SSLContext
) -> None:
    seen: set[bytes] = set()
    with daemon.connect(tls=trusting) as kept:
        kept.exchange(request("/x/metrics")).expect_ok(PAGE)
        with scraping(daemon, trusting, seen) as failures:
            for _ in range(2):
                certificate.renew()
                renewed = certificate.der
                wait_until(lambda: renewed in seen, "the new certificate is shown", NOTICED_SECONDS)  # noqa: B023
        kept.exchange(request("/x/metrics")).expect_ok(PAGE)  # and the connection from before goes on
    assert failures == []
    assert len(seen) == 3
    wait_until(lambda: len(daemon.logged("changed files are in use")) == 2, "it said so both times")
    lines = daemon.logged("changed files are in use")
    assert set(lines[0]["files"].split(",")) == {str(certificate.certfile), str(certificate.keyfile)}


def test_a_broken_certificate_leaves_the_old_one_in_use(
    daemon: Daemon, certificate: Certificate, trusting: ssl.SSLContext
) -> None:
    old = certificate.der
    good_key = certificate.keyfile.read_bytes()

    def successful() -> float:
        metrics = daemon.metrics(tls=trusting)
        return metrics["exporter_proxy_config_last_reload_successful", frozenset()]

    assert successful() == 1
    certificate.keyfile.write_text("-----BEGIN NONSENSE-----\n")
    complaint = "changed files not used, what was read before stays in use"
    wait_until(lambda: bool(daemon.logged(complaint)), "it complains", NOTICED_SECONDS)
    with daemon.connect(tls=trusting) as wire:
        assert shown_to(wire) == old
        wire.exchange(request("/x/metrics")).expect_ok(PAGE)
    assert successful() == 0

    certificate.keyfile.write_bytes(good_key)
    wait_until(lambda: successful() == 1, "it is content again", NOTICED_SECONDS)
    assert len(daemon.logged(complaint)) == 1, "once, not each second"

    certificate.certfile.unlink()
    wait_until(lambda: len(daemon.logged(complaint)) == 2, "it complains again", NOTICED_SECONDS)
    assert str(certificate.certfile) in daemon.logged(complaint)[1]["problem"]
    certificate.renew()
    renewed = certificate.der
    wait_until(lambda: successful() == 1, "it is content again", NOTICED_SECONDS)
    with daemon.connect(tls=trusting) as wire:
        assert shown_to(wire) == renewed
