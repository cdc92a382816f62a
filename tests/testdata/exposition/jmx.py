"""Pages as exporters of the JVM write them: trailing commas, Java's doubles, any name that a bean has."""

from __future__ import annotations

from tests.testdata.exposition.pages import OPENMETRICS, TEXT, Page, stored, zipped

_BROKERS, _TOPICS, _PARTITIONS = 4, 50, 40
_ATTRIBUTES = ("LogEndOffset", "LogStartOffset", "NumLogSegments", "Size")
_MANY_LABELS = 3_000


def _kafka() -> bytes:
    """Some 3 MB: 32,000 series in 4 families, of which none is in one piece."""
    lines = []
    for topic in range(_TOPICS):
        for attribute in _ATTRIBUTES:
            name = f"kafka_log_Log_{attribute}"
            lines.append(f"# HELP {name} kafka.log:type=Log,name={attribute},topic=t{topic},attribute=Value")
            lines.append(f"# TYPE {name} untyped")
            lines += [
                f'{name}{{broker="{broker}",topic="größe-{topic}",partition="{partition}",}} 1.5E{broker}'
                for broker in range(_BROKERS)
                for partition in range(_PARTITIONS)
            ]
    return "\n".join((*lines, "")).encode()


def _labels() -> bytes:
    """One series with more labels than most pages have series."""
    labels = ",".join(f'label_{number}="{number}"' for number in range(_MANY_LABELS))
    return f"# TYPE many gauge\nmany{{{labels},}} 1.0\nfew 1.0\n".encode()


JMX_PAGES = {
    "jmx_exporter": Page(stored("jmx_exporter.txt"), TEXT),
    "jmx_odd": Page(stored("jmx_odd.txt"), TEXT),
    "jmx_openmetrics": Page(stored("jmx_openmetrics.txt"), OPENMETRICS),
    "jmx_kafka": Page(_kafka(), TEXT),
    "jmx_labels": Page(_labels(), TEXT),
    "jmx_packed": Page(zipped(stored("jmx_odd.txt")), TEXT, "gzip"),
    "jmx_cut_off": Page(stored("jmx_odd.txt")[:-200], TEXT),
}
