"""``/-/healthy``, ``/-/ready`` and ``/-/reload``, as Prometheus has them."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.reasons import Denied, Reason


async def healthy(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """200 as long as the event loop turns."""
    await PlainTextResponse("exporter_proxy is healthy.\n")(scope, receive, send)


async def ready(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """200 while scrapes are served; 503 from the moment the daemon stops."""
    if proxy.is_draining:
        raise Denied(Reason.DRAINING, "stopping; scrapes under way are finished")
    await PlainTextResponse("exporter_proxy is ready.\n")(scope, receive, send)


async def reload(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """Load the configuration anew: 200, or 500 with every problem while the old one stays."""
    if not proxy.is_lifecycle_enabled:
        raise Denied(
            Reason.FORBIDDEN, "reload over HTTP is off; start with --web.enable-lifecycle, or send SIGHUP"
        )
    problems = await proxy.reload()
    if problems:
        text = (
            "exporter_proxy: configuration not reloaded, the old one stays in force:\n"
            + "\n".join(problems)
            + "\n"
        )
        await PlainTextResponse(text, status_code=500)(scope, receive, send)
    else:
        await PlainTextResponse("exporter_proxy: configuration reloaded.\n")(scope, receive, send)
