"""An exporter that was found, and the ways to write several down: config file, table, JSON.

Only text is made here; what is done with it is for the command to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

DISCOVERED_LISTEN = "127.0.0.1:9099"
"""Where what was found is served. Nobody has said who may scrape, so nobody else can."""


@dataclass(frozen=True, slots=True)
class FoundExporter:
    """An exporter that answered. ``name`` is unique among those found together."""

    name: str
    """Lower-case letters, digits and underscores."""
    url: str
    port: int
    pid: int | None
    """``None``, as ``process_name``: the socket's owner may not be known to this user."""
    process_name: str | None
    """Printable ASCII."""


def config_text(found: Iterable[FoundExporter], listen: str = DISCOVERED_LISTEN) -> str:
    """Write a config file with the exporters ``found``, for a person to read, change and keep.

    Without any it is a start only: the daemon refuses a config that serves nothing.
    """
    exporters = list(found)
    example = exporters[0].name if exporters else "node_exporter"
    lines = [
        "# exporter_proxy: the exporters that were found on this host, all behind one port.",
        "# Prometheus scrapes each under its name:",
        f"#   http://HOST:PORT/{example}/metrics",
        "# Change a name and its path changes with it; remove an exporter and it is served no longer.",
        "",
        '# Where Prometheus connects: "127.0.0.1:9099" is open to this host only, "0.0.0.0:9099" to all.',
        f"listen: {json.dumps(listen)}",
        "",
    ]
    if exporters:
        lines.append("exporters:")
    else:
        lines += ["# None was found; add at least one, like this:", "#   node_exporter:"]
        lines += ["#     url: http://127.0.0.1:9100/metrics", "exporters: {}"]
    for exporter in exporters:
        lines += [f"  {line}" for line in entry_lines(exporter)]
    return "\n".join(lines) + "\n"


def entry_lines(exporter: FoundExporter) -> list[str]:
    """The exporter's entry of a config file, not indented."""
    comment = [f"# {exporter.process_name}, port {exporter.port}"] if exporter.process_name else []
    return [*comment, f"{exporter.name}:", f"  url: {exporter.url}"]


def table_text(found: Sequence[FoundExporter]) -> str:
    """Aligned columns for a person; "-" where it is not known whose the socket is."""
    rows = [("NAME", "URL", "PID", "PROCESS")]
    rows += [(one.name, one.url, str(one.pid or "-"), one.process_name or "-") for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def json_text(found: Iterable[FoundExporter]) -> str:
    """A list of objects with the fields of ``FoundExporter``."""
    return json.dumps([asdict(one) for one in found], indent=2) + "\n"
