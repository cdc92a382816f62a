"""The configuration as a frozen value: parsed whole, validated whole, swapped whole."""

from exporter_proxy.config.load import ConfigError, Overrides, Problem, load_config, parse_config
from exporter_proxy.config.schema import (
    AccessLog,
    Config,
    Exporter,
    ExternalUrl,
    ListenAddress,
    Network,
    Pem,
    RateLimit,
    ServerTls,
    UpstreamUrl,
    WebConfig,
)
from exporter_proxy.config.validity import not_after_timestamp_seconds
from exporter_proxy.config.warnings import config_warnings, host_warnings
from exporter_proxy.config.web import load_web_config

__all__ = [
    "AccessLog",
    "Config",
    "ConfigError",
    "Exporter",
    "ExternalUrl",
    "ListenAddress",
    "Network",
    "Overrides",
    "Pem",
    "Problem",
    "RateLimit",
    "ServerTls",
    "UpstreamUrl",
    "WebConfig",
    "config_warnings",
    "host_warnings",
    "load_config",
    "load_web_config",
    "not_after_timestamp_seconds",
    "parse_config",
]
