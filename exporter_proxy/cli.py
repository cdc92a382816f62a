"""The command line: flags in Prometheus's spelling, and the Go original's beside them.

Exit status 0 is success or a clean stop, 1 a configuration that is bad or an address that
cannot be bound, 2 a usage error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from exporter_proxy import __version__
from exporter_proxy.config import (
    Config,
    ConfigError,
    Overrides,
    config_warnings,
    host_warnings,
    load_config,
)
from exporter_proxy.config.pushprox import host_fqdn
from exporter_proxy.config.values import BadValue
from exporter_proxy.output import complain, put, use_utf8
from exporter_proxy.threads import are_any_left, in_thread

DEFAULT_CONFIG_FILES = ("config.yml", "/etc/exporter_proxy/config.yml")
COMMANDS = ("serve", "check", "discover", "scrape", "prometheus-config", "import")


class NoConfigError(Exception):
    """No configuration was named and none is where one is looked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    use_utf8()
    try:
        options = _options(sys.argv[1:] if arguments is None else arguments)
        status: int = options.run(options)
    except ConfigError as error:
        complain(str(error))
        return 1
    except NoConfigError as error:
        complain(f"exporter_proxy: {error}")
        return 1
    except KeyboardInterrupt:
        # Ended by the signal, which no exit status can say: a loop of a shell then ends, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        raise
    return status


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    try:
        options, unknown = _parser().parse_known_args(_normalised(arguments))
    except SystemExit:
        put("")  # help has been printed, and may still be in the buffer
        raise
    if unknown:
        options.command.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _normalised(arguments: Sequence[str]) -> list[str]:
    """Spell arguments one way: ``serve`` where no command is named, ``--flag`` for Go's ``-flag``."""
    spelled: list[str] = []
    for argument in arguments:
        if len(argument) > 2 and argument[0] == "-" and argument[1] != "-":
            argument = "-" + argument  # noqa: PLW2901 - the same argument, spelt our way
        if argument == "--config" or argument.startswith("--config="):
            argument = argument.replace("--config", "--config.file", 1)  # noqa: PLW2901
        spelled.append(argument)
    if not spelled or (spelled[0].startswith("-") and spelled[0] not in ("--version", "--help", "-h")):
        spelled.insert(0, "serve")
    return spelled


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="exporter_proxy",
        description="Every Prometheus exporter of this host behind one port.",
        epilog="Without a command, serve. Try: exporter_proxy serve --discover, or for a command's flags "
        "exporter_proxy COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"exporter_proxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))

    _add_serve(commands)
    check = commands.add_parser("check", help="list every mistake of the configuration", allow_abbrev=False)
    _add_config_file(check)
    _add_web_config_file(check)
    check.set_defaults(run=_check)

    _add_discover(commands)
    scrape = commands.add_parser(
        "scrape", help="scrape one exporter once, as Prometheus would", allow_abbrev=False
    )
    scrape.add_argument("name", help="an exporter of the configuration")
    _add_config_file(scrape)
    scrape.set_defaults(run=_scrape)
    _add_prometheus_config(commands)
    _add_import(commands)
    for command in commands.choices.values():
        command.set_defaults(command=command)  # its usage is what helps with an argument that it has not
    return parser


def _file_name(text: str) -> str:
    """A shell gives an empty one where a variable is not set; it would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a file is missing")
    return text


def _add_config_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config.file",
        type=_file_name,
        dest="config_file",
        metavar="FILE",
        help=f"default: {', then '.join(DEFAULT_CONFIG_FILES)}",
    )


def _add_web_config_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--web.config.file",
        dest="web_config_file",
        metavar="FILE",
        help="TLS, users and headers, in the format that Prometheus's exporters share",
    )


def _add_route_prefix(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--web.route-prefix", dest="route_prefix", metavar="/PREFIX", help="prefix of every path"
    )


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser("serve", help="run the daemon", allow_abbrev=False)
    _add_config_file(serve)
    _add_web_config_file(serve)
    serve.add_argument(
        "--discover",
        action="store_true",
        help="no config: serve the exporters found on this host, on 127.0.0.1:9099",
    )
    serve.add_argument(
        "--web.listen-address",
        dest="listen",
        action="append",
        default=[],
        metavar="ADDR",
        help="where to listen, given once for each address; default: listen of the configuration",
    )
    _add_route_prefix(serve)
    serve.add_argument(
        "--web.external-url",
        dest="external_url",
        metavar="URL",
        help="where browsers reach this daemon, if that is through another proxy",
    )
    serve.add_argument(
        "--web.enable-lifecycle", dest="lifecycle", action="store_true", help="allow POST /-/reload"
    )
    serve.add_argument(
        "--log.level",
        dest="log_level",
        default="info",
        choices=("debug", "info", "warn", "error"),
        help="least severe lines of the daemon's own log; default: info",
    )
    serve.add_argument(
        "--log.format",
        dest="log_format",
        default="logfmt",
        choices=("logfmt", "json"),
        help="of the daemon's own log; default: logfmt",
    )
    serve.set_defaults(run=_serve)


def _add_discover(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    discover = commands.add_parser(
        "discover", help="find the exporters that listen on this host", allow_abbrev=False
    )
    discover.add_argument(
        "--format",
        choices=("config", "table", "json"),
        help="what to print; config, a configuration to start from, where nothing is written",
    )
    discover.add_argument(
        "--write",
        type=_file_name,
        metavar="FILE",
        help="add the new ones to this configuration, or create it",
    )
    discover.add_argument(
        "--all", dest="ask_all", action="store_true", help="ask every socket, not only those like exporters'"
    )
    discover.set_defaults(run=_discover)


def _add_prometheus_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "prometheus-config",
        help="what Prometheus needs in order to scrape these exporters",
        allow_abbrev=False,
    )
    _add_config_file(command)
    _add_web_config_file(command)
    _add_route_prefix(command)
    command.add_argument(
        "--format",
        choices=("scrape-config", "file-sd", "http-sd"),
        default="scrape-config",
        help="a scrape_configs section, or the list of targets that file_sd and http_sd read",
    )
    command.add_argument(
        "--target",
        dest="targets",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="a host that runs this configuration, by a name that Prometheus knows; default: this one",
    )
    command.add_argument(
        "--job",
        choices=("per-exporter", "one"),
        default="per-exporter",
        help="of a scrape-config: a job for each exporter, or one with relabelling",
    )
    command.add_argument(
        "--instance",
        choices=("proxy", "exporter"),
        default="proxy",
        help="the label instance: HOST:PORT of this daemon, or with the exporter's own port",
    )
    command.set_defaults(run=_prometheus_config)


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "import", help="turn exporter_exporter's configuration into one for this program", allow_abbrev=False
    )
    command.add_argument("file", metavar="FILE", help="as its -config.file, such as expexp.yaml")
    command.add_argument(
        "directories",
        nargs="*",
        metavar="DIR",
        help="as its -config.dirs; one can stand in place of FILE, too",
    )
    command.add_argument(
        "--write",
        type=_file_name,
        metavar="FILE",
        help="create this file, instead of printing the configuration",
    )
    command.set_defaults(run=_import)


def _overrides(options: argparse.Namespace) -> Overrides:
    return Overrides(
        listen=tuple(getattr(options, "listen", ())),
        route_prefix=getattr(options, "route_prefix", None),
        external_url=getattr(options, "external_url", None) or None,
        # Units written for exporters may give it empty, which is their default.
        web_config_file=options.web_config_file or None,
    )


def _config_file(options: argparse.Namespace) -> str:
    if options.config_file is not None:
        return str(options.config_file)
    for candidate in DEFAULT_CONFIG_FILES:
        if _may_be_there(candidate):
            return candidate
    raise NoConfigError(
        f"no configuration: there is neither {' nor '.join(DEFAULT_CONFIG_FILES)}; name one with "
        "--config.file, or have one made of what is on this host: exporter_proxy discover --write=config.yml"
    )


def _may_be_there(path: str) -> bool:
    """Whether there is a file, or no telling: whoever reads it then says why it cannot be read."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def _serve(options: argparse.Namespace) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    # The configuration is about to be read anyway. Not SIG_IGN, which the demo exporter would inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)
    from exporter_proxy.daemon import ServeOptions, run  # noqa: PLC0415 - `check` needs none of it
    from exporter_proxy.reload import StartError  # noqa: PLC0415

    overrides = _overrides(options)
    serve_options = ServeOptions(options.log_level, options.log_format, options.lifecycle)
    try:
        if options.discover:
            if options.config_file is not None:
                complain("exporter_proxy: --discover and --config.file exclude each other")
                return 2
            from exporter_proxy.discovered import serve_discovered  # noqa: PLC0415

            serve_discovered(overrides, serve_options)
        else:
            path = _config_file(options)

            async def load() -> Config:
                return await in_thread(load_config, path, overrides)

            run(load, serve_options)
    except StartError as error:
        complain(f"exporter_proxy: {error}")
        return 1
    if are_any_left():
        # One that comes back while the interpreter is taken down ends amid its call, which some do not
        # survive: bcrypt takes the process with it ("FATAL: exception not rethrown", Python 3.11 to 3.13).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _leave(signal_number: int, frame: FrameType | None) -> None:
    """Stopped before there is anything to drain: looking for exporters, reading the config."""
    raise SystemExit(0)


def _check(options: argparse.Namespace) -> int:
    path = _config_file(options)
    config = load_config(path, _overrides(options))
    for warning in (*config_warnings(config), *host_warnings(config)):
        complain(f"{path}: warning: {warning}")
    count = len(config.exporters)
    put(f"{path}: OK ({count} exporter{'' if count == 1 else 's'})\n")
    return 0


def _discover(options: argparse.Namespace) -> int:
    from exporter_proxy import discover_once  # noqa: PLC0415

    discovery = asyncio.run(discover_once.find(options.ask_all))
    found = discovery.found
    for line in discovery.silent:
        complain(f"exporter_proxy: left out: {line}")
    if options.write is not None:
        done = discover_once.write(found, options.write, options.ask_all)
        if options.format is None:
            put(f"{done}\n")
            return 0
        complain(done)
    elif not found:
        complain(f"exporter_proxy: {discover_once.none_found(options.ask_all)}")
    put(discover_once.FORMATS[options.format or "config"](found))
    return 0


def _scrape(options: argparse.Namespace) -> int:
    from exporter_proxy.scrape_once import report, scrape_once  # noqa: PLC0415

    config = load_config(_config_file(options))
    known = [exporter.name for exporter in config.exporters]
    if options.name not in known:
        complain(f"exporter_proxy: no exporter {options.name!r}; there is: {', '.join(known)}")
        return 2
    result = asyncio.run(scrape_once(config, options.name))
    put(report(result))
    return 0 if result.is_successful else 1


def _prometheus_config(options: argparse.Namespace) -> int:
    from exporter_proxy import prometheus_config  # noqa: PLC0415

    config = prometheus_config.reachable(load_config(_config_file(options), _overrides(options)))
    own = prometheus_config.listened(config, socket.gethostname())
    if config.pushprox is not None:
        own = replace(own, host=config.pushprox.fqdn or host_fqdn())
    targets = []
    for text in options.targets:
        try:
            targets.append(prometheus_config.parse_target(text, own.port))
        except BadValue as bad:
            complain(f"exporter_proxy: --target {text!a}: {bad.why}")
            return 2
    entrance = prometheus_config.Entrance(
        targets=tuple(targets) or (own,),
        is_https=config.server_tls is not None and config.pushprox is None,
        route_prefix=config.route_prefix,
        keeps_instance=options.instance == "exporter",
    )
    if options.format == "scrape-config":
        text = prometheus_config.scrape_configs(config, entrance, one_job=options.job == "one")
    else:
        text = prometheus_config.target_list(config.exporters, entrance)
    put(text)
    return 0


def _import(options: argparse.Namespace) -> int:
    from exporter_proxy import import_once  # noqa: PLC0415

    imported = import_once.read([options.file, *options.directories])
    done = import_once.write(imported, options.write) if options.write is not None else None
    for note in imported.notes:
        complain(str(note))
    if done is not None:
        put(f"{done}\n")
        return 0
    if imported.may_hold_secrets:
        complain("exporter_proxy: what is printed may hold secrets, --write=FILE keeps it private")
    put(imported.text)
    return 0
