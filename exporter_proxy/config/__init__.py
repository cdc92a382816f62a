"""The configuration as a frozen value: parsed whole, validated whole, swapped whole."""

from exporter_proxy.config.load import ConfigError, Overrides, Problem, load_config, parse_config
from exporter_proxy.config.schema import (
    AccessLog,
    Config,
    Exporter,
    ListenAddress,
    Network,
    Pem,
    ServerTls,
    UpstreamUrl,
)
from exporter_proxy.config.warnings import config_warnings, resolve_warnings

__all__ = [
    "AccessLog",
    "Config",
    "ConfigError",
    "Exporter",
    "ListenAddress",
    "Network",
    "Overrides",
    "Pem",
    "Problem",
    "ServerTls",
    "UpstreamUrl",
    "config_warnings",
    "load_config",
    "parse_config",
    "resolve_warnings",
]
