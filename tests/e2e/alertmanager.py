"""A real Alertmanager on a port of its own, whose receivers are nobody."""

from __future__ import annotations

import json
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tests.daemon import wait_until
from tests.e2e.processes import listening_port, start_process

START_SECONDS = 20.0


class Alertmanager:
    """With this configuration file but for where messages go, from ``with`` to the end of the block."""

    def __init__(self, config: Path) -> None:
        self._config = yaml.safe_load(config.read_text())
        for receiver in self._config["receivers"]:
            receiver["webhook_configs"] = [{"url": "http://127.0.0.1:1/"}]  # nothing leaves this host

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="alertmanager-")
        file = Path(self._directory.name, "alertmanager.yml")
        file.write_text(yaml.safe_dump(self._config))
        self._process = start_process(
            [
                "prometheus-alertmanager",
                f"--config.file={file}",
                f"--storage.path={self._directory.name}",
                "--web.listen-address=127.0.0.1:0",
                "--cluster.listen-address=",
            ]
        )
        try:
            self.address = f"127.0.0.1:{listening_port(self._process)}"
            wait_until(lambda: self.alerts() == [], "Alertmanager is ready", START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are active: labels, and in ``status`` which others inhibit each."""
        found: list[dict[str, Any]] = self._ask()
        return found

    def post(self, alerts: Sequence[Mapping[str, Any]]) -> None:
        """Send it alerts as Prometheus does."""
        self._ask(json.dumps(alerts).encode())

    def _ask(self, body: bytes | None = None) -> Any:
        url = f"http://{self.address}/api/v2/alerts"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as response:
            content = response.read()
        return json.loads(content) if content else None
