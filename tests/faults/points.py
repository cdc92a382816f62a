"""The words of the matrix: points (its rows), ways to an exporter, and programs (its columns)."""

from __future__ import annotations

POINTS: dict[int, str] = {
    1: "only GET and HEAD; others are a 405",
    2: "only the configured paths, to the letter",
    3: "the scraper's hop-by-hop headers stay behind",
    4: "of its other headers, only a scrape's go on",
    5: "Host is the exporter's own",
    6: "the query, byte for byte",
    7: "a request's body is not waited for",
    8: "a malformed request is a 400",
    9: "HTTP/1.0 scrapers are served",
    10: "status, body and headers pass unchanged",
    11: "the exporter's hop-by-hop headers stay behind",
    12: "a redirect is a 502",
    13: "an exporter's own 4xx or 5xx passes",
    14: "1xx are swallowed, a 101 is a 502",
    15: "what is not HTTP is a 502",
    16: "never two framings",
    17: "a truncated body never looks whole",
    18: "a body may end with the connection",
    19: "HEAD, 204 and 304 have no body",
    20: "a scraper that leaves ends the scrape",
    21: "a stale connection is tried again, once",
    22: "one deadline, that no byte extends",
    23: "it is taken from Prometheus's own",
    24: "504 before the headers, a cut after them",
}

PLAIN, GZIP, TLS, UNIX = "plain", "gzip", "TLS", "unix"
FILE, COMMAND, SHARED, PUSHPROX = "file", "command", "shared", "pushprox"
WAYS = PLAIN, GZIP, TLS, UNIX, FILE, COMMAND, SHARED, PUSHPROX

OURS, NGINX, HAPROXY, EXPORTER_EXPORTER = "exporter_proxy", "nginx", "HAProxy", "exporter_exporter"
PROGRAMS = OURS, NGINX, HAPROXY, EXPORTER_EXPORTER
