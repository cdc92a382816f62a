"""The same bytes from the same commit, whoever builds, where, when and with which umask.

What is built is the state of the tracked files; what lies beside them never gets in.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def source_date_epoch() -> int:
    """The time that everything built bears: ``SOURCE_DATE_EPOCH``, or that of the last commit."""
    set_from_outside = os.environ.get("SOURCE_DATE_EPOCH")
    if set_from_outside:
        return int(set_from_outside)
    shown = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    return int(shown.stdout)


def copy_tracked_files(destination: Path) -> None:
    """The tracked files as they are in the working tree, with modes and times that depend on git alone."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    for entry in listed.stdout.rstrip("\0").split("\0"):
        about, _, name = entry.partition("\t")
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target)
        target.chmod(0o755 if about.startswith("100755") else 0o644)
    normalise(destination)


def normalise(tree: Path) -> None:
    """Give everything in ``tree`` the one time and, from whether it is executable, one of two modes."""
    epoch = source_date_epoch()
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def write_tar_gz(destination: Path, members: Iterable[tuple[str, bytes, bool]]) -> None:
    """A tar.gz of regular files, each a name, its content and whether it is executable."""
    epoch = source_date_epoch()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, is_executable in sorted(members):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), epoch
            member.mode = 0o755 if is_executable else 0o644
            archive.addfile(member, io.BytesIO(content))
    destination.write_bytes(gzip.compress(packed.getvalue(), compresslevel=1, mtime=epoch))


def sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
