"""Runs a program and takes what it prints for the exporter's page.

No shell, no arguments but those of the configuration, a process group and session of its own. What
runs too long, prints too much or is waited for by nobody gets SIGTERM and, a second later, SIGKILL,
it and all of its group. A child that leaves the group is out of reach: it is held by the limits of
the daemon's unit (TasksMax, MemoryMax) and ends with it.

A process is watched by its pidfd and waited for only once its group has been killed: until then
nobody else can get its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator

import httpx

from exporter_proxy.config.schema import CommandSource, Exporter
from exporter_proxy.reasons import Reason, ScrapeError, printable
from exporter_proxy.threads import NoThread, Threads
from exporter_proxy.upstreams.messages import TEXT_CONTENT_TYPE, ScrapeRequest, ScrapeResponse
from exporter_proxy.upstreams.redacted import redacted

GRACE_SECONDS = 1.0
"""Between SIGTERM and SIGKILL; and from a command's exit to the end of what its children print."""
STOP_SECONDS = 2 * GRACE_SECONDS
"""How long a stop waits for those that are being killed; longer is no use."""

_READ_BYTES = 1 << 16
_STDERR_BYTES = 4096
_STDERR_LINES = 3
_STDERR_READS = 4
"""What a pipe usually holds at its most, when the command is gone; a child of it may still be writing."""
_EXCERPT_CHARACTERS = 300


class CommandUpstream(httpx.AsyncBaseTransport):
    """The transport of one exporter that is a command. There are never more than ``max_concurrent`` runs.

    Raises ScrapeError from ``handle_async_request`` and from reading the response's stream:
    ``command_failed``, ``too_large``.
    """

    def __init__(self, exporter: Exporter) -> None:
        assert exporter.command is not None
        self._source = exporter.command
        self._max_bytes = exporter.max_response_bytes
        self._max_runs = exporter.max_concurrent
        self._threads = Threads(exporter.max_concurrent, f"start of {exporter.name}")
        self._runs: set[Run] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Run it, and return once it prints something or has ended well; for a HEAD, once it has ended."""
        while len(self._runs) >= self._max_runs:  # one that is being killed still counts
            await asyncio.wait([run.ended for run in self._runs], return_when=asyncio.FIRST_COMPLETED)
        run = Run(self._source, self._threads)
        self._runs.add(run)
        run.ended.add_done_callback(lambda _: self._runs.discard(run))
        output = CommandOutput(run, self._max_bytes, request)
        try:
            started = time.monotonic()
            await run.start()
            if isinstance(request, ScrapeRequest):
                request.exchange.connect_seconds = time.monotonic() - started
            await output.open()
        except BaseException:
            run.abandon()
            raise
        return ScrapeResponse(200, [(b"Content-Type", TEXT_CONTENT_TYPE)], output)

    async def aclose(self) -> None:
        """Wait a little for runs that are being killed; those that go on end by themselves."""
        if self._runs:
            await asyncio.wait([run.ended for run in self._runs], timeout=STOP_SECONDS)


class CommandOutput(httpx.AsyncByteStream):
    """What one run prints. Its end is told only if the command ended well."""

    def __init__(self, run: Run, max_bytes: int, request: httpx.Request) -> None:
        self._run = run
        self._max_bytes = max_bytes
        self._is_head = request.method == "HEAD"
        self._exchange = request.exchange if isinstance(request, ScrapeRequest) else None
        self._first = b""
        self._received_bytes = 0

    async def open(self) -> None:
        """Have the first of it; of a HEAD, which gets nothing of it, all."""
        self._first = await self._next()
        while self._is_head and self._first:
            self._first = await self._next()
        if self._is_head and self._exchange is not None:
            self._exchange.received_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        part, self._first = self._first, b""
        while part:
            yield part
            part = await self._next()

    async def aclose(self) -> None:
        """Nobody wants the rest."""
        self._run.abandon()

    async def _next(self) -> bytes:
        part = await self._run.read()
        if not part:
            await self._run.finish()
            return b""
        self._received_bytes += len(part)
        if self._exchange is not None:
            self._exchange.received_bytes = self._received_bytes
        if self._received_bytes > self._max_bytes:
            raise ScrapeError(
                Reason.TOO_LARGE,
                f"{self._run.backend} printed more than {self._max_bytes} bytes, over max_response_bytes "
                "and so it was ended; raise it or print less",
            )
        return part


class Run:
    """One process: ``start``, ``read`` until there is no more, ``finish``; or ``abandon`` at any time."""

    def __init__(self, source: CommandSource, threads: Threads) -> None:
        self._source = source
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self.backend = source.backend
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done once the process is gone and waited for, and its pipes are closed."""
        self._began = time.monotonic()
        self._starting: asyncio.Task[None]
        self._start_error: ScrapeError | None = None
        self._process: subprocess.Popen[bytes]
        self._pidfd = self._stdout = self._stderr = -1
        self._last_of_stderr = b""
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._readable: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_grace_over = False
        self._is_abandoned = False

    async def start(self) -> None:
        """Start the process. Raises ScrapeError."""
        self._starting = self._loop.create_task(self._start())
        # A start cannot be taken back: cancelled, the process is still seen to.
        await asyncio.shield(self._starting)
        if self._start_error is not None:
            raise self._start_error

    async def read(self) -> bytes:
        """The next of what it prints; empty at the end, which also comes a while after its exit."""
        while True:
            try:
                part = os.read(self._stdout, _READ_BYTES)
            except BlockingIOError:
                if self._is_grace_over:
                    return b""
                await self._wait_for_output()
                continue
            await asyncio.sleep(0)  # one that prints without end must not keep others from their turn
            return part

    async def finish(self) -> None:
        """Wait for its exit and clean up. Raises ScrapeError unless it ended with status 0."""
        await asyncio.shield(self._exited)
        status = self._end()
        if status == 0:
            return
        how = f"exited with status {status}" if status > 0 else f"was ended by {_signal_name(-status)}"
        excerpt = _last_lines(
            redacted(self._last_of_stderr.decode("utf-8", "backslashreplace"), self._source)
        )
        silent = "" if excerpt else ", and said nothing on stderr"
        took_ms = (time.monotonic() - self._began) * 1000
        raise ScrapeError(
            Reason.COMMAND_FAILED, f"{self.backend} {how} after {took_ms:.0f} ms{silent}", excerpt
        )

    def abandon(self) -> None:
        """Have it ended, with SIGTERM first; returns at once."""
        if self._is_abandoned or self.ended.done():
            return
        self._is_abandoned = True
        if self._pidfd >= 0:
            self._terminate()

    async def _start(self) -> None:
        try:
            self._pidfd = await self._threads.run(self._spawn)
        except (OSError, NoThread, subprocess.SubprocessError) as error:
            self._start_error = ScrapeError(Reason.COMMAND_FAILED, self._start_advice(error))
            self.ended.set_result(None)
            return
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdout, self._stderr = self._process.stdout.fileno(), self._process.stderr.fileno()
        self._loop.add_reader(self._stderr, self._read_stderr)
        self._loop.add_reader(self._pidfd, self._on_exit)
        if self._is_abandoned:
            self._terminate()

    def _spawn(self) -> int:
        """In a thread: a program on a file system that hangs takes as long to start. Gives the pidfd.

        The process itself is not handed over: asyncio's debug mode logs results, and its ``repr`` has
        the arguments.
        """
        source = self._source
        process = subprocess.Popen(  # noqa: S603 - what the configuration says, without a shell
            [source.program, *source.arguments],
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=source.working_dir,
            env=dict(source.env),
            start_new_session=True,
        )
        try:
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
            self._process = process
            return os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.communicate()
            raise

    def _start_advice(self, error: Exception) -> str:
        if isinstance(error, BlockingIOError | NoThread):
            return f"cannot start {self._source.program}: {error}; raise exporter_proxy's TasksMax"
        if isinstance(error, OSError) and error.strerror:
            what = f"{error.filename}: " if error.filename not in (None, self._source.program) else ""
            return f"cannot start {self._source.program}: {what}{error.strerror}; can its user run it?"
        return f"cannot start {self._source.program}: {error}"

    async def _wait_for_output(self) -> None:
        self._readable = readable = self._loop.create_future()
        self._loop.add_reader(self._stdout, _wake, readable)
        try:
            await readable
        finally:
            self._readable = None
            if not self.ended.done():
                self._loop.remove_reader(self._stdout)

    def _read_stderr(self) -> None:
        try:
            part = os.read(self._stderr, _READ_BYTES)
        except BlockingIOError:
            return
        self._last_of_stderr = (self._last_of_stderr + part)[-_STDERR_BYTES:]
        if not part:
            self._loop.remove_reader(self._stderr)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._is_abandoned:
            self._end()
            return
        self._exited.set_result(None)
        self._timer = self._loop.call_later(GRACE_SECONDS, self._on_grace_over)

    def _on_grace_over(self) -> None:
        """It has exited, and a child of it still holds its output open."""
        self._signal(signal.SIGKILL)
        self._is_grace_over = True
        if self._readable is not None:
            _wake(self._readable)

    def _terminate(self) -> None:
        if self._exited.done():
            self._end()
            return
        self._signal(signal.SIGTERM)
        self._timer = self._loop.call_later(GRACE_SECONDS, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # PermissionError: it runs as somebody else by now (sudo) and ends when it wants to.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _end(self) -> int:
        """Leave nothing of a process that has exited: neither group, zombie nor descriptors; its status."""
        if self._timer is not None:
            self._timer.cancel()
        self._signal(signal.SIGKILL)
        status = self._process.wait()
        for _ in range(_STDERR_READS):
            self._read_stderr()
        for descriptor in (self._stdout, self._stderr):
            self._loop.remove_reader(descriptor)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        os.close(self._pidfd)
        self.ended.set_result(None)
        return status


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a realtime signal
        return f"signal {number}"


def _last_lines(text: str) -> str:
    """The last lines that were printed, in one and fit to be shown."""
    lines = [line.strip() for line in text.splitlines()]
    text = " | ".join([printable(line) for line in lines if line][-_STDERR_LINES:])
    return text if len(text) <= _EXCERPT_CHARACTERS else f"...{text[3 - _EXCERPT_CHARACTERS :]}"
