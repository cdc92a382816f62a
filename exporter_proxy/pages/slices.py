"""Long pages, made and sent slice by slice: scrapes go on in between, and a slow reader holds one slice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from starlette.types import Scope, Send

Header = tuple[bytes, bytes]


async def send_slices(slices: Iterable[bytes], headers: list[Header], scope: Scope, send: Send) -> None:
    """Answer 200. Each slice is made when the ones before it have been taken; to HEAD none is.

    Its client has all of the answer with the headers, and may leave.
    """
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for body in slices if scope["method"] != "HEAD" else ():
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


def json_slices(
    values: dict[str, Any], exporters: Iterable[Any], per_slice: int, indent: int | None = None
) -> Iterator[bytes]:
    """``values`` as JSON, with ``exporters`` in the place of its member of that name.

    Of those ``per_slice`` are made and encoded at a time: a thousand at once would hold up scrapes.
    """
    head = json.dumps({**values, "exporters": None}, indent=indent)
    before, after = head.split('"exporters": null', 1)
    yield f'{before}"exporters": ['.encode()
    remaining = iter(exporters)
    separator = ""
    while some := list(islice(remaining, per_slice)):
        # Within a mapping, so that they are indented as far as they have to be.
        text = json.dumps({"": some}, indent=indent)
        members = text[text.index("[") + 1 : text.rindex("]")].rstrip()
        yield f"{separator}{members}".encode()
        separator = ","
    closing = "]" if indent is None else f"\n{' ' * indent}]"
    yield f"{closing}{after}\n".encode()
