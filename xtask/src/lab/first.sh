#!/bin/busybox sh
# PID 1 of the lab, first half: loads what the root file system needs and changes into it.
b=/bin/busybox
fail() { echo "lab: $*"; $b sync; $b poweroff -f; }
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in $($b cat /lab/order); do
    $b insmod "/lab/modules/$module" || fail "$module did not load"
done
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower ||
    fail "the machine's root file system could not be mounted"
$b mount -t tmpfs -o size=75% tmpfs /upper
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new ||
    fail "the overlay could not be mounted"
$b mount -t tmpfs -o mode=0755 tmpfs /new/run
$b mkdir /new/run/lab
$b cp /lab/second.sh /lab/settings.sh /lab/command.sh $b /new/run/lab/
$b umount /proc /sys
exec $b switch_root /new /run/lab/busybox sh /run/lab/second.sh
