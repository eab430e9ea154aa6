#!/bin/sh
# The lab's second stage, as PID 1 on the machine's own root file system: a host as Isopod finds it,
# then the command. The command, its folder and its environment are in /run/lab.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec > /dev/console 2>&1

mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
  echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
ip link set lo up

release=$(uname -r)
mkdir -p /lib/modules
ln -sfn "$(cat /run/lab/modules)" "/lib/modules/$release"
for module in kvm-amd tun; do
  modprobe "$module" || echo "lab: $module did not load"
done

if [ -e /run/lab/has-exchange ]; then
  mount -t 9p -o rw,trans=virtio,version=9p2000.L,msize=512000,cache=none exchange /run/lab/exchange
fi

disk=$(for block in /sys/block/vd*; do
  if [ "$(cat "$block/serial" 2> /dev/null)" = lab ]; then echo "/dev/${block##*/}"; fi
done)
mkdir -p /var/lib/isopod
mount -t ext4 -o discard "$disk" /var/lib/isopod || echo "lab: no disk for /var/lib/isopod"

for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do
  [ "$(cat "$cpu")" = 1 ] || echo 1 > "$cpu"
done

port() {
  for entry in /sys/class/virtio-ports/*; do
    if [ "$(cat "$entry/name")" = "$1" ]; then echo "/dev/${entry##*/}"; fi
  done
}
status_port=$(port lab.status)
if [ -e /run/lab/shell ]; then
  setsid -c /bin/sh /run/lab/command < /dev/hvc0 > /dev/hvc0 2>&1
else
  setsid /bin/sh /run/lab/command < /dev/null > "$(port lab.stdout)" 2> "$(port lab.stderr)"
fi
echo "$?" > "$status_port"

kill -TERM -1 2> /dev/null
sync
echo o > /proc/sysrq-trigger
sleep 60
