//! The configuration space of a virtio function: ids and capabilities (virtio 1.2 sections 4.1.2
//! and 4.1.4).

use std::ops::Range;

use super::{COMMON, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_STRIDE};
use crate::pci::Address;
use crate::pci::config::{BAR_SIZE, ConfigSpace, Identity};
use crate::virtio::VirtioDevice;
use crate::virtio::pci::common::COMMON_LEN;

const VENDOR: u16 = 0x1af4;
/// Device ids of virtio 1.x: this plus the device type.
const DEVICE_BASE: u16 = 0x1040;
/// Tells drivers of transitional devices to stay away (section 4.1.2.1).
const SUBSYSTEM_DEVICE: u16 = 0x1100;
const REVISION: u8 = 1;

const CAPABILITY_MSIX: u8 = 0x11;
const CAPABILITY_VENDOR: u8 = 0x09;

/// Values of `cfg_type` (section 4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_ACCESS: u8 = 5;
const TYPE_VENDOR_DATA: u8 = 9;

/// Length of `struct virtio_pci_cap`.
const CAP_LEN: u8 = 16;
/// Where fields are in the "PCI configuration access" capability.
const ACCESS_BAR: usize = 4;
const ACCESS_OFFSET: usize = 8;
const ACCESS_LENGTH: usize = 12;
const ACCESS_DATA: usize = 16;
const ACCESS_END: usize = 20;

/// Where the capabilities are whose registers do something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    msix: usize,
    access: usize,
}

/// Builds the configuration space of `device` at `address`.
pub(super) fn config_space(
    device: &dyn VirtioDevice,
    address: Address,
    multi_function: bool,
) -> (ConfigSpace, Capabilities) {
    let kind = device.device_type();
    let identity = Identity {
        id: (VENDOR, DEVICE_BASE + kind),
        subsystem: (VENDOR, SUBSYSTEM_DEVICE),
        revision: REVISION,
        class: class(kind),
        multi_function,
    };
    let mut config = ConfigSpace::new(&identity, ConfigSpace::first_bar(address));
    let queues = u32::try_from(device.queue_sizes().len()).expect("a device has few queues");
    let msix = add_msix(&mut config, queues + 1);
    let config_len = u32::try_from(device.config().len()).expect("a page at most");
    let common_len = u32::try_from(COMMON_LEN).expect("a constant");
    add_region(&mut config, TYPE_COMMON, COMMON, common_len, &[]);
    let stride = u32::try_from(NOTIFY_STRIDE).expect("a constant");
    let notify_len = queues.max(1) * stride;
    let multiplier = stride.to_le_bytes();
    add_region(&mut config, TYPE_NOTIFY, NOTIFY, notify_len, &multiplier);
    add_region(&mut config, TYPE_ISR, ISR, 1, &[]);
    if config_len > 0 {
        add_region(&mut config, TYPE_DEVICE, DEVICE, config_len, &[]);
    }
    if !device.vendor_data().is_empty() {
        add_vendor_data(&mut config, device.vendor_data());
    }
    let access = add_region(&mut config, TYPE_ACCESS, 0, 0, &[0; 4]);
    config.set_writable(access + ACCESS_BAR, &[0xff]);
    config.set_writable(access + ACCESS_OFFSET, &[0xff; ACCESS_END - ACCESS_OFFSET]);
    (config, Capabilities { msix, access })
}

/// Base class, subclass and interface; Linux goes by the device id, people by this (`lspci`).
fn class(device_type: u16) -> [u8; 3] {
    match device_type {
        1 => [0x02, 0x00, 0],
        2 => [0x01, 0x80, 0],
        19 => [0x07, 0x80, 0],
        24 | 27 => [0x05, 0x80, 0],
        _ => [0xff, 0x00, 0],
    }
}

/// The MSI-X capability (PCI 3.0 section 6.8.2): table and pending bits in BAR 0.
fn add_msix(config: &mut ConfigSpace, vectors: u32) -> usize {
    let last = u16::try_from(vectors - 1).expect("a device has few queues");
    let mut body = last.to_le_bytes().to_vec();
    for at in [MSIX_TABLE, MSIX_PENDING] {
        body.extend(u32::try_from(at).expect("inside the window").to_le_bytes());
    }
    let msix = config.add_capability(CAPABILITY_MSIX, &body);
    let control = crate::pci::msix::CONTROL_ENABLE | crate::pci::msix::CONTROL_MASK_ALL;
    config.set_writable(msix + 3, &[control]);
    msix
}

/// A `struct virtio_pci_cap`, with what follows it in some types.
fn add_region(config: &mut ConfigSpace, kind: u8, offset: u64, length: u32, extra: &[u8]) -> usize {
    let extra_len = u8::try_from(extra.len()).expect("a field or none");
    // Length, type, BAR 0, no id, padding.
    let mut body = vec![CAP_LEN + extra_len, kind, 0, 0, 0, 0];
    let offset = u32::try_from(offset).expect("inside the window");
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(extra);
    config.add_capability(CAPABILITY_VENDOR, &body)
}

/// A `struct virtio_pci_vndr_data` (section 4.1.4.8).
fn add_vendor_data(config: &mut ConfigSpace, data: &[u8]) {
    /// Id, next, length, type and vendor.
    const HEADER_LEN: usize = 6;
    let length = u8::try_from(HEADER_LEN + data.len()).expect("at most 64 bytes of data");
    let mut body = vec![length, TYPE_VENDOR_DATA];
    body.extend(VENDOR.to_le_bytes());
    body.extend(data);
    config.add_capability(CAPABILITY_VENDOR, &body);
}

fn overlap(a: &Range<usize>, b: Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Capabilities {
    /// The write touches MSI-X's message control.
    pub(super) fn msix_control_in(&self, touched: &Range<usize>) -> bool {
        overlap(touched, self.msix + 2..self.msix + 4)
    }

    /// The second byte of MSI-X's message control.
    pub(super) fn msix_control(&self, config: &ConfigSpace) -> u8 {
        config.bytes()[self.msix + 3]
    }

    /// The write touches the access capability.
    pub(super) fn access_in(&self, touched: &Range<usize>) -> bool {
        overlap(touched, self.access + ACCESS_BAR..self.access + ACCESS_END)
    }

    /// The write touches the access capability's data.
    pub(super) fn access_data_in(&self, touched: &Range<usize>) -> bool {
        overlap(touched, self.access + ACCESS_DATA..self.access + ACCESS_END)
    }

    /// Offset and length that the access capability points at, when they are ones that it may.
    pub(super) fn access_target(&self, config: &ConfigSpace) -> Option<(u64, usize)> {
        let bar = config.bytes()[self.access + ACCESS_BAR];
        let offset = u64::from(config.u32_at(self.access + ACCESS_OFFSET));
        let length = config.u32_at(self.access + ACCESS_LENGTH);
        let allowed = bar == 0
            && matches!(length, 1 | 2 | 4)
            && offset % u64::from(length) == 0
            && offset + u64::from(length) <= BAR_SIZE;
        allowed.then_some((offset, usize::try_from(length).ok()?))
    }

    /// The access capability's data register.
    pub(super) fn access_data(&self, config: &ConfigSpace) -> [u8; 4] {
        config.u32_at(self.access + ACCESS_DATA).to_le_bytes()
    }

    /// Sets it.
    pub(super) fn set_access_data(&self, config: &mut ConfigSpace, data: [u8; 4]) {
        config.put(self.access + ACCESS_DATA, &data);
    }
}
