"""The eight ways in which the daemon reaches an exporter, each as a running daemon with one behind it."""

from __future__ import annotations

import contextlib
import gzip
import re
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import trustme

from tests.daemon import Daemon
from tests.fakes.exporter import EXPOSITION, FakeExporter
from tests.fakes.ports import unanswering_port
from tests.faults.points import COMMAND, FILE, GZIP, OURS, PLAIN, PUSHPROX, SHARED, TLS, UNIX
from tests.faults.target import (
    HURRIED,
    HURRIED_SECONDS,
    PLAIN_PAGE,
    PROBE,
    PROBE_TARGET,
    ROUTE,
    SMALL,
    SMALL_BYTES,
    VOID,
    FileSource,
    HttpSource,
    Page,
    ProgramSource,
    Target,
)
from tests.standin import FQDN, StandIn

GZIP_PAGE = Page(
    gzip.compress(b"".join(b'fake_up{n="%d"} 1\n' % n for n in range(400)), mtime=0),
    (EXPOSITION, ("Content-Encoding", "gzip")),
)
CERTIFICATE_NAME = "exporter.test"
SETTINGS: dict[str, dict[str, Any]] = {
    ROUTE: {},
    HURRIED: {"timeout": f"{HURRIED_SECONDS * 1000:.0f}ms"},
    SMALL: {"max_response_bytes": SMALL_BYTES},
}


@contextlib.contextmanager
def plain(page: Page = PLAIN_PAGE, way: str = PLAIN, **everywhere: Any) -> Iterator[Target]:
    """An exporter on TCP; ``everywhere`` is in the entry of each route."""
    with FakeExporter() as exporter, _http(exporter, page, way, exporter.authority, **everywhere) as target:
        yield target


def gzipped() -> AbstractContextManager[Target]:
    return plain(GZIP_PAGE, GZIP)


def shared() -> AbstractContextManager[Target]:
    """Answers are shared while they are under way, and not kept: each case has to ask anew."""
    return plain(way=SHARED, share_for="1ns")


@contextlib.contextmanager
def tls() -> Iterator[Target]:
    with _directory() as directory:
        context, ca_file = certificate(directory)
        with (
            FakeExporter(tls=context) as exporter,
            _http(exporter, PLAIN_PAGE, TLS, exporter.authority, tls={"ca_file": str(ca_file)}) as target,
        ):
            yield target


@contextlib.contextmanager
def unix() -> Iterator[Target]:
    with (
        _directory() as directory,
        FakeExporter(unix=directory / "exporter.sock") as exporter,
        _http(exporter, PLAIN_PAGE, UNIX, "localhost") as target,
    ):
        yield target


@contextlib.contextmanager
def pushprox() -> Iterator[Target]:
    """The scraper asks a PushProx proxy, which the daemon polls."""
    with StandIn() as proxy:
        section = {"proxy_url": proxy.url, "fqdn": FQDN}
        with (
            FakeExporter() as exporter,
            _daemon(exporter, PUSHPROX, {}, pushprox=section) as daemon,
        ):
            host = f"{FQDN}:{daemon.port}"
            yield Target(
                OURS,
                PUSHPROX,
                HttpSource(exporter),
                (proxy.host, proxy.port),
                origin=f"http://{host}",
                host=host,
                exporter_host=exporter.authority,
            )


@contextlib.contextmanager
def command() -> Iterator[Target]:
    with _directory() as directory:
        source = ProgramSource(directory, PLAIN_PAGE)
        entries = {name: {"command": [str(source.path)], **own} for name, own in SETTINGS.items()}
        # "yes", "cat" and "sleep" have to be found.
        entries = {name: {**entry, "env": {"PATH": "/usr/bin:/bin"}} for name, entry in entries.items()}
        with Daemon({"exporters": entries}) as daemon:
            yield Target(OURS, COMMAND, source, daemon.addresses[0])


@contextlib.contextmanager
def file() -> Iterator[Target]:
    with _directory() as directory:
        source = FileSource(directory, PLAIN_PAGE)
        entries = {name: {"file": str(source.path), **own} for name, own in SETTINGS.items()}
        del entries[HURRIED]
        with Daemon({"exporters": entries}) as daemon:
            yield Target(OURS, FILE, source, daemon.addresses[0])


SETUPS: dict[str, Callable[[], AbstractContextManager[Target]]] = {
    PLAIN: plain,
    GZIP: gzipped,
    TLS: tls,
    UNIX: unix,
    FILE: file,
    COMMAND: command,
    SHARED: shared,
    PUSHPROX: pushprox,
}


def certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """For an exporter at 127.0.0.1, by a name, too; and the file of the CA that issued it."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", CERTIFICATE_NAME).configure_cert(context)
    authority.cert_pem.write_to_path(directory / "ca.crt")
    return context, directory / "ca.crt"


@contextlib.contextmanager
def _http(exporter: FakeExporter, page: Page, way: str, host: str, **everywhere: Any) -> Iterator[Target]:
    with _daemon(exporter, way, everywhere) as daemon:
        yield Target(
            OURS,
            way,
            HttpSource(exporter),
            daemon.addresses[0],
            page,
            exporter_host=host,
            in_flight=lambda: _in_flight(daemon),
        )


@contextlib.contextmanager
def _daemon(exporter: FakeExporter, way: str, everywhere: dict[str, Any], **top: Any) -> Iterator[Daemon]:
    entries = {name: {"url": exporter.url(), **own, **everywhere} for name, own in SETTINGS.items()}
    entries[PROBE] = {"url": exporter.url(PROBE_TARGET), **everywhere}
    with unanswering_port() as port:
        void = exporter.url().split(":", 1)[0] if way != UNIX else "http"
        entries[VOID] = {"url": f"{void}://127.0.0.1:{port}/metrics", **everywhere}
        with Daemon({**top, "exporters": entries}) as daemon:
            yield daemon


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="exporter_proxy-faults-") as directory:
        yield Path(directory)


def _in_flight(daemon: Daemon) -> int:
    """Of all exporters together."""
    page = daemon.get("/metrics").body.decode()
    return sum(
        int(float(value)) for value in re.findall(r"^exporter_proxy_scrapes_in_flight{.*} (.+)$", page, re.M)
    )
