"""``serve --discover``: no configuration, the exporters found on this host, one curl line to try."""

from __future__ import annotations

import sys

from exporter_proxy.config import Config, Overrides, parse_config
from exporter_proxy.daemon import ServeOptions, run
from exporter_proxy.demo import DemoExporter, DemoExporterError, start_demo_exporter
from exporter_proxy.discover import DISCOVERED_LISTEN, config_text, discover_exporters
from exporter_proxy.reload import StartError

SOURCE = "discovered"


class _Discovery:
    """Finds exporters at start and at each reload; starts the demo exporter where there is none."""

    def __init__(self, overrides: Overrides) -> None:
        self._overrides = overrides
        self._demo: DemoExporter | None = None
        self._silent: list[str] = []

    async def load(self) -> Config:
        discovery = await discover_exporters()
        found, self._silent = discovery.found, discovery.silent
        text = config_text(found)
        if not found:
            url = await self._demo_url()
            text = f'listen: "{DISCOVERED_LISTEN}"\nexporters:\n  demo_exporter:\n    url: {url}\n'
        return parse_config(text.encode(), SOURCE, self._overrides)

    async def _demo_url(self) -> str:
        if self._demo is None:
            try:
                self._demo = await start_demo_exporter()
            except DemoExporterError as error:
                raise StartError(str(error)) from None
        return self._demo.url

    async def stop(self) -> None:
        if self._demo is not None:
            await self._demo.stop()

    def tell(self, config: Config, addresses: list[str]) -> None:
        """The first screen of someone who tries this out."""
        first = addresses[0]
        is_unix = first.startswith("unix:")
        curl = f"curl --unix-socket {first.removeprefix('unix:')}" if is_unix else "curl"
        scheme = "http" if config.server_tls is None else "https"
        base = f"{scheme}://{'localhost' if is_unix else first}{config.route_prefix}"
        if self._demo is not None:
            lines = ["No exporter listens on this host; a demo exporter shows its load, memory and disk:"]
        else:
            lines = [f"Exporters found on this host: {len(config.exporters)}"]
        lines += [f"  {base}{exporter.path}  <-  {exporter.source}" for exporter in config.exporters]
        lines += [f"  left out: {line}" for line in self._silent]
        lines += [
            "",
            "Try:",
            f"  {curl} {base}{config.exporters[0].path}",
            f"  {curl} {base}/    # every exporter and its state",
            "Ctrl-C stops it.",
        ]
        print("\n".join(lines), file=sys.stdout, flush=True)


def serve_discovered(overrides: Overrides, options: ServeOptions) -> None:
    """Serve what is found until a signal ends it. Raises ConfigError and StartError."""
    discovery = _Discovery(overrides)
    run(discovery.load, options, when_listening=discovery.tell, when_stopped=discovery.stop)
