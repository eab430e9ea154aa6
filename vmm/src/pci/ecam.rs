//! Configuration space as memory (ECAM, PCIe 6.0 section 7.2.2).
//!
//! One read-only memory slot shows the guest the bytes of every function on bus 0, so enumeration
//! and rescans, which are thousands of reads, cause no exits. Writes do: KVM hands them to the VMM
//! as MMIO. Reading here never has a side effect, which is what makes this possible.
//!
//! Where there is no function, a read gives all ones. Those pages are one small file of ones, mapped
//! privately all over the space; a function's page becomes its own when it is first written.
#![expect(
    unsafe_code,
    reason = "a mapping that the guest reads while the VMM writes"
)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Address;
use super::config::CONFIG_LEN;
use crate::machine::layout::PCI_CONFIG_SIZE;

const PAGE: usize = 4096;
/// Length of the file of ones: large enough for few mappings, small enough to be no burden.
const ONES_LEN: usize = 64 * 1024;
#[expect(
    clippy::cast_possible_truncation,
    reason = "one mebibyte fits into every usize"
)]
const SIZE: usize = PCI_CONFIG_SIZE as usize;

/// The mapping behind the memory slot.
#[derive(Debug)]
pub(crate) struct Ecam {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to the value alone and may be used and unmapped on any thread; `store`
// and `clear` write through volatile accesses of whole aligned words, which is what the hardware
// that the guest believes in does.
unsafe impl Send for Ecam {}
// SAFETY: as above; concurrent writers are kept apart per function by that function's lock.
unsafe impl Sync for Ecam {}

impl Ecam {
    /// A bus without functions.
    ///
    /// # Errors
    ///
    /// When memory cannot be mapped.
    pub(crate) fn new() -> io::Result<Self> {
        let mut ones = File::from(memfd_create(c"isopod-ones", MFdFlags::MFD_CLOEXEC)?);
        ones.write_all(&[0xff; ONES_LEN])?;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let ecam = Self { base };
        for offset in (0..SIZE).step_by(ONES_LEN) {
            ecam.map_ones(&ones, offset)?;
        }
        Ok(ecam)
    }

    fn map_ones(&self, ones: &File, offset: usize) -> io::Result<()> {
        // SAFETY: `offset` is below `SIZE`, the length of the mapping.
        let at = unsafe { self.base.add(offset) };
        // SAFETY: replaces a part of the mapping that this value owns, to which no reference exists.
        let mapped = unsafe {
            libc::mmap(
                at.as_ptr().cast(),
                ONES_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                ones.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Where the memory slot is backed, [`PCI_CONFIG_SIZE`] bytes.
    pub(crate) fn host_address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Shows `config` as the configuration space of `function`, and zeros behind it.
    pub(crate) fn store(&self, function: Address, config: &[u8; CONFIG_LEN]) {
        for (at, word) in config.chunks_exact(4).enumerate() {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            self.store_word(function, at, word);
        }
        // What is not there yet in the extended space reads as the end of its list.
        if self.load_word(function, CONFIG_LEN / 4) != 0 {
            for at in CONFIG_LEN / 4..PAGE / 4 {
                self.store_word(function, at, 0);
            }
        }
    }

    /// From now on there is no such function: all ones.
    pub(crate) fn clear(&self, function: Address) {
        // The vendor id goes first: it is what the guest looks at.
        for at in 0..PAGE / 4 {
            self.store_word(function, at, u32::MAX);
        }
    }

    fn word(&self, function: Address, at: usize) -> NonNull<u32> {
        let offset = function.config_offset() + (at * 4) % PAGE;
        // SAFETY: an address has 256 values, so the offset is below 256 pages, which is `SIZE`.
        let word = unsafe { self.base.add(offset) };
        word.cast()
    }

    fn store_word(&self, function: Address, at: usize, value: u32) {
        let word = self.word(function, at);
        // SAFETY: in bounds and aligned to four bytes (`word`); the guest reads it at any time,
        // which the volatile access allows for.
        unsafe { word.as_ptr().write_volatile(value.to_le()) }
    }

    fn load_word(&self, function: Address, at: usize) -> u32 {
        let word = self.word(function, at);
        // SAFETY: as in `store_word`.
        u32::from_le(unsafe { word.as_ptr().read_volatile() })
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self, function: Address) -> Vec<u8> {
        (0..PAGE / 4)
            .flat_map(|at| self.load_word(function, at).to_le_bytes())
            .collect()
    }
}

impl Drop for Ecam {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own. If its memory slot is still there, no vCPU is: the
        // machine ends them before it drops the bus.
        unsafe { libc::munmap(self.base.as_ptr().cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_read_as_stored_and_all_others_as_ones() {
        let ecam = Ecam::new().unwrap();
        let function = Address::new(3, 1);
        let config = std::array::from_fn(|n| u8::try_from(n).unwrap());
        ecam.store(function, &config);
        let bytes = ecam.bytes(function);
        assert_eq!(bytes[..CONFIG_LEN], config);
        assert!(bytes[CONFIG_LEN..].iter().all(|byte| *byte == 0));
        for other in [Address::new(3, 0), Address::new(3, 2), Address::new(31, 7)] {
            assert!(ecam.bytes(other).iter().all(|byte| *byte == 0xff));
        }
        ecam.clear(function);
        assert!(ecam.bytes(function).iter().all(|byte| *byte == 0xff));
    }
}
