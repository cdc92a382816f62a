"""Imports point one way: down the list of ``LAYERS``, and each library is met in its own room only.

What is judged is the text of the modules, so an import inside a function counts like any other: it is
a dependency all the same. An import for types only (``if TYPE_CHECKING:``) counts for the layers, but
makes no cycle between modules of one package, since it never runs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "exporter_proxy"
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")

# Top to bottom. A module imports only what stands below it; those on one line do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("discovered", "discover_once", "import_once", "scrape_once", "output"),
    ("daemon",),
    ("reload",),
    ("pushprox",),
    ("app",),
    ("pages",),
    ("proxy",),
    ("front",),
    ("scrape",),
    ("upstreams",),
    ("observe",),
    ("discover", "demo"),
    ("imported", "prometheus_config", "systemd", "threads"),
    ("config",),
    ("access", "reasons"),
    ("__init__",),
)
# Library: the packages and modules, without "exporter_proxy.", that may import it.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "uvicorn": ("front",),
    "httptools": ("front", "upstreams"),
    "prometheus_client": ("observe.metrics", "demo"),
    "yaml": ("config",),
    "bcrypt": ("front.passwords",),
}
DYNAMIC_IMPORTS = frozenset({"__import__", "import_module"})

DEPTH = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
ORDER = " -> ".join(", ".join(rooms) for rooms in LAYERS)


def module_name(file: Path) -> str:
    """``scrape.share`` for its file, ``scrape`` for ``scrape/__init__.py``, relative to the package."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = sorted(name for name, file in FILES.items() if file.name == "__init__.py" and name != "__init__")


@dataclass(frozen=True, slots=True)
class Import:
    """``target``: a module as in ``FILES`` where it is ours, else the library's dotted name."""

    line: int
    target: str
    is_ours: bool
    is_for_types_only: bool = False


def imports_of(name: str, source: str) -> Iterator[Import]:
    """Every import in the text of the module ``name``, wherever it stands."""
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(source), False)]
    while pending:
        node, for_types = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield resolved(node.lineno, alias.name, for_types)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in (relative_base(name, node.level), node.module) if part)
            for alias in node.names:
                is_module = f"{base}.{alias.name}".removeprefix("exporter_proxy.") in FILES
                yield resolved(node.lineno, f"{base}.{alias.name}" if is_module else base, for_types)
        typing_only = node.body if isinstance(node, ast.If) and is_type_checking(node.test) else []
        pending += ((child, for_types or child in typing_only) for child in ast.iter_child_nodes(node))


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def relative_base(name: str, level: int) -> str:
    """What the dots of ``from ..x import y`` stand for in the module ``name``; "" where there are none."""
    if not level:
        return ""
    parts = ["exporter_proxy", *(name.split(".") if name != "__init__" else [])]
    is_package = name == "__init__" or name in PACKAGES
    return ".".join(parts[: len(parts) - level + is_package])


def resolved(line: int, target: str, for_types: bool) -> Import:
    if target == "exporter_proxy":
        return Import(line, "__init__", True, for_types)
    is_ours = target.startswith("exporter_proxy.")
    return Import(line, target.removeprefix("exporter_proxy."), is_ours, for_types)


def room_of(name: str) -> str:
    return name.partition(".")[0]


def is_within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def complaints(name: str, source: str, shown_as: str) -> list[str]:
    """What is wrong with the imports of the module ``name``, each with its line."""
    found = []
    own = room_of(name)
    for one in imports_of(name, source):
        where = f"{shown_as}:{one.line}: {name} imports"
        room = room_of(one.target)
        if one.is_ours and room != own and DEPTH[room] <= DEPTH[own]:
            stands = "beside" if DEPTH[room] == DEPTH[own] else "above"
            found.append(f"{where} {one.target}, but {room} stands {stands} {own} in: {ORDER}")
        allowed = None if one.is_ours else LIBRARIES.get(room)
        if allowed is not None and not is_within(name, allowed):
            found.append(f"{where} {one.target}, which is for {' and '.join(allowed)} only")
    for node in ast.walk(ast.parse(source)):
        called = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
        if called in DYNAMIC_IMPORTS:
            found.append(f"{shown_as}:{getattr(node, 'lineno', 0)}: {called} hides what is imported")
    return sorted(found)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down_and_libraries_stay_in_their_rooms(name: str) -> None:
    file = FILES[name]
    found = complaints(name, file.read_text(encoding="utf-8"), str(file.relative_to(REPOSITORY)))
    assert not found, "\n" + "\n".join(found)


def test_every_room_has_its_place_in_the_order() -> None:
    assert sorted(DEPTH) == sorted({room_of(name) for name in FILES})
    assert len(DEPTH) == sum(map(len, LAYERS)), "a room stands in the order twice"


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_of_a_package_do_not_import_in_circles(package: str) -> None:
    members = [name for name in FILES if is_within(name, (package,))]
    graph = {
        name: {
            one.target
            for one in imports_of(name, FILES[name].read_text(encoding="utf-8"))
            if one.is_ours and one.target in members and not one.is_for_types_only
        }
        for name in members
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_librarys_rooms_are_those_that_use_it(library: str) -> None:
    users = {
        name
        for name, file in FILES.items()
        if any(room_of(one.target) == library for one in imports_of(name, file.read_text(encoding="utf-8")))
    }
    unused = [room for room in LIBRARIES[library] if not any(is_within(user, (room,)) for user in users)]
    assert not unused, f"{library} is no longer used in {unused}: take it out of LIBRARIES"


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("reasons", "from exporter_proxy.app import App", "x.py:1: reasons imports app, but app stands"),
        ("config.load", "\nimport exporter_proxy.front.state", "x.py:2: config.load imports front.state"),
        ("proxy", "def f():\n    from exporter_proxy import daemon", "x.py:2: proxy imports daemon, but"),
        ("scrape.share", "from ..pages import find_page", "scrape.share imports pages, but pages stands"),
        ("scrape", "from ..proxy import Proxy", "scrape imports proxy, but proxy stands above scrape"),
        ("demo", "from exporter_proxy.discover.sockets import x", "but discover stands beside demo in"),
        ("access", "if TYPE_CHECKING:\n    from exporter_proxy.proxy import P", "x.py:2: access imports"),
        ("app", "try:\n    import uvicorn.config\nexcept ImportError: pass", "x.py:2: app imports uvicorn"),
        ("scrape.relay", "import httptools", "httptools, which is for front and upstreams only"),
        ("observe.history", "from prometheus_client import Gauge", "is for observe.metrics and demo only"),
        ("cli", "from yaml import safe_load", "yaml, which is for config only"),
        ("access", "import importlib\nimportlib.import_module('x')", "x.py:2: import_module hides"),
    ],
)
def test_a_wrong_import_is_named_with_its_line(name: str, source: str, complaint: str) -> None:
    (found,) = complaints(name, source, "x.py")
    assert complaint in found


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("app", "from exporter_proxy import __version__\nfrom exporter_proxy.reasons import Reason"),
        ("scrape.share", "from .headers import Headers\nfrom ..observe.exchange import Exchange"),
        ("observe.metrics", "import prometheus_client.openmetrics"),
        ("front.cycle", "import json, httptools, uvicorn"),
    ],
)
def test_a_proper_import_passes(name: str, source: str) -> None:
    assert complaints(name, source, "x.py") == []


def house_table() -> dict[str, str]:
    """The rows of CONTRIBUTING's table of modules: path below the package, and what it does."""
    house = CONTRIBUTING.partition("\n## The house\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", house, re.MULTILINE))


def test_contributing_names_every_module() -> None:
    # A package's own __init__.py is named as the directory.
    paths = {
        f"{file.parent.relative_to(PACKAGE)}/" if name in PACKAGES else str(file.relative_to(PACKAGE))
        for name, file in FILES.items()
    }
    assert sorted(house_table()) == sorted(paths)


def test_contributing_shows_this_order() -> None:
    shown = re.search(r"^```text\n(__main__ .*?)\n```$", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert " ".join(shown[1].split()) == ORDER


def test_every_file_that_contributing_names_exists() -> None:
    named = set(re.findall(r"`(\.?\w[\w.-]*/[\w./-]*|[\w-]+\.(?:py|md|yml|toml|tsv))`", CONTRIBUTING))
    missing = [path for path in named if not any((base / path).exists() for base in (REPOSITORY, PACKAGE))]
    assert named
    assert not missing
