"""Reading a configuration file whole, or saying in one line why it cannot be read."""

from __future__ import annotations

from pathlib import Path

from exporter_proxy.config.problems import ConfigError, Problem

_MAX_FILE_BYTES = 16 * 2**20


def read_file(path: str, flag: str, hint: str = "") -> bytes:
    """The bytes of the file at ``path``. Raises ``ConfigError``, and nothing else.

    ``flag`` is the one that names the file; ``hint`` is further advice for a file that is not there.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        message = f"no such file; name the right one with {flag}{hint}"
    except IsADirectoryError:
        message = f"is a directory; name the file in it with {flag}"
    except PermissionError:
        message = "not readable (permission denied); make it readable for the user that runs exporter_proxy"
    except OSError as error:
        message = f"not readable ({error.strerror}); name the right file with {flag}"
    except ValueError:
        message = f"not the name of a file; name the right one with {flag}"
    else:
        if len(data) <= _MAX_FILE_BYTES:
            return data
        message = f"larger than {_MAX_FILE_BYTES // 2**20} MiB; this is not a configuration file"
    raise ConfigError([Problem(path, None, None, "", message)])
