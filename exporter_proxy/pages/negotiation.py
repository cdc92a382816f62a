"""What a client would rather have: the weights in Accept and Accept-Encoding (RFC 9110 section 12)."""

from __future__ import annotations

from collections.abc import Iterator


def weights(field: str) -> Iterator[tuple[str, float]]:
    """Each name that ``field`` lists, in lower case, with its weight: 1 unless one is given.

    0 is "not acceptable" (section 12.4.2); what is no weight counts as that, too.
    """
    for item in field.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        yield name, weight if 0 < weight <= 1 else 0.0


def prefers_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics is named, and no less welcome than the text format (section 12.5.1)."""
    openmetrics = text = 0.0
    for name, weight in weights(accept):  # each may be named several times, by its versions
        if name == "application/openmetrics-text":
            openmetrics = max(openmetrics, weight)
        elif name == "text/plain":
            text = max(text, weight)
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether gzip is acceptable and no less welcome than no encoding (section 12.5.3)."""
    weight_of = dict(weights(accept_encoding))
    weight = weight_of.get("gzip", weight_of.get("*", 0.0))
    return weight > 0 and weight >= weight_of.get("identity", 0.0)
