"""What a page tells about the exporter that served it: whether it is one, and its name.

Pure functions over text, and the table of known ports that ships with the package. The check
is a quick look at the lines: a page it accepts may still be one that Prometheus rejects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain, count

from exporter_proxy.config.addresses import exporter_name_like, with_suffix

# Each pattern is linear on any line: no two neighbouring parts can match the same blanks.
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_VALUE = r"[+-]?(?:[0-9.][0-9.eE+-]*|[Ii]nf|[Nn]a[Nn])"
_SAMPLE = re.compile(
    # Labels alone: a metric whose quoted name stands within the braces (UTF-8 names).
    rf"(?:(?P<metric>{_NAME})(?:[ \t]*\{{.*\}}[ \t]*|[ \t]+)|\{{.*\}}[ \t]*)"
    rf"{_VALUE}(?:[ \t]+-?[0-9.]+)?(?:[ \t]+#.*)?[ \t]*"
)
_TYPE_COMMENT = re.compile(rf"#[ \t]+TYPE[ \t]+({_NAME})[ \t]")
_BUILD_INFO = re.compile(r"([a-zA-Z][a-zA-Z0-9_]{0,63})_exporter_build_info")
_EXPORTER_PROCESS = re.compile(r"(?:prometheus-)?([a-zA-Z0-9][a-zA-Z0-9_.-]*)[-_]exporter")

OWN_BUILD_INFO = "exporter_proxy_build_info"


@dataclass(frozen=True, slots=True)
class KnownPort:
    """What listens on a port by default; ``family_prefix`` may be empty."""

    port: int
    name: str
    path: str
    family_prefix: str


@cache
def known_ports() -> Mapping[int, KnownPort]:
    """Read the package's table of default ports, by port."""
    table = files("exporter_proxy").joinpath("exporter_ports.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in table.splitlines() if not line.startswith("#"))
    return {int(port): KnownPort(int(port), name, path, prefix) for port, name, path, prefix in rows}


def parse_families(page: str) -> frozenset[str] | None:
    """Collect the names of a page's metrics, or ``None`` where it is not exposition text.

    It is when every line is blank, a comment or a sample, and at least one is a sample.
    """
    families = set()
    has_sample = False
    for line in page.split("\n"):
        stripped = line.strip(" \t\r")
        if stripped.startswith("#"):
            if typed := _TYPE_COMMENT.match(stripped):
                families.add(typed[1])
        elif stripped:
            sample = _SAMPLE.fullmatch(stripped)
            if sample is None:
                return None
            has_sample = True
            if sample["metric"]:
                families.add(sample["metric"])
    return frozenset(families) if has_sample else None


def exporter_name(families: Iterable[str], process_name: str | None, port: int) -> str:
    """Name an exporter by the surest thing known about it.

    In this order: the one ``<name>_exporter_build_info`` on its page, its program's name, the
    default port where the metrics confirm it, the metrics alone where they point to one
    exporter, the default port alone, and at last ``port_<port>``. It is one that a configuration takes.
    """
    families = frozenset(families)
    built = {match[1] for family in families if (match := _BUILD_INFO.fullmatch(family))}
    if len(built) == 1:
        return _exporter(built.pop())
    if process_name and (program := _EXPORTER_PROCESS.fullmatch(process_name)):
        return _exporter(program[1].removesuffix("-prometheus"))
    by_metrics = _names_by_prefix(families)
    known = known_ports().get(port)
    if known and known.family_prefix and any(family.startswith(known.family_prefix) for family in families):
        return known.name
    if len(by_metrics) == 1:
        return by_metrics.pop()
    return known.name if known else f"port_{port}"


def _exporter(stem: str) -> str:
    return exporter_name_like(re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") + "_exporter")


def _names_by_prefix(families: frozenset[str]) -> set[str]:
    """Names of the table whose metrics these may be; of nested prefixes the longest counts."""
    prefixes = {known.family_prefix for known in known_ports().values() if known.family_prefix}
    matched = set()
    for family in families:
        matched.add(max((prefix for prefix in prefixes if family.startswith(prefix)), key=len, default=""))
    return {
        known.name
        for known in known_ports().values()
        if known.family_prefix and known.family_prefix in matched
    }


def unique_names(named: Sequence[tuple[str, int]]) -> list[str]:
    """Give each of several exporters, as (name, port), a name of its own.

    Where a name occurs once it stays; else each of its bearers gets ``_<port>`` appended.
    """
    occurrences = Counter(name for name, _ in named)
    taken = {name for name, times in occurrences.items() if times == 1}
    names = []
    for name, port in named:
        unique = name
        if occurrences[name] > 1:
            unique = next(proposal for proposal in _proposals(name, port) if proposal not in taken)
            taken.add(unique)
        names.append(unique)
    return names


def _proposals(name: str, port: int) -> Iterator[str]:
    """The same port twice: two exporters on two addresses of this host."""
    suffixes = chain([f"_{port}"], (f"_{port}_{number}" for number in count(2)))
    return (with_suffix(name, suffix) for suffix in suffixes)
