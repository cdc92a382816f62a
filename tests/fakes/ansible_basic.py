"""Stands in for Ansible's ``ansible.module_utils.basic``, as far as our modules use it, on any Python.

Parameters are JSON, as the first argument; ``_check`` among them is check mode. What the module returns is
printed as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any


class AnsibleModule:
    """One run of a module."""

    def __init__(self, argument_spec: dict[str, Any], **_: Any) -> None:
        given = json.loads(sys.argv[1])
        self.check_mode = given.pop("_check", False)
        self.params = {name: given.get(name, option.get("default")) for name, option in argument_spec.items()}

    def get_bin_path(self, program: str) -> str | None:
        return shutil.which(program)

    def run_command(
        self,
        command: list[str],
        data: str | None = None,
        environ_update: dict[str, str] | None = None,
    ) -> tuple[int, str, str]:
        done = subprocess.run(
            command,
            input=data,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **(environ_update or {})},
        )
        return done.returncode, done.stdout, done.stderr

    def exit_json(self, **result: Any) -> None:
        print(json.dumps(result))
        sys.exit(0)

    def fail_json(self, **result: Any) -> None:
        print(json.dumps({**result, "failed": True}))
        sys.exit(0)
