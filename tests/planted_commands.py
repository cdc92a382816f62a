"""Secrets of exporters that are commands: as ``planted.py`` has them for those that are asked over HTTP.

``command`` and ``env`` of a row hold the secret; ``BEHAVIOUR`` is what the program does with it, to be told
by every situation's name in the environment.
"""

from __future__ import annotations

from pathlib import Path

from tests.planted import Keys, Row, file

PROGRAM = """#!/bin/sh
case $SITUATION in
ok) echo 'a 1' ;;
stderr) echo "wrong password: $* $PASSWORD" >&2; exit 3 ;;
traced) set -x; : "$@" "$PASSWORD"; exit 1 ;;
killed) echo "$* $PASSWORD" >&2; kill -KILL $$ ;;
malformed) echo "usage: $* $PASSWORD" ;;
late) seq 1 60000 | sed 's/.*/a_series_of_some_length{n="&"} &/'; echo "$* $PASSWORD"; exit 4 ;;
too_large) seq 1 100000 | sed 's/^/a_/' ;;
hung) exec sleep 300 ;;
esac
"""
SITUATIONS: dict[str, Keys] = {
    **{name: {} for name in ("ok", "stderr", "traced", "killed", "malformed")},
    "late": {"share_max_bytes": "1KiB"},
    "too_large": {"max_response_bytes": 100},
    "hung": {"timeout": "300ms"},
    "not_started": {},
}


def program(directory: Path, text: str = PROGRAM) -> str:
    """The path of one that does as ``SITUATION`` says."""
    path = file(directory, text)
    Path(path).chmod(0o755)
    return path


def command(directory: Path, *arguments: str, **env: str) -> Keys:
    return {"command": [program(directory), *arguments], "env": {"PATH": "/usr/bin:/bin", **env}}


def situated(directory: Path, keys: Keys, situation: str) -> Keys:
    """``keys`` of a row, in a situation."""
    words = list(keys["command"])
    if situation == "not_started":
        words[0] = program(directory, "#!/no/such/interpreter\n")
    return {"command": words, "env": {**keys["env"], "SITUATION": situation}, **SITUATIONS[situation]}


COMMAND_ROWS: dict[str, Row] = {
    "env": Row(
        lambda directory, secret: command(directory, PASSWORD=secret),
        {
            "list": lambda directory, secret: {"command": ["/bin/sh"], "env": [f"PASSWORD={secret}"]},
            "text": lambda directory, secret: {"command": ["/bin/sh"], "env": f"PASSWORD={secret}"},
            "in the name": lambda directory, secret: {
                "command": ["/bin/sh"],
                "env": {f"PASSWORD={secret}": "x"},
            },
            "no blank": lambda directory, secret: {
                "command": ["/bin/sh"],
                "env": {f"PASSWORD:{secret}": None},
            },
            "null": lambda directory, secret: {"command": ["/bin/sh"], "env": {f"A {secret}": None}},
            "list of it": lambda directory, secret: {"command": ["/bin/sh"], "env": {"A": [secret]}},
            "mapping of it": lambda directory, secret: {
                "command": ["/bin/sh"],
                "env": {"A": {secret: secret}},
            },
            "NUL": lambda directory, secret: {"command": ["/bin/sh"], "env": {"A": f"{secret}\0"}},
            "of a url": lambda directory, secret: {"url": "http://127.0.0.1:1/", "env": {"A": secret}},
            "as in a shell": lambda directory, secret: {"command": [f"PASSWORD={secret}", "/bin/sh"]},
        },
    ),
    "argument": Row(
        lambda directory, secret: command(directory, "--password", secret),
        {
            "one text": lambda directory, secret: {"command": f"/bin/sh --password {secret}"},
            "one word": lambda directory, secret: {"command": [f"/bin/sh --password {secret}"]},
            "one word of none": lambda directory, secret: {"command": [f"/none --password {secret}"]},
            "relative": lambda directory, secret: {"command": [f"sh --password {secret}"]},
            "the program": lambda directory, secret: {"command": [secret]},
            "list of it": lambda directory, secret: {"command": ["/bin/sh", [secret]]},
            "mapping of it": lambda directory, secret: {"command": ["/bin/sh", {"--password": secret}]},
            "mapping": lambda directory, secret: {"command": {"/bin/sh": secret}},
            "NUL": lambda directory, secret: {"command": ["/bin/sh", f"{secret}\0"]},
            "twice": lambda directory, secret: {"command": ["/bin/sh", secret], "url": "http://127.0.0.1:1/"},
        },
    ),
    "argument of an option": Row(lambda directory, secret: command(directory, f"--password={secret}"), {}),
    "argument at its option": Row(lambda directory, secret: command(directory, f"-p{secret}"), {}),
}
