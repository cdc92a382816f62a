"""A guest: systemd as process 1 of its own namespaces, on an overlay, with one leg in the lab's network.

No virtualisation and no container engine: root, cgroup2 and util-linux do. Without a memory controller
``MemoryMax`` has no effect in a guest, and the kernel's settings are read-only there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

BOOT = Path(__file__).with_name("boot_guest.sh")
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")
GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Generous: several guests may boot and stop at once, on a machine that has other things to do.
BOOT_SECONDS = 180.0
STOP_SECONDS = 90.0


class GuestError(RuntimeError):
    """A guest did not do what was asked of it; the message has what is known."""


@dataclass(slots=True)
class Guest:
    """One machine. ``start`` and ``stop`` may be called by different processes: see ``save``."""

    name: str
    rootfs: str
    state: str
    address: str
    prefix_length: int
    netns: str
    outlives_starter: bool = False
    """Whether it keeps running once the process that started it has ended."""
    supervisor_pid: int = 0
    supervisor_began: int = 0
    """When that process began, as ``began_at`` has it: by now another one may have its number."""
    pid: int = 0
    """Process 1 of the guest, as seen from outside; 0: not running."""
    _supervisor: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    """The process of ``supervisor_pid``, where this process started it and has to reap it."""

    @property
    def cgroup(self) -> Path:
        return cgroup2_mount() / f"exporter_proxy-{self.netns}-{self.name}"

    def start(self) -> None:
        """Boot and wait until systemd says ``running``.

        Raises:
            GuestError: it did not come up in time, or with failed units, which are then named.
        """
        state = Path(self.state)
        state.mkdir(parents=True, exist_ok=True)
        self.cgroup.mkdir(exist_ok=True)
        enter = f'echo $$ >{self.cgroup}/cgroup.procs; exec "$@"'
        tie = () if self.outlives_starter else ("setpriv", "--pdeathsig", "KILL")
        with (state / "boot.log").open("ab") as boot_log:
            process = subprocess.Popen(
                [
                    *("sh", "-c", enter, "sh", *tie, "unshare", *NAMESPACES, "--fork", "--kill-child"),
                    *(str(BOOT), self.rootfs, self.state, self.name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=boot_log,
                stderr=boot_log,
                start_new_session=True,
            )
        self._supervisor, self.supervisor_pid = process, process.pid
        self.supervisor_began = began_at(process.pid)
        try:
            deadline = time.monotonic() + BOOT_SECONDS
            self._find_process_one(process, deadline)
            self._plug_in()
            self._wait_until_running(deadline)
        except BaseException:
            self.stop()
            raise
        self.save()

    def _find_process_one(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """Until it *is* systemd: entering its namespaces before ``pivot_root`` would reach this machine."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise GuestError(
                    f"{self.name} ended with {process.returncode} while booting:\n{self.diagnosis()}"
                )
            try:
                pid = int(children.read_text() or 0)
                if pid and Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    self.pid = pid
                    return
            except (FileNotFoundError, ProcessLookupError):
                pass  # it is about to end, or has not begun
            time.sleep(0.01)
        raise GuestError(f"{self.name} has no systemd after {BOOT_SECONDS:.0f} s:\n{self.diagnosis()}")

    def _plug_in(self) -> None:
        """Connect the guest to the lab's bridge, under its own address."""
        leg = f"to-{self.name}"[:15]
        in_lab = ("ip", "-netns", self.netns)
        in_guest = ("nsenter", f"--target={self.pid}", "--net", "ip")
        # After a crash the old leg may still be there for as long as the kernel takes to reap its namespace.
        subprocess.run([*in_lab, "link", "delete", leg], check=False, stderr=subprocess.DEVNULL)
        for command in (
            (*in_lab, "link", "add", leg, "type", "veth", "peer", "name", "host0", "netns", str(self.pid)),
            (*in_lab, "link", "set", leg, "master", "bridge", "up"),
            (*in_guest, "link", "set", "lo", "up"),
            (*in_guest, "address", "add", f"{self.address}/{self.prefix_length}", "dev", "host0"),
            (*in_guest, "link", "set", "host0", "up"),
        ):
            subprocess.run(command, check=True)

    def _wait_until_running(self, deadline: float) -> None:
        said = "nothing"
        while time.monotonic() < deadline:
            said = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            if said == "running":
                return
            if said == "degraded":
                failed = self.run("systemctl", "list-units", "--failed", "--plain", "--no-legend").stdout
                raise GuestError(f"{self.name} came up with failed units:\n{failed}{self.diagnosis()}")
            time.sleep(0.05)
        raise GuestError(f"{self.name} is {said!r} after {BOOT_SECONDS:.0f} s:\n{self.diagnosis()}")

    def run(self, *command: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the guest.

        Raises:
            GuestError: its exit status was not 0 and ``check`` is set.
        """
        done = subprocess.run(
            [shutil.which("nsenter") or "nsenter", f"--target={self.pid}", "--all", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": GUEST_PATH, "LC_ALL": "C.UTF-8"},
        )
        if check and done.returncode:
            raise GuestError(
                f"{self.name}: {' '.join(command)} exited with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def stop(self) -> None:
        """Pull the plug, and free its cgroups. Its disk stays."""
        if self.supervisor_pid and not self._wait_for_end(0):
            os.kill(self.supervisor_pid, signal.SIGKILL)  # --kill-child: the guest goes with it
            self._wait_for_end(STOP_SECONDS)
        self.pid = self.supervisor_pid = self.supervisor_began = 0
        remove_cgroup(self.cgroup)
        self.save()

    def reboot(self) -> None:
        """As ``systemctl reboot`` does it: services are stopped in order, then everything starts anew."""
        self.run("systemctl", "reboot", check=False)  # it may be killed by the very reboot
        if not self._wait_for_end(STOP_SECONDS):
            raise GuestError(f"{self.name} did not go down:\n{self.diagnosis()}")
        remove_cgroup(self.cgroup)
        self.start()

    def destroy(self) -> None:
        """Stop, and delete the disk."""
        self.stop()
        shutil.rmtree(self.state)

    def _wait_for_end(self, seconds: float) -> bool:
        """Whether the guest is gone; a child of this process is reaped."""
        deadline = time.monotonic() + seconds
        while True:
            if self._is_gone():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)

    def _is_gone(self) -> bool:
        if self._supervisor is not None:
            return self._supervisor.poll() is not None
        began = began_at(self.supervisor_pid)
        return began == 0 or began != self.supervisor_began

    def diagnosis(self) -> str:
        """What went wrong before systemd ran, and the end of its journal once it does."""
        said = (Path(self.state) / "boot.log").read_text(errors="replace")
        if self.pid and is_running(self.pid):
            said += self.run("journalctl", "--no-pager", "--lines=40", check=False).stdout
        return said

    def save(self) -> None:
        """Write down how to find the guest, for a later process."""
        known = {
            each.name: getattr(self, each.name) for each in fields(self) if not each.name.startswith("_")
        }
        Path(self.state, "guest.json").write_text(json.dumps(known, indent=1))

    @classmethod
    def load(cls, state: Path) -> Guest:
        """The guest whose ``state`` directory this is."""
        return cls(**json.loads((state / "guest.json").read_text()))


def is_running(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    return began_at(pid) != 0


def began_at(pid: int) -> int:
    """When the process began, in clock ticks since this machine was booted; 0: it is not running."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state in "ZX" else int(fields[18])


def cgroup2_mount() -> Path:
    """Where cgroup2 is mounted: at /sys/fs/cgroup, or beside the older hierarchies.

    Raises:
        GuestError: it is not mounted.
    """
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(mount_point)
    raise GuestError("cgroup2 is not mounted here")


def remove_cgroup(top: Path) -> None:
    """Remove a cgroup with all below it. They are empty, or about to be."""
    deadline = time.monotonic() + 10
    while top.exists():
        for directory, _, _ in os.walk(top, topdown=False):
            try:
                Path(directory).rmdir()
            except OSError:  # a process of it is still being reaped
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.02)
