"""exporter_proxy: every Prometheus exporter of a host behind one port."""

__version__ = "1.0.0.dev0"
