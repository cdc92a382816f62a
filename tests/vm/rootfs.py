"""Root file systems of guests: made once per Debian release and list of packages, then kept in a cache.

Guests reach no package archive: what a test needs inside is in ``PACKAGES``, or in ``SPARE_PACKAGES`` for
``dpkg`` to install. The trees are only ever read (guests write to an overlay); how they are booted is
``guest.py``'s.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SUITES = ("bookworm", "trixie")
"""Debian 12 (Python 3.11, systemd 252) and 13 (3.13, 257)."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "python3", "iproute2", "procps", "ca-certificates", "logrotate"),
    *("nftables", "ufw", "firewalld"),
    *("prometheus-node-exporter", "prometheus-blackbox-exporter", "prometheus-process-exporter"),
)
SPARE_PACKAGES = ("python3-venv",)
"""Not installed, as on most hosts: they lie in ``SPARE_DIRECTORY``, with what they depend on."""
SPARE_DIRECTORY = "/srv/packages"
DPKG_OPTIONS = ("force-unsafe-io", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/doc/*")
# All three firewalls are there and none is on; a test turns on the one that it is about. Kernel modules are
# no business of a guest that shares its kernel.
SETUP = (
    'chroot "$1" systemctl --quiet disable firewalld nftables ufw'
    ' && chroot "$1" systemctl --quiet mask systemd-modules-load'
)
DOWNLOAD = (
    f'mkdir --parents "$1{SPARE_DIRECTORY}/partial"'
    ' && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --quiet --quiet --yes --download-only'
    f' --no-install-recommends --option=Dir::Cache::Archives="$1{SPARE_DIRECTORY}"'
    f" install {' '.join(SPARE_PACKAGES)}"
)


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/exporter_proxy``: outlives a clone of the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "exporter_proxy"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def rootfs(suite: str) -> Path:
    """The root file system of ``suite``, made first (30 to 45 s) where the cache does not have it.

    Several processes may ask at once: one makes it, the others wait.

    Raises:
        subprocess.CalledProcessError: mmdebstrap failed; its messages went to standard error.
    """
    recipe = "\n".join([suite, *PACKAGES, *DPKG_OPTIONS, SETUP, DOWNLOAD])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    target = cache_directory() / f"{suite}-{key}"
    with (cache_directory() / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for outdated in cache_directory().glob(f"{suite}-*"):
                shutil.rmtree(outdated)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{suite}-", dir=cache_directory()))
            try:
                _make(suite, unfinished)
                unfinished.rename(target)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _make(suite: str, directory: Path) -> None:
    subprocess.run(
        [
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--quiet"),
            f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
            *(f"--customize-hook={hook}" for hook in (SETUP, DOWNLOAD)),
            *(suite, str(directory)),
        ],
        check=True,
        stdout=2,
    )
