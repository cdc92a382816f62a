"""Writes `rules/prometheusrule.yaml`: the rules of packaging/prometheus, for the Prometheus operator.

Run it after each change of them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "exporter_proxy.rules.yml"
PROMETHEUS_RULE = HERE / "rules" / "prometheusrule.yaml"
HEAD = """\
# Made by build_rules.py from packaging/prometheus/exporter_proxy.rules.yml: change that, and run it again.
# Your Prometheus may look for further labels (ruleSelector).
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: exporter-proxy
  labels:
    app.kubernetes.io/name: exporter-proxy
spec:
"""


def text() -> str:
    """The file's text. Indenting keeps the comments, which a YAML library would drop."""
    return HEAD + textwrap.indent(RULES.read_text(encoding="utf-8"), "  ")


if __name__ == "__main__":
    PROMETHEUS_RULE.write_text(text(), encoding="utf-8")
