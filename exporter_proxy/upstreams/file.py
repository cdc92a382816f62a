"""Reads an exposition from files: one, or all that match, as node_exporter's textfile collector does.

Whoever writes such a file writes another one beside it and renames it: a reader then finds the old
page or the new one, never half of one. What is in the files is judged and merged by
``scrape/files.py``.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from exporter_proxy.config.schema import Exporter, FileSource
from exporter_proxy.reasons import Reason, ScrapeError, printable
from exporter_proxy.threads import NoThread, Threads
from exporter_proxy.upstreams.messages import TEXT_CONTENT_TYPE, ScrapeRequest, ScrapeResponse

MAX_FILES = 1000
"""Each is a series of the own metrics; more are a mistake in the pattern, or in who should clean up."""

_READ_BYTES = 1 << 20
_READS_OF_A_FILE_THAT_CHANGES = 3
# A FIFO that took a file's place meanwhile must not hold up the open.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class ReadFile:
    """One file as it was at one moment."""

    path: str
    """Fit to be shown."""
    mtime_seconds: float
    """Unix time."""
    content: bytes


class FileContents(httpx.AsyncByteStream):
    """What the files say, one after the other. ``files`` may be empty: the answer to a HEAD."""

    def __init__(self, files: list[ReadFile]) -> None:
        self.files = files

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for file in self.files:
            yield file.content


class FileUpstream(httpx.AsyncBaseTransport):
    """The transport of one exporter whose page is in files.

    Raises ScrapeError: ``connect`` where there is nothing that can be read, ``stale``, ``too_large``.
    """

    def __init__(self, exporter: Exporter) -> None:
        assert exporter.file is not None
        self.mtimes_seconds: dict[str, float] = {}
        """Unix times by file, as the last scrape found them."""
        self._source = exporter.file
        self._max_bytes = exporter.max_response_bytes
        self._threads = Threads(exporter.max_concurrent, f"files of {exporter.name}")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Read all files whole, in a thread."""
        read = functools.partial(read_files, self._source, self._max_bytes)
        try:
            files = await self._threads.run(read)
        except NoThread as error:
            advice = f"cannot read {self._source.path}: {error}; raise exporter_proxy's TasksMax"
            raise ScrapeError(Reason.CONNECT, advice) from None
        except ScrapeError:
            self.mtimes_seconds = {}
            raise
        self.mtimes_seconds = {file.path: file.mtime_seconds for file in files}
        self._check_age(files)
        is_head = request.method == "HEAD"
        if isinstance(request, ScrapeRequest) and not is_head:
            request.exchange.received_bytes = sum(len(file.content) for file in files)
        return ScrapeResponse(
            200, [(b"Content-Type", TEXT_CONTENT_TYPE)], FileContents([] if is_head else files)
        )

    def _check_age(self, files: list[ReadFile]) -> None:
        max_age = self._source.max_age_seconds
        if max_age is None:
            return
        now = time.time()
        oldest = min(files, key=lambda file: file.mtime_seconds)
        age = now - oldest.mtime_seconds
        if age > max_age:
            others = sum(now - file.mtime_seconds > max_age for file in files) - 1
            and_others = f" (and {others} more)" if others else ""
            raise ScrapeError(
                Reason.STALE,
                f"{oldest.path}{and_others} was written {_span(age)} ago, over max_age ({_span(max_age)}); "
                "does what writes it still run?",
            )


def _span(seconds: float) -> str:
    """A time for people, in the largest unit of which there are two."""
    for unit, unit_seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_seconds:
            return f"{seconds // unit_seconds:.0f} {unit}"
    return f"{seconds:.3g} s"


def read_files(source: FileSource, max_bytes: int) -> list[ReadFile]:
    """All files of ``source`` in the order of their names; together they may have ``max_bytes``.

    Raises ScrapeError. May block for as long as the file system does.
    """
    inside = None if source.follow_symlinks else os.path.realpath(source.directory)
    files: list[ReadFile] = []
    left = max_bytes
    for path in _paths(source):
        try:
            file = _read(path, inside, left)
        except FileNotFoundError:
            if source.has_wildcards:
                continue  # gone since the directory was read
            raise _unreadable(path, "no such file; does what writes it run?") from None
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from None
        left -= len(file.content)
        if left < 0:
            raise ScrapeError(
                Reason.TOO_LARGE,
                f"{source.backend} has more than {max_bytes} bytes, over max_response_bytes; raise it or "
                "write less",
            )
        files.append(file)
    if not files:
        raise _unreadable(source.path, "no file matches; does what writes them run?")
    return files


def _paths(source: FileSource) -> list[str]:
    if not source.has_wildcards:
        return [source.path]
    try:
        names = os.listdir(source.directory)  # noqa: PTH208 - names are matched, and a Path for each costs
    except OSError as error:
        raise _unreadable(source.directory, error.strerror or str(error)) from None
    shows_hidden = source.name.startswith(".")  # as a shell has it: temporary files are often hidden ones
    found = [
        name
        for name in sorted(names)
        if fnmatch.fnmatchcase(name, source.name) and (shows_hidden or not name.startswith("."))
    ]
    if len(found) > MAX_FILES:
        advice = f"{len(found)} files match {source.path}, more than {MAX_FILES}; remove old ones"
        raise ScrapeError(Reason.TOO_LARGE, advice)
    directory = os.path.dirname(source.path)  # noqa: PTH120 - "" stays ""
    return [os.path.join(directory, name) for name in found]  # noqa: PTH118


def _read(path: str, inside: str | None, max_bytes: int) -> ReadFile:
    """The file, or a little more than ``max_bytes`` of it; raises OSError and ScrapeError.

    One that changes meanwhile, since it is not renamed into place, is read again.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - to open some devices is to use them
        raise _unreadable(path, "not a regular file")
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise _unreadable(path, "not a regular file")
        if inside is not None:
            _check_inside(path, descriptor, inside)
        for _ in range(_READS_OF_A_FILE_THAT_CHANGES):
            os.lseek(descriptor, 0, os.SEEK_SET)
            content = _read_all(descriptor, max_bytes)
            after = os.fstat(descriptor)
            if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                break
            before = after
    finally:
        os.close(descriptor)
    return ReadFile(shown(path), before.st_mtime_ns / 1e9, content)


def _read_all(descriptor: int, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = max_bytes
    while left >= 0 and (part := os.read(descriptor, min(_READ_BYTES, left + 1))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _check_inside(path: str, descriptor: int, directory: str) -> None:
    """Whether what is open is in ``directory``: its name is asked, for a link could be changed meanwhile."""
    actual = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - no file's name as others are
    if not actual.startswith(directory.rstrip("/") + "/"):
        raise _unreadable(path, "a symbolic link out of its directory (follow_symlinks: false)")


def _unreadable(path: str, why: str) -> ScrapeError:
    return ScrapeError(Reason.CONNECT, f"cannot read {shown(path)}: {why}")


def shown(path: str) -> str:
    """``path`` on one line and in valid UTF-8, whatever is in a file's name."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))
