#!/bin/busybox sh
# The lab's first stage, as PID 1 in the initramfs: make the machine's root file system the lab's.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
$b mount -t sysfs sys /sys
while read -r module; do
  $b insmod "/modules/$module" || echo "lab: $module did not load"
done < /modules/order

$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose hostroot /lower || exec $b poweroff -f
$b mount -t tmpfs -o mode=755 tmpfs /rw
$b mkdir -p /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root || exec $b poweroff -f

$b mount -t tmpfs -o mode=755 tmpfs /root/run
$b mount -t tmpfs -o mode=1777 tmpfs /root/tmp
$b mkdir -p /root/run/lab
$b mount -t 9p -o rw,trans=virtio,version=9p2000.L,msize=512000,cache=none lab /root/run/lab || exec $b poweroff -f
$b cp /second-stage.sh /root/run/second-stage.sh
$b mount --move /dev /root/dev
$b mount --move /proc /root/proc
$b mount --move /sys /root/sys
exec $b chroot /root /bin/sh /run/second-stage.sh
