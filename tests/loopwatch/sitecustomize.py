"""Watches the event loop of a daemon under test from inside its process, and writes down what held it.

Python runs this at the start of every process that has this directory in PYTHONPATH; the product knows
nothing of it. From the first turn of the loop after it has begun to listen, three things are written to
the file that ``LOOPWATCH`` names, each a line of JSON with the place in the code:

- a callback of more than 20 ms: CPU time of the loop's own thread, so that a busy machine does not matter,
  without garbage collections and without the stacks that asyncio's debug mode, which a test sets, keeps of
  each task and timer;
- a system call other than the loop's own waiting in which that thread sleeps for more than 20 ms: the same
  call with the same count of voluntary switches, sample after sample (who waits for the interpreter's lock
  wakes every 5 ms, or has handed it to a thread that has yet to be given a CPU, or is between two turns);
- a call that blocks for as long as a disk, a resolver or another process likes (opening a file, looking up
  a name, sleeping, starting a program), however short it was this time.

What is seen of asyncio's loop is all that it calls. uvloop calls from C: of it, all that is scheduled
(tasks, timers, readers, signals) and what transports call of their protocols is seen, but not TLS itself.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

HELD_SECONDS = 0.02
SAMPLE_SECONDS = 0.004
ASLEEP_SAMPLES = 3
MAX_REPORTS = 20

POLLS = frozenset((b"232", b"281", b"441") if os.uname().machine == "x86_64" else (b"22", b"441"))
"""epoll_wait, epoll_pwait, epoll_pwait2: the loop waiting for its turn."""
NO_CALL = frozenset(
    (b"running", b"-1", *((b"41", b"288") if os.uname().machine == "x86_64" else (b"198", b"242")))
)
"""On a CPU or waiting for one; for a page of memory; in socket() or accept4(), which wait for nobody outside.

Where the table of descriptors has to grow, the kernel lets all other CPUs come round first.
"""

FUTEX = b"202" if os.uname().machine == "x86_64" else b"98"

BLOCKING_EVENTS = frozenset(
    (
        *("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod"),
        *("os.chown", "os.link", "os.symlink", "os.truncate", "fcntl.flock", "fcntl.lockf"),
        *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"),
        *("time.sleep", "subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"),
    )
)
"""Of Python's audit events, those of calls that wait for something outside."""
_OF_PATHS = frozenset(("open", "os.listdir", "os.scandir"))
IN_MEMORY = ("/proc/", "/sys/", "/dev/null")
ALLOWED = {
    "FrameSummary.line": "a traceback's lines: of a defect, or in asyncio's debug mode",
    "Bound.close": "a unix socket's file, where a stop begins: one name, in a directory that had room for it",
    "Thread.start": "it returns at the new thread's first step: a matter of the scheduler, not of a call",
    "Runner.close": "the loop has stopped",
    "_python_exit": "the loop has stopped",
    "Daemon.close_logs": "the last thing done: nobody is served any more, and the log's last lines count",
}
"""Functions that may hold the loop, with the reason."""

PROTOCOL_METHODS = (
    *("connection_made", "data_received", "eof_received", "connection_lost"),
    *("pause_writing", "resume_writing", "get_buffer", "buffer_updated"),
)


class Watch:
    """Of one process. The loop's thread counts turns, a thread of the watch's own samples."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._found: deque[dict[str, object]] = deque()
        self._told: set[str] = set()
        # It is the main thread. Not threading.main_thread(), which in a child has its parent's native_id.
        self._loop_ident = threading.get_ident()
        self._loop_native_id = threading.get_native_id()
        # From the start: tests count the descriptors of a daemon.
        directory = f"/proc/self/task/{self._loop_native_id}"
        self._call_file = os.open(f"{directory}/syscall", os.O_RDONLY | os.O_CLOEXEC)
        self._status_file = os.open(f"{directory}/status", os.O_RDONLY | os.O_CLOEXEC)
        self._is_on = False
        self._turn = 0
        """Odd while a callback runs."""
        self._began = 0.0
        """When that one did, on its thread's CPU clock."""
        self._collecting_since = 0.0
        self._stack: tuple[int, list[str]] = (0, [])
        """Where the callback of that turn stood when it had run for long."""

    def turn_on(self, loop: str) -> None:
        """From now on."""
        if self._is_on:
            return
        self._found.append({"watching": loop})
        gc.callbacks.append(self._on_collection)
        sys.addaudithook(self._on_audit_event)
        threading.Thread(target=self._sample, name="loopwatch", daemon=True).start()
        atexit.register(self._write)
        self._is_on = True

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``, one turn of the loop; within another one it is a part of that."""
        if not self._is_on or self._turn & 1:
            return function(*args)
        self._began = time.thread_time()
        self._turn += 1
        turn = self._turn
        try:
            return function(*args)
        finally:
            self._turn += 1
            held = time.thread_time() - self._began
            if held > HELD_SECONDS:
                seen_at, stack = self._stack
                self._tell(
                    f"held for {held * 1000:.0f} ms of CPU time by {_name(function, args)}",
                    stack if seen_at == turn else [],
                )

    # In the loop's thread

    def _on_collection(self, phase: str, info: object) -> None:
        if threading.get_ident() != self._loop_ident:
            return
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self._began += time.thread_time() - self._collecting_since

    def extract(self, extract: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """``StackSummary.extract``, whose time does not count."""
        if threading.get_ident() != self._loop_ident:
            return extract(*args, **options)
        since = self._began, time.thread_time()
        try:
            return extract(*args, **options)
        finally:
            # A collection within it has been left out already.
            self._began += time.thread_time() - since[1] - (self._began - since[0])

    def _on_audit_event(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in BLOCKING_EVENTS or threading.get_ident() != self._loop_ident:
            return
        what = args[0] if args else ""
        if event in _OF_PATHS and (isinstance(what, int) or os.fsdecode(what).startswith(IN_MEMORY)):
            return
        self._tell(f"made to wait: {event} {what!a}", _stack_of(sys._getframe(1)))

    # In the watch's own thread

    def _sample(self) -> None:
        clock = time.pthread_getcpuclockid(self._loop_ident)
        asleep: tuple[bytes, bytes] | None = None
        since, seen = 0.0, 0
        while True:
            time.sleep(SAMPLE_SECONDS)
            self._write()
            self._note_stack(clock)
            # Before the sample: if that is of the same sleep, this is where it sleeps. Afterwards it may have
            # gone on.
            stack = self._loop_stack() if asleep else []
            call = os.pread(self._call_file, 256, 0)
            number = call.split(maxsplit=1)[0]
            if number in POLLS or number in NO_CALL or (number == FUTEX and self._waits_for_a_thread()):
                asleep = None
                continue
            sleep = call, _switches(os.pread(self._status_file, 4096, 0))
            if sleep != asleep:
                asleep, since, seen = sleep, time.monotonic(), 0
                continue
            seen += 1
            if seen >= ASLEEP_SAMPLES and time.monotonic() - since > HELD_SECONDS:
                self._tell(f"asleep in system call {number.decode()}", stack)
                asleep = None

    def _waits_for_a_thread(self) -> bool:
        """Whether, being in a lock, it waits for one that has yet to be given a CPU, not for what that does.

        Between two turns of the loop there is no lock but the interpreter's.
        """
        if not self._turn & 1:
            return True
        own = str(self._loop_native_id), str(threading.get_native_id())
        # Not threading.enumerate(), which lacks those about to begin and those about to end.
        for thread in Path("/proc/self/task").iterdir():
            if thread.name not in own:
                with contextlib.suppress(OSError):  # it may have ended
                    stat = (thread / "stat").read_bytes()
                    if stat.rpartition(b")")[2].split()[0] == b"R":
                        return True
        return False

    def _note_stack(self, clock: int) -> None:
        turn = self._turn
        if turn & 1 and self._stack[0] != turn and time.clock_gettime(clock) - self._began > HELD_SECONDS / 2:
            stack = self._loop_stack()
            if self._turn == turn:
                self._stack = turn, stack

    def _loop_stack(self) -> list[str]:
        return _stack_of(sys._current_frames()[self._loop_ident])

    # In either

    def _tell(self, what: str, stack: list[str]) -> None:
        if any(f"in {name}\n" in entry for entry in stack for name in ALLOWED):
            return
        where = stack[-1] if stack else what
        if where not in self._told and len(self._told) < MAX_REPORTS:
            self._told.add(where)
            self._found.append({"what": what, "stack": stack})

    def _write(self) -> None:
        while self._found:
            os.write(self._file, json.dumps(self._found.popleft()).encode() + b"\n")


def _switches(status: bytes) -> bytes:
    return status.partition(b"\nvoluntary_ctxt_switches:")[2].partition(b"\n")[0]


def _stack_of(frame: FrameType | None) -> list[str]:
    """The innermost twelve, as traceback prints them but with qualified names."""
    entries: list[str] = []
    for one, line in traceback.walk_stack(frame):
        code = one.f_code
        entries.append(f"{code.co_filename}:{line}, in {code.co_qualname}\n")
    return entries[:12][::-1]


def _name(function: Any, args: tuple[Any, ...]) -> str:
    if args and isinstance(args[0], asyncio.Handle):
        function = args[0]._callback  # type: ignore[attr-defined]  # the stubs lack it
    task = getattr(function, "__self__", None)
    return f"{task!a}" if isinstance(task, asyncio.Task) else f"{function!a}"


def _is_listening(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as one:
        return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _start_with(watch: Watch, loop: asyncio.AbstractEventLoop, descriptor: Any) -> None:
    """What is done before it listens, and while it begins to, is its own affair."""
    if isinstance(descriptor, int) and not watch._is_on and _is_listening(descriptor):
        loop.call_soon(watch.turn_on, type(loop).__name__)


def watch_asyncio(watch: Watch) -> None:
    """All callbacks of asyncio's loop go through one method."""
    run = asyncio.Handle._run

    def watched_run(self: asyncio.Handle) -> None:
        watch.call(run, self)

    asyncio.Handle._run = watched_run  # type: ignore[method-assign]
    base = asyncio.SelectorEventLoop.__mro__[1]
    add_reader: Callable[..., Any] = base.add_reader  # type: ignore[attr-defined]

    def watched_add_reader(self: asyncio.AbstractEventLoop, descriptor: Any, *call: Any) -> Any:
        _start_with(watch, self, descriptor)
        return add_reader(self, descriptor, *call)

    base.add_reader = watched_add_reader  # type: ignore[attr-defined]


def watch_uvloop(watch: Watch) -> None:
    """Each way for a callback into the loop, and each method that a transport calls."""
    import uvloop

    watched_classes: set[type] = set()

    def watched_protocol(make: Callable[[], Any]) -> Any:
        protocol = make()
        kind = type(protocol)
        if kind not in watched_classes:
            watched_classes.add(kind)
            for name in PROTOCOL_METHODS:
                if hasattr(kind, name):
                    setattr(kind, name, functools.partialmethod(watched_method, getattr(kind, name)))
        return protocol

    def watched_method(self: Any, method: Callable[..., Any], *args: Any) -> Any:
        return watch.call(method, self, *args)

    base: Any = uvloop.Loop  # whose signatures are no matter here

    class WatchedLoop(base):  # type: ignore[misc]  # for that reason
        def call_soon(self, *call: Any, context: Any = None) -> Any:
            return super().call_soon(watch.call, *call, context=context)

        def call_soon_threadsafe(self, *call: Any, context: Any = None) -> Any:
            return super().call_soon_threadsafe(watch.call, *call, context=context)

        def call_later(self, delay: float, *call: Any, context: Any = None) -> Any:
            return super().call_later(delay, watch.call, *call, context=context)

        def call_at(self, when: float, *call: Any, context: Any = None) -> Any:
            return super().call_at(when, watch.call, *call, context=context)

        def add_reader(self, descriptor: Any, *call: Any) -> Any:
            _start_with(watch, self, descriptor)
            return super().add_reader(descriptor, watch.call, *call)

        def add_signal_handler(self, number: int, *call: Any) -> Any:
            return super().add_signal_handler(number, watch.call, *call)

        async def create_connection(self, make: Any, *args: Any, **options: Any) -> Any:
            return await super().create_connection(lambda: watched_protocol(make), *args, **options)

        async def create_unix_connection(self, make: Any, *args: Any, **options: Any) -> Any:
            return await super().create_unix_connection(lambda: watched_protocol(make), *args, **options)

        async def connect_accepted_socket(self, make: Any, *args: Any, **options: Any) -> Any:
            return await super().connect_accepted_socket(lambda: watched_protocol(make), *args, **options)

    uvloop.new_event_loop = WatchedLoop


def _announce_sleeps() -> None:
    """As Python 3.13 does by itself."""
    sleep = time.sleep

    def announced_sleep(seconds: float) -> None:
        sys.audit("time.sleep", seconds)
        sleep(seconds)

    time.sleep = announced_sleep  # type: ignore[assignment]  # what has an __index__ is no matter here


def leave_out_stacks(watch: Watch) -> None:
    """Those that asyncio's debug mode keeps; ``traceback.extract_stack`` and asyncio's own end there."""
    extract = functools.partial(watch.extract, traceback.StackSummary.extract)
    traceback.StackSummary.extract = staticmethod(extract)  # type: ignore[method-assign]  # it was bound


def main() -> None:
    if sys.version_info < (3, 13):
        _announce_sleeps()
    watch = Watch(os.environ["LOOPWATCH"])
    leave_out_stacks(watch)
    if os.environ.get("EXPORTER_PROXY_LOOP") == "asyncio":
        watch_asyncio(watch)
    else:
        watch_uvloop(watch)


if "LOOPWATCH" in os.environ:
    main()
