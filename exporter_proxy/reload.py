"""From a configuration to what runs, and from what runs to what a changed file says.

Everything new is built beside the running configuration and swapped in whole; whatever goes
wrong changes nothing. A reload reads the configuration anew; a refresh reads only the files
that it names, certificates and credentials, when they have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import resource
import ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import httpx

from exporter_proxy.config import Config, ConfigError, config_warnings
from exporter_proxy.config.files import refreshed, stamps, watched_files
from exporter_proxy.config.validity import certificate_expiries
from exporter_proxy.front.auth import Guard
from exporter_proxy.front.tls import server_context, why_unusable
from exporter_proxy.observe.accesslog import access_log_formatter
from exporter_proxy.observe.daemonlog import DaemonLog
from exporter_proxy.observe.logwriter import LogWriter
from exporter_proxy.proxy import AccessLogInForce, Proxy, PushProxInForce, ReloadState, Running
from exporter_proxy.scrape.routing import build_routes
from exporter_proxy.systemd import Notifier
from exporter_proxy.threads import NoThread, in_thread
from exporter_proxy.upstreams import make_upstream
from exporter_proxy.upstreams.credentials import client_context, read_credentials

STDERR = "/dev/stderr"
STDOUT = "/dev/stdout"
WATCH_SECONDS = 1.0
"""How often the files are looked at; a change is acted on once they have been quiet for as long."""
LONGEST_BUILD_SECONDS = 10.0
"""A thousand routes take less than one. What takes longer hangs, in a file."""
NAMES_IN_LOG = 20
CLOSED_AT_ONCE = 50
ROUTES_TO_WALK = 300
"""In a collection of garbage, besides what there is anyway. It takes up to 10 ms."""

T = TypeVar("T")
LoadConfig = Callable[[], Awaitable[Config]]


class StartError(Exception):
    """The daemon cannot start; the message is the one line that says why."""


def build_running(config: Config, log: DaemonLog, previous: Running | None = None) -> Running:
    """Everything that ``config`` needs at run time. Raises ConfigError and StartError."""
    files = stamps(watched_files(config))  # before they are read: what changes meanwhile is noticed
    config = refreshed(config)  # its web config was read earlier, a second ago where there are many exporters
    tls = _tls_context(config)
    guard = Guard.of(config, previous.guard if previous is not None else None)
    pushprox = _pushprox(config)
    routes = build_routes(config, make_upstream, previous.routes if previous is not None else None)
    access_log = _open_access_log(config, log, previous.access_log if previous is not None else None)
    expiries = certificate_expiries(config)
    return Running(config, routes, access_log, tls, guard, files, expiries, pushprox)


class Reloader:
    """Keeps ``proxy`` in step with its configuration; one reload or refresh at a time."""

    def __init__(self, proxy: Proxy, load: LoadConfig, log: DaemonLog, systemd: Notifier) -> None:
        self._proxy = proxy
        self._load = load
        self._log = log
        self._systemd = systemd
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[tuple[str, ...]] | None = None
        """The reload that has yet to begin, waiting for the lock."""
        self.when_in_force: Callable[[Running], None] = lambda running: None
        """Told of each configuration that has come into force."""
        self._background: set[asyncio.Task[Any]] = set()

    async def reload(self) -> tuple[str, ...]:
        """Load, validate and build, then swap in one assignment; any failure changes nothing.

        Returns the problems, empty where the new configuration is in force. One that has begun is
        finished, even if whoever asked for it leaves: its files are being opened in a thread. One that
        has yet to begin is for all who ask until then.
        """
        if self._next is None or self._next.done():
            self._next = self._spawn(self._reload())
        return await asyncio.shield(self._next)

    async def _reload(self) -> tuple[str, ...]:
        async with self._lock, self._systemd.during_reload():
            self._next = None
            proxy, old = self._proxy, self._proxy.running.config
            problems = await self._replace(self._load)
            if problems:
                proxy.reload_state = ReloadState(False, proxy.reload_state.last_success, problems)
                for problem in problems:
                    self._log.error("config not reloaded, the old one stays in force", problem=problem)
                return problems
            proxy.reload_state = ReloadState()
            proxy.refresh_problems = ()
            config = proxy.running.config
            self._attempt(log_warnings, proxy, config)
            if config.listen != old.listen:
                listen = ",".join(map(str, config.listen))
                self._log.warning("listen changed: restart to listen there", listen=listen)
            self._log.info("config reloaded", **described(config))
            return ()

    async def watch(self) -> None:
        """Refresh whenever a file that the configuration names has changed; until cancelled.

        Certificate and key are two files: what is seen between the one and the other being
        written is no reason to complain yet.
        """
        running: Running | None = None
        known = seen = {}
        while True:
            if self._proxy.running is not running:
                running = self._proxy.running
                known = seen = running.files
            await asyncio.sleep(WATCH_SECONDS)
            try:
                now = await in_thread(stamps, tuple(known))
            except NoThread:
                continue
            if now != known and now == seen and self._proxy.running is running:
                await self._refresh(sorted(path for path in now if now[path] != known[path]))
                known = now
            seen = now

    async def _refresh(self, changed: list[str]) -> None:
        async with self._lock:
            proxy = self._proxy
            config = proxy.running.config

            async def the_same() -> Config:
                return config

            proxy.refresh_problems = await self._replace(the_same)
            for problem in proxy.refresh_problems:
                self._log.error("changed files not used, what was read before stays in use", problem=problem)
            if not proxy.refresh_problems:
                self._log.info("changed files are in use", files=",".join(changed))

    async def _replace(self, load: LoadConfig) -> tuple[str, ...]:
        """Put what ``load`` gives in force; the problems where that cannot be."""
        try:
            running = await self._build(load)
        except (ConfigError, StartError) as error:
            return tuple(str(error).splitlines())
        except NoThread as error:
            return (f"nothing was read: {error}; raise exporter_proxy's TasksMax",)
        except Exception as error:
            self._log.defect(error)
            return (f"a defect in exporter_proxy: {error!r}",)
        self._put_in_force(running)
        return ()

    async def _build(self, load: LoadConfig) -> Running:
        """Everything a new configuration needs, beside the running one.

        In threads. Raises ConfigError and StartError.
        """
        previous = self._proxy.running
        # What is garbage now would be frozen with the rest, and never be collected; and so would what has
        # become garbage since it was frozen, which is looked for where that holds nobody up.
        if len(previous.routes.routes) <= ROUTES_TO_WALK:
            gc.unfreeze()
        gc.collect()
        with _beside_scrapes():
            running = await in_thread(build_running, await load(), self._log, previous)
        try:
            await self._reopen_error_log(running.config)
        except Exception:
            new, old = running.access_log, previous.access_log
            if new is not None and (old is None or new[1] is not old[1]):
                new[1].close()
            raise
        return running

    def _put_in_force(self, running: Running) -> None:
        old = self._proxy.running
        self._proxy.replace(running)
        kept = set(running.routes.routes)
        retired = [route.transport for route in old.routes.routes if route not in kept]
        self._spawn(close_all(retired, self._log))
        self._attempt(self.when_in_force, running)
        self._attempt(self._proxy.close_log_of, old)

    async def _reopen_error_log(self, config: Config) -> None:
        writer = self._log.writer
        path = config.error_log_path or STDERR
        if writer.path == path:
            writer.reopen()
        else:
            self._log.writer = await in_thread(open_log, path)
            self._attempt(self._proxy.close_log, writer)

    def _attempt(self, step: Callable[..., object], *args: object) -> None:
        """What fails after a configuration has come into force is told, and leaves nothing else undone."""
        try:
            step(*args)
        except Exception as error:
            self._log.defect(error)

    def _spawn(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.defect(error)


@contextlib.contextmanager
def _beside_scrapes() -> Iterator[None]:
    """Threads hand over to the event loop ten times as often as usual, and no garbage is collected.

    A thousand routes are a hundred thousand objects, and a collection walks them all while every scrape
    waits. But a file on a mount that is gone is read for ever, and scrapes make garbage, too.
    """
    usual_interval = sys.getswitchinterval()

    def as_usual() -> None:
        sys.setswitchinterval(usual_interval)
        gc.enable()

    gc.disable()
    sys.setswitchinterval(usual_interval / 10)
    timer = asyncio.get_running_loop().call_later(LONGEST_BUILD_SECONDS, as_usual)
    try:
        yield
        # Where it can be collected again, the next object allocated has a collection walk all that was built.
        gc.freeze()
    finally:
        timer.cancel()
        as_usual()


def open_log(path: str, on_trouble: Callable[[str], None] | None = None) -> LogWriter:
    """A writer whose file is open. Raises StartError."""
    writer = LogWriter(path, on_trouble)
    try:
        writer.open()
    except OSError as error:
        raise StartError(
            f"cannot write the log {path}: {error.strerror}; create its directory or change the path"
        ) from None
    return writer


def _open_access_log(config: Config, log: DaemonLog, current: AccessLogInForce) -> AccessLogInForce:
    """The access log of ``config``; the writer in use goes on where the path is the same."""
    if config.access_log is None:
        return None
    path = config.access_log.path or STDOUT
    if current is not None and current[1].path == path:
        current[1].reopen()
        return access_log_formatter(config.access_log), current[1]
    trouble = functools.partial(log.error, "access log")
    return access_log_formatter(config.access_log), open_log(path, lambda text: trouble(problem=text))


def _tls_context(config: Config) -> ssl.SSLContext | None:
    """The context for the certificate files as they are now. Raises StartError."""
    tls = config.server_tls
    if tls is None:
        return None
    try:
        return server_context(tls)
    except OSError as error:
        raise StartError(f"tls: {why_unusable(tls) or error}") from None


def _pushprox(config: Config) -> PushProxInForce | None:
    """What the ``pushprox`` section says, with its files as they are now. Raises ConfigError."""
    section = config.pushprox
    if section is None:
        return None
    # Read from its files here, in a reload's thread; most hosts can be reached and never need it.
    import exporter_proxy.pushprox  # noqa: F401, PLC0415

    try:
        credentials = read_credentials(section)
        is_tls = any(url.scheme == "https" for url in section.proxies)
        context = client_context(section, credentials) if is_tls else None
    except ConfigError as error:
        raise ConfigError([replace(problem, source=config.source) for problem in error.problems]) from None
    return PushProxInForce(section, credentials, context)


def log_warnings(proxy: Proxy, config: Config) -> None:
    """One line for each thing to reconsider about a configuration that has come into force."""
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    max_descriptors = None if soft_limit == resource.RLIM_INFINITY else soft_limit
    for warning in config_warnings(config, proxy.front.passed_addresses, max_descriptors):
        proxy.log.warning(warning)


def described(config: Config) -> dict[str, object]:
    """How many exporters there are, and their names, for a log line."""
    names = [exporter.name for exporter in config.exporters]
    shown = ",".join(names[:NAMES_IN_LOG]) + (",..." if len(names) > NAMES_IN_LOG else "")
    return {"exporters": len(names), "names": shown}


async def close_all(transports: list[httpx.AsyncBaseTransport], log: DaemonLog) -> None:
    """Close what exporters were asked through; none waits for another's command that is being ended."""
    closing: list[asyncio.Task[None]] = []
    for start in range(0, len(transports), CLOSED_AT_ONCE):
        some = transports[start : start + CLOSED_AT_ONCE]
        closing += [asyncio.create_task(one.aclose()) for one in some]
        await asyncio.sleep(0)  # a thousand in one turn of the loop would hold it for 20 ms
    for outcome in await asyncio.gather(*closing, return_exceptions=True):
        if isinstance(outcome, Exception):
            log.defect(outcome)
