"""What ``front/`` takes for granted of uvicorn and httptools, one by one.

``ScraperProtocol`` is a subclass of uvicorn's protocol: an attribute that uvicorn renames, a callback that
it adds or a default that it changes would not show until a scrape goes wrong. These tests say what changed.
Raise the version range in pyproject.toml when they pass, together with what they made necessary.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import tomllib
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httptools
import pytest
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from exporter_proxy.front.protocol import ScraperProtocol
from tests.daemon import REPOSITORY
from tests.fakes.origin import Origin, hang
from tests.inprocess import parts, run

FRONT = REPOSITORY / "exporter_proxy" / "front"

IMPORTED = {
    "uvicorn._types": {"ASGI3Application"},
    "uvicorn.config": {"Config"},
    "uvicorn.protocols.http.flow_control": {"FlowControl"},
    "uvicorn.protocols.http.httptools_impl": {"STATUS_LINE", "HttpToolsProtocol"},
    "uvicorn.server": {"ServerState"},
}
SET_BY_INIT = {
    "access_log",
    "access_logger",
    "app",
    "app_state",
    "asgi_version",
    "client",
    "config",
    "connections",
    "cycle",
    "expect_100_continue",
    "flow",
    "headers",
    "limit_concurrency",
    "logger",
    "loop",
    "parser",
    "pipeline",
    "root_path",
    "scheme",
    "scope",
    "server",
    "server_state",
    "tasks",
    "timeout_keep_alive",
    "timeout_keep_alive_task",
    "transport",
    "ws_protocol_class",
}
SET_BY_CONNECTION_MADE = {"client", "flow", "scheme", "server", "transport"}
USED = {
    "client",
    "connections",
    "cycle",
    "flow",
    "headers",
    "loop",
    "parser",
    "pipeline",
    "scheme",
    "server",
} | {
    "tasks",
    "transport",
    "url",
}
"""Instance attributes of uvicorn's that ``ScraperProtocol`` reads or sets."""
OVERRIDDEN = {
    "__init__",
    "connection_lost",
    "connection_made",
    "data_received",
    "on_body",
    "on_header",
    "on_headers_complete",
    "on_message_begin",
    "on_message_complete",
    "pause_writing",
    "resume_writing",
    "shutdown",
}
INHERITED = {"eof_received", "on_url"}
"""Called by the event loop or by httptools; uvicorn's own are good."""
UNREACHED = {
    "_get_upgrade",
    "_should_upgrade",
    "_should_upgrade_to_ws",
    "_start_asgi_task",
    "_unset_keepalive_if_required",
    "_unsupported_upgrade_warning",
    "handle_websocket_upgrade",
    "on_response_complete",
    "send_400_response",
    "timeout_keep_alive_handler",
}
"""Called only by methods that are overridden."""
HTTPTOOLS_CALLBACKS = {
    "on_body",
    "on_chunk_complete",
    "on_chunk_header",
    "on_header",
    "on_headers_complete",
    "on_message_begin",
    "on_message_complete",
    "on_status",
    "on_url",
}


def changed(what: str) -> str:
    return f"uvicorn {uvicorn.__version__} changed {what}; look through exporter_proxy/front/"


def difference(name: str, found: set[str], pinned: set[str]) -> str:
    return changed(f"{name}: further {sorted(found - pinned)}, no longer {sorted(pinned - found)}")


def methods_of(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if inspect.isfunction(value)}


def front_trees() -> list[ast.Module]:
    return [ast.parse(file.read_text()) for file in sorted(FRONT.glob("*.py"))]


@pytest.mark.parametrize("package", ["uvicorn", "httptools"])
def test_the_version_range_is_the_installed_minor(package: str) -> None:
    """What these tests have passed with is what may be installed, and nothing else."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (requirement,) = [line for line in project["dependencies"] if re.match(rf"{package}\W", line)]
    major, minor = map(int, version(package).split(".")[:2])
    assert requirement == f"{package}>={major}.{minor},<{major}.{minor + 1}"


def test_everything_that_front_imports_of_uvicorn_is_pinned_here() -> None:
    imported: dict[str, set[str]] = {}
    for tree in front_trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uvicorn"):
                imported.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("uvicorn")]
    assert imported == IMPORTED


def test_everything_that_the_protocol_uses_of_its_parent_is_pinned_here() -> None:
    """``self.x`` that ``ScraperProtocol`` does not make itself is uvicorn's."""
    (protocol,) = [
        node
        for tree in front_trees()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "ScraperProtocol"
    ]
    mentioned = {
        node.attr
        for node in ast.walk(protocol)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    own_methods = {node.name for node in protocol.body if isinstance(node, ast.FunctionDef)}
    (init,) = [
        node for node in protocol.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    own = {
        node.attr
        for node in ast.walk(init)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert mentioned - own_methods - own == USED
    assert not own & SET_BY_INIT, "an attribute of ours takes the name of one of uvicorn's"


def test_methods() -> None:
    """One that uvicorn adds may be called by httptools or the loop, and would have to be overridden."""
    found = methods_of(HttpToolsProtocol)
    pinned = OVERRIDDEN | INHERITED | UNREACHED
    assert found == pinned, difference("HttpToolsProtocol's methods", found, pinned)
    assert methods_of(ScraperProtocol) & found == OVERRIDDEN
    assert HttpToolsProtocol.__mro__[1:] == (asyncio.Protocol, asyncio.BaseProtocol, object), changed(
        "its bases"
    )


@pytest.mark.parametrize("name", sorted(UNREACHED))
def test_what_is_not_overridden_is_called_by_nothing_that_is_reached(name: str) -> None:
    reached = [
        getattr(HttpToolsProtocol, method) for method in sorted(INHERITED | {"__init__", "connection_made"})
    ]
    for method in reached:
        assert f"self.{name}" not in inspect.getsource(method), changed(f"{method.__name__}, it calls {name}")


def test_the_signature_of_init() -> None:
    names = list(inspect.signature(HttpToolsProtocol).parameters)
    assert names == ["config", "server_state", "app_state", "_loop"], changed("HttpToolsProtocol's arguments")


async def _made(tmp_path: Path) -> tuple[HttpToolsProtocol, HttpToolsProtocol, Any]:
    """uvicorn's own protocol, before and after ``connection_made``, and what it was made from."""
    async with Origin(hang) as origin, parts(tmp_path / "log", {"x": {"url": origin.url()}}) as made:
        front = made.front
        app_state: dict[str, Any] = {}

        def make() -> HttpToolsProtocol:
            return HttpToolsProtocol(front.uvicorn_config, front.uvicorn_state, app_state, front.loop)

        fresh = make()
        transport, connected = await front.loop.create_connection(make, "127.0.0.1", origin.port)
        assert connected.transport is transport
        assert connected in front.connections, changed("who registers a connection")
        assert connected.client == transport.get_extra_info("peername")[:2], changed("client")
        assert connected.server == transport.get_extra_info("sockname")[:2], changed("server")
        assert connected.scheme == "http"
        assert isinstance(connected.flow, FlowControl), changed("flow")
        transport.abort()
        return fresh, connected, front


def test_what_init_sets(tmp_path: Path) -> None:
    fresh, _, front = run(lambda: _made(tmp_path))
    found = set(vars(fresh))
    assert found == SET_BY_INIT, difference("what HttpToolsProtocol sets", found, SET_BY_INIT)
    assert isinstance(fresh.parser, httptools.HttpRequestParser), changed("the parser")
    assert fresh.pipeline == deque(), changed("pipeline")
    assert isinstance(fresh.pipeline, deque), changed("pipeline")
    assert fresh.cycle is None, changed("cycle")
    assert fresh.connections is front.uvicorn_state.connections, changed("connections")
    assert fresh.tasks is front.uvicorn_state.tasks, changed("tasks")
    assert fresh.loop is front.loop, changed("loop")


def test_what_connection_made_sets(tmp_path: Path) -> None:
    fresh, connected, _ = run(lambda: _made(tmp_path))
    found = {name for name, value in vars(connected).items() if vars(fresh)[name] is not value} - {
        "parser",
        "pipeline",
    }
    assert found == SET_BY_CONNECTION_MADE, difference("connection_made", found, SET_BY_CONNECTION_MADE)


def test_flow_control(tmp_path: Path) -> None:
    async def scenario() -> None:
        _, connected, _ = await _made(tmp_path)
        flow = connected.flow
        assert flow.write_paused is False, changed("FlowControl.write_paused")
        connected.pause_writing()
        assert flow.write_paused is True, changed("pause_writing")
        draining = asyncio.ensure_future(flow.drain())
        await asyncio.sleep(0)
        assert not draining.done(), changed("FlowControl.drain")
        connected.resume_writing()
        assert flow.write_paused is False, changed("resume_writing")
        await draining
        await flow.drain()

    run(scenario)


def test_server_state() -> None:
    found = vars(ServerState())
    assert found["connections"] == set(), changed("ServerState.connections")
    assert found["tasks"] == set(), changed("ServerState.tasks")
    pinned = {"connections", "default_headers", "tasks", "total_requests"}
    assert set(found) == pinned, difference("ServerState", set(found), pinned)


@pytest.mark.parametrize(
    "status", [*range(200, 206), 304, 400, 403, 404, 405, 408, 431, 500, 502, 503, 504, 599]
)
def test_status_lines(status: int) -> None:
    line = STATUS_LINE[status]
    assert re.fullmatch(rb"HTTP/1\.1 %d [A-Za-z -]*\r\n" % status, line), changed("STATUS_LINE")


def test_config_arguments() -> None:
    """Each that ``FrontState`` gives, with the default that it is there to change."""
    (call,) = [
        node
        for tree in front_trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UvicornConfig"
    ]
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    defaults = {name: value.default for name, value in inspect.signature(Config).parameters.items()}
    assert given.keys() <= defaults.keys(), changed(f"Config, it has no {given.keys() - defaults.keys()}")
    needless = [name for name, value in given.items() if name and defaults[name] == value]
    assert not needless, changed(f"the defaults of {needless}")
    assert defaults["proxy_headers"] is True, changed("proxy_headers, its default was a trap")


def test_config_loads_without_side_effects(tmp_path: Path) -> None:
    """Neither WebSockets nor a lifespan nor logging come with it, and it is asgi3 without guessing."""

    async def scenario() -> Any:
        async with parts(tmp_path / "log", {"x": {"url": "http://127.0.0.1:9/"}}) as made:
            return made.front.uvicorn_config

    config = run(scenario)
    assert config.loaded, changed("Config.load")
    assert config.ws_protocol_class is None, changed('ws="none"')
    assert config.interface == "asgi3", changed("interface")
    assert config.proxy_headers is False, changed("proxy_headers")
    assert config.limit_concurrency is None, changed("limit_concurrency")


@pytest.mark.parametrize("name", sorted(HTTPTOOLS_CALLBACKS))
def test_httptools_calls_back_by_name(name: str) -> None:
    """A parser takes whatever of these a protocol has; ours has those that uvicorn has."""
    called: list[str] = []

    class Listening:
        pass

    setattr(Listening, name, lambda *_: called.append(name))
    if name == "on_status":
        httptools.HttpResponseParser(Listening()).feed_data(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    else:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        httptools.HttpRequestParser(Listening()).feed_data(head + b"1\r\nx\r\n0\r\n\r\n")
    assert called, f"httptools {httptools.__version__} does not call {name}"


def test_the_callbacks_that_the_protocol_has() -> None:
    ours = {name for name in dir(ScraperProtocol) if name.startswith("on_")}
    assert ours - {"on_response_complete"} == HTTPTOOLS_CALLBACKS - {
        "on_chunk_complete",
        "on_chunk_header",
        "on_status",
    }


def test_a_url_that_comes_in_pieces_is_put_together() -> None:
    """``on_url`` is uvicorn's: it adds to ``self.url``, which ``on_message_begin`` has emptied."""
    protocol = HttpToolsProtocol.__new__(HttpToolsProtocol)
    protocol.url = b""
    protocol.on_url(b"/node")
    protocol.on_url(b"/metrics")
    assert protocol.url == b"/node/metrics", changed("on_url")


def test_eof_closes_the_connection() -> None:
    """A true value would keep the transport half open."""
    assert not HttpToolsProtocol.eof_received(None), changed("eof_received")  # type: ignore[arg-type, func-returns-value]  # self is unused
