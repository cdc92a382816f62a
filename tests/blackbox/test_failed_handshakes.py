"""TLS handshakes that fail: each counted by its reason, and told in the log, but not one by one."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import trustme
import yaml

from tests.daemon import Daemon, wait_until
from tests.wire import request

TELL_SECONDS = 10.0
MESSAGE = "TLS handshake failed"
ALLOWED_NAME = "prometheus.test"
HEALTHY = request("/-/healthy")


@dataclass(frozen=True)
class Site:
    """A daemon that wants a certificate with a name, and how to come with one or without."""

    daemon: Daemon
    authority: trustme.CA
    config: dict[str, Any]

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """For the block only: who is busy needs time for a handshake."""
        self._reload({**self.config, "read_header_timeout": "500ms"})
        yield
        self._reload(self.config)

    def _reload(self, config: dict[str, Any]) -> None:
        self.daemon.write_config(config)
        assert "config reloaded" in self.daemon.reload()

    def client(self, issuer: trustme.CA | None, name: str = ALLOWED_NAME) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if issuer is not None:
            issuer.issue_cert(name).configure_cert(context)
        return context

    def denied(self) -> dict[str, float]:
        """The refusals so far by reason, those left out that there are none of."""
        good = self.client(self.authority)
        return {
            dict(labels)["reason"]: value
            for (name, labels), value in self.daemon.metrics(tls=good).items()
            if name == "exporter_proxy_requests_denied_total" and value
        }


@pytest.fixture(params=["uvloop", "asyncio"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    tls = {
        "cert": issued.cert_chain_pems[0].bytes().decode(),
        "key": issued.private_key_pem.bytes().decode(),
        "client_ca": authority.cert_pem.bytes().decode(),
        "client_auth_type": "RequireAndVerifyClientCert",
        "client_allowed_sans": [ALLOWED_NAME],
    }
    config = {
        "access_log": {"format": "json"},
        "exporters": {"x": {"url": "http://127.0.0.1:1/"}},
    }
    with Daemon(config, environment={"EXPORTER_PROXY_LOOP": request.param}) as daemon:
        (daemon.directory / "web.yml").write_text(yaml.safe_dump({"tls_server_config": tls}))
        config = {**config, "listen": f"127.0.0.1:{daemon.port}", "web_config_file": "web.yml"}
        daemon.write_config(config)
        assert "config reloaded" in daemon.reload()
        yield Site(daemon, authority, config)


def shake(site: Site, client: ssl.SSLContext) -> None:
    """In TLS 1.3 the client is told only when it reads, and not always in words."""
    with contextlib.suppress(ssl.SSLError, ConnectionError), site.daemon.connect(tls=client) as wire:
        wire.send(HEALTHY)
        assert not wire.read_until_closed()


def without_certificate(site: Site) -> None:
    shake(site, site.client(None))


def of_an_unknown_authority(site: Site) -> None:
    shake(site, site.client(trustme.CA()))


def distrusting(site: Site) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        site.daemon.connect(tls=ssl.create_default_context())


def speaking(data: bytes) -> Callable[[Site], None]:
    def speak(site: Site) -> None:
        with site.daemon.connect() as wire, contextlib.suppress(ConnectionResetError):
            wire.send(data)
            assert b"HTTP" not in wire.read_until_closed()

    return speak


def silent(site: Site) -> None:
    with site.impatient(), site.daemon.connect() as wire:
        assert wire.closes_within(5.0)


def half_a_hello(site: Site) -> None:
    with site.impatient(), site.daemon.connect() as wire:
        wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert wire.closes_within(5.0)


FAILURES: dict[str, tuple[Callable[[Site], None], str, str]] = {
    "no certificate": (without_certificate, "unauthorized", "showed no certificate"),
    "unknown authority": (of_an_unknown_authority, "unauthorized", "the client's certificate: "),
    "client does not trust": (distrusting, "bad_request", ""),
    "plain HTTP": (speaking(request("/x/metrics")), "bad_request", "it should use https://"),
    "garbage": (speaking(b"\x16\x03\x03\x00\x04\xff\xff\xff\xff"), "bad_request", ""),
    "silence": (silent, "header_timeout", "read_header_timeout"),
    "half a hello": (half_a_hello, "header_timeout", "read_header_timeout"),
}
STATUS = {"unauthorized": 401, "bad_request": 400, "header_timeout": 408}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_handshake_is_counted_by_its_reason_and_told(failure: str, site: Site) -> None:
    fail, reason, told = FAILURES[failure]
    daemon = site.daemon
    for _ in range(2):
        fail(site)
    wait_until(lambda: site.denied() == {reason: 2}, "both are counted, and nothing else")
    daemon.wait_for_log(MESSAGE)
    (fields,) = daemon.logged(MESSAGE)
    assert (fields["level"], fields["remote"]) == ("info", "127.0.0.1")
    assert told in fields["error"]
    assert fields["error"]
    entry = json.loads(daemon.wait_for_output(f'"reason": "{reason}"'))
    assert (entry["status"], entry["remote"], entry["path"]) == (STATUS[reason], "127.0.0.1", "")


def test_a_client_that_just_leaves_is_neither_counted_nor_told(site: Site) -> None:
    for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
        with site.daemon.connect() as wire:
            wire.send(data)
    assert site.denied() == {}
    assert not site.daemon.logged(MESSAGE)


def test_a_name_that_is_not_allowed_is_counted_as_forbidden(site: Site) -> None:
    """Its handshake succeeds: the client can be told why."""
    stranger = site.client(site.authority, "grafana.test")
    for _ in range(2):
        site.daemon.exchange(HEALTHY, tls=stranger).expect_refusal(403, "forbidden")
    wait_until(lambda: site.denied() == {"forbidden": 2}, "both are counted, and nothing else")
    assert not site.daemon.logged(MESSAGE)


def test_failures_of_ten_seconds_are_one_line(site: Site) -> None:
    daemon = site.daemon
    for fail, _, _ in FAILURES.values():
        fail(site)
    wait_until(lambda: sum(site.denied().values()) == len(FAILURES), "all are counted")
    (first,) = daemon.logged(MESSAGE)
    told_again = datetime.fromisoformat(first["ts"]).timestamp() + TELL_SECONDS + 0.2
    time.sleep(max(0.0, told_again - time.time()))
    plain, _, _ = FAILURES["plain HTTP"]
    plain(site)
    wait_until(lambda: len(daemon.logged(MESSAGE)) == 2, "there is a second line")
    _, second = daemon.logged(MESSAGE)
    assert int(second["more_since_the_last_line"]) == len(FAILURES) - 1, "and one failure in each line"


def test_who_came_when_there_was_tls_may_still_speak_it_when_there_is_none(site: Site) -> None:
    daemon = site.daemon
    plain = {"listen": f"127.0.0.1:{daemon.port}", "exporters": {"x": {"url": "http://127.0.0.1:1/"}}}
    daemon.write_config({**plain, "web_config_file": "web.yml"})  # more patient
    assert "config reloaded" in daemon.reload()
    with socket.create_connection(("127.0.0.1", daemon.port)) as silent:
        daemon.get("/-/healthy", tls=site.client(site.authority)).expect_ok()  # the silent one is in by now
        daemon.write_config(plain)
        assert "config reloaded" in daemon.reload()
        with site.client(site.authority).wrap_socket(silent, server_hostname="127.0.0.1") as wire:
            wire.sendall(HEALTHY)
            assert wire.recv(1000).startswith(b"HTTP/1.1 200 ")
    daemon.get("/-/healthy").expect_ok()
    assert not [line for line in daemon.log_lines if "level=error" in line]
