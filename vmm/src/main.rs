//! The virtual machine monitor: one process, one sandbox.
//!
//! - [`log`]: what containers print, written to files.
//! - [`virtio`]: the devices and their PCI transport.

#![allow(
    dead_code,
    reason = "the machine that composes these parts is not on the bus yet"
)]

mod log;
mod machine;
mod pci;
mod virtio;

fn main() {}
