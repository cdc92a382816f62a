"""``/metrics``: the daemon's own metrics, rendered and sent slice by slice."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from exporter_proxy.observe.metrics import DaemonNumbers, content_type_of, render
from exporter_proxy.pages.negotiation import accepts_gzip, prefers_openmetrics
from exporter_proxy.pages.slices import send_slices
from exporter_proxy.proxy import Proxy, Running

_GZIP_WBITS = 31


async def own_metrics(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """Text or OpenMetrics by Accept, gzip by Accept-Encoding; scrapes go on between slices."""
    request = Request(scope)
    is_openmetrics = prefers_openmetrics(", ".join(request.headers.getlist("accept")))
    is_gzip = accepts_gzip(", ".join(request.headers.getlist("accept-encoding")))
    headers = [
        (b"Content-Type", content_type_of(is_openmetrics).encode()),
        (b"Vary", b"Accept, Accept-Encoding"),
    ]
    if is_gzip:
        headers.append((b"Content-Encoding", b"gzip"))
    numbers = DaemonNumbers(
        denied=proxy.denied,
        connections=len(proxy.front.connections),
        loop_lag_seconds=proxy.loop_lag_seconds,
        log_lines_lost=proxy.log_lines_lost,
        is_reload_successful=proxy.reload_state.is_successful and not proxy.refresh_problems,
        last_reload_success=proxy.reload_state.last_success,
        config_fingerprint=running.config.fingerprint,
        certificate_expiries=running.certificate_expiries,
        file_mtimes={
            route.exporter.name: route.file_mtimes_seconds
            for route in running.routes.routes
            if route.exporter.file is not None
        },
        pushprox=proxy.pushprox,
    )
    slices = render([route.record for route in running.routes.routes], numbers, is_openmetrics)
    await send_slices(_compressed(slices) if is_gzip else slices, headers, scope, send)


def _compressed(slices: Iterable[bytes]) -> Iterator[bytes]:
    compressor = zlib.compressobj(level=1, wbits=_GZIP_WBITS)
    for one in slices:
        yield compressor.compress(one)
    yield compressor.flush()
