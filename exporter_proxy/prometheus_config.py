"""What Prometheus has to know in order to scrape a host through this daemon.

From the exporters of a configuration to scrape_configs (YAML) or to the list of targets that
file_sd and http_sd read (JSON). Pure functions; the command line prints what they return, and
``/-/sd`` serves it. Whom a client may see is for the caller to say.

Each exporter's series keep the label ``exporter``. The daemon's own metrics have that label on
their own account, so they get a job in scrape_configs and are left out of the lists of targets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from exporter_proxy.config.addresses import HOST_PORT, check_host, is_loopback, parse_port
from exporter_proxy.config.scalars import quoted_scalar, scalar
from exporter_proxy.config.schema import Config, Exporter, Listen, ListenAddress, StarterListen
from exporter_proxy.config.values import BadValue

OWN_JOB = "exporter_proxy"
DEFAULT_PORT = 9099

# What the administrator of Prometheus puts beside prometheus.yml, under these names or others.
CA_FILE = "exporter_proxy_ca.crt"
CERT_FILE = "exporter_proxy_client.crt"
KEY_FILE = "exporter_proxy_client.key"
TOKEN_FILE = "exporter_proxy.token"  # noqa: S105 - a file's name
PASSWORD_FILE = "exporter_proxy.password"  # noqa: S105 - a file's name

# A host and port as Prometheus's regular expressions take a target apart.
_HOST_OF_ADDRESS = "(.+):[0-9]+"


@dataclass(frozen=True, slots=True)
class Target:
    """Where Prometheus reaches a daemon. ``host`` is a name or an address, IPv6 without brackets."""

    host: str
    port: int

    def with_port(self, port: int) -> str:
        """``host:port`` of another port there."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def __str__(self) -> str:
        return self.with_port(self.port)


@dataclass(frozen=True, slots=True)
class Entrance:
    """How the daemons are reached that have the same exporters."""

    targets: tuple[Target, ...]
    is_https: bool
    route_prefix: str
    """"" or ``/prefix``."""
    keeps_instance: bool = False
    """Whether ``instance`` is the exporter's own host and port, as without the daemon."""


def parse_target(text: str, default_port: int) -> Target:
    """``host`` or ``host:port``; IPv6 addresses in brackets. Raises ``BadValue``."""
    if "://" in text:
        raise BadValue("HOST or HOST:PORT, without http://")
    match = HOST_PORT.fullmatch(text)
    if match is None and text.count(":") > 1 and not text.startswith("["):
        raise BadValue('an IPv6 address goes in brackets, as in "[2001:db8::1]:9099"')
    host, port = match.groups() if match is not None else (text, None)
    return Target(check_host(host), default_port if port is None else parse_port(port, lowest=1))


def listened(config: Config, hostname: str) -> Target:
    """Where scrapers find this configuration, as far as it says so: one listener's host and port.

    That is the first that others can reach, or else the first. ``hostname`` stands for a host that is
    unknown, or all addresses.
    """
    found = [target for listen in config.listen if (target := _listener(listen)) is not None]
    found.sort(key=lambda target: (target.port == 0, is_loopback(target.host)))
    first = found[0] if found else Target("", 0)
    host = hostname if first.host in ("", "0.0.0.0", "::") else first.host
    return Target(host, first.port or DEFAULT_PORT)


def _listener(listen: Listen) -> Target | None:
    """Host and port of a listener that has them; what ``start_server`` listens on may as well be a path."""
    if isinstance(listen, ListenAddress):
        return Target(listen.host, listen.port)
    match = HOST_PORT.fullmatch(listen.address) if isinstance(listen, StarterListen) else None
    try:
        return None if match is None else parse_target(match[0], 0)
    except BadValue:
        return None


def reachable(config: Config) -> Config:
    """``config`` with the exporters that Prometheus can reach: through PushProx not always all."""
    section = config.pushprox
    if section is None:
        return config
    return replace(config, exporters=tuple(one for one in config.exporters if section.allows(one)))


def target_list(exporters: Iterable[Exporter], entrance: Entrance) -> str:
    """What file_sd and http_sd read: JSON, one group for each exporter and instance."""
    groups = [group for exporter in exporters for group in _groups(exporter, entrance)]
    return json.dumps(groups, indent=2, ensure_ascii=False) + "\n"


def _groups(exporter: Exporter, entrance: Entrance) -> Iterator[dict[str, object]]:
    labels = {"__metrics_path__": entrance.route_prefix + exporter.path}
    if entrance.is_https:
        labels["__scheme__"] = "https"
    labels["exporter"] = exporter.name
    instance = _instance(exporter, entrance)
    if instance is None:
        yield {"targets": [str(target) for target in entrance.targets], "labels": labels | _labels(exporter)}
        return
    for target in entrance.targets:
        text = target.with_port(instance) if isinstance(instance, int) else instance
        yield {"targets": [str(target)], "labels": labels | {"instance": text} | _labels(exporter)}


def _labels(exporter: Exporter) -> dict[str, str]:
    return dict(exporter.labels)


def _instance(exporter: Exporter, entrance: Entrance) -> int | str | None:
    """What ``instance`` becomes: the target's host with this port, or this; ``None``: it stays the target.

    An exporter elsewhere keeps its own ``host:port`` only where one daemon asks it: of several, all their
    samples would go into the same series.
    """
    if not entrance.keeps_instance or "instance" in _labels(exporter):
        return None
    if exporter.url is None or not exporter.url.port:
        return None
    if is_loopback(exporter.url.host):
        return exporter.url.port
    return exporter.url.backend if len(entrance.targets) == 1 else None


def scrape_configs(config: Config, entrance: Entrance, one_job: bool = False) -> str:
    """A ``scrape_configs`` section: a job for each exporter or one for all, and one for the daemon itself.

    Prometheus takes it as ``prometheus.yml`` and in a file of ``scrape_config_files`` alike.
    """
    lines = [*_notes(config), "scrape_configs:"]
    if one_job:
        lines += _job_of_all(config, entrance)
    else:
        for exporter in config.exporters:
            lines += _job(config, entrance, exporter)
    lines += _job_head(config, OWN_JOB, f"{entrance.route_prefix}/metrics")
    lines += ["    static_configs:", f"      - targets: {_targets(entrance)}"]
    return "\n".join(lines) + "\n"


def _notes(config: Config) -> list[str]:
    files = [line.split(": ", 1)[1] for line in _access_lines(config) if "_file: " in line]
    return [f"# To be put in place, or called by their real names: {', '.join(files)}"] if files else []


def _job(config: Config, entrance: Entrance, exporter: Exporter) -> list[str]:
    lines = _job_head(config, _job_name(config, exporter), entrance.route_prefix + exporter.path)
    lines += ["    static_configs:", *_static_config(exporter, entrance)]
    instance = _instance(exporter, entrance)
    if instance is not None:
        lines.append("    relabel_configs:")
        if isinstance(instance, str):
            lines += _relabel([], "", "instance", _literal(instance))
        else:
            lines += _relabel(["__address__"], _HOST_OF_ADDRESS, "instance", f"${{1}}:{instance}")
    return lines


def _job_name(config: Config, exporter: Exporter) -> str:
    """The exporter's own name, unless it is that of the daemon's job, by which rules know the daemon."""
    if exporter.name != OWN_JOB:
        return exporter.name
    taken = {one.name for one in config.exporters}
    name = f"{OWN_JOB}_exporter"
    while name in taken:
        name += "_"
    return name


def _job_of_all(config: Config, entrance: Entrance) -> list[str]:
    """The path is made from the label ``exporter``, so that a target more is a line more."""
    lines = _job_head(config, "exporters", None)
    lines.append("    static_configs:")
    for exporter in config.exporters:
        lines += _static_config(exporter, entrance)
    lines.append("    relabel_configs:")
    prefix = _literal(entrance.route_prefix)
    lines += _relabel(["exporter"], "(.+)", "__metrics_path__", f"{prefix}/${{1}}/metrics")
    for exporter in config.exporters:
        if exporter.path != f"/{exporter.name}/metrics":
            lines += _relabel(
                ["exporter"], _pattern(exporter.name), "__metrics_path__", prefix + _literal(exporter.path)
            )
    for exporter in config.exporters:
        instance = _instance(exporter, entrance)
        if instance is None:
            continue
        pattern = f"{_pattern(exporter.name)};{_HOST_OF_ADDRESS}"
        replacement = _literal(instance) if isinstance(instance, str) else f"${{1}}:{instance}"
        lines += _relabel(["exporter", "__address__"], pattern, "instance", replacement)
    return lines


def _job_head(config: Config, job: str, metrics_path: str | None) -> list[str]:
    lines = [f"  - job_name: {scalar(job)}"]
    if metrics_path is not None:
        lines.append(f"    metrics_path: {scalar(metrics_path)}")
    return [*lines, *_access_lines(config)]


def _access_lines(config: Config) -> list[str]:
    """What a scrape has to show, and to trust: placeholders for what only Prometheus may know."""
    if config.pushprox is not None:
        # The proxy is asked in plain HTTP, and the daemon asks for nothing: it is the one that connects.
        proxy = config.pushprox.proxies[0]
        return [f"    proxy_url: {quoted_scalar(f'{proxy.scheme}://{proxy.authority}/')}"]
    lines = []
    tls = config.server_tls
    if tls is not None:
        lines += ["    scheme: https", "    tls_config:", f"      ca_file: {CA_FILE}"]
        if tls.client_auth_type == "RequireAndVerifyClientCert":
            lines += [f"      cert_file: {CERT_FILE}", f"      key_file: {KEY_FILE}"]
    users = config.web.basic_auth_users if config.web is not None else ()
    if config.bearer_tokens_file is not None:
        lines += ["    authorization:", f"      credentials_file: {TOKEN_FILE}"]
    elif users:
        lines += ["    basic_auth:", f"      username: {scalar(users[0][0])}"]
        lines += [f"      password_file: {PASSWORD_FILE}"]
    return lines


def _static_config(exporter: Exporter, entrance: Entrance) -> list[str]:
    labels = {"exporter": exporter.name} | _labels(exporter)
    return [
        f"      - targets: {_targets(entrance)}",
        "        labels:",
        *(f"          {scalar(name)}: {scalar(value)}" for name, value in labels.items()),
    ]


def _targets(entrance: Entrance) -> str:
    return f"[{', '.join(quoted_scalar(str(target)) for target in entrance.targets)}]"


def _relabel(source_labels: Sequence[str], regex: str, target_label: str, replacement: str) -> list[str]:
    lines = [f"source_labels: [{', '.join(source_labels)}]"] if source_labels else []
    lines += [f"regex: {quoted_scalar(regex)}"] if regex else []
    lines += [f"target_label: {target_label}", f"replacement: {quoted_scalar(replacement)}"]
    return [f"      - {lines[0]}", *(f"        {line}" for line in lines[1:])]


def _literal(text: str) -> str:
    """For a ``replacement``, where ``$1`` is a group."""
    return text.replace("$", "$$")


def _pattern(name: str) -> str:
    """For a ``regex``: of what an exporter's name can have, the dot alone means something."""
    return name.replace(".", r"\.")
