//! The functions on bus 0: finding them by address, adding and removing them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::BAR_SIZE;
use super::ecam::Ecam;
use super::{Address, config};
use crate::virtio::pci::VirtioPci;

/// First slot for functions that come and go. The ones before hold what every machine has.
pub(crate) const FIRST_DYNAMIC_SLOT: u8 = 3;

/// A function cannot be added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BusError {
    /// Every function of every slot is taken.
    #[error("the PCI bus is full")]
    Full,
}

/// A function that vCPU threads and the control thread share.
type Shared = Arc<Mutex<VirtioPci>>;

#[derive(Debug, Default)]
struct Functions {
    by_address: BTreeMap<Address, Shared>,
    /// Base of every window that answers, and whose it is. A guest may lay two over each other;
    /// then the lower function answers.
    windows: BTreeSet<(u64, Address)>,
}

/// Bus 0.
#[derive(Debug)]
pub(crate) struct PciBus {
    functions: Mutex<Functions>,
    ecam: Ecam,
}

impl PciBus {
    /// An empty bus.
    ///
    /// # Errors
    ///
    /// When memory for the configuration space cannot be mapped.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            ecam: Ecam::new()?,
            functions: Mutex::default(),
        })
    }

    /// What backs the read-only memory slot at [`crate::machine::layout::PCI_CONFIG_START`].
    pub(crate) fn config_host_address(&self) -> u64 {
        self.ecam.host_address()
    }

    /// Where to put a function that comes or goes while the guest runs: the lowest slot whose
    /// function 0 is free, and only with every function 0 in its place the others. A guest looks at
    /// a slot's other functions only where it finds function 0.
    ///
    /// # Errors
    ///
    /// [`BusError::Full`].
    pub(crate) fn free_address(&self) -> Result<Address, BusError> {
        let functions = self.lock();
        (0..Address::FUNCTIONS)
            .flat_map(|function| {
                (FIRST_DYNAMIC_SLOT..Address::SLOTS).map(move |slot| Address::new(slot, function))
            })
            .find(|address| !functions.by_address.contains_key(address))
            .ok_or(BusError::Full)
    }

    /// Puts a function on the bus, at an address that is free. Control thread only.
    pub(crate) fn add(&self, address: Address, function: VirtioPci) {
        let config = *function.config().bytes();
        let function = Arc::new(Mutex::new(function));
        self.lock().by_address.insert(address, function);
        self.ecam.store(address, &config);
    }

    /// Takes a function off the bus, whether or not the guest let go of it. On return its
    /// configuration space reads as all ones, its device is idle, and nothing of it is registered
    /// with the hypervisor. Control thread only; waits for the requests that the device has begun.
    pub(crate) fn remove(&self, address: Address) {
        let Some(function) = self.get(address) else {
            return;
        };
        let mut function = lock(&function);
        self.ecam.clear(address);
        function.retire();
        let mut functions = self.lock();
        functions.windows.retain(|(_, owner)| *owner != address);
        functions.by_address.remove(&address);
    }

    /// Takes a guest's write to configuration space, `offset` bytes from its start. vCPU threads.
    pub(crate) fn write_config(&self, offset: u64, data: &[u8]) {
        let Some(address) = Address::from_config_offset(offset) else {
            return;
        };
        let Some(function) = self.get(address) else {
            return;
        };
        let register = usize::try_from(offset & 0xfff).unwrap_or(config::CONFIG_LEN);
        let mut function = lock(&function);
        if function.is_retired() {
            return;
        }
        let before = function.window();
        function.write_config(register, data);
        self.ecam.store(address, function.config().bytes());
        let after = function.window();
        if before != after {
            let mut functions = self.lock();
            if let Some(base) = before {
                functions.windows.remove(&(base, address));
            }
            if let Some(base) = after {
                functions.windows.insert((base, address));
            }
        }
    }

    /// Answers a guest's read of memory that is not RAM: all ones where no function does. vCPU
    /// threads.
    pub(crate) fn read_memory(&self, at: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, offset)) = self.find_window(at) {
            lock(&function).read_bar(offset, data);
        }
    }

    /// Takes a guest's write to memory that is not RAM. vCPU threads.
    pub(crate) fn write_memory(&self, at: u64, data: &[u8]) {
        if let Some((function, offset)) = self.find_window(at) {
            lock(&function).write_bar(offset, data);
        }
    }

    /// Every function in order of address.
    pub(crate) fn functions(&self) -> Vec<Shared> {
        self.lock().by_address.values().map(Arc::clone).collect()
    }

    fn find_window(&self, at: u64) -> Option<(Shared, u64)> {
        let base = at & !(BAR_SIZE - 1);
        let functions = self.lock();
        let everyone = Address::new(0, 0)..=Address::new(Address::SLOTS - 1, 7);
        let (_, owner) = functions
            .windows
            .range((base, *everyone.start())..=(base, *everyone.end()))
            .next()?;
        let function = functions.by_address.get(owner)?;
        Some((Arc::clone(function), at - base))
    }

    fn get(&self, address: Address) -> Option<Shared> {
        self.lock().by_address.get(&address).map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, Functions> {
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks a function. A panic on another thread while it held the lock ends the process anyway.
pub(crate) fn lock(function: &Mutex<VirtioPci>) -> MutexGuard<'_, VirtioPci> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}
