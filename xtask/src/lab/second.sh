# PID 1 of the lab, second half, in the machine's own root file system: mounts what a host has, runs
# the command with its output on ports of its own, reports its exit status. The shell reaps orphans
# while it waits.
b=/run/lab/busybox
fail() { echo "lab: $*"; $b sync; $b poweroff -f; }
# Sets RELEASE MODULES EXCHANGE SHELL_WANTED END.
. /run/lab/settings.sh

$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mkdir -p /dev/pts /dev/shm /var/lib/isopod
$b mount -t devpts -o mode=0620,ptmxmode=0666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$b mount -t tmpfs -o mode=1777,size=50% tmpfs /tmp
$b ln -sf /proc/self/fd /dev/fd
$b ln -sf /proc/self/fd/0 /dev/stdin
$b ln -sf /proc/self/fd/1 /dev/stdout
$b ln -sf /proc/self/fd/2 /dev/stderr
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in $($b cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
$b mkdir -p /lib/modules
[ "$MODULES" = "/lib/modules/$RELEASE" ] || $b ln -sfn "$MODULES" "/lib/modules/$RELEASE"
$b mount -t ext4 -o noatime /dev/vda /var/lib/isopod || fail "the disk could not be mounted"
# The host starts on one CPU: QEMU 7.2 may run stale code on another one while the kernel patches its
# own text.
for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do
    [ -e "$cpu" ] && echo 1 > "$cpu"
done
$b ip link set lo up
$b hostname lab
if [ -n "$EXCHANGE" ]; then
    $b mkdir /run/lab/exchange
    $b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none exchange \
        /run/lab/exchange ||
        fail "the exchange folder could not be mounted"
fi

for port in /sys/class/virtio-ports/*; do
    case "$($b cat "$port/name")" in
        out) out=/dev/${port##*/} ;;
        err) err=/dev/${port##*/} ;;
        status) status_port=/dev/${port##*/} ;;
    esac
done
# As long as this is heard, the host is alive.
while echo alive > "$status_port" && $b sleep 5; do :; done & beat=$!

if [ -n "$SHELL_WANTED" ]; then
    $b setsid -c $b sh /run/lab/command.sh < /dev/hvc0 > /dev/hvc0 2>&1
    status=$?
else
    # A port can be open once only; a pipe before it lets the command open /dev/stdout again.
    $b mkfifo /run/lab/out /run/lab/err
    $b cat /run/lab/out > "$out" & out_copy=$!
    $b cat /run/lab/err > "$err" & err_copy=$!
    $b setsid $b sh /run/lab/command.sh < /dev/null > /run/lab/out 2> /run/lab/err &
    wait $!
    status=$?
    # What the command left running may hold its output open: it has two seconds to finish.
    rounds=0
    while [ $rounds -lt 20 ] && { kill -0 $out_copy || kill -0 $err_copy; } 2> /dev/null; do
        $b sleep 0.1
        rounds=$((rounds + 1))
    done
    kill -9 $out_copy $err_copy 2> /dev/null
    wait $out_copy $err_copy
    printf %s "$END" > "$out"
    printf %s "$END" > "$err"
fi
$b sync
kill $beat
wait $beat
echo "exit $status" > "$status_port"
$b poweroff -f
