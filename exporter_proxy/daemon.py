"""The daemon's life: listen, serve, reload, drain.

Signals are handled here and not by uvicorn's server, which would die of the signal it
handled and would not let a second one end the waiting.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter_proxy import __version__
from exporter_proxy.app import App
from exporter_proxy.config import Config
from exporter_proxy.front.drain import drain
from exporter_proxy.front.listener import Listener
from exporter_proxy.front.sockets import Bound, ListenError, bind_all, unused_systemd_sockets
from exporter_proxy.front.state import FrontLimits, FrontState
from exporter_proxy.observe.daemonlog import DaemonLog, capture_library_logs
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.reload import (
    STDERR,
    LoadConfig,
    Reloader,
    StartError,
    build_running,
    close_all,
    described,
    log_warnings,
    open_log,
)
from exporter_proxy.systemd import Notifier

if TYPE_CHECKING:
    from exporter_proxy.pushprox import Pollers

LAG_SAMPLES = 15


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What ``serve``'s flags say besides the configuration itself."""

    log_level: str = "info"
    log_format: str = "logfmt"
    is_lifecycle_enabled: bool = False


class Daemon:
    """One running daemon. ``load`` gives the configuration anew for each reload."""

    def __init__(self, config: Config, load: LoadConfig, options: ServeOptions) -> None:
        """Raises ConfigError and StartError."""
        self._log = DaemonLog(
            open_log(config.error_log_path or STDERR), options.log_level, options.log_format
        )
        self.proxy = Proxy(build_running(config, self._log), self._log, options.is_lifecycle_enabled)
        self._systemd = Notifier(lambda problem: self._log.warning("cannot notify systemd", error=problem))
        self._reloader = Reloader(self.proxy, load, self._log, self._systemd)
        self.proxy.reload = self._reloader.reload
        self._listeners: list[Listener] = []
        self._stop_requested = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._pushprox: Pollers | None = None
        self._background: set[asyncio.Task[object]] = set()

    async def serve(self, when_listening: Callable[[Config, list[str]], None] | None = None) -> None:
        """Listen, and serve until a signal ends it. Raises StartError."""
        loop = asyncio.get_running_loop()
        config = self.proxy.running.config
        capture_library_logs(self._log)
        front = FrontState(loop, App(self.proxy), self.proxy.record, FrontLimits.of(config), self._log)  # type: ignore[arg-type]
        front.ssl_context = self.proxy.running.tls
        self.proxy.front = front
        self._listeners = [Listener(bound, front) for bound in _bind_all(config)]
        front.passed_addresses = [one.bound.address for one in self._listeners if one.bound.is_passed]
        for number, action in (
            (signal.SIGTERM, self._on_stop_signal),
            (signal.SIGINT, self._on_stop_signal),
            (signal.SIGHUP, self._on_reload_signal),
        ):
            loop.add_signal_handler(number, action)
        for listener in self._listeners:
            listener.start()
        measuring = loop.create_task(self._measure_lag())
        watching = loop.create_task(self._reloader.watch())
        # What is there now stays: no later collection has to walk a thousand routes, which takes
        # 25 ms. It is freed like anything else when a reload lets go of it.
        gc.freeze()
        self._announce(config)
        if when_listening is not None:
            when_listening(config, [listener.address for listener in self._listeners])
        self._systemd.ready(self._status)
        self._reloader.when_in_force = self._follow_pushprox
        self._follow_pushprox(self.proxy.running)
        await self._stop_requested.wait()
        await self._drain()
        measuring.cancel()
        watching.cancel()
        await close_all([route.transport for route in self.proxy.running.routes.routes], self._log)
        self._systemd.close()
        self._log.info("stopped")

    def close_logs(self) -> None:
        """Write out what the logs still hold."""
        access_log = self.proxy.running.access_log
        if access_log is not None:
            access_log[1].close()
        self._log.writer.close()

    def _announce(self, config: Config) -> None:
        log_warnings(self.proxy, config)
        unused = unused_systemd_sockets([listener.bound for listener in self._listeners])
        if unused:
            self._log.warning(
                "systemd passed sockets that listen does not name, nobody answers there",
                names=",".join(unused),
                hint='add "systemd" to listen',
            )
        for listener in self._listeners:
            self._log.info("listening", address=listener.address, version=__version__, **described(config))

    def _status(self) -> str:
        """The line that `systemctl status` shows."""
        routes = self.proxy.running.routes.routes
        failing = sum(route.record.up is False for route in routes)
        text = f"{len(routes)} exporter{'' if len(routes) == 1 else 's'}, {failing} failing"
        if not self.proxy.reload_state.is_successful:
            text += "; the last reload failed, the old configuration is in force"
        return text

    # Signals

    def _on_stop_signal(self) -> None:
        if self._stop_requested.is_set():
            self._stop_now.set()
        self._stop_requested.set()

    def _on_reload_signal(self) -> None:
        self._spawn(self._reloader.reload())

    def _spawn(self, work: Coroutine[object, object, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _follow_pushprox(self, running: Running) -> None:
        if self._pushprox is None:
            if running.pushprox is None:
                return
            from exporter_proxy.pushprox import Pollers  # noqa: PLC0415 - most hosts can be reached

            addresses = [listener.bound.address for listener in self._listeners]
            self._pushprox = Pollers(self.proxy, addresses)
        if not self.proxy.is_draining:
            self._pushprox.follow(running.pushprox)

    async def _drain(self) -> None:
        proxy, front = self.proxy, self.proxy.front
        proxy.is_draining = front.is_draining = True
        if self._pushprox is not None:
            self._pushprox.stop_polling()
        for listener in self._listeners:
            listener.stop()
        timeout = proxy.running.config.shutdown_timeout_seconds
        under_way = len(front.uvicorn_state.tasks)
        self._systemd.stopping(f"stopping; scrapes under way: {under_way}")
        self._log.info("stopping", scrapes_under_way=under_way, shutdown_timeout=f"{timeout:g}s")
        await drain(front, self._listeners, timeout, self._stop_now)

    # Measurements

    async def _measure_lag(self) -> None:
        """How late a one-second timer fires: what every scrape waits when the loop is held."""
        samples = [0.0] * LAG_SAMPLES
        while True:
            for index in range(LAG_SAMPLES):
                due = time.monotonic() + 1.0
                await asyncio.sleep(1.0)
                samples[index] = max(0.0, time.monotonic() - due)
                self.proxy.loop_lag_seconds = max(samples)


def _bind_all(config: Config) -> list[Bound]:
    try:
        return bind_all(config.listen)
    except ListenError as error:
        raise StartError(str(error)) from None


async def _nothing() -> None:
    pass


def run(
    load: LoadConfig,
    options: ServeOptions,
    when_listening: Callable[[Config, list[str]], None] | None = None,
    when_stopped: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Load, and serve until a signal ends it, in an event loop of its own.

    Raises ConfigError and StartError.
    """

    async def serve() -> None:
        try:
            daemon = Daemon(await load(), load, options)
            try:
                await daemon.serve(when_listening)
            finally:
                daemon.close_logs()
        finally:
            await when_stopped()

    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(serve())


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one; ``EXPORTER_PROXY_LOOP=asyncio`` for someone who debugs."""
    if os.environ.get("EXPORTER_PROXY_LOOP") == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415 - optional: there is none outside CPython
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
