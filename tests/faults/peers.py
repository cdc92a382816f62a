"""nginx, HAProxy and exporter_exporter, with the best configurations for scrapes that we can write.

What their languages can say of the points is said here: exact paths, allowed methods and headers, no
redirects, retries, and a deadline as near to a total one as there is. Where two settings exclude each other
the one that holds more of the cases was taken.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import LOOPBACK, NotMeasured, Program, executable, free_port
from tests.bench.site import start_nginx
from tests.fakes.exporter import FakeExporter
from tests.fakes.ports import unanswering_port
from tests.faults.case import whole
from tests.faults.judges import served
from tests.faults.points import EXPORTER_EXPORTER, GZIP, HAPROXY, NGINX, PLAIN, TLS, UNIX
from tests.faults.seen import Seen, Violated
from tests.faults.target import (
    HURRIED,
    HURRIED_SECONDS,
    PROBE,
    PROBE_TARGET,
    ROUTE,
    VOID,
    HttpSource,
    Page,
    Target,
    playing,
)
from tests.faults.ways import CERTIFICATE_NAME, GZIP_PAGE, certificate

LIMIT_SECONDS = 0.5
"""Of those who cannot take it from Prometheus: half of what scrapers say here that they wait."""
EXECUTABLES = {NGINX: "nginx", HAPROXY: "haproxy", EXPORTER_EXPORTER: "prometheus-exporter-exporter"}
"""Debian's packages are called so, too."""
VERSION_OPTIONS = {NGINX: "-v", HAPROXY: "-v", EXPORTER_EXPORTER: "-version"}


@dataclass(frozen=True)
class Place:
    """What a peer's configuration is made of."""

    directory: Path
    port: int
    exporter: FakeExporter
    socket_path: Path | None
    ca_file: Path | None
    void_port: int


Setup = Callable[[Place], AbstractContextManager[Program]]


# nginx. With proxy_pass_request_headers off there is a list of what may pass. It does not read what
# Connection names, so a map for each of these does; and it matches paths that it has decoded, so the raw one
# is matched, too. Its time limits are for what is between two reads.

PASSED = ("accept", "accept_encoding", "user_agent", "traceparent", "tracestate")
NGINX_HTTP = """
  access_log off;
  client_header_timeout 10s;
  client_max_body_size 1;
  merge_slashes off;
  server_tokens off;
  proxy_http_version 1.1;
  proxy_buffering on;
  proxy_request_buffering off;
  proxy_pass_request_body off;
  proxy_pass_request_headers off;
  proxy_connect_timeout %(limit)dms;
  proxy_send_timeout %(limit)dms;
  proxy_read_timeout %(limit)dms;
  proxy_next_upstream error timeout;
  proxy_next_upstream_tries 1;
  proxy_redirect off;
  proxy_intercept_errors on;
  proxy_ignore_client_abort off;
  proxy_hide_header Set-Cookie;
  proxy_hide_header Keep-Alive;
  proxy_hide_header Proxy-Connection;
  proxy_hide_header Proxy-Authenticate;
  proxy_hide_header Trailer;
  proxy_hide_header Upgrade;
  proxy_pass_header Date;
  proxy_pass_header Server;
  %(tls)s
  map $request_method $is_other_method { default 1; GET 0; HEAD 0; }
  map "$host|$http_host" $is_other_host { default 1; "~^([^|]*)\\|\\1(:[0-9]+)?$" 0; }
  map "%(all_passed)s" $has_control { default 0; "~[\\x00-\\x08\\x0a-\\x1f\\x7f]" 1; }
  map $args $joined_args { default "&$args"; "" ""; }
  %(maps)s
  upstream exporter { server %(server)s max_fails=0; keepalive 16; }
  server {
    listen 127.0.0.1:%(port)d;
    error_page 300 301 302 303 305 307 308 =502 @redirected;
    error_page 405 @other_method;
    if ($is_other_method) { return 405; }
    if ($is_other_host) { return 400; }
    if ($has_control) { return 400; }
    if ($http_transfer_encoding) { return 400; }
    proxy_set_header Host %(host)s;
    proxy_set_header Connection "";
    proxy_set_header X-Prometheus-Scrape-Timeout-Seconds $http_x_prometheus_scrape_timeout_seconds;
    %(headers)s
    location / { return 404; }
    location @redirected { return 502 "the exporter redirects\\n"; }
    location @other_method { add_header Allow "GET, HEAD" always; return 405; }
    location = /%(x)s/metrics {
      if ($request_uri !~ "^(http://[^/]+)?/%(x)s/metrics(\\?|$)") { return 404; }
      proxy_pass %(scheme)s://exporter/metrics;
    }
    location = /%(hurried)s/metrics {
      proxy_read_timeout %(hurried_limit)dms;
      proxy_pass %(scheme)s://exporter/metrics;
    }
    location = /%(probe)s/metrics { proxy_pass %(scheme)s://exporter%(probe_target)s$joined_args; }
    location = /%(void)s/metrics { proxy_pass %(scheme)s://127.0.0.1:%(void_port)d/metrics; }
  }
"""
NGINX_TLS = """
  proxy_ssl_verify on;
  proxy_ssl_trusted_certificate %s;
  proxy_ssl_name %s;
"""


@contextlib.contextmanager
def nginx(place: Place) -> Iterator[Program]:
    maps = "".join(
        f"map $http_connection $passed_{name} {{ default $http_{name}; "
        f'"~*(^|[,\\s]){name.replace("_", "-")}([,\\s]|$)" ""; }}\n'
        for name in PASSED
    )
    headers = "".join(f"proxy_set_header {name.replace('_', '-')} $passed_{name};\n" for name in PASSED)
    http = NGINX_HTTP % {
        **_names(place),
        "server": f"unix:{place.socket_path}" if place.socket_path else place.exporter.authority,
        "scheme": "https" if place.ca_file else "http",
        "tls": NGINX_TLS % (place.ca_file, CERTIFICATE_NAME) if place.ca_file else "",
        "maps": maps,
        "all_passed": "".join(f"$http_{name}" for name in PASSED),
        "headers": headers,
    }
    with start_nginx(place.directory, "nginx", http) as program:
        yield program


# HAProxy. Its language has whole numbers: of a timeout like 1.5 s it sees the 1. wait-for-body gives a
# total deadline to what fits into its buffer, and turns a page that breaks off into a 502.

HAPROXY_CONFIG = """
global
  nbthread 1
  maxconn 512
  tune.bufsize 1048576
defaults
  mode http
  option http-keep-alive
  option abortonclose
  http-reuse always
  retries 1
  retry-on conn-failure empty-response
  timeout connect %(half_limit)dms
  timeout client 10s
  timeout http-request 10s
  timeout server %(limit)dms
frontend scrapes
  bind 127.0.0.1:%(port)d
  acl is_route path /%(x)s/metrics /%(hurried)s/metrics /%(probe)s/metrics /%(void)s/metrics
  http-request return status 400 unless { req.hdr(host) -m found }
  http-request return status 400 if { req.hdrs -m reg '[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f]' }
  http-request return status 404 unless is_route
  http-request return status 405 hdr Allow "GET, HEAD" unless METH_GET
  http-request return status 400 if { req.hdr_val(content-length) gt 0 }
  http-request return status 400 if { req.hdr(transfer-encoding) -m found }
  http-request set-var(txn.route) path
  http-request set-path /metrics unless { path /%(probe)s/metrics }
  http-request set-query own=1&%%[query] if { path /%(probe)s/metrics } { query -m found }
  http-request set-query own=1 if { path /%(probe)s/metrics } !{ query -m found }
  http-request set-path /probe if { path /%(probe)s/metrics }
  http-request set-header Host %(host)s
%(named)s
  http-request del-header %(not_passed)s -m reg
  use_backend void if { var(txn.route) -m str /%(void)s/metrics }
  use_backend hurried if { var(txn.route) -m str /%(hurried)s/metrics }
  default_backend exporter
backend exporter
  acl has_time req.hdr_val(x-prometheus-scrape-timeout-seconds) gt 0
  http-request set-timeout server %(milliseconds_left)s if has_time
  http-request set-header X-Prometheus-Scrape-Timeout-Seconds %%[%(milliseconds_left)s,div(1000)] if has_time
%(answers)s
  server exporter %(server)s
backend hurried
  timeout server %(hurried_limit)dms
%(answers)s
  server exporter %(server)s
backend void
  server void 127.0.0.1:%(void_port)d
"""
HAPROXY_ANSWERS = """
  http-response wait-for-body time %(limit)dms
  http-response return status 502 content-type text/plain string "a redirect" if { status 300:303 305:399 }
  http-response return status 502 content-type text/plain string "too large" if { res.hdrs,length gt 65536 }
  http-response del-header ^(set-cookie|keep-alive|proxy-.*|trailer|upgrade)$ -m reg
"""
HAPROXY_NAMED = "  http-request del-header {0} if {{ req.hdr(connection) -i {0} }}\n"
NOT_PASSED = (
    "^(?!("
    + "|".join(("host", "x-prometheus-scrape-timeout-seconds", *(name.replace("_", "-") for name in PASSED)))
    + ")$)"
)


@contextlib.contextmanager
def haproxy(place: Place) -> Iterator[Program]:
    names = _names(place)
    named = "".join(HAPROXY_NAMED.format(name.replace("_", "-")) for name in PASSED)
    server = f"unix@{place.socket_path}" if place.socket_path else place.exporter.authority
    if place.ca_file:
        server += f" ssl verify required ca-file {place.ca_file} verifyhost {CERTIFICATE_NAME}"
    config = place.directory / "haproxy.cfg"
    config.write_text(
        HAPROXY_CONFIG
        % {
            **names,
            "answers": HAPROXY_ANSWERS % names,
            "server": server,
            "not_passed": NOT_PASSED,
            "named": named,
        }
    )
    with Program([_required(HAPROXY), "-db", "-f", str(config)], place.directory / "haproxy.log") as program:
        yield program


# exporter_exporter: it has a limit for each module, and it is a total one. With "verify", which is its
# default, it takes in whole pages of the text format and nothing else: protobuf is a 500. Without, pages that
# break off are failures as well.


@contextlib.contextmanager
def exporter_exporter(place: Place) -> Iterator[Program]:
    http = {
        "address": LOOPBACK,
        "port": place.exporter.port,
        "path": "/metrics",
        "verify": False,
        **({"scheme": "https"} if place.ca_file else {}),
    }
    modules = {
        ROUTE: {"method": "http", "timeout": f"{LIMIT_SECONDS}s", "http": http},
        HURRIED: {"method": "http", "timeout": f"{HURRIED_SECONDS}s", "http": http},
        VOID: {"method": "http", "timeout": f"{LIMIT_SECONDS}s", "http": {**http, "port": place.void_port}},
    }
    config = place.directory / "exporter_exporter.yml"
    config.write_text(json.dumps({"modules": modules}))  # JSON is YAML, too
    arguments = [f"-config.file={config}", f"-web.listen-address={LOOPBACK}:{place.port}"]
    command = [_required(EXPORTER_EXPORTER), *arguments]
    # Its tls_ca_cert_file makes it trust nobody; Go's own variable does what that is for.
    environment = {"SSL_CERT_FILE": str(place.ca_file)} if place.ca_file else {}
    with Program(command, place.directory / "exporter_exporter.log", environment) as program:
        yield program


SETUPS: dict[str, Setup] = {NGINX: nginx, HAPROXY: haproxy, EXPORTER_EXPORTER: exporter_exporter}
PATHS = {EXPORTER_EXPORTER: "/proxy?module={}"}
WAYS: dict[str, Sequence[str]] = {
    NGINX: (PLAIN, GZIP, TLS, UNIX),
    HAPROXY: (PLAIN, GZIP, TLS, UNIX),
    EXPORTER_EXPORTER: (PLAIN, GZIP, TLS),
}
"""How each can reach an exporter."""


@contextlib.contextmanager
def serving(name: str, way: str) -> Iterator[Target]:
    """A peer in front of a scripted exporter. Raises NotMeasured where it is missing, or does not serve."""
    with (
        tempfile.TemporaryDirectory(prefix="exporter_proxy-faults-") as path,
        unanswering_port() as void_port,
    ):
        directory = Path(path)
        context, ca_file = certificate(directory) if way == TLS else (None, None)
        socket_path = directory / "exporter.sock" if way == UNIX else None
        with FakeExporter(tls=context, unix=socket_path) as exporter:
            place = Place(directory, free_port(), exporter, socket_path, ca_file, void_port)
            with SETUPS[name](place) as program:
                program.wait_until_listening(place.port)
                target = Target(
                    name,
                    way,
                    HttpSource(exporter),
                    (LOOPBACK, place.port),
                    GZIP_PAGE if way == GZIP else Page(),
                    path_format=PATHS.get(name, "/{}/metrics"),
                    exporter_host=_host(place),
                )
                _check(target, program)
                yield target


def _check(target: Target, program: Program) -> None:
    """Whoever does not even serve the page is set up wrongly, and not to be judged. Raises NotMeasured."""
    seen = Seen(target)
    with playing(target, whole(target.page), "", b""):
        seen.ask(Target.get)
        try:
            served(seen)
        except Violated as violated:
            problem = f"{target.program} does not serve over {target.way}: {violated}; {program.log_tail()}"
            raise NotMeasured(problem) from None


def version(name: str) -> str:
    """As the program itself says it. Raises NotMeasured where it is not installed."""
    said = subprocess.run(
        [_required(name), VERSION_OPTIONS[name]], capture_output=True, text=True, timeout=10, check=False
    )
    found = re.search(r"(?:nginx/|version |Version: )(\d+\.\d+\.\d+)", said.stdout + said.stderr)
    return found[1] if found else "?"


def _required(name: str) -> str:
    path = executable(EXECUTABLES[name])
    if path is None:
        raise NotMeasured(f"{name} is not installed (Debian package {EXECUTABLES[name]})")
    return path


def _host(place: Place) -> str:
    return "localhost" if place.socket_path else place.exporter.authority


def _names(place: Place) -> dict[str, object]:
    return {
        "port": place.port,
        "host": _host(place),
        "void_port": place.void_port,
        "limit": LIMIT_SECONDS * 1000,
        "half_limit": LIMIT_SECONDS * 500,
        "milliseconds_left": "req.hdr_val(x-prometheus-scrape-timeout-seconds),mul(1000),sub(500)",
        "hurried_limit": HURRIED_SECONDS * 1000,
        "x": ROUTE,
        "hurried": HURRIED,
        "probe": PROBE,
        "probe_target": PROBE_TARGET,
        "void": VOID,
    }
