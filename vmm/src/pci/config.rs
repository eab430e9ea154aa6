//! A function's configuration space (PCI 3.0 chapter 6): bytes, and a mask of what the guest may
//! change.

use serde::{Deserialize, Serialize};

use crate::machine::layout;

/// Length in bytes; functions here have no extended configuration space.
pub(crate) const CONFIG_LEN: usize = 256;

/// Length of the window that every function's only base address register asks for, in bytes.
pub(crate) const BAR_SIZE: u64 = 16 * 1024;

/// Offset of the command register.
pub(crate) const COMMAND: usize = 0x04;
/// The function answers in its memory window.
pub(crate) const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// In the command register's second byte.
const COMMAND_NO_INTX: u8 = 1 << 2;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const HEADER_TYPE: usize = 0x0e;
const HEADER_MULTI_FUNCTION: u8 = 1 << 7;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
/// First byte behind the type 0 header.
const HEADER_LEN: usize = 0x40;

/// What a function is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    /// Vendor and device id.
    pub(crate) id: (u16, u16),
    /// Subsystem vendor and device id.
    pub(crate) subsystem: (u16, u16),
    /// Revision.
    pub(crate) revision: u8,
    /// Base class, subclass, programming interface.
    pub(crate) class: [u8; 3],
    /// Other functions of the slot may exist, now or later.
    pub(crate) multi_function: bool,
}

/// The configuration space of one function.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSpace {
    bytes: [u8; CONFIG_LEN],
    writable: [u8; CONFIG_LEN],
    last_capability: usize,
    end: usize,
}

/// What the guest has made of a configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigState {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// A type 0 header with one 32-bit memory window at `bar`, disabled, and no capabilities.
    pub(crate) fn new(identity: &Identity, bar: u32) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_LEN],
            writable: [0; CONFIG_LEN],
            last_capability: CAPABILITIES - 1,
            end: HEADER_LEN,
        };
        space.put(0, &identity.id.0.to_le_bytes());
        space.put(2, &identity.id.1.to_le_bytes());
        let [base, sub, interface] = identity.class;
        space.put(8, &[identity.revision, interface, sub, base]);
        if identity.multi_function {
            space.bytes[HEADER_TYPE] = HEADER_MULTI_FUNCTION;
        }
        space.put(SUBSYSTEM, &identity.subsystem.0.to_le_bytes());
        space.put(SUBSYSTEM + 2, &identity.subsystem.1.to_le_bytes());
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        space.writable[COMMAND + 1] = COMMAND_NO_INTX;
        space.put(BAR0, &bar.to_le_bytes());
        let size_mask =
            !u32::try_from(BAR_SIZE - 1).expect("the window is smaller than the address space");
        space.set_writable(BAR0, &size_mask.to_le_bytes());
        space
    }

    /// The address that functions start with: a place of its own for each.
    pub(crate) fn first_bar(function: super::Address) -> u32 {
        let address = layout::MMIO32_START + u64::from(function.index()) * BAR_SIZE;
        u32::try_from(address).expect("the 32-bit window lies below 4 GiB")
    }

    /// Appends a capability and returns its offset. `body` follows the id and the link.
    ///
    /// # Panics
    ///
    /// When there is no room left: a mistake of the caller.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.end;
        let link = u8::try_from(at).expect("capabilities lie in the first 256 bytes");
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.bytes[self.last_capability + 1] = link;
        self.bytes[at] = id;
        self.put(at + 2, body);
        self.last_capability = at;
        self.end = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest change the bits of `mask` from `offset` on.
    pub(crate) fn set_writable(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Sets bytes, writable by the guest or not.
    pub(crate) fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// All bytes as the guest reads them.
    pub(crate) fn bytes(&self) -> &[u8; CONFIG_LEN] {
        &self.bytes
    }

    /// Takes a guest's write: only what is writable changes. Bytes behind the end are dropped.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let targets = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, mask), value) in targets.zip(data) {
            *byte = (*byte & !mask) | (value & mask);
        }
    }

    /// Where the window answers, if it does.
    pub(crate) fn window(&self) -> Option<u64> {
        let enabled = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        enabled.then(|| u64::from(self.u32_at(BAR0)) & !(BAR_SIZE - 1))
    }

    /// The little-endian value at `offset`.
    pub(crate) fn u32_at(&self, offset: usize) -> u32 {
        let bytes = &self.bytes[offset..offset + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// For a snapshot.
    pub(crate) fn state(&self) -> ConfigState {
        ConfigState {
            bytes: self.bytes.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Address;

    fn space() -> ConfigSpace {
        let identity = Identity {
            id: (0x1af4, 0x1042),
            subsystem: (0x1af4, 0x1100),
            revision: 1,
            class: [1, 0x80, 0],
            multi_function: false,
        };
        ConfigSpace::new(&identity, 0xc000_4000)
    }

    #[test]
    fn header_holds_the_identity() {
        let space = space();
        assert_eq!(space.bytes()[..4], [0xf4, 0x1a, 0x42, 0x10]);
        assert_eq!(space.bytes()[8..12], [1, 0, 0x80, 1]);
        assert_eq!(
            space.bytes()[SUBSYSTEM..SUBSYSTEM + 4],
            [0xf4, 0x1a, 0, 0x11]
        );
    }

    #[test]
    fn sizing_a_bar_returns_its_size_and_type() {
        let mut space = space();
        space.write(BAR0, &[0xff; 4]);
        let size = !(space.u32_at(BAR0) & !0xf) + 1;
        assert_eq!(u64::from(size), BAR_SIZE);
        assert_eq!(space.u32_at(BAR0) & 0xf, 0, "32-bit, not prefetchable");
        for bar in 1..6 {
            space.write(BAR0 + 4 * bar, &[0xff; 4]);
            assert_eq!(space.u32_at(BAR0 + 4 * bar), 0, "no such BAR");
        }
    }

    #[test]
    fn window_follows_the_bar_only_while_memory_is_enabled() {
        let mut space = space();
        assert_eq!(space.window(), None);
        space.write(COMMAND, &[COMMAND_MEMORY]);
        assert_eq!(space.window(), Some(0xc000_4000));
        space.write(BAR0, &0xd000_1234_u32.to_le_bytes());
        assert_eq!(space.window(), Some(0xd000_0000));
    }

    #[test]
    fn write_to_read_only_bytes_changes_nothing() {
        let mut space = space();
        let before = *space.bytes();
        for offset in [0, 8, HEADER_TYPE, SUBSYSTEM, CAPABILITIES, 0x3c, 252] {
            space.write(offset, &[0xff; 2]);
        }
        assert_eq!(*space.bytes(), before);
    }

    #[test]
    fn write_over_the_end_never_panics() {
        let mut space = space();
        for offset in [250, 255, 256, 4095] {
            space.write(offset, &[0xff; 8]);
        }
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(0x11, &[0; 10]);
        let second = space.add_capability(0x09, &[0; 14]);
        assert_eq!(usize::from(space.bytes()[CAPABILITIES]), first);
        assert_eq!(usize::from(space.bytes()[first + 1]), second);
        assert_eq!(space.bytes()[second + 1], 0);
        assert_ne!(space.bytes()[STATUS] & STATUS_CAPABILITIES, 0);
    }

    #[test]
    fn first_bars_do_not_overlap_and_lie_in_the_window() {
        let last = Address::new(31, 7);
        assert!(
            u64::from(ConfigSpace::first_bar(last)) + BAR_SIZE
                <= layout::MMIO32_START + layout::MMIO32_SIZE
        );
        assert_eq!(
            u64::from(ConfigSpace::first_bar(Address::new(1, 1)))
                - u64::from(ConfigSpace::first_bar(Address::new(1, 0))),
            BAR_SIZE
        );
    }
}
