"""The files that a configuration names and that are read again when they change.

Certificates, keys, tokens, passwords and the web config: what a certificate manager or a
secret store replaces while the daemon runs. ``config.yml`` itself is not among them; when
that takes effect is the operator's choice.
"""

from __future__ import annotations

import os
from dataclasses import replace

from exporter_proxy.config.pushprox import PushProx
from exporter_proxy.config.schema import Config, Exporter, Pem
from exporter_proxy.config.web import load_web_config

Stamp = tuple[int, int, int, int]
"""Device, inode, size and modification time in nanoseconds."""


def watched_files(config: Config) -> tuple[str, ...]:
    """Paths of all files besides the configuration itself that it takes something from."""
    paths: list[str | None] = [config.bearer_tokens_file]
    if config.web is not None:
        paths.append(config.web.source)
    tls = config.server_tls
    if tls is not None:
        paths += [pem.file for pem in (tls.cert, tls.key, tls.client_ca or Pem())]
    shown_to: tuple[Exporter | PushProx | None, ...] = (*config.exporters, config.pushprox)
    for one in shown_to:
        if one is None:
            continue
        paths.append(one.bearer_token_file)
        if one.basic_auth is not None:
            paths.append(one.basic_auth.password_file)
        if one.tls is not None:
            paths += [one.tls.ca_file, one.tls.cert_file, one.tls.key_file]
    return tuple(dict.fromkeys(path for path in paths if path is not None))


def stamps(paths: tuple[str, ...]) -> dict[str, Stamp | None]:
    """What tells a change of each file, links followed; ``None`` where there is none. May block."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each file each second has no use
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def refreshed(config: Config) -> Config:
    """``config`` with what it took from other files read anew. Raises ConfigError."""
    if config.web is not None:
        config = replace(config, web=load_web_config(config.web.source))
    return config
