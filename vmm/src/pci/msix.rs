//! MSI-X (PCI 3.0 section 6.8.2): the table that the guest fills, the pending bits, and sending.
//!
//! Interrupts are sent with one ioctl each rather than through irqfds and a routing table: the
//! devices are in this process, so an irqfd saves no system call, while every change of KVM's
//! routing table waits for a grace period.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Hypervisor;

/// Bytes of a table entry.
const ENTRY_LEN: usize = 16;
/// In an entry's vector control word.
const ENTRY_MASKED: u32 = 1;

/// In the second byte of the capability's message control word.
pub(crate) const CONTROL_ENABLE: u8 = 1 << 7;
/// Masks every vector.
pub(crate) const CONTROL_MASK_ALL: u8 = 1 << 6;

/// Most vectors of a function; the table then takes a kibibyte.
pub(crate) const VECTORS_MAX: usize = 64;

/// A table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address_low: u32,
    address_high: u32,
    data: u32,
    control: u32,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            address_low: 0,
            address_high: 0,
            data: 0,
            control: ENTRY_MASKED,
        }
    }
}

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MsixState {
    entries: Vec<Entry>,
    pending: u64,
    enabled: bool,
    masked: bool,
}

/// A function's MSI-X table.
#[derive(Debug)]
pub(crate) struct Msix {
    hypervisor: Arc<dyn Hypervisor>,
    state: MsixState,
}

impl Msix {
    /// A table of `vectors` masked entries, disabled.
    ///
    /// # Panics
    ///
    /// When there are more than [`VECTORS_MAX`].
    pub(crate) fn new(hypervisor: Arc<dyn Hypervisor>, vectors: usize) -> Self {
        assert!(vectors <= VECTORS_MAX, "a device has few queues");
        Self {
            hypervisor,
            state: MsixState {
                entries: vec![Entry::default(); vectors],
                pending: 0,
                enabled: false,
                masked: false,
            },
        }
    }

    /// Number of vectors.
    pub(crate) fn vectors(&self) -> usize {
        self.state.entries.len()
    }

    /// Sends `vector`'s message, or notes it as pending while it is masked. Nothing happens while
    /// MSI-X is off, and for a vector that does not exist.
    pub(crate) fn trigger(&mut self, vector: u16) {
        let index = usize::from(vector);
        let Some(entry) = self.state.entries.get(index).copied() else {
            return;
        };
        if !self.state.enabled {
            return;
        }
        if self.state.masked || entry.control & ENTRY_MASKED != 0 {
            self.state.pending |= 1 << index;
        } else {
            self.send(entry);
        }
    }

    fn send(&self, entry: Entry) {
        let address = u64::from(entry.address_high) << 32 | u64::from(entry.address_low);
        if let Err(error) = self.hypervisor.signal_msi(address, entry.data) {
            // The guest's own doing, and it can repeat it at will.
            tracing::debug!(address, %error, "the guest programmed an interrupt that is none");
        }
    }

    /// Takes the capability's message control bits.
    pub(crate) fn set_control(&mut self, control: u8) {
        self.state.enabled = control & CONTROL_ENABLE != 0;
        self.state.masked = control & CONTROL_MASK_ALL != 0;
        self.send_pending();
    }

    /// Sends what has become unmasked.
    fn send_pending(&mut self) {
        if !self.state.enabled || self.state.masked {
            return;
        }
        for index in 0..self.state.entries.len() {
            let entry = self.state.entries[index];
            let bit = 1 << index;
            if self.state.pending & bit != 0 && entry.control & ENTRY_MASKED == 0 {
                self.state.pending &= !bit;
                self.send(entry);
            }
        }
    }

    /// Reads from the table; zeros behind its end.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.word(at / 4).to_le_bytes()[at % 4];
        }
    }

    /// Takes a write of one or two aligned words, as section 6.8.2 asks for; others are dropped.
    pub(crate) fn write_table(&mut self, offset: usize, data: &[u8]) {
        if !offset.is_multiple_of(4) || !data.len().is_multiple_of(4) {
            return;
        }
        for (at, bytes) in data.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            self.set_word(offset / 4 + at, value);
        }
        self.send_pending();
    }

    /// Reads the pending bits; zeros behind their end.
    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let bits = self.state.pending.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = bits.get(at).copied().unwrap_or(0);
        }
    }

    fn word(&self, index: usize) -> u32 {
        const WORDS: usize = ENTRY_LEN / 4;
        let Some(entry) = self.state.entries.get(index / WORDS) else {
            return 0;
        };
        match index % WORDS {
            0 => entry.address_low,
            1 => entry.address_high,
            2 => entry.data,
            _ => entry.control,
        }
    }

    fn set_word(&mut self, index: usize, value: u32) {
        const WORDS: usize = ENTRY_LEN / 4;
        let Some(entry) = self.state.entries.get_mut(index / WORDS) else {
            return;
        };
        match index % WORDS {
            0 => entry.address_low = value & !3,
            1 => entry.address_high = value,
            2 => entry.data = value,
            _ => entry.control = value & ENTRY_MASKED,
        }
    }

    /// For a snapshot.
    pub(crate) fn state(&self) -> MsixState {
        self.state.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::pci::testing::Recorder;

    fn table() -> (Arc<Recorder>, Msix) {
        let recorder = Arc::new(Recorder::default());
        let hypervisor: Arc<dyn Hypervisor> = Arc::clone(&recorder) as _;
        (recorder, Msix::new(hypervisor, 3))
    }

    fn program(msix: &mut Msix, vector: usize, control: u32) {
        let words = [
            0xfee0_1000,
            0,
            0x40 + u32::try_from(vector).unwrap(),
            control,
        ];
        for (at, word) in words.iter().enumerate() {
            msix.write_table(vector * 16 + at * 4, &word.to_le_bytes());
        }
    }

    #[test]
    fn trigger_unmasked_vector_sends_its_message() {
        let (recorder, mut msix) = table();
        program(&mut msix, 1, 0);
        msix.set_control(CONTROL_ENABLE);
        msix.trigger(1);
        assert_eq!(recorder.take_messages(), [(0xfee0_1000, 0x41)]);
    }

    #[test]
    fn trigger_masked_vector_is_pending_until_unmasked_and_sent_once() {
        let (recorder, mut msix) = table();
        program(&mut msix, 2, ENTRY_MASKED);
        msix.set_control(CONTROL_ENABLE);
        msix.trigger(2);
        msix.trigger(2);
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        assert_eq!((recorder.take_messages().len(), bits[0]), (0, 0b100));
        program(&mut msix, 2, 0);
        assert_eq!(recorder.take_messages(), [(0xfee0_1000, 0x42)]);
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [0; 8]);
    }

    #[test]
    fn function_mask_holds_every_vector_back() {
        let (recorder, mut msix) = table();
        program(&mut msix, 0, 0);
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        msix.trigger(0);
        assert!(recorder.take_messages().is_empty());
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(recorder.take_messages().len(), 1);
    }

    #[test]
    fn trigger_while_disabled_or_out_of_range_does_nothing() {
        let (recorder, mut msix) = table();
        program(&mut msix, 0, 0);
        msix.trigger(0);
        msix.set_control(CONTROL_ENABLE);
        msix.trigger(3);
        msix.trigger(0xffff);
        assert!(recorder.take_messages().is_empty());
    }

    #[test]
    fn table_reads_back_and_hostile_accesses_never_panic() {
        let (_, mut msix) = table();
        let mut word = [0; 4];
        msix.read_table(12, &mut word);
        assert_eq!(u32::from_le_bytes(word), ENTRY_MASKED, "masked at reset");
        msix.write_table(0, &[0xff; 8]);
        msix.read_table(0, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0xffff_fffc);
        for offset in [1, 2, 3, 44, 46, 48, 1 << 20] {
            for length in [1, 2, 3, 4, 8] {
                msix.write_table(offset, &vec![0xa5; length]);
                msix.read_table(offset, &mut vec![0; length]);
                msix.read_pending(offset, &mut vec![0; length]);
            }
        }
    }
}
