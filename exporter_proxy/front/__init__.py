"""Facing Prometheus: sockets, connections, requests and their limits."""
