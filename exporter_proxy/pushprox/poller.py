"""Polls one PushProx proxy without end, and has each request that comes scraped and pushed.

A poll is repeated at once when it brought a request, and after a while when it failed. What is
worth a line in the log is a change of state, not a failure.
"""

from __future__ import annotations

import asyncio
import random
import time

from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.observe.pushprox import ProxyState, PushProxRecord
from exporter_proxy.proxy import Proxy
from exporter_proxy.pushprox.judge import Place
from exporter_proxy.pushprox.messages import PushedRequest, format_response, parse_request
from exporter_proxy.pushprox.scrape import Answer, Held, answer
from exporter_proxy.scrape.deadline import parse_scrape_timeout
from exporter_proxy.scrape.headers import SCRAPE_TIMEOUT_HEADER
from exporter_proxy.upstreams.pushprox import LinkError, ProxyLink

HELD_SECONDS = 1.0
"""A poll that was not answered for so long is held: the proxy is there and takes it."""
STEADY_SECONDS = 30.0
"""When a poll fails that was held for so long, waiting begins anew."""
CONFLICT_SECONDS = 60.0
"""Two clients by one name evict each other in turn: that is over when none was for so long."""
DEFAULT_WAIT_SECONDS = 15.0
MAX_WAIT_SECONDS = 300.0
"""How long a proxy waits for an answer: where the scraper says nothing, and at most."""
LEAST_PUSH_SECONDS = 1.0

_EVICTED = "evicted"


class PollFailed(Exception):
    """A poll that brought no request. ``result`` is one of POLL_RESULTS, ``kind`` tells failures apart."""

    def __init__(self, result: str, kind: str, message: str) -> None:
        super().__init__(message)
        self.result = result
        self.kind = kind


def retry_delay_seconds(failures: int) -> float:
    """How long to wait after a failed poll that so many others failed before, without a success between.

    Never the same twice, so that the clients of a proxy that was away do not all come back at once.
    """
    grown: float = min(1.5 ** min(failures, 10), 5.0)
    return grown * random.uniform(0.5, 1.5)  # noqa: S311 - to spread, not to hide


class Poller:
    """One proxy, polled by one name. ``url`` is what logs and pages call it."""

    def __init__(
        self, url: str, link: ProxyLink, place: Place, section: PushProx, proxy: Proxy, held: Held
    ) -> None:
        assert proxy.pushprox is not None
        self._url = url
        self._link = link
        self._place = place
        self._section = section
        self._proxy = proxy
        self._held = held
        self._log = proxy.log
        self._record: PushProxRecord = proxy.pushprox
        self._state: ProxyState = self._record.proxies.setdefault(url, ProxyState())
        self._kind = ""
        """Of the failures that the state is about; "" where it is about none."""
        self._evicted_at = -CONFLICT_SECONDS
        self._push_failures: dict[str, str] = {}
        """What keeps the answers of an exporter from being pushed; each has a size of its own."""

    async def run(self) -> None:
        """Poll until cancelled. Scrapes under way go on then."""
        failures = 0
        try:
            while True:
                await self._wait_for_room()
                began = time.monotonic()
                try:
                    request = await self._poll()
                except PollFailed as failed:
                    if time.monotonic() - began > STEADY_SECONDS:
                        failures = 0
                    self._note_failure(failed, is_first=failures == 0)
                except Exception as error:
                    self._log.defect(error)
                else:
                    failures = 0
                    self._start(request)
                    continue
                await asyncio.sleep(retry_delay_seconds(failures))
                failures += 1
        finally:
            self._link.close()

    async def _wait_for_room(self) -> None:
        """Ask for nothing more while one above the limit is being refused.

        A proxy that hands out scrapes and takes no answers would have any number of them begun.
        """
        front = self._proxy.front
        while len(front.detached) > self._proxy.running.config.max_connections:
            await asyncio.wait(front.detached, return_when=asyncio.FIRST_COMPLETED)

    async def _poll(self) -> PushedRequest:
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        try:
            polled = await self._link.poll(
                self._place.fqdn,
                when_sent=lambda: timers.append(loop.call_later(HELD_SECONDS, self._note_connected)),
            )
        except LinkError as error:
            raise PollFailed("failed", "failed", str(error)) from None
        finally:
            for timer in timers:
                timer.cancel()
        if polled.status == 408:
            raise PollFailed(
                _EVICTED,
                _EVICTED,
                f"another client polls as {self._place.fqdn}, and each has only some of its scrapes: "
                "stop it, or set fqdn to a name that no other host has",
            )
        if polled.status != 200:
            raise PollFailed(
                "refused", f"{polled.status}", f"it answered {polled.status}{_hint(polled.status)}"
            )
        try:
            request = parse_request(polled.body)
        except ValueError as error:
            raise PollFailed(
                "malformed", "malformed", f"it answered with what is no request: {error}; is it PushProx?"
            ) from None
        self._record.polls["ok"] += 1
        self._record.last_poll = time.time()
        self._note_connected()
        return request

    # States

    def _note_connected(self) -> None:
        if time.monotonic() - self._evicted_at < CONFLICT_SECONDS:
            return  # between two evictions it is connected, too
        if self._state.is_connected:
            return
        after = {"after": self._state.problem} if self._kind else {}
        self._log.info("pushprox connected", proxy=self._url, fqdn=self._place.fqdn, **after)
        self._change("", "")

    def _note_failure(self, failed: PollFailed, is_first: bool) -> None:
        self._record.polls[failed.result] += 1
        if failed.result == _EVICTED:
            self._evicted_at = time.monotonic()
        elif is_first and self._state.is_connected:
            # A proxy that restarts, or one in front of it that ends what lasts for long: the next poll tells.
            return
        if failed.kind == self._kind:
            return
        self._log.warning("pushprox failing", proxy=self._url, fqdn=self._place.fqdn, error=str(failed))
        self._change(failed.kind, str(failed))

    def _change(self, kind: str, problem: str) -> None:
        self._kind = kind
        self._state.is_connected = not kind
        self._state.problem = problem
        self._state.since = time.time()

    # Scrapes

    def _start(self, request: PushedRequest) -> None:
        front = self._proxy.front
        task = asyncio.get_running_loop().create_task(self._serve(request))
        for tasks in (front.uvicorn_state.tasks, front.detached):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _serve(self, request: PushedRequest) -> None:
        started = time.monotonic()
        wanted = parse_scrape_timeout(request.get(SCRAPE_TIMEOUT_HEADER))
        wait_seconds = min(wanted or DEFAULT_WAIT_SECONDS, MAX_WAIT_SECONDS)
        try:
            given = await answer(request, self._place, self._section, self._proxy, self._held)
            try:
                await self._push(request, given, started + wait_seconds)
            finally:
                given.release()
        except Exception as error:
            self._log.defect(error)

    async def _push(self, request: PushedRequest, given: Answer, wanted_by: float) -> None:
        """Deliver it, once: a second time it could be taken for the answer to another scrape."""
        left = max(wanted_by - time.monotonic(), LEAST_PUSH_SECONDS)
        exporter = given.exchange.exporter
        try:
            async with asyncio.timeout(left):
                pushed = await self._link.push(
                    format_response(request, given.status, given.headers, given.body, left)
                )
        except LinkError as error:
            self._note_push(exporter, "failed", "failed", str(error))
        except TimeoutError:
            self._note_push(exporter, "failed", "late", f"the proxy did not take it within {left:.1f} s")
        else:
            if pushed.status == 200:
                self._note_push(exporter, "ok", "", "")
            else:
                problem = f"it answered {pushed.status}{_hint(pushed.status)}"
                self._note_push(exporter, "refused", f"{pushed.status}", problem)

    def _note_push(self, exporter: str, result: str, kind: str, problem: str) -> None:
        self._record.pushes[result] += 1
        before = self._push_failures.get(exporter, "")
        if kind == before:
            return
        if kind:
            self._push_failures[exporter] = kind
            self._log.warning("pushprox push failing", proxy=self._url, exporter=exporter, error=problem)
        else:
            del self._push_failures[exporter]
            self._log.info("pushprox push works again", proxy=self._url, exporter=exporter, after=before)


def _hint(status: int) -> str:
    """What to try, for statuses that a proxy in front of PushProx gives."""
    if status in (401, 403):
        return "; does it want basic_auth or bearer_token_file?"
    if status == 404:
        return "; is the path in proxy_url right?"
    if status == 413:
        return "; raise the largest body that it takes (nginx: client_max_body_size)"
    return "; see its own log"
