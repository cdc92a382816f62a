"""What TLS adds to a scrape, beside nginx: the bytes on a kept connection, and the handshake of a new one.

Both show the same ECDSA certificate and speak TLS 1.3 with OpenSSL.
"""

from __future__ import annotations

from functools import partial

import trustme

from tests.bench.cpu import INFORMATION_ROUNDS, MICROSECONDS
from tests.bench.figures import Figure
from tests.bench.load import cpu_per_scrape
from tests.bench.peers import nginx
from tests.bench.processes import LOOPBACK
from tests.bench.run import Run
from tests.bench.site import Proxy

ROWS = (
    ("57 KB over TLS, 16 connections", "page", 16, False),
    ("19 B over TLS, each scrape on a new connection", "tiny", 4, True),
)


def tls(run: Run) -> list[Figure]:
    """CPU per scrape over TLS; for information."""
    certificate = {name: str(run.site.file(f".{name}.pem")) for name in ("certfile", "keyfile")}
    issued = trustme.CA().issue_cert(LOOPBACK)
    issued.cert_chain_pems[0].write_to_path(certificate["certfile"])
    issued.private_key_pem.write_to_path(certificate["keyfile"])
    if run.is_quick:
        return []
    with (
        run.site.daemon(run.site.config(tls=certificate)) as ours,
        nginx(run.site, certificate) as peer,
    ):
        return [_figure(run, [ours, peer], *row) for row in ROWS]


def _figure(run: Run, proxies: list[Proxy], what: str, body: str, connections: int, close: bool) -> Figure:
    body_bytes = len(run.site.bodies[body])

    def prepare() -> None:
        for proxy in proxies:
            run.site.check(proxy, body)

    measures = {
        proxy.name: partial(
            cpu_per_scrape,
            proxy.pid,
            proxy.port,
            proxy.path(body),
            connections,
            run.seconds,
            body_bytes,
            tls=True,
            close=close,
        )
        for proxy in proxies
    }
    return run.take(
        "tls",
        what,
        MICROSECONDS,
        measures,
        None,
        prepare=prepare,
        rounds=min(run.rounds, INFORMATION_ROUNDS),
        isolated=proxies,
    )
