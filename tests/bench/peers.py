"""The peers: nginx, HAProxy and exporter_exporter, each set up to do what the daemon does.

All have one thread's worth of CPU, keep-alive on both sides and an access log to a file. nginx buffers
as it does by default. exporter_exporter's log level "info" is what makes it write an access log; that
it verifies, which is its default, is left to the caller.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence

from tests.bench.processes import LOOPBACK, NotMeasured, Program, executable, free_port
from tests.bench.site import CHUNKED, Proxy, Site, start_nginx

NGINX, HAPROXY, EXPORTER_EXPORTER = "nginx", "HAProxy", "exporter_exporter"
EXECUTABLES = {NGINX: "nginx", HAPROXY: "haproxy", EXPORTER_EXPORTER: "prometheus-exporter-exporter"}

NGINX_TLS = "ssl; ssl_certificate %(certfile)s; ssl_certificate_key %(keyfile)s"
NGINX_HTTP = """
  access_log %(access_log)s;
  upstream files { server 127.0.0.1:%(origin)d; keepalive 64; keepalive_requests 100000000; }
  upstream answering { server 127.0.0.1:%(answering)d; keepalive 64; keepalive_requests 100000000; }
  server {
    listen 127.0.0.1:%(port)d %(tls)s;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location / { proxy_pass http://files; }
    location /%(chunked)s { proxy_pass http://answering; }
  }
"""
HAPROXY_CONFIG = """
global
  nbthread 1
  maxconn 4096
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  option http-keep-alive
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend scrapes
  bind 127.0.0.1:%(port)d
  use_backend answering if { path /%(chunked)s }
  default_backend files
backend files
  server origin 127.0.0.1:%(origin)d
backend answering
  server origin 127.0.0.1:%(answering)d
"""


@contextlib.contextmanager
def nginx(site: Site, certificate: Mapping[str, str] | None = None) -> Iterator[Proxy]:
    """With a ``certificate`` (``certfile`` and ``keyfile``) TLS is spoken."""
    port = free_port()
    tls = NGINX_TLS % certificate if certificate else ""
    http = NGINX_HTTP % {**_places(site, port), "access_log": site.file(".nginx.access.log"), "tls": tls}
    with start_nginx(site.directory, site.file(".nginx").name, http) as program:
        program.wait_until_listening(port)
        yield Proxy(NGINX, program, program.wait_for_child(), port, "/{}", bool(certificate))


@contextlib.contextmanager
def haproxy(site: Site) -> Iterator[Proxy]:
    port, config = free_port(), site.file(".haproxy.cfg")
    config.write_text(HAPROXY_CONFIG % _places(site, port))
    yield from _serving(HAPROXY, site, ["-db", "-f", str(config)], port, "/{}")


@contextlib.contextmanager
def exporter_exporter(site: Site, *, verify: bool = False) -> Iterator[Proxy]:
    port, config = free_port(), site.file(".exporter_exporter.yml")
    modules = {
        body: {
            "method": "http",
            "http": {
                "address": LOOPBACK,
                "port": site.answering_port if body == CHUNKED else site.origin_port,
                "path": f"/{body}",
                "verify": verify,
            },
        }
        for body in site.bodies
    }
    config.write_text(json.dumps({"modules": modules}))  # JSON is YAML, too
    arguments = [f"-config.file={config}", f"-web.listen-address={LOOPBACK}:{port}", "-log.level=info"]
    yield from _serving(EXPORTER_EXPORTER, site, arguments, port, "/proxy?module={}")


def _serving(name: str, site: Site, arguments: Sequence[str], port: int, path_format: str) -> Iterator[Proxy]:
    path = executable(EXECUTABLES[name])
    if path is None:
        raise NotMeasured(f"{name} is not installed")
    with Program([path, *arguments], site.file(f".{name}.log"), {"GOMAXPROCS": "1"}) as program:
        program.wait_until_listening(port)
        yield Proxy(name, program, program.pid, port, path_format)


def _places(site: Site, port: int) -> dict[str, int | str]:
    places = {"port": port, "origin": site.origin_port, "answering": site.answering_port}
    return {**places, "chunked": CHUNKED}


PEERS = {NGINX: nginx, HAPROXY: haproxy, EXPORTER_EXPORTER: exporter_exporter}
"""Each starts one in front of a site's pages. They raise NotMeasured where it is not installed."""


def installed() -> list[str]:
    """Those of the peers that this machine has."""
    return [name for name in PEERS if executable(EXECUTABLES[name]) is not None]
