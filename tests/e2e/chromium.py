"""A real Chromium without a window, driven over the WebDriver protocol by Debian's chromedriver.

It can reach 127.0.0.1 and nothing else. Where it is not installed the test is skipped, or fails if
``CI`` is "true" and apt has the package.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.daemon import wait_until
from tests.e2e.processes import listening_port, start_process

PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver"}
PATIENCE_SECONDS = 90.0
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    *(("--no-sandbox",) if os.geteuid() == 0 else ()),
)


def skip_where_missing() -> None:
    for program, package in PACKAGES.items():
        if shutil.which(program) is None:
            if os.environ.get("CI") == "true":
                asked = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
                assert asked.returncode != 0, f"{package} is not installed"
            pytest.skip(f"{program} is not installed")


class Chromium:
    """One browser with one window, from ``with`` to the end of the block."""

    def __enter__(self) -> Self:
        skip_where_missing()
        self._directory = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        home = self._directory.name
        self._driver = start_process(["chromedriver", "--port=0"], {"HOME": home, "TMPDIR": home})
        try:
            self._client = httpx.Client(
                base_url=f"http://127.0.0.1:{listening_port(self._driver)}",
                timeout=PATIENCE_SECONDS,
                trust_env=False,
            )
            capabilities = {
                "goog:chromeOptions": {"args": [*FLAGS, f"--user-data-dir={home}/profile"]},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._end()

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns in the page; with ``await`` in it, what that becomes."""
        body = {"script": f"return (async function() {{ {script} }}).apply(null, arguments)"}
        return self._call("POST", f"{self._session}/execute/sync", {**body, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """The text of the first such element as it is seen; "" where there is none."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def wait_for_text(self, selector: str, text: str) -> None:
        wait_until(
            lambda: text in self.text(selector), f"{selector} said {text!r}: {self.text('body')}", 15.0
        )

    def sticking_out(self) -> list[str]:
        """The elements that end to the right of the window; the hidden head of a table may."""
        found = self.run(
            "return [...document.querySelectorAll('body *')].filter((one) =>"
            " one.closest('thead') === null && one.getBoundingClientRect().right > innerWidth)"
            ".map((one) => one.outerHTML)"
        )
        return [str(one) for one in found]

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        body = {"cmd": command, "params": parameters}
        return self._call("POST", f"{self._session}/goog/cdp/execute", body)

    def prefer(self, **features: str) -> None:
        """Media features, such as ``prefers_color_scheme="dark"``."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.devtools("Emulation.setEmulatedMedia", features=named)

    def resize(self, width: int, height: int = 900) -> None:
        """Make the page so large, in CSS pixels; a narrow one is a phone's."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)

    def press(self, key: str) -> None:
        """A key, by its WebDriver code point or as the character that it is."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._call("POST", f"{self._session}/actions", body)

    def complaints(self) -> list[str]:
        """What has come to its console since the last call: errors, violations of the policy."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def screenshot(self, path: Path) -> None:
        """The whole page, also what is below the window."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = self._client.request(method, path, json=body)
        value = answer.json()["value"]
        assert answer.status_code == 200, f"{method} {path}: {value['error']}: {value['message']}"
        return value

    def _end(self) -> None:
        self._driver.terminate()
        try:
            self._driver.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        if hasattr(self, "_client"):
            self._client.close()
        self._directory.cleanup()
