//! The guest at the other end: the kernel of every pod, and busybox as its only program, which has no
//! part in what is measured but to read and to write.

use anyhow::Result;

use super::super::Guest;
use super::{BYTES, ECHO, GUEST, PREFIX_LEN, SINK, SOURCE};

/// Bytes in one call of the guest's programs.
const BLOCK: u64 = 64 << 10;

/// A guest that serves on the three ports.
pub(super) fn prepare() -> Result<Guest> {
    Guest::of_script(&["bin", "dev", "sys"], &script(), &[])
}

/// PID 1. One interface is there from the start, the other one appears when the bus is searched.
fn script() -> String {
    let count = BYTES / BLOCK;
    format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t devtmpfs dev /dev\n\
         exec < /dev/null > /dev/null 2>&1\n\
         $b mount -t sysfs sys /sys\n\
         until [ -e /sys/class/net/eth0 ]; do\n\
             echo 1 > /sys/bus/pci/rescan\n\
             $b sleep 0.1\n\
         done\n\
         $b ip address add {GUEST}/{PREFIX_LEN} dev eth0\n\
         $b ip link set eth0 up\n\
         $b nc -ll -p {ECHO} -e $b cat &\n\
         $b nc -ll -p {SOURCE} -e $b dd if=/dev/zero bs={BLOCK} count={count} &\n\
         $b nc -ll -p {SINK} -e $b dd of=/dev/null bs={BLOCK} &\n\
         while :; do $b sleep 1000; done\n"
    )
}
