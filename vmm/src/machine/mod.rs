//! The machine: what is in guest memory, ACPI and I/O ports.
pub(crate) mod acpi;
pub(crate) mod boot;
pub(crate) mod ending;
pub(crate) mod layout;
pub(crate) mod memory;
pub(crate) mod ports;
