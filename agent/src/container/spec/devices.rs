//! Block devices that a container has beside those of its spec.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use super::SpecError;

/// A block device of a container.
#[derive(Debug)]
pub(crate) struct Device {
    /// Where the container sees it.
    pub(crate) path: PathBuf,
    /// Major number.
    pub(crate) major: i64,
    /// Minor number.
    pub(crate) minor: i64,
    /// Of `r`, `w` and `m`.
    pub(crate) access: String,
    /// Permissions of the node.
    pub(crate) mode: u32,
}

/// The node of a block device, and the right to use it.
pub(super) fn add(linux: &mut Linux, device: &Device) -> Result<(), SpecError> {
    let failed = |_field| SpecError::Builder("devices");
    let node = LinuxDeviceBuilder::default()
        .path(&device.path)
        .typ(LinuxDeviceType::B)
        .major(device.major)
        .minor(device.minor)
        .file_mode(device.mode)
        .uid(0_u32)
        .gid(0_u32)
        .build()
        .map_err(failed)?;
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::B)
        .major(device.major)
        .minor(device.minor)
        .access(&device.access)
        .build()
        .map_err(failed)?;
    let mut nodes = linux.devices().clone().unwrap_or_default();
    nodes.push(node);
    linux.set_devices(Some(nodes));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}
