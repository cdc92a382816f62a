"""Tokens, users, CAs and passwords that are replaced while the daemon runs, in place or as Kubernetes does.

Each is used without a reload and without a connection being dropped; a broken one changes nothing.
Certificates and their keys are ``test_changed_files.py``'s.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.daemon import Daemon, wait_until
from tests.fakes.exporter import FakeExporter
from tests.fakes.hashing import hash_of
from tests.wire import request

NOTICED_SECONDS = 15.0
IN_USE = "changed files are in use"
COMPLAINT = "changed files not used, what was read before stays in use"
VERSIONS = ("one", "two")
AUTHORITIES = {version: trustme.CA() for version in VERSIONS}
SERVER = AUTHORITIES["one"].issue_cert("127.0.0.1")
Header = tuple[str, str]


class InPlace:
    """A file whose content is replaced."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "file"

    def write(self, content: str) -> None:
        self.path.write_text(content)


class Mounted:
    """A file of a Kubernetes volume: two links lead to it, and one that both go through is swapped."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "file"
        self.path.symlink_to("..data/file")
        self._directory = directory
        self._written = 0

    def write(self, content: str) -> None:
        self._written += 1
        version = self._directory / f"..version{self._written}"
        version.mkdir()
        (version / "file").write_text(content)
        (self._directory / "..data_tmp").symlink_to(version.name)
        (self._directory / "..data_tmp").rename(self._directory / "..data")


Store = InPlace | Mounted


@dataclass(frozen=True)
class Case:
    """What is in the file by version, and how a scraper shows or sees which one is in use."""

    contents: dict[str, str]
    broken: str
    config: Callable[[Path], dict[str, Any]]
    """The keys of the daemon that name the file."""
    entry: Callable[[Path], dict[str, Any]] = lambda _: {}
    """The keys of the exporter that do."""
    headers: Callable[[str], list[Header]] = lambda _: []
    client: Callable[[str], ssl.SSLContext | None] = lambda _: None
    exporter_shows: dict[str, trustme.CA] = field(default_factory=dict)
    """By whom the certificates of the exporters called so are issued; without, the one speaks plain HTTP."""
    exporter_sees: Callable[[str], str | None] = lambda _: None
    """The ``Authorization`` that the exporter is asked with."""


def basic(version: str) -> str:
    return "Basic " + b64encode(f"ann:of {version}".encode()).decode()


def client_of(version: str) -> ssl.SSLContext:
    """Trusts the daemon, and has a certificate of this version's CA."""
    context = ssl.create_default_context()
    AUTHORITIES["one"].configure_trust(context)
    AUTHORITIES[version].issue_cert("prometheus.test").configure_cert(context)
    return context


def client_ca(path: Path) -> dict[str, Any]:
    tls = {
        "cert": SERVER.cert_chain_pems[0].bytes().decode(),
        "key": SERVER.private_key_pem.bytes().decode(),
        "client_ca_file": str(path),
        "client_auth_type": "RequireAndVerifyClientCert",
    }
    web = path.parent / "web.yml"
    web.write_text(yaml.safe_dump({"tls_server_config": tls}))
    return {"web_config_file": str(web)}


PEMS = {version: authority.cert_pem.bytes().decode() for version, authority in AUTHORITIES.items()}
CASES = {
    "bearer_tokens_file": Case(
        {version: f"# prometheus\n{version}\n" for version in VERSIONS},
        "two words\n",
        lambda path: {"bearer_tokens_file": str(path)},
        headers=lambda version: [("Authorization", f"Bearer {version}")],
    ),
    "web_config_file": Case(
        {
            version: yaml.safe_dump({"basic_auth_users": {"ann": hash_of(f"of {version}".encode())}})
            for version in VERSIONS
        },
        "basic_auth_users: {ann: no hash}\n",
        lambda path: {"web_config_file": str(path)},
        headers=lambda version: [("Authorization", basic(version))],
    ),
    "client_ca_file": Case(PEMS, "no certificate\n", client_ca, client=client_of),
    "password_file": Case(
        {version: f"of {version}\n" for version in VERSIONS},
        "two\nlines\n",
        lambda _: {},
        entry=lambda path: {"basic_auth": {"username": "ann", "password_file": str(path)}},
        exporter_sees=basic,
    ),
    "ca_file": Case(
        PEMS,
        "no certificate\n",
        lambda _: {},
        entry=lambda path: {"tls": {"ca_file": str(path)}},
        exporter_shows=AUTHORITIES,
    ),
}


class Site:
    """A daemon whose configuration names the file, and its exporters."""

    def __init__(self, case: Case, daemon: Daemon, exporters: dict[str, FakeExporter]) -> None:
        self.case = case
        self.daemon = daemon
        self._exporters = exporters

    def request(self, version: str) -> bytes:
        """A scrape that succeeds while this version is in use."""
        name = version if self.case.exporter_shows else "x"
        return request(f"/{name}/metrics", *self.case.headers(version))

    def is_in_use(self, version: str) -> bool:
        try:
            reply = self.daemon.exchange(self.request(version), tls=self.case.client(version))
        except (ssl.SSLError, ConnectionError):  # its certificate was not taken
            return False
        if reply.status != 200:
            assert reply.status in (401, 502), reply
            return False
        expected = self.case.exporter_sees(version)
        return expected is None or self._exporters["x"].requests[-1].header("authorization") == expected

    def successful(self, version: str) -> float:
        page = self.daemon.get(
            "/metrics", *self.case.headers(version), tls=self.case.client(version)
        ).expect_ok()
        (line,) = (
            line
            for line in page.body.decode().splitlines()
            if line.startswith("exporter_proxy_config_last_reload_successful ")
        )
        return float(line.split()[1])


@contextmanager
def exporting(case: Case) -> Iterator[dict[str, FakeExporter]]:
    if not case.exporter_shows:
        with FakeExporter() as exporter:
            yield {"x": exporter}
        return
    contexts = []
    for authority in case.exporter_shows.values():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        contexts.append(context)
    with FakeExporter(tls=contexts[0]) as one, FakeExporter(tls=contexts[1]) as two:
        yield dict(zip(case.exporter_shows, (one, two), strict=True))


@pytest.mark.parametrize(
    ("name", "store"),
    [*((name, InPlace) for name in CASES), ("bearer_tokens_file", Mounted), ("client_ca_file", Mounted)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_change_is_in_use_without_a_reload_and_a_broken_one_is_not(
    name: str, store: type[Store], tmp_path: Path
) -> None:
    case, file = CASES[name], store(tmp_path)
    file.write(case.contents["one"])
    with exporting(case) as exporters:
        entries = {
            called: {"url": exporter.url(), **case.entry(file.path)} for called, exporter in exporters.items()
        }
        config = {**case.config(file.path), "exporters": entries}
        with Daemon(config) as daemon, daemon.connect(tls=case.client("one")) as kept:
            site = Site(case, daemon, exporters)
            kept.exchange(site.request("one")).expect_ok()
            assert (site.is_in_use("one"), site.is_in_use("two")) == (True, False)

            file.write(case.contents["two"])
            wait_until(lambda: site.is_in_use("two"), "the new one is in use", NOTICED_SECONDS)
            assert not site.is_in_use("one")
            kept.exchange(site.request("two")).expect_ok()
            daemon.wait_for_log(IN_USE)
            assert [fields["files"] for fields in daemon.logged(IN_USE)] == [str(file.path)]
            assert site.successful("two") == 1

            file.write(case.broken)
            wait_until(lambda: bool(daemon.logged(COMPLAINT)), "it complains", NOTICED_SECONDS)
            assert site.successful("two") == 0
            assert (site.is_in_use("one"), site.is_in_use("two")) == (False, True)
            kept.exchange(site.request("two")).expect_ok()

            file.write(case.contents["one"])
            wait_until(lambda: site.is_in_use("one"), "the mended one is in use", NOTICED_SECONDS)
            assert not site.is_in_use("two")
            assert site.successful("one") == 1
            kept.exchange(site.request("one")).expect_ok()
            problems = [fields["problem"] for fields in daemon.logged(COMPLAINT)]
            assert len(problems) == len(set(problems)), "once, not each second"
            wait_until(lambda: len(daemon.logged(IN_USE)) == 2, "it says so")
            assert not daemon.logged("config reloaded")
