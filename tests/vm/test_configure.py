"""What needs no guest of the role: it configures a directory of the test; systemctl and dpkg are played."""

from __future__ import annotations

import base64
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trustme
import yaml

from tests.vm.play import COLLECTION, PLAY_SECONDS, SITE, environment, tool, vaulted

USER_HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
EXPORTERS = {"node_exporter": {"url": "http://127.0.0.1:9100/metrics"}}
# All is active, and nothing is older than its files.
SYSTEMCTL = """\
#!/bin/sh
echo "$*" >>"${0%/*}/systemctl.log"
case "$*" in
*Timestamp*) echo ExecMainStartTimestamp=; echo StateChangeTimestamp= ;;
*Listen*) echo "Listen=0.0.0.0:9099 (Stream)"; echo ActiveState=active ;;
show*) echo ActiveState=active; echo LoadState=loaded ;;
is-active*) echo active ;;
is-enabled*) echo enabled ;;
esac
"""
# It runs, and has no rules yet.
FIREWALL_CMD = """\
#!/bin/sh
case "$*" in
--state) ;;
*default-zone) echo public ;;
*) echo "$*" >>"${0%/*}/firewall-cmd.log" ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Played:
    """One play on this host."""

    status: int
    output: str

    @property
    def changed(self) -> int:
        found = re.search(r"changed=(\d+)", self.output)
        assert found is not None, self.output
        return int(found[1])


@dataclass(frozen=True, slots=True)
class Here:
    """This host, as far as the role is concerned."""

    directory: Path

    @property
    def etc(self) -> Path:
        return self.directory / "etc"

    @property
    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.etc)): path.read_bytes()
            for path in self.etc.rglob("*")
            if path.is_file()
        }

    @property
    def asked_of_systemd(self) -> list[str]:
        log = self.directory / "bin/systemctl.log"
        return log.read_text().splitlines() if log.exists() else []

    def add_program(self, name: str, text: str) -> None:
        """What is found in place of the host's own."""
        place = self.directory / "bin"
        place.mkdir(exist_ok=True)
        (place / name).write_text(text)
        (place / name).chmod(0o755)

    def play(self, tag: str, *arguments: str, playbook: str = "", **variables: Any) -> Played:
        here = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        (self.directory / "inventory.yml").write_text(
            json.dumps({"exporter_proxy": {"hosts": {"here": here}}})
        )
        (self.directory / "site.yml").write_text(SITE)
        given = {
            "exporter_proxy_install_method": "wheelhouse",
            "exporter_proxy_wheelhouse": "exporter_proxy-1.0.0-wheelhouse.tar.gz",
            "exporter_proxy_firewall": "none",
            "exporter_proxy_exporters": EXPORTERS,
            "_exporter_proxy_user": "root",
            "_exporter_proxy_config_directory": str(self.etc),
            "_exporter_proxy_systemd": str(self.directory / "systemd"),
            "_exporter_proxy_prefix": str(self.directory / "opt"),
            "_exporter_proxy_next_command": str(tool("exporter_proxy")),
            **variables,
        }
        (self.directory / "variables.json").write_text(json.dumps(given))
        settings = environment(self.directory)
        done = subprocess.run(
            [
                tool("ansible-playbook"),
                f"--inventory={self.directory / 'inventory.yml'}",
                playbook or self.directory / "site.yml",
                f"--extra-vars=@{self.directory / 'variables.json'}",
                *([f"--tags=exporter_proxy_{tag}"] if tag else []),
                *arguments,
            ],
            env={**settings, "PATH": f"{self.directory / 'bin'}:{settings['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PLAY_SECONDS,
        )
        print(done.stdout)
        return Played(done.returncode, done.stdout)


@pytest.fixture
def here(able: None, tmp_path: Path) -> Here:
    here = Here(tmp_path)
    here.add_program("systemctl", SYSTEMCTL)
    return here


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, Any]:
    """The role's variables for HTTPS with a password."""
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    return {
        "exporter_proxy_tls_cert": str(tmp_path / "server.crt"),
        "exporter_proxy_tls_key": str(tmp_path / "server.key"),
        "exporter_proxy_web_config": {"basic_auth_users": {"prometheus": USER_HASH}},
    }


@pytest.mark.parametrize("mode", [("--diff",), ("--diff", "--check")], ids=["play", "check mode"])
def test_no_secret_is_in_a_diff(here: Here, tls: dict[str, Any], mode: tuple[str, ...]) -> None:
    secret = {**EXPORTERS["node_exporter"], "basic_auth": {"username": "x", "password": "hunter2"}}
    played = here.play("configure", *mode, **tls, exporter_proxy_exporters={"x": secret})
    assert played.status == 0
    assert played.changed > 0
    for shown in ("PRIVATE KEY", "hunter2", "$2b$"):
        assert shown not in played.output


def test_no_secret_is_told_with_v(here: Here, tmp_path: Path) -> None:
    """Nor what has one in it, as base64."""
    secret = {**EXPORTERS["node_exporter"], "basic_auth": {"username": "x", "password": "hunter2"}}
    (tmp_path / "opt").mkdir()
    for tag in ("configure", "configure", "run"):
        played = here.play(tag, "-v", exporter_proxy_exporters={"x": secret})
        assert played.status == 0
        assert "hunter2" not in played.output
        assert base64.b64encode(here.files["config.yml"]).decode() not in played.output


def test_what_is_encrypted_one_by_one_is_written_as_it_is(here: Here, tmp_path: Path) -> None:
    """As ansible-vault encrypt_string does it."""
    basic_auth = f"basic_auth: {{username: x, password: {vaulted(tmp_path, 'hunter2')}}}"
    (tmp_path / "secrets.yml").write_text(
        f"exporter_proxy_exporters: {{x: {{url: 'http://127.0.0.1:9100/metrics', {basic_auth}}}}}\n"
        f"exporter_proxy_config: {{pushprox: {{proxy_url: 'http://127.0.0.1:8080', {basic_auth}}}}}\n"
        f"exporter_proxy_web_config: {{basic_auth_users: {{x: {vaulted(tmp_path, USER_HASH)}}}}}\n"
    )
    secrets = (f"--extra-vars=@{tmp_path / 'secrets.yml'}", f"--vault-password-file={tmp_path / 'vault'}")
    assert here.play("configure", *secrets).status == 0
    assert here.files["config.yml"].decode().count("password: hunter2\n") == 2
    assert f"x: {USER_HASH}\n" in here.files["web.yml"].decode()
    assert here.play("configure", *secrets).changed == 0


def test_a_key_that_does_not_belong_replaces_nothing(here: Here, tls: dict[str, Any], tmp_path: Path) -> None:
    assert here.play("configure", **tls).status == 0
    before = here.files
    # Not on the command line: what judges config.yml without the unit, as the package does, judges all of it.
    assert f"web_config_file: {here.etc}/web.yml" in before["config.yml"].decode()
    assert {"config.yml", "web.yml", "tls/server.crt", "tls/server.key"} == set(before)
    again = here.play("configure", **tls)
    assert (again.status, again.changed) == (0, 0)

    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "other.key")
    played = here.play("configure", **{**tls, "exporter_proxy_tls_key": str(tmp_path / "other.key")})
    assert played.status != 0
    assert "does not belong" in played.output
    assert here.files == before


def test_names_of_files_are_relative_to_the_configurations_directory(here: Here) -> None:
    (here.etc / "conf.d").mkdir(parents=True)
    (here.etc / "conf.d/more.yml").write_text("exporters: {more: {url: 'http://127.0.0.1:9100/more'}}\n")
    (here.etc / "tokens").write_text("t" * 40 + "\n")
    config = {"include": ["conf.d/*.yml"], "bearer_tokens_file": "tokens"}
    assert here.play("configure", exporter_proxy_config=config).status == 0
    before = here.files
    assert set(before) == {"config.yml", "conf.d/more.yml", "tokens"}

    # What is included counts, too: the same name twice.
    played = here.play(
        "configure",
        exporter_proxy_config=config,
        exporter_proxy_exporters={"more": EXPORTERS["node_exporter"]},
    )
    assert played.status != 0
    assert "conf.d/more.yml" in played.output
    assert here.files == before


def test_the_daemons_user_judges(here: Here, tmp_path: Path) -> None:
    """It is not root, who may read anything."""
    here.add_program("runuser", f'#!/bin/sh\necho "$*" >>{tmp_path}/runuser.log\nshift 3\nexec "$@"\n')
    assert here.play("configure").status == 0
    assert (tmp_path / "runuser.log").read_text().startswith(f"-u root -- {tool('exporter_proxy')} check ")


def test_a_release_that_is_not_installed_is_not_run(here: Here, tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    played = here.play("run", _exporter_proxy_next_command=str(tmp_path / "nowhere"))
    assert played.status != 0
    assert "nowhere is not there" in played.output
    assert not (tmp_path / "opt/current").is_symlink()
    assert not any(asked.startswith(("restart", "start")) for asked in here.asked_of_systemd)


@pytest.mark.parametrize("port_before", [9099, None], ids=["another port", "none before"])
def test_a_configuration_that_is_refused_leaves_the_port_in_use_open(
    here: Here, tmp_path: Path, port_before: int | None
) -> None:
    """Prometheus would not reach the old daemon, which goes on; that of a package is never open to all."""
    here.add_program("firewall-cmd", FIREWALL_CMD)
    here.add_program("nft", "#!/bin/sh\nexit 1\n")
    log = tmp_path / "bin/firewall-cmd.log"
    variables: dict[str, Any] = {
        "exporter_proxy_firewall": "firewalld",
        "exporter_proxy_prometheus_addresses": ["192.0.2.5"],
    }
    if port_before:
        written = tmp_path / "systemd/exporter_proxy.socket.d/50-ansible.conf"
        written.parent.mkdir(parents=True)
        written.write_text(f"[Socket]\nListenStream=\nListenStream=0.0.0.0:{port_before}\n")
    tags = "firewall,exporter_proxy_configure"
    refused = here.play(tags, **variables, exporter_proxy_port=9200, exporter_proxy_config={"listenn": ""})
    assert refused.status != 0
    assert "listenn" in refused.output
    assert log.exists() is (port_before is None)
    assert here.play(tags, **variables, exporter_proxy_port=9200).status == 0
    assert "--add-port=9200/tcp" in log.read_text()


def test_files_for_https_go_once_the_daemon_is_told_to_do_without(
    here: Here, tls: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "opt").mkdir()
    assert here.play("configure", **tls).status == 0
    with_tls = set(here.files)
    assert here.play("configure").status == 0
    assert set(here.files) == with_tls
    assert here.play("run").status == 0
    assert set(here.files) == {"config.yml"}


class Unknowing(http.server.BaseHTTPRequestHandler):
    """A Prometheus that has no series."""

    def do_GET(self) -> None:
        body = b'{"status": "success", "data": {"resultType": "vector", "result": []}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def prometheus() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unknowing) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_rollout_that_nothing_would_stop_does_not_begin(here: Here, prometheus: str) -> None:
    rollout: dict[str, Any] = {
        "playbook": "exporter_proxy.fleet.rollout",
        "rollout_prometheus_url": prometheus,
        # So that the role is as far as it gets.
        "exporter_proxy_firewall": "auto",
    }
    told = "exporter_proxy_prometheus_addresses is empty"
    refused = here.play("", **rollout)
    assert refused.status != 0
    assert "rollout_unscraped_ok" in refused.output
    assert told not in refused.output
    allowed = here.play("", **rollout, rollout_unscraped_ok="true")
    assert told in allowed.output


@pytest.mark.parametrize(
    ("state", "missed"), [("present", ["exporter_proxy", "node_exporter"]), ("absent", [])]
)
def test_what_a_rollout_takes_out_is_not_waited_for(
    here: Here, tmp_path: Path, state: str, missed: list[str]
) -> None:
    (update, _) = yaml.safe_load((COLLECTION / "playbooks/rollout.yml").read_text())
    (remember,) = (task for task in update["tasks"] if task["name"] == "Remember what has to be up again")
    told = {"ansible.builtin.debug": {"var": "rollout_exporters"}}
    play = {"hosts": "exporter_proxy", "gather_facts": False, "tasks": [remember, told]}
    (tmp_path / "remember.yml").write_text(json.dumps([play]))
    up = [{"metric": {"exporter": name}} for name in ("exporter_proxy", "node_exporter", "gone_exporter")]
    played = here.play(
        "", playbook=str(tmp_path / "remember.yml"), rollout_answer=up, exporter_proxy_state=state
    )
    assert played.status == 0
    found = re.search(r'"rollout_exporters": (\[.*?\])', played.output, re.S)
    assert found is not None
    assert json.loads(found[1]) == missed


def test_variables_of_the_command_line_are_text(here: Here, tmp_path: Path) -> None:
    releases = tmp_path / "opt/releases"
    for version in ("1.0.0", "0.9.0", "0.8.0"):
        (releases / version).mkdir(parents=True)
    here.play("configure", exporter_proxy_use_socket="false")
    assert b"listen: 0.0.0.0:9099" in here.files["config.yml"]
    assert here.play("run", exporter_proxy_keep_releases="1").status == 0
    assert [path.name for path in releases.iterdir()] == ["1.0.0"]


def test_a_configuration_that_is_no_yaml_is_mended(here: Here) -> None:
    here.etc.mkdir()
    (here.etc / "config.yml").write_text("listen: [\nexporters: }\n")
    assert here.play("configure").status == 0
    assert "restart exporter_proxy.service" in here.asked_of_systemd

    asked = len(here.asked_of_systemd)
    other = {"process_exporter": {"url": "http://127.0.0.1:9256/metrics"}}
    assert here.play("configure", exporter_proxy_exporters=other).status == 0
    assert "reload exporter_proxy.service" in here.asked_of_systemd[asked:]
    assert "restart exporter_proxy.service" not in here.asked_of_systemd[asked:]


@pytest.fixture
def package(here: Here, tmp_path: Path) -> dict[str, Any]:
    """The role's variables for a Debian package, with a dpkg that installs none."""
    (tmp_path / "tree/DEBIAN").mkdir(parents=True)
    (tmp_path / "tree/DEBIAN/control").write_text(
        "Package: exporter-proxy\nVersion: 1.2.3-1+deb12\nArchitecture: all\nMaintainer: x <x@example.org>\n"
        "Description: nothing\n"
    )
    subprocess.run(["dpkg-deb", "--build", "-Zxz", tmp_path / "tree", tmp_path / "a.deb"], check=True)
    here.add_program("dpkg", '#!/bin/sh\necho "$*" >>"${0%/*}/dpkg.log"\n')
    here.add_program("dpkg-query", '#!/bin/sh\necho -n "installed ${INSTALLED:-1.2.2-1+deb12}"\n')
    here.add_program("dpkg-deb", "#!/bin/sh\nexit 127\n")
    return {
        "exporter_proxy_install_method": "deb",
        "exporter_proxy_deb": str(tmp_path / "a.deb"),
        "_exporter_proxy_deb_copy": str(tmp_path / "copy.deb"),
    }


def test_the_controller_needs_no_dpkg(
    here: Here, package: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = here.play("install", **package)
    assert (installed.status, installed.changed) == (0, 3)
    assert (
        (here.directory / "bin/dpkg.log").read_text().endswith(f"--install {here.directory / 'copy.deb'}\n")
    )
    monkeypatch.setenv("INSTALLED", "1.2.3-1+deb12")
    again = here.play("install", **package)
    assert (again.status, again.changed) == (0, 0)


# As dpkg says it, once.
LOCKED = """\
#!/bin/sh
echo "$*" >>"${0%/*}/dpkg.log"
[ "$(wc -l <"${0%/*}/dpkg.log")" -gt 1 ] && exit
echo "dpkg: error: dpkg frontend lock was locked by another process with pid 42" >&2
exit 2
"""


def test_dpkg_is_asked_again_while_another_has_its_lock(here: Here, package: dict[str, Any]) -> None:
    here.add_program("dpkg", LOCKED)
    assert here.play("install", **package).status == 0
    assert len((here.directory / "bin/dpkg.log").read_text().splitlines()) == 2
    here.add_program("dpkg", '#!/bin/sh\necho "dpkg: error: no such package" >&2\nexit 1\n')
    refused = here.play("install", **package)
    assert refused.status != 0
    assert "no such package" in refused.output
    assert "RETRYING" not in refused.output
