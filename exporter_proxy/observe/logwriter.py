"""Writes log lines without ever holding up a scrape: a full disk costs lines, not scrapes.

The event loop only appends to a list; a thread does the writing, since a write to a full
pipe, a slow disk or a dead mount blocks for as long as it likes. What cannot be written is
counted, and said once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

MAX_BACKLOG_BYTES = 8 << 20
"""What waits for a stuck disk, some 30,000 lines; beyond that lines are lost and counted."""
BYTES_PER_LINE = 64
"""What a line takes in memory beside its characters, about."""
FLUSH_INTERVAL_SECONDS = 0.1
CHECK_INTERVAL_SECONDS = 1.0

_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}


class LogWriter:
    """One log file or inherited stream. Safe to write to from any thread.

    ``path`` is a file, appended to; ``/dev/stdout`` and ``/dev/stderr`` mean the inherited
    descriptors, since opening those paths fails where they are sockets, as under systemd.
    ``on_trouble`` is told, in the writing thread, when lines start to be lost and when
    writing works again.
    """

    def __init__(self, path: str, on_trouble: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._on_trouble = on_trouble
        self._stream_fd = _STREAMS.get(path)
        self._fd = -1 if self._stream_fd is None else self._stream_fd
        self._pending: list[tuple[Callable[[Any], str], object]] = []
        self._queue: SimpleQueue[tuple[list[str], int] | None] = SimpleQueue()
        """Lines and what they take of the backlog."""
        # What any thread may change is changed under the lock. It is one that its holder can take again:
        # a collection of garbage amid a line may well log one of its own.
        self._lock = threading.RLock()
        self._queued_bytes = 0
        self._lost_before_queue = 0
        # These are the writing thread's own.
        self._finished_bytes = 0
        self._lost_in_writing = 0
        self._reopen = threading.Event()
        self._trouble = ""
        self._in_mid_line = False
        self._next_check = 0.0
        self._thread: threading.Thread | None = None

    @property
    def lost_lines(self) -> int:
        """Lines that were given to this writer and never reached their file."""
        return self._lost_before_queue + self._lost_in_writing

    def open(self) -> None:
        """Open the file now, so that a bad path is an error at start and not a lost line.

        Raises OSError.
        """
        if self._stream_fd is None and self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def write(self, line: str) -> None:
        """Hand one line (with its newline) to the thread at once."""
        self._enqueue([line])

    def write_soon(self, line: Callable[[T], str], of: T, loop: asyncio.AbstractEventLoop) -> None:
        """Hand over the line that ``line`` makes of ``of`` within 0.1 s. Loop thread only.

        It is made then, together with its neighbours, and ``of`` may not change until then.
        Waking a thread for each line would cost more than the line, and so would making it amid
        a scrape, where nothing that it takes is in the CPU's caches.
        """
        self._pending.append((line, of))
        if len(self._pending) == 1:
            loop.call_later(FLUSH_INTERVAL_SECONDS, self._hand_over)

    def reopen(self) -> None:
        """Open the path anew, for logrotate, and let go of the file that was open."""
        self._reopen.set()
        if self._thread is not None:
            self._queue.put(([], 0))

    def close(self, timeout_seconds: float = 1.0) -> None:
        """Write what is pending, waiting at most ``timeout_seconds`` for it, and close the file.

        A thread that hangs in a write keeps the file: its descriptor would be another one's by the time
        that it goes on.
        """
        self._hand_over()
        if self._thread is None:
            self._close_file()
        else:
            self._queue.put(None)
            self._thread.join(timeout_seconds)
            if not self._thread.is_alive():
                self._thread = None

    @property
    def is_closed(self) -> bool:
        """Whether, after ``close``, no line is being written any more."""
        return self._thread is None or not self._thread.is_alive()

    def _hand_over(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            self._enqueue([line(of) for line, of in pending])

    def _enqueue(self, lines: list[str]) -> None:
        with self._lock:
            if not self._has_thread():
                self._lost_before_queue += len(lines)
                return
            room = MAX_BACKLOG_BYTES - (self._queued_bytes - self._finished_bytes)
            taken, size = len(lines), _size_bytes(lines)
            while size > room:
                taken -= 1
                size -= _size_bytes(lines[taken : taken + 1])
            self._lost_before_queue += len(lines) - taken
            self._queued_bytes += size
            self._queue.put((lines[:taken], size))

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=f"log {self.path}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there can be no further thread; perhaps there can when the next line comes
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while (queued := self._queue.get()) is not None:
            lines, size = queued
            written = 0
            try:
                self._open_again_if_needed()
                for complete in self._write_lines(lines):
                    written = complete
            except OSError as error:
                self._lost_in_writing += len(lines) - written
                self._say(f"cannot write {self.path}: {error.strerror}; log lines are being lost")
            else:
                if lines:
                    self._say("")
            self._finished_bytes += size
        self._close_file()

    def _close_file(self) -> None:
        if self._stream_fd is None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_again_if_needed(self) -> None:
        """Follow the path: a rotated, deleted or unmounted file is left for the one now there."""
        now = time.monotonic()
        if self._stream_fd is not None or (
            self._fd >= 0 and now < self._next_check and not self._reopen.is_set()
        ):
            return
        self._next_check = now + CHECK_INTERVAL_SECONDS
        is_same = self._fd >= 0 and _is_same_file(self._fd, self.path)
        if self._reopen.is_set() or not is_same:
            self._close_file()
        self._in_mid_line = self._in_mid_line and is_same
        self._reopen.clear()
        self.open()

    def _write_lines(self, lines: list[str]) -> Iterator[int]:
        """Write everything; yields how many lines are complete after each partial write."""
        text = "".join(lines)
        data = memoryview(("\n" + text if self._in_mid_line else text).encode("utf-8", "backslashreplace"))
        skipped = 1 if self._in_mid_line else 0
        done = 0
        while done < len(data):
            done += os.write(self._fd, data[done:])
            # A disk that fills up in mid-line leaves half a line; the next write must not go on in it.
            self._in_mid_line = data[done - 1] != 0x0A
            yield bytes(data[:done]).count(b"\n") - skipped

    def _say(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        if self._on_trouble is not None:
            self._on_trouble(trouble or f"writing {self.path} works again")
        self._trouble = trouble


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))  # noqa: PTH116 - beside os.fstat
    except FileNotFoundError:
        return False


def _size_bytes(lines: list[str]) -> int:
    return sum(map(len, lines)) + BYTES_PER_LINE * len(lines)
