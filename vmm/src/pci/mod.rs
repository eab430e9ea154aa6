//! Bus 0, the only one: its configuration space and the functions on it.
//!
//! The guest reads configuration space as ordinary read-only memory ([`ecam`], PCIe 6.0 section
//! 7.2.2), without an exit; writes exit to the vCPU's thread and arrive in [`bus::PciBus`]. There is
//! no `0xcf8` port pair and no function in slot 0: the host bridge is known from ACPI. Interrupts
//! are MSI-X only ([`msix`]).
//!
//! The control thread adds and removes functions while the guest runs; the guest finds out when it
//! rescans the bus. Locks are taken in the order function, bus:
//!
//! ```text
//! vCPU thread     ── config write, BAR access ──┐
//!                                               ├──> PciBus ──> Mutex<VirtioPci> ──> device
//! control thread  ── add, remove, pause ────────┘
//! ```

pub(crate) mod bus;
pub(crate) mod config;
pub(crate) mod ecam;
pub(crate) mod msix;

use std::fmt::{self, Debug};
use std::io;

use vmm_sys_util::eventfd::EventFd;

/// What a function needs of the hypervisor. KVM is behind it, and in unit tests a recorder.
pub(crate) trait Hypervisor: Debug + Send + Sync {
    /// Sends a message-signalled interrupt.
    ///
    /// # Errors
    ///
    /// When the guest has programmed an address that is no interrupt's.
    fn signal_msi(&self, address: u64, data: u32) -> io::Result<()>;

    /// From now on a write to guest physical `address`, of any length, signals `event`.
    ///
    /// # Errors
    ///
    /// When another one is there, or there are too many.
    fn add_notifier(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Ends what [`Hypervisor::add_notifier`] began, given the same arguments.
    ///
    /// # Errors
    ///
    /// When there is no such notifier.
    fn remove_notifier(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// Slot and function number on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address(u8);

impl Address {
    /// Slots on a bus.
    pub(crate) const SLOTS: u8 = 32;
    /// Functions in a slot.
    pub(crate) const FUNCTIONS: u8 = 8;

    /// The address of `function` (0 to 7) in `slot` (0 to 31).
    ///
    /// # Panics
    ///
    /// When either is out of range.
    pub(crate) const fn new(slot: u8, function: u8) -> Self {
        assert!(slot < Self::SLOTS && function < Self::FUNCTIONS);
        Self(slot << 3 | function)
    }

    /// The address whose configuration space holds `offset`, in bytes from its start.
    pub(crate) fn from_config_offset(offset: u64) -> Option<Self> {
        u8::try_from(offset >> 12).ok().map(Self)
    }

    /// Offset of its configuration space in bus 0's.
    pub(crate) const fn config_offset(self) -> usize {
        (self.0 as usize) << 12
    }

    /// Its position among all functions of the bus.
    pub(crate) const fn index(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.0 >> 3, self.0 & 7)
    }
}
