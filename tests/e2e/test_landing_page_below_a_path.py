"""The landing page below a path, in a real Chromium: with a route prefix, and behind nginx.

What is on it is for test_landing_page.py, but for sources that are not HTTP, which are looked at here.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.e2e.chromium import Chromium
from tests.e2e.processes import listening_port, start_process
from tests.fakes.exporter import Connection, FakeExporter, head
from tests.fakes.ports import refusing_port, reserved_port

pytestmark = pytest.mark.timeout(300)


def test_files_commands_and_pushprox_below_a_prefix(chromium: Chromium, tmp_path: Path) -> None:
    (tmp_path / "old.prom").write_text("old 1\n")
    os.utime(tmp_path / "old.prom", (0, 0))
    says_much = "printf '%0300d cannot open /dev/md0' 0 >&2; exit 3"
    with refusing_port() as port:
        config = {
            "route_prefix": "/vm1",
            "exporters": {
                "backup": {"file": str(tmp_path / "old.prom"), "max_age": "26h"},
                "raid": {"command": ["/bin/sh", "-c", says_much]},
                "a_name_" + "that_is_long_" * 5: {"command": ["/bin/echo", "x 1"]},
            },
            "pushprox": {"proxy_url": f"http://127.0.0.1:{port}/", "fqdn": "vm1.example.org"},
        }
        with Daemon(config) as daemon:
            for name in config["exporters"]:
                daemon.get(f"/vm1/{name}/metrics")
            for width in (1200, 360):
                chromium.resize(width)
                chromium.open(f"{daemon.url}/vm1/")
                chromium.wait_for_text("#daemon", "as vm1.example.org")
                chromium.wait_for_text(
                    "#summary", "2 of 3 exporters fail: backup (stale), raid (command_failed)"
                )
                chromium.screenshot(tmp_path / f"{width}.png")
                assert chromium.sticking_out() == []
            assert re.search(r"was written \d+ d ago, over max_age \(26 h\)", chromium.text("#exporters"))
            assert "cannot open /dev/md0" in chromium.text("#exporters")
            chromium.wait_for_text("#daemon", "is a PushProx proxy running there")
    targets = chromium.run("return document.querySelector('#targets').href")
    assert targets == f"{daemon.url}/vm1/-/sd"
    assert chromium.complaints() == []


NGINX = """
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /vm1/ {{
            auth_request /ldap;
            error_page 403 =302 http://127.0.0.1:{port}/sign-in;
            proxy_pass {daemon};
        }}
        location = /ldap {{
            internal;
            proxy_pass {directory_service}/;
        }}
    }}
}}
"""


class DirectoryService:
    """What stands for the LDAP helper that nginx asks: it knows one user, until it knows nobody."""

    def __init__(self) -> None:
        self.is_open = True

    def answer(self, connection: Connection) -> None:
        shown = connection.request.header("authorization")
        no_body = ("Content-Length", "0")
        if not self.is_open:
            connection.send(head(403, [no_body]))
        elif shown == "Basic b3BzOnMzY3IzdA==":  # ops:s3cr3t
            connection.send(head(200, [no_body]))
        else:
            connection.send(head(401, [no_body, ("WWW-Authenticate", 'Basic realm="LDAP"')]))


@pytest.mark.parametrize("is_prefix_kept", [False, True])
def test_behind_nginx_and_ldap(chromium: Chromium, tmp_path: Path, is_prefix_kept: bool) -> None:
    """Below a path, for those who sign in: once nginx takes the path off, once it leaves it there."""
    service = DirectoryService()
    with ExitStack() as stack:
        port = stack.enter_context(reserved_port())
        flags = [f"--web.external-url=http://127.0.0.1:{port}/vm1/"]
        flags += [] if is_prefix_kept else ["--web.route-prefix=/"]
        exporter = stack.enter_context(FakeExporter())
        directory_service = stack.enter_context(FakeExporter([service.answer]))
        daemon = stack.enter_context(Daemon({"exporters": {"x": {"url": exporter.url()}}}, *flags))
        (tmp_path / "nginx.conf").write_text(
            NGINX.format(
                directory=tmp_path,
                port=port,
                daemon=daemon.url + ("" if is_prefix_kept else "/"),
                directory_service=directory_service.url(""),
            )
        )
        nginx = start_process(
            ["nginx", "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log")]
        )
        stack.callback(nginx.wait)
        stack.callback(nginx.terminate)
        assert listening_port(nginx) == port

        chromium.open(f"http://ops:s3cr3t@127.0.0.1:{port}/vm1/")
        chromium.wait_for_text("#summary", "never scraped")
        assert chromium.run("return document.querySelector('tbody th a').href") == (
            f"http://127.0.0.1:{port}/vm1/x/metrics"
        )
        chromium.run("document.querySelector('tbody th a').click()")
        chromium.wait_for_text("body", "fake_up 1")
        chromium.open(f"http://127.0.0.1:{port}/vm1/")
        chromium.wait_for_text("#summary", "exporter answers")
        service.is_open = False
        chromium.wait_for_text("#trouble", "You may have been signed out: reload this page.")
