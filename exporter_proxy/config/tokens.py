"""``bearer_tokens_file``: the tokens that scrapers may show, one a line.

Read when a configuration is checked and again when it is put in force. A message names file
and line and never what stands there.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from exporter_proxy.config.certificates import check_readable
from exporter_proxy.config.problems import ConfigError, Problem, visible

MAX_FILE_BYTES = 2**20
_MAX_LINES_NAMED = 10

# RFC 6750 section 2.1: what can follow "Bearer " in a header.
_TOKEN68 = re.compile(rb"[A-Za-z0-9._~+/-]+=*")


def read_tokens(path: str) -> tuple[str, ...]:
    """The tokens in the file, each once. Raises ConfigError: not readable, no token, or bad lines.

    Blank lines and lines that begin with "#" are skipped, blanks around a token do not belong to it.
    """
    wrong = check_readable(path)
    if wrong is not None:
        raise _error(path, wrong)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:  # gone or changed since it was tried
        raise _error(path, f"not readable ({error.strerror})") from None
    if len(data) > MAX_FILE_BYTES:
        raise _error(path, f"larger than {MAX_FILE_BYTES // 2**20} MiB, this is not a list of tokens")
    tokens: dict[str, None] = {}
    bad_lines: list[int] = []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        if _TOKEN68.fullmatch(text):
            tokens[text.decode("ascii")] = None
        else:
            bad_lines.append(number)
    if bad_lines:
        raise _error(path, _bad_lines_text(bad_lines), bad_lines[0])
    if not tokens:
        raise _error(path, "no token in this file, write one a line")
    return tuple(tokens)


def _bad_lines_text(lines: list[int]) -> str:
    text = (
        "not a bearer token, which is one word of letters, digits and . _ ~ + / - "
        "with = at its end only (RFC 6750 section 2.1)"
    )
    others = [str(line) for line in lines[1:_MAX_LINES_NAMED]]
    if not others:
        return text
    more = f" and {len(lines) - _MAX_LINES_NAMED} more" if len(lines) > _MAX_LINES_NAMED else ""
    return f"{text}; the same in line {', '.join(others)}{more}"


def _error(path: str, message: str, line: int | None = None) -> ConfigError:
    return ConfigError([Problem(visible(path), line, None if line is None else 1, "", message)])
