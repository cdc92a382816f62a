"""Builds the wheelhouse: one archive from which any CPython of wheels.py can install, without a network.

How that is done is said in wheelhouse/install.py, which goes with it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from reproducible import REPOSITORY, sha256, write_tar_gz
from wheels import RUNTIME, pinned_wheels, pip_wheel

HERE = Path(__file__).resolve().parent


def build(wheel: Path, version: str, destination: Path) -> Path:
    """Put the archive with ``wheel`` and all it needs into ``destination``, and its hash beside it."""
    wheels = [wheel, pip_wheel(), *pinned_wheels(RUNTIME)]
    files = {
        "VERSION": f"{version}\n".encode(),
        "requirements.txt": requirements(wheel, version).encode(),
        "install": (HERE / "wheelhouse" / "install.py").read_bytes(),
        "LICENSE": (REPOSITORY / "LICENSE").read_bytes(),
        "config.example.yml": (REPOSITORY / "config.example.yml").read_bytes(),
        **{f"wheels/{path.name}": path.read_bytes() for path in wheels},
        **{
            f"systemd/{path.relative_to(HERE / 'systemd')}": path.read_bytes()
            for path in (HERE / "systemd").rglob("*.*")
            if path.is_file()
        },
    }
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    files["SHA256SUMS"] = sums.encode()
    archive = destination / f"exporter_proxy-{version}-wheelhouse.tar.gz"
    inside = archive.name.removesuffix(".tar.gz")
    write_tar_gz(archive, [(f"{inside}/{name}", files[name], name == "install") for name in files])
    archive.with_name(f"{archive.name}.sha256").write_text(f"{sha256(archive)}  {archive.name}\n")
    return archive


def requirements(wheel: Path, version: str) -> str:
    """The pins of what the daemon needs, and the daemon's own."""
    return f"exporter_proxy=={version} \\\n    --hash=sha256:{sha256(wheel)}\n{RUNTIME.read_text()}"
