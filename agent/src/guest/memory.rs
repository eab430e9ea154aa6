//! Memory that is added while the machine runs.

use std::fs;
use std::io;

use crate::storage::Bus;

/// What the kernel does with memory when it is added (kernel documentation,
/// admin-guide/mm/memory-hotplug).
const SETTINGS: [(&str, &str); 2] = [
    // Three parts of four can be taken away again. The kernel's own share grows with the machine: it
    // has to describe all pages, and to keep what containers do with files and sockets.
    (
        "/sys/module/memory_hotplug/parameters/online_policy",
        "auto-movable",
    ),
    // Nobody else would take it into use.
    ("/sys/devices/system/memory/auto_online_blocks", "online"),
];

/// Sets the kernel up for memory that is added, and has it look for the device that brings it: here, so
/// that a machine that stays as it is starts without. Blocking.
pub(super) fn prepare() -> io::Result<()> {
    for (path, value) in SETTINGS {
        fs::write(path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    }
    Bus::search()
}
