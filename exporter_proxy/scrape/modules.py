"""``module_route``: which exporter a query names, and what of the query is for that exporter.

As exporter_exporter has it, ``?module=NAME&...``: the first ``module`` names the exporter and is
taken out, whatever else there is goes on as it was written.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes


def take_module(query: bytes) -> tuple[bytes | None, bytes]:
    """The value of the first ``module``, decoded, and the query without it; ``None`` where there is none.

    Only ``&`` separates here. With ``;`` others might find another module than is found here, so
    that a ``;`` is left part of the name, and no exporter's name has one.
    """
    pairs = query.split(b"&")
    for index, pair in enumerate(pairs):
        name, _, value = pair.partition(b"=")
        if _decoded(name) == b"module":
            return _decoded(value), b"&".join(pairs[:index] + pairs[index + 1 :])
    return None, query


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))
