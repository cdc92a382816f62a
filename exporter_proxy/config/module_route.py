"""``module_route``: a path at which the exporter is named in the query, as exporter_exporter has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporter_proxy.config.addresses import EXPORTER_NAME, EXPORTER_PATH
from exporter_proxy.config.exporters import exporter_sections, report_unknown_exporters
from exporter_proxy.config.sections import Section

MODULE_ROUTE_KEYS = ("path", "default_module")
_EXAMPLE = "/proxy"
_PATH = replace(EXPORTER_PATH, expected=f'a path such as "{_EXAMPLE}"')
_PATH_ALONE = replace(_PATH, expected=f'{_PATH.expected} or a mapping with at least "path"')


@dataclass(frozen=True, slots=True)
class ModuleRoute:
    """``module_route``: every exporter is also at ``path?module=NAME``."""

    path: str
    """Exact path on this daemon, without the route prefix."""
    default_module: str | None
    """Name of the exporter that is meant where the query has no ``module``; ``None``: none is."""


def read_module_route(top: Section, included: Sequence[Section]) -> ModuleRoute | None:
    """The path alone, or a section; ``None`` where it is absent or has no path that can be used.

    ``included`` are the further files with exporters.
    """
    tops = (top, *included)
    if not top.is_mapping("module_route"):
        path = top.get("module_route", _PATH_ALONE, None)
        if path is None:
            return None
        _report_clash(top, "module_route", path, tops)
        return ModuleRoute(path, None)
    section = top.section("module_route", MODULE_ROUTE_KEYS)
    if section is None:
        return None
    path = section.require("path", _PATH, _EXAMPLE)
    if path is not None:
        _report_clash(section, "path", path, tops)
    default_module = section.get("default_module", EXPORTER_NAME, None)
    if default_module is not None:
        report_unknown_exporters(section, "default_module", (default_module,), tops)
    return None if path is None else ModuleRoute(path, default_module)


def _report_clash(section: Section, key: str, path: str, tops: Sequence[Section]) -> None:
    for exporters in exporter_sections(tops):
        for name in exporters:
            entry = exporters.section(name, None) if exporters.is_mapping(name) else None
            if entry is not None and entry.get("path", EXPORTER_PATH, f"/{name}/metrics") == path:
                place = entry.where("path", section)
                section.report(key, f'"{path}" is already the path of exporters.{name} at {place}')
