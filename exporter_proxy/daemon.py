"""The daemon's life: listen, serve, reload, drain.

Signals are handled here and not by uvicorn's server, which would die of the signal it
handled and would not let a second one end the waiting.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from exporter_proxy import __version__
from exporter_proxy.app import App
from exporter_proxy.config import Config, ConfigError, ListenAddress, config_warnings
from exporter_proxy.front.listener import Listener, bind
from exporter_proxy.front.state import FrontLimits, FrontState
from exporter_proxy.front.tls import server_context
from exporter_proxy.observe.accesslog import access_log_formatter
from exporter_proxy.observe.daemonlog import DaemonLog, capture_library_logs
from exporter_proxy.observe.logwriter import LogWriter
from exporter_proxy.proxy import Proxy, ReloadState, Running
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.upstreams import make_upstream

STDERR = "/dev/stderr"
STDOUT = "/dev/stdout"
LAG_SAMPLES = 15
FLUSH_SECONDS = 1.0
NAMES_IN_LOG = 20

LoadConfig = Callable[[], Awaitable[Config]]


class StartError(Exception):
    """The daemon cannot start; the message is the one line that says why."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What ``serve``'s flags say besides the configuration itself."""

    log_level: str = "info"
    log_format: str = "logfmt"
    is_lifecycle_enabled: bool = False


class Daemon:
    """One running daemon. ``load`` gives the configuration anew for each reload."""

    def __init__(self, config: Config, load: LoadConfig, options: ServeOptions) -> None:
        self._load = load
        self._log = DaemonLog(
            _open_log(config.error_log_path or STDERR), options.log_level, options.log_format
        )
        running = Running(config, build_routes(config, make_upstream), self._open_access_log(config, None))
        self.proxy = Proxy(running, self._log, options.is_lifecycle_enabled)
        self.proxy.reload = self.reload
        self._listeners: list[Listener] = []
        self._stop_requested = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._reload_lock = asyncio.Lock()
        self._background: set[asyncio.Task[object]] = set()

    async def serve(self, when_listening: Callable[[Config, list[str]], None] | None = None) -> None:
        """Listen, and serve until a signal ends it. Raises StartError."""
        loop = asyncio.get_running_loop()
        config = self.proxy.running.config
        capture_library_logs(self._log)
        front = FrontState(loop, App(self.proxy), self.proxy.record, FrontLimits.of(config), self._log)  # type: ignore[arg-type]
        self.proxy.front = front
        tls = _tls_context(config)
        self._listeners = [Listener(sock, front, tls) for sock in _bind_all(config)]
        for number, action in (
            (signal.SIGTERM, self._on_stop_signal),
            (signal.SIGINT, self._on_stop_signal),
            (signal.SIGHUP, self._on_reload_signal),
        ):
            loop.add_signal_handler(number, action)
        for listener in self._listeners:
            listener.start()
        lag = loop.create_task(self._measure_lag())
        # What is there now stays: no later collection has to walk a thousand routes, which takes
        # 25 ms. It is freed like anything else when a reload lets go of it.
        gc.freeze()
        self._announce(config)
        if when_listening is not None:
            when_listening(config, [listener.address for listener in self._listeners])
        await self._stop_requested.wait()
        await self._drain()
        lag.cancel()
        await _close_all([route.transport for route in self.proxy.running.routes.routes])
        self._log.info("stopped")

    def close_logs(self) -> None:
        """Write out what the logs still hold."""
        access_log = self.proxy.running.access_log
        if access_log is not None:
            access_log[1].close()
        self._log.writer.close()

    async def reload(self) -> tuple[str, ...]:
        """Load, validate and build, then swap in one assignment; any failure changes nothing.

        Returns the problems, empty where the new configuration is in force.
        """
        async with self._reload_lock:
            proxy = self.proxy
            try:
                running, tls = await self._build()
            except (ConfigError, StartError) as error:
                problems = tuple(str(error).splitlines())
            except Exception as error:
                self._log.defect(error)
                problems = (f"a defect in exporter_proxy: {error!r}",)
            else:
                self._put_in_force(running, tls)
                return ()
            proxy.reload_state = ReloadState(False, proxy.reload_state.last_success, problems)
            for problem in problems:
                self._log.error("config not reloaded, the old one stays in force", problem=problem)
            return problems

    async def _build(self) -> tuple[Running, ssl.SSLContext | None]:
        """Everything a new configuration needs, beside the running one.

        In threads, which hand over to the event loop ten times as often as usual, and without
        garbage collections: a thousand routes are a hundred thousand objects, and a collection
        walks them all while every scrape waits. Raises ConfigError and StartError.
        """
        gc.disable()
        usual_interval = sys.getswitchinterval()
        sys.setswitchinterval(usual_interval / 10)
        try:
            config = await self._load()
            tls = await asyncio.to_thread(_tls_context, config)
            routes = await asyncio.to_thread(build_routes, config, make_upstream, self.proxy.running.routes)
        finally:
            sys.setswitchinterval(usual_interval)
            gc.enable()
        old_access_log = self.proxy.running.access_log
        access_log = self._open_access_log(config, old_access_log)
        try:
            self._reopen_error_log(config)
        except StartError:
            if access_log is not None and (old_access_log is None or access_log[1] is not old_access_log[1]):
                access_log[1].close()
            raise
        return Running(config, routes, access_log), tls

    def _put_in_force(self, running: Running, tls: ssl.SSLContext | None) -> None:
        proxy = self.proxy
        old, config = proxy.running, running.config
        proxy.replace(running)
        proxy.front.limits = FrontLimits.of(config)
        for listener in self._listeners:
            listener.ssl_context = tls
        proxy.reload_state = ReloadState()
        kept = set(running.routes.routes)
        retired = [route.transport for route in old.routes.routes if route not in kept]
        self._spawn(_close_all(retired))
        for warning in config_warnings(config):
            self._log.warning(warning)
        if config.listen != old.config.listen:
            listen = ",".join(map(str, config.listen))
            self._log.warning("listen changed: restart to listen there", listen=listen)
        self._log.info("config reloaded", **_described(config))
        gc.freeze()

    def _announce(self, config: Config) -> None:
        for warning in config_warnings(config):
            self._log.warning(warning)
        for listener in self._listeners:
            self._log.info("listening", address=listener.address, version=__version__, **_described(config))

    # Signals

    def _on_stop_signal(self) -> None:
        if self._stop_requested.is_set():
            self._stop_now.set()
        self._stop_requested.set()

    def _on_reload_signal(self) -> None:
        self._spawn(self.reload())

    def _spawn(self, work: Coroutine[object, object, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Stopping

    async def _drain(self) -> None:
        """Finish what is under way, for at most shutdown_timeout, then cut it."""
        proxy, front = self.proxy, self.proxy.front
        proxy.is_draining = front.is_draining = True
        for listener in self._listeners:
            listener.stop()
        timeout = proxy.running.config.shutdown_timeout_seconds
        tasks = front.uvicorn_state.tasks
        self._log.info("stopping", scrapes_under_way=len(tasks), shutdown_timeout=f"{timeout:g}s")
        for connection in front.connections:
            if connection.cycle is not None:
                connection.cycle.keep_alive = False
        await self._wait_for_tasks(timeout)
        for connection in list(front.connections):
            if connection.cycle is not None and connection.cycle.task is not None:
                connection.cycle.task.cancel()
        if tasks:
            await asyncio.wait(set(tasks), timeout=FLUSH_SECONDS)
        for connection in list(front.connections):
            connection.shutdown()
        flushed_by = time.monotonic() + FLUSH_SECONDS
        # Closing connections tell nobody when they are gone.
        while front.connections and time.monotonic() < flushed_by and not self._stop_now.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for connection in list(front.connections):
            connection.transport.abort()

    async def _wait_for_tasks(self, timeout_seconds: float) -> None:
        """Until nothing is being answered, the time is over, or a second signal comes."""
        tasks = self.proxy.front.uvicorn_state.tasks
        deadline = time.monotonic() + timeout_seconds
        second_signal = asyncio.ensure_future(self._stop_now.wait())
        while tasks and not second_signal.done() and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait({*tasks, second_signal}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        second_signal.cancel()

    # Logs and measurements

    def _open_access_log(self, config: Config, current: AccessLogInForce) -> AccessLogInForce:
        """The access log of ``config``; the writer in use goes on where the path is the same."""
        if config.access_log is None:
            return None
        path = config.access_log.path or STDOUT
        if current is not None and current[1].path == path:
            current[1].reopen()
            return access_log_formatter(config.access_log), current[1]
        trouble = functools.partial(self._log.error, "access log")
        return access_log_formatter(config.access_log), _open_log(path, lambda text: trouble(problem=text))

    def _reopen_error_log(self, config: Config) -> None:
        writer = self._log.writer
        path = config.error_log_path or STDERR
        if writer.path == path:
            writer.reopen()
        else:
            self._log.writer = _open_log(path)
            writer.close(timeout_seconds=0)

    async def _measure_lag(self) -> None:
        """How late a one-second timer fires: what every scrape waits when the loop is held."""
        samples = [0.0] * LAG_SAMPLES
        while True:
            for index in range(LAG_SAMPLES):
                due = time.monotonic() + 1.0
                await asyncio.sleep(1.0)
                samples[index] = max(0.0, time.monotonic() - due)
                self.proxy.loop_lag_seconds = max(samples)


AccessLogInForce = tuple[Callable[..., str], LogWriter] | None


def _open_log(path: str, on_trouble: Callable[[str], None] | None = None) -> LogWriter:
    writer = LogWriter(path, on_trouble)
    try:
        writer.open()
    except OSError as error:
        raise StartError(
            f"cannot write the log {path}: {error.strerror}; create its directory or change the path"
        ) from None
    return writer


def _bind_all(config: Config) -> list[socket.socket]:
    bound: list[socket.socket] = []
    addresses = [address for address in config.listen if isinstance(address, ListenAddress)]
    try:
        for address in addresses:
            bound.append(bind(address))
    except OSError as error:
        for sock in bound:
            sock.close()
        in_use = error.errno == errno.EADDRINUSE
        hint = f"; see who holds it: ss -ltnp 'sport = :{address.port}'" if in_use else ""
        raise StartError(f"cannot listen on {address}: {error.strerror or error}{hint}") from None
    return bound


def _tls_context(config: Config) -> ssl.SSLContext | None:
    """The context for the certificate files as they are now. Raises StartError."""
    tls = config.server_tls
    if tls is None:
        return None
    try:
        return server_context(tls)
    except OSError as error:
        raise StartError(f"tls: cannot use {tls.cert.file} with {tls.key.file}: {error}") from None


def _described(config: Config) -> dict[str, object]:
    names = [exporter.name for exporter in config.exporters]
    shown = ",".join(names[:NAMES_IN_LOG]) + (",..." if len(names) > NAMES_IN_LOG else "")
    return {"exporters": len(names), "names": shown}


async def _close_all(transports: list[httpx.AsyncBaseTransport]) -> None:
    for transport in transports:
        await transport.aclose()


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
        # Reloads come one at a time; the default would start a thread now and then up to six.
        # uvloop resolves names in threads of its own.
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1, thread_name_prefix="reload"))
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
