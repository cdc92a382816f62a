"""``import``: exporter_exporter's configuration made ours, once, to standard output or a new file.

Reading it is for ``config/expexp.py``, writing ours for ``imported.py``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from exporter_proxy.config import ConfigError, Problem
from exporter_proxy.config.expexp import read_expexp
from exporter_proxy.imported import Imported, import_expexp

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o666
"""Less what the umask takes away."""


def read(paths: Sequence[str]) -> Imported:
    """The configuration for these files and directories of exporter_exporter. Raises ``ConfigError``."""
    return import_expexp(read_expexp(paths), paths)


def write(imported: Imported, file: str) -> str:
    """Write it to ``file``, which must not be there yet; one line that says what was done.

    Only the owner may read it where it may hold secrets. Raises ``ConfigError``, and then there is no file.
    """
    mode = PRIVATE_MODE if imported.may_hold_secrets else PUBLIC_MODE
    path = Path(file)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        message = "it exists already and is left as it is; name another file with --write"
        raise ConfigError([Problem(file, None, None, "", message)]) from None
    except OSError as error:
        raise ConfigError([Problem(file, None, None, "", f"not written: {error.strerror}")]) from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as new:
            new.write(imported.text)
            new.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError([Problem(file, None, None, "", f"not written: {error.strerror}")]) from None
    done = f"{file}: written with {_count(len(imported.names), 'exporter')}"
    if imported.left_out:
        done += f", {_count(len(imported.left_out), 'module')} left out as comments"
    if imported.may_hold_secrets:
        done += "; it may hold secrets, so its mode is 0600: give it to the user that runs exporter_proxy"
    return done


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
