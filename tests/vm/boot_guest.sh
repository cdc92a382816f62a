#!/bin/sh
# From fresh namespaces to a running systemd. Started by guest.py, as the first process of a PID namespace,
# with everything else (mounts, network, host name, cgroups) its own as well: all that is mounted here goes
# when the namespace does, so there is nothing to unmount afterwards, whatever happens.
#
#   boot_guest.sh ROOTFS STATE HOSTNAME
#
# ROOTFS is never written to; what the guest changes is kept in STATE over reboots.
set -eu
rootfs=$1 state=$2 name=$3
root=$state/root

mount --make-rprivate /
mkdir -p "$root" "$state/upper" "$state/work"
mount -t overlay overlay -o "lowerdir=$rootfs,upperdir=$state/upper,workdir=$state/work" "$root"

mount -t proc -o nosuid,noexec,nodev proc "$root/proc"
# Without this the guest's sysctl would change the kernel settings of the machine that runs the tests.
for shared in sys irq bus fs sysrq-trigger; do
    [ -e "$root/proc/$shared" ] || continue
    mount --bind "$root/proc/$shared" "$root/proc/$shared"
    mount -o remount,bind,ro,nosuid,noexec,nodev "$root/proc/$shared"
done
mount -t sysfs -o ro,nosuid,noexec,nodev sysfs "$root/sys"
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,nosuid,noexec devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t cgroup2 -o nosuid,noexec,nodev cgroup2 "$root/sys/fs/cgroup"

hostname "$name"
cd "$root"
mkdir -p .old-root
pivot_root . .old-root
umount -l /.old-root
rmdir /.old-root
exec env -i container=unshare PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --log-target=console --show-status=false
