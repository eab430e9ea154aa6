//! Windows in guest physical memory, beside RAM, through which the guest reads files of the host.
//!
//! They come and go on the control thread while the guest runs. Each is a read-only memory slot of
//! its own: what the guest writes there goes nowhere.
#![expect(unsafe_code, reason = "this process's memory shown to the guest")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::layout::{Range, WINDOWS_END, WINDOWS_START};
use crate::virtio::pmem::Mapping;

/// The first of the windows' memory slots; those before it belong to RAM and configuration space.
const FIRST_SLOT: u32 = 8;

/// Most windows at once: there are no more functions on the bus.
const WINDOWS_MAX: u32 = 256;

/// The first memory slot behind those of windows.
pub(crate) const SLOTS_END: u32 = FIRST_SLOT + WINDOWS_MAX;

/// A window cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WindowError {
    /// There are too many, or no addresses left.
    #[error("there is no room in guest physical memory for {0} bytes more")]
    Full(u64),
    /// KVM refuses the slot.
    #[error("KVM_SET_USER_MEMORY_REGION")]
    Slot(#[source] io::Error),
}

/// What windows need of the hypervisor. KVM is behind it, and in unit tests a recorder.
pub(crate) trait Slots: Debug + Send + Sync {
    /// Shows the guest `size` bytes of this process at `host`, read-only, at guest physical
    /// `address`.
    ///
    /// # Safety
    ///
    /// They stay mapped until [`Slots::clear`] has returned.
    ///
    /// # Errors
    ///
    /// When KVM refuses.
    unsafe fn set(&self, slot: u32, address: u64, host: u64, size: u64) -> io::Result<()>;

    /// Ends what [`Slots::set`] began.
    ///
    /// # Errors
    ///
    /// When KVM refuses: the guest may still read.
    fn clear(&self, slot: u32) -> io::Result<()>;
}

/// Every window of a machine.
#[derive(Debug)]
pub(crate) struct Windows {
    slots: Arc<dyn Slots>,
    open: Mutex<BTreeMap<u32, Range>>,
}

impl Windows {
    /// None yet.
    pub(crate) fn new(slots: Arc<dyn Slots>) -> Arc<Self> {
        Arc::new(Self {
            slots,
            open: Mutex::default(),
        })
    }

    /// Opens one on `mapping`, until it is dropped.
    ///
    /// # Errors
    ///
    /// When there is no room, or KVM refuses.
    pub(crate) fn open(self: &Arc<Self>, mapping: Mapping) -> Result<Window, WindowError> {
        let size = mapping.size();
        let mut open = self.lock();
        let slot = (FIRST_SLOT..FIRST_SLOT + WINDOWS_MAX)
            .find(|slot| !open.contains_key(slot))
            .ok_or(WindowError::Full(size))?;
        let start = room(&open, size).ok_or(WindowError::Full(size))?;
        // SAFETY: the window owns the mapping, and clears the slot before it drops it.
        unsafe { self.slots.set(slot, start, mapping.host_address(), size) }
            .map_err(WindowError::Slot)?;
        open.insert(slot, Range { start, size });
        Ok(Window {
            slot,
            start,
            mapping,
            windows: Arc::clone(self),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Range>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lowest address with `size` free bytes behind it.
fn room(open: &BTreeMap<u32, Range>, size: u64) -> Option<u64> {
    let mut taken: Vec<Range> = open.values().copied().collect();
    taken.sort_by_key(|range| range.start);
    let mut start = WINDOWS_START;
    for range in taken {
        if range.start - start >= size {
            break;
        }
        start = range.end();
    }
    (size <= WINDOWS_END - start).then_some(start)
}

/// A window; it closes when it is dropped.
#[derive(Debug)]
pub(crate) struct Window {
    slot: u32,
    start: u64,
    mapping: Mapping,
    windows: Arc<Windows>,
}

impl Window {
    /// Guest physical address, a multiple of [`super::layout::WINDOW_ALIGN`].
    pub(crate) fn address(&self) -> u64 {
        self.start
    }

    /// Length in bytes, a multiple of it, too.
    pub(crate) fn size(&self) -> u64 {
        self.mapping.size()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // In this order: nobody is given the slot or the addresses before they are free.
        let mut open = self.windows.lock();
        match self.windows.slots.clear(self.slot) {
            Ok(()) => drop(open.remove(&self.slot)),
            Err(error) => {
                tracing::error!(%error, "a window on files stays open");
                self.mapping.keep();
            }
        }
    }
}

/// Windows of no machine, for unit tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::virtio::blk::{Extent, Extents};

    /// Notes which slots are set, and where.
    #[derive(Debug, Default)]
    pub(crate) struct Recorder(pub(crate) Mutex<BTreeMap<u32, (u64, u64)>>);

    impl Slots for Recorder {
        unsafe fn set(&self, slot: u32, address: u64, _host: u64, size: u64) -> io::Result<()> {
            let before = self.0.lock().unwrap().insert(slot, (address, size));
            assert!(before.is_none(), "slot {slot} is set twice");
            Ok(())
        }

        fn clear(&self, slot: u32) -> io::Result<()> {
            let before = self.0.lock().unwrap().remove(&slot);
            assert!(before.is_some(), "slot {slot} is not set");
            Ok(())
        }
    }

    /// A file of `mib` MiB of nothing, mapped.
    pub(crate) fn mapping(mib: u64) -> Mapping {
        let file = tempfile::tempfile().unwrap();
        let length = mib << 20;
        file.set_len(length).unwrap();
        let extent = Extent {
            file,
            offset: 0,
            length,
        };
        Mapping::of(&Extents::new(vec![extent]).unwrap()).unwrap()
    }

    /// The first window of a machine.
    pub(crate) fn window() -> Window {
        Windows::new(Arc::new(Recorder::default()))
            .open(mapping(1))
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Recorder, mapping};
    use super::*;
    use crate::machine::layout::{MIB, WINDOW_ALIGN};

    #[test]
    fn windows_do_not_overlap_and_what_is_closed_is_used_again() {
        let slots = Arc::new(Recorder::default());
        let windows = Windows::new(Arc::clone(&slots) as Arc<dyn Slots>);
        let open = |mib| windows.open(mapping(mib)).unwrap();
        let (first, second, third) = (open(1), open(3), open(2));
        assert_eq!(first.address(), WINDOWS_START);
        assert_eq!(second.address(), first.address() + WINDOW_ALIGN);
        assert_eq!(third.address(), second.address() + 4 * MIB);
        let hole = second.address();
        drop(second);
        assert_eq!(slots.0.lock().unwrap().len(), 2);
        assert_eq!(open(3).address(), hole);
        let (fills, behind) = (windows.open(mapping(4)).unwrap(), open(5));
        assert_eq!(
            fills.address(),
            hole,
            "the one in the hole was closed at once"
        );
        assert!(behind.address() >= third.address() + third.size());
        drop((first, third, fills, behind));
        assert!(slots.0.lock().unwrap().is_empty());
    }

    #[test]
    fn there_is_an_end_to_addresses_and_to_slots() {
        let all = WINDOWS_END - WINDOWS_START;
        let taken = |size| {
            BTreeMap::from([(
                FIRST_SLOT,
                Range {
                    start: WINDOWS_START,
                    size,
                },
            )])
        };
        assert_eq!(room(&BTreeMap::new(), all), Some(WINDOWS_START));
        assert_eq!(room(&BTreeMap::new(), all + WINDOW_ALIGN), None);
        assert_eq!(room(&taken(all), WINDOW_ALIGN), None);

        let windows = Windows::new(Arc::new(Recorder::default()));
        let open: Vec<Window> = (0..WINDOWS_MAX)
            .map(|_| windows.open(mapping(1)).unwrap())
            .collect();
        let refused = windows.open(mapping(1));
        assert!(matches!(refused, Err(WindowError::Full(_))));
        drop(open);
        assert!(windows.open(mapping(1)).is_ok());
    }
}
