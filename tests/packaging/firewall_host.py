"""A host to play Ansible's module ``scrape_port`` on: its own network with nft's rules, and its own /etc.

nft is the real one. ufw, firewalld and systemctl are stand-ins that keep what they are told in files. The
first two are there only where a test puts them, and ufw speaks Spanish unless it is asked for C.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.daemon import REPOSITORY
from tests.own_network import skip_without_own_network
from tests.packaging.artefacts import needs

COLLECTION = REPOSITORY / "ansible"
BASIC = REPOSITORY / "tests/fakes/ansible_basic.py"
IN_OWN_ROOT = ("unshare", "--map-root-user", "--net", "--mount")

SYSTEMCTL = """\
#!/bin/sh
PATH=/usr/bin:/bin
cd {etc}
case $1 in
    is-enabled) test -e "enabled/$2" ;;
    enable) : >"enabled/$2" ;;
    disable) rm "enabled/$3" ;;
esac
"""
UFW = """\
#!/bin/sh
PATH=/usr/bin:/bin
cd {etc}
case $* in
    status)
        if [ ! -e ufw.on ]; then echo "Status: inactive"
        elif [ "$LC_ALL" = C ]; then echo "Status: active"
        else echo "Estado: activo"; fi ;;
    "show added") cat ufw.added ;;
    prepend*) shift; echo "ufw $*" >>ufw.added ;;
    delete*) shift; grep -v "^ufw $* comment" ufw.added >ufw.left; mv ufw.left ufw.added ;;
esac
"""
# firewalld, which does not run.
FIREWALL_CMD = """\
#!/bin/sh
echo "not running"
exit 252
"""


class FirewallHost:
    """What runs on it is one script: its rules last as long as that."""

    def __init__(self, directory: Path) -> None:
        skip_without_own_network()
        self.etc = directory / "etc"
        self.bin = directory / "bin"
        self.printed = directory / "printed"
        self.imports = directory / "imports"
        for made in (self.etc / "enabled", self.bin, self.printed, self.imports / "ansible/module_utils"):
            made.mkdir(parents=True)
        shutil.copyfile(BASIC, self.imports / "ansible/module_utils/basic.py")
        (self.imports / "ansible_collections/exporter_proxy").mkdir(parents=True)
        # Without these it would be that of an installed Ansible.
        for package in ("ansible", "ansible/module_utils", "ansible_collections"):
            (self.imports / package / "__init__.py").touch()
        (self.imports / "ansible_collections/exporter_proxy/fleet").symlink_to(COLLECTION)
        (self.bin / "nft").symlink_to(needs("nft"))
        self.stand_in("systemctl", SYSTEMCTL)

    def stand_in(self, program: str, text: str) -> None:
        path = self.bin / program
        path.write_text(text.format(etc=self.etc) if "{etc}" in text else text)
        path.chmod(0o755)

    def turn_ufw_on(self) -> None:
        self.stand_in("ufw", UFW)
        (self.etc / "ufw.on").touch()
        (self.etc / "ufw.added").touch()

    def stop_firewalld(self) -> None:
        self.stand_in("firewall-cmd", FIREWALL_CMD)

    def enable(self, unit: str) -> None:
        (self.etc / "enabled" / unit).touch()

    def is_enabled(self, unit: str) -> bool:
        return (self.etc / "enabled" / unit).exists()

    def run(
        self, *steps: str | dict[str, Any], python: str = sys.executable, language: str = "C"
    ) -> list[Any]:
        """Run each step in turn, a line of shell or the module with these parameters.

        Returns:
            What each step printed: as text, or the module's result.
        """
        script = f'mount --bind "{self.etc}" /etc\nset -e\n'
        for number, step in enumerate(steps):
            line = step if isinstance(step, str) else f"$0 -B $1 {shlex.quote(json.dumps(step))}"
            script += f"{{ {line}\n}} >{self.printed}/{number}\n"
        module = COLLECTION / "plugins/modules/scrape_port.py"
        done = subprocess.run(
            [*IN_OWN_ROOT, "/bin/sh", "-c", script, python, str(module)],
            env={
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "PYTHONPATH": str(self.imports),
                "LC_ALL": language,
                "LANGUAGE": language,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        printed = [(self.printed / str(number)).read_text() for number in range(len(steps))]
        return [
            text if isinstance(step, str) else json.loads(text)
            for step, text in zip(steps, printed, strict=True)
        ]
