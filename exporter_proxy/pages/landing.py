"""``/``: the exporters and the daemon, as a page, as JSON or as a table, by Accept.

The page is one file without anything to load: its style and script stand in it, named by their
hashes in the Content-Security-Policy, and the script asks this same address for the JSON again
and again. ``overview.py`` gathers what is told.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from exporter_proxy.pages.negotiation import weights
from exporter_proxy.pages.overview import Values, exporters_with_recent, overview
from exporter_proxy.pages.slices import json_slices, send_slices
from exporter_proxy.proxy import Proxy, Running
from exporter_proxy.threads import NoThread, Threads

HTML, JSON, TEXT = "text/html", "application/json", "text/plain"
_PAGE_HEADERS = (
    # A browser's "back" must not show one form for another.
    (b"Cache-Control", b"no-store"),
    (b"Vary", b"Accept"),
    (b"X-Content-Type-Options", b"nosniff"),
)
_EXPORTERS_PER_SLICE = 20


async def landing(proxy: Proxy, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
    """HTML for browsers, JSON where it is asked for, an aligned table for all others."""
    kind = preferred_type(", ".join(Request(scope).headers.getlist("accept")))
    page = await _page() if kind == HTML else None
    if page is None and kind == HTML:
        kind = TEXT
    values = await overview(proxy, running, scope)
    headers = [(b"Content-Type", f"{kind}; charset=utf-8".encode()), *_PAGE_HEADERS]
    slices: Iterable[bytes]
    if kind == JSON:
        headers[0] = (b"Content-Type", JSON.encode())
        others = {**values, "exporters": None}
        slices = json_slices(others, exporters_with_recent(running, scope), _EXPORTERS_PER_SLICE)
    elif page is not None:
        headers += [
            (b"Content-Security-Policy", page.policy.encode()),
            (b"Referrer-Policy", b"no-referrer"),
        ]
        slices = map(str.encode, (page.before, page.escape(text_of(values)), page.after))
    else:
        slices = map(str.encode, (text_of(values),))
    del values  # who reads slowly holds what is sent, and not what it is made of
    await send_slices(slices, headers, scope, send)


def preferred_type(accept: str) -> str:
    """The one of the three that ``accept`` names with the greatest weight (RFC 9110 section 12.5.1).

    A wildcard names none of them: curl sends ``*/*``, and a person reads what it prints.
    """
    best, best_weight = TEXT, 0.0
    for name, weight in weights(accept):
        if name in (HTML, JSON, TEXT) and weight > best_weight:
            best, best_weight = name, weight
    return best


# -- Plain text


def text_of(values: Values) -> str:
    """What is wrong, in the first line; then every exporter, what is known of failures, the daemon."""
    exporters = values["exporters"]
    lines = [values["summary"], ""]
    if exporters:
        lines += [*_table([_row(one, values["now"]) for one in exporters]), ""]
    for one in exporters:
        if one["failure"] is not None:
            lines += [*_failure_lines(one, values["now"]), ""]
    lines += _daemon_lines(values["daemon"])
    # A terminal's columns are counted in ASCII: other characters may be wide, or none at all.
    return "\n".join(lines).encode("ascii", "backslashreplace").decode("ascii") + "\n"


_COLUMNS = (
    ("EXPORTER", "<"),
    ("STATE", "<"),
    ("LAST SCRAPE", ">"),
    ("DURATION", ">"),
    ("SIZE", ">"),
    ("LAST HOUR", ">"),
    ("PATH", "<"),
)


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    cells = [tuple(title for title, _ in _COLUMNS), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
    for row in cells:
        aligned = (
            f"{cell:{side}{width}}" for cell, width, (_, side) in zip(row, widths, _COLUMNS, strict=True)
        )
        yield "  ".join(aligned).rstrip()


def _row(one: Values, now: str) -> tuple[str, ...]:
    state = "slow" if one["is_slow"] else one["state"]
    last = one["last_scrape"]
    if last is None:
        return one["name"], state, "", "", "", "", one["path"]
    return (
        one["name"],
        state,
        _ago(last["at"], now),
        _duration(last["seconds"]),
        _size(last["bytes"]),
        _share(one["last_hour"]),
        one["path"],
    )


def _failure_lines(one: Values, now: str) -> Iterator[str]:
    failure = one["failure"]
    excerpt = f": {failure['excerpt']}" if failure["excerpt"] else ""
    yield f"{one['name']}: {failure['reason']}: {failure['message']}{excerpt}"
    success = f"last success {_ago(one['last_success'], now)}" if one["last_success"] else "never succeeded"
    yield f"  {'; '.join(part for part in (failure['advice'], success) if part)}"


def _daemon_lines(daemon: Values) -> Iterator[str]:
    config, reload = daemon["config"], daemon["last_reload"]
    connections = f"{daemon['connections']} of {daemon['max_connections']} connections"
    yield f"exporter_proxy {daemon['version']}, {connections}"
    yield f"configuration: {config['source']}, loaded {config['loaded']}, hash {config['hash'][:12]}"
    if not reload["is_successful"]:
        count = reload["problem_count"]
        problems = f"{count} problem{'' if count == 1 else 's'}"
        yield f"last reload: failed, {problems}; what was loaded before stays in use"
        yield from (f"  {problem}" for problem in reload["problems"])
    for one in daemon["pushprox"]:
        problem = f": {one['problem']}" if one["problem"] else ""
        yield f"pushprox {one['url']} as {one['fqdn']}: {one['state']}{problem}"
    for certificate in daemon["certificates"]:
        days = certificate["days_left"]
        yield f"certificate ({certificate['kind']}): until {certificate['not_after']}, {days} d left"
    paths = {"own metrics": "metrics", "recent scrapes": "exporters", "targets for Prometheus": "targets"}
    yield "; ".join(f"{what}: {daemon[f'{page}_path']}" for what, page in paths.items())


def _ago(then: str, now: str) -> str:
    seconds = (datetime.fromisoformat(now) - datetime.fromisoformat(then)).total_seconds()
    for unit, unit_seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_seconds:
            return f"{seconds // unit_seconds:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"


def _size(n_bytes: int) -> str:
    for unit, unit_bytes in (("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= unit_bytes:
            return f"{n_bytes / unit_bytes:.1f} {unit}"
    return f"{n_bytes} B"


def _share(hour: dict[str, int]) -> str:
    """What part of the last hour's scrapes succeeded; 100 % only where none failed."""
    scrapes, succeeded = hour["scrapes"], hour["succeeded"]
    if not scrapes:
        return "no scrape"
    if succeeded in (0, scrapes):
        return f"{100 if succeeded else 0} % of {scrapes}"
    return f"{succeeded * 1000 // scrapes / 10:.1f} % of {scrapes}"


# -- HTML


class _Page:
    """The page around the place where the table goes for those who run no scripts. Made of files."""

    def __init__(self) -> None:
        from html import escape  # noqa: PLC0415 - its entities are 200 KiB, for the first browser to pay

        self.escape = escape
        this = Path(__file__)
        skeleton, style, script = (
            this.with_suffix(suffix).read_text("utf-8") for suffix in (".html", ".css", ".js")
        )
        whole = skeleton.replace("/* landing.css */", style).replace("/* landing.js */", script)
        self.before, _, self.after = whole.partition("<!-- table -->")
        self.policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hash_source(script)}",
                f"style-src {_hash_source(style)}",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
                "require-trusted-types-for 'script'",
            )
        )


def _hash_source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


_made: list[_Page] = []
_making = Threads(1, "landing page")


async def _page() -> _Page | None:
    """The same for everybody; made for the first who asks, in a thread, since scrapes wait for no disk.

    ``None`` as long as there can be no further thread.
    """
    if not _made:
        try:
            await _making.run(_make)
        except NoThread:
            return None
    return _made[0]


def _make() -> None:
    if not _made:  # by one who waited for it a moment longer
        _made.append(_Page())
