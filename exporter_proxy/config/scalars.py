"""Text as a scalar of YAML that is written here, on one line and read back as the same text.

For configurations and Prometheus's jobs that are made for people to read: quotes only where they are
needed. What goes where is for the callers to say.
"""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))


def scalar(text: str) -> str:
    """Without quotes where it is plainly text, in a block as in a list in brackets."""
    is_plain = _PLAIN.fullmatch(text) is not None and text.lower() not in _WORDS
    return text if is_plain else quoted_scalar(text)


def quoted_scalar(text: str) -> str:
    """In quotes, whatever it is."""
    if text.isprintable() and ("'" not in text or re.search(r'["\\]', text)):
        doubled = text.replace("'", "''")
        return f"'{doubled}'"
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(escaped)}"'
