"""Behind NAT: polls PushProx proxies for scrapes and pushes the answers, all over connections of its own.

A request that comes this way goes through the same pipeline as one that came in on the port, and
only configured paths are answered. Loaded where ``pushprox`` is configured, and only there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from exporter_proxy.config.pushprox import host_fqdn
from exporter_proxy.config.schema import Listen, UpstreamUrl
from exporter_proxy.observe.pushprox import ProxyState, PushProxRecord
from exporter_proxy.proxy import Proxy, PushProxInForce
from exporter_proxy.pushprox.judge import Place, ports_of
from exporter_proxy.pushprox.poller import Poller
from exporter_proxy.pushprox.scrape import Held
from exporter_proxy.threads import NoThread, in_thread
from exporter_proxy.upstreams.pushprox import ProxyLink
from exporter_proxy.upstreams.tls import Tls

__all__ = ["Pollers"]

NO_THREAD_SECONDS = 1.0
"""Until a thread is asked for again where there was none to be had."""


class Pollers:
    """One poller for each proxy of the configuration in force. ``addresses``: what is listened on."""

    def __init__(self, proxy: Proxy, addresses: Sequence[Listen]) -> None:
        self._proxy = proxy
        self._ports = ports_of(addresses)
        self._record = PushProxRecord()
        self._held = Held()
        self._in_force: PushProxInForce | None = None
        self._polling: asyncio.Task[None] | None = None

    def follow(self, in_force: PushProxInForce | None) -> None:
        """Poll as this says; pollers that nothing changed for go on. ``None``: poll nobody."""
        if in_force == self._in_force:
            return
        self.stop_polling()
        self._in_force = in_force
        self._record.proxies = {}
        self._proxy.pushprox = self._record if in_force is not None else None
        if in_force is None:
            self._proxy.log.info("pushprox stopped")
            return
        self._record.proxies = {str(url): ProxyState() for url in in_force.section.proxies}
        self._polling = asyncio.get_running_loop().create_task(self._poll(in_force))
        self._polling.add_done_callback(self._note_end)

    def stop_polling(self) -> None:
        """Take no more requests; those under way are finished and pushed."""
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None

    async def _poll(self, in_force: PushProxInForce) -> None:
        section = in_force.section
        fqdn = section.fqdn
        while fqdn is None:
            try:
                # The resolver may take its time; nothing else waits for it, in a thread of its own.
                fqdn = await in_thread(host_fqdn)
            except NoThread:
                await asyncio.sleep(NO_THREAD_SECONDS)
        self._record.fqdn = fqdn
        place = Place(fqdn, self._ports)
        pollers = [
            Poller(str(url), _link(url, in_force), place, section, self._proxy, self._held)
            for url in section.proxies
        ]
        for url in section.proxies:
            self._proxy.log.info("pushprox polling", proxy=str(url), fqdn=fqdn)
        async with asyncio.TaskGroup() as group:
            for poller in pollers:
                group.create_task(poller.run())

    def _note_end(self, polling: asyncio.Task[None]) -> None:
        """It ends by being cancelled, and only so."""
        if polling.cancelled():
            return
        error = polling.exception()
        if error is not None:
            self._proxy.log.defect(error)
        if polling is self._polling:
            for state in self._record.proxies.values():
                state.is_connected = False
                state.problem = "nobody polls it, for a defect in exporter_proxy; see its log"
                state.since = time.time()


def _link(url: UpstreamUrl, in_force: PushProxInForce) -> ProxyLink:
    tls = None
    if url.scheme == "https" and in_force.tls_context is not None:
        keys = in_force.section.tls
        name = (keys.server_name if keys is not None else None) or url.host.removesuffix(".")
        tls = Tls(in_force.tls_context, name, keys is not None and keys.cert_file is not None)
    return ProxyLink(url, in_force.credentials.authorization, tls)
