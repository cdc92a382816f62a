"""Where and with what the figures were taken; without it they mean little."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

from exporter_proxy import __version__
from tests.bench.peers import EXECUTABLES
from tests.bench.processes import executable

VERSION_FLAGS = {"nginx": "-v", "haproxy": "-v", "prometheus-exporter-exporter": "-version"}
VERSION_NUMBER = re.compile(r"\d+\.\d+[\w.+~-]*")


def describe_machine() -> dict[str, str]:
    """CPU, kernel, Python, date, versions, and how busy the machine was before the benchmark."""
    one_minute, _, _ = os.getloadavg()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": f"{_cpu_model()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "exporter_proxy": __version__,
        **{peer: _version(program) for peer, program in EXECUTABLES.items()},
        "load before": f"{one_minute:.2f}",
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _version(program: str) -> str:
    path = executable(program)
    if path is None:
        return "not installed"
    said = subprocess.run([path, VERSION_FLAGS[program]], capture_output=True, text=True, check=False)
    found = VERSION_NUMBER.search(said.stdout + said.stderr)
    return found[0] if found else "unknown"
