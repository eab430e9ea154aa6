//! Where everything lies in the guest's physical address space.
//!
//! Nothing here depends on the pod, so a template made once fits every sandbox of its shape:
//!
//! ```text
//! 0000_0000  RAM; boot tables in the first pages (machine::boot)
//! 000e_0000  ACPI tables, in RAM that the guest is told to leave alone
//! 0010_0000  RAM: kernel where its ELF says, an initramfs at the end of low RAM
//! c000_0000  32-bit MMIO window: BARs
//! e800_0000  PCI configuration space of bus 0 (pci::ecam)
//! fee0_0000  local APIC (KVM)
//! 1_0000_0000  RAM above 3 GiB, and behind it memory that comes and goes (machine::growth)
//! 40_0000_0000  64-bit MMIO window
//! 60_0000_0000  windows on files (machine::windows), up to 80_0000_0000
//! ```

/// Bytes in a page.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// Bytes in a mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// Bytes in a huge page.
pub(crate) const HUGE_PAGE_SIZE: u64 = 2 * MIB;

/// `hvm_start_info` of the PVH boot protocol.
pub(crate) const PVH_START_INFO: u64 = 0x6000;
/// The list of boot modules (the initramfs).
pub(crate) const PVH_MODULES: u64 = 0x6080;
/// The memory map.
pub(crate) const PVH_MEMORY_MAP: u64 = 0x6100;
/// The kernel's command line, NUL-terminated.
pub(crate) const COMMAND_LINE: u64 = 0x7000;
/// Longest command line, without its NUL: what x86 Linux reads (`COMMAND_LINE_SIZE`).
pub(crate) const COMMAND_LINE_MAX: usize = 2047;

/// End of the RAM below the legacy hole at 640 KiB.
pub(crate) const LOW_RAM_END: u64 = 0xa_0000;
/// ACPI tables, to [`HIGH_RAM_START`].
pub(crate) const ACPI_TABLES: u64 = 0xe_0000;
/// Start of the RAM above the legacy hole.
pub(crate) const HIGH_RAM_START: u64 = 0x10_0000;

/// Where Linux begins (`CONFIG_PHYSICAL_START`). The ELF file says where it is loaded; this tells only
/// which pages are worth being huge.
const KERNEL_START: u64 = 16 * MIB;

/// RAM below 4 GiB ends here at the latest.
pub(crate) const RAM_HOLE_START: u64 = 0xc000_0000;
/// RAM goes on here.
pub(crate) const RAM_HOLE_END: u64 = 1 << 32;

/// 32-bit MMIO window for BARs.
pub(crate) const MMIO32_START: u64 = RAM_HOLE_START;
/// Its length in bytes.
pub(crate) const MMIO32_SIZE: u64 = PCI_CONFIG_START - MMIO32_START;

/// Memory-mapped configuration space (ECAM) of bus 0.
pub(crate) const PCI_CONFIG_START: u64 = 0xe800_0000;
/// 32 slots of 8 functions of 4 KiB.
pub(crate) const PCI_CONFIG_SIZE: u64 = MIB;

/// 64-bit MMIO window for BARs; the smallest processors with KVM address 39 bits.
pub(crate) const MMIO64_START: u64 = 1 << 38;
/// Its length in bytes.
pub(crate) const MMIO64_SIZE: u64 = 1 << 37;

/// Windows on files of the host.
pub(crate) const WINDOWS_START: u64 = MMIO64_START + MMIO64_SIZE;
/// First address behind them.
pub(crate) const WINDOWS_END: u64 = 1 << 39;
/// Where they begin and end: at a multiple of what Linux can manage as memory
/// (`SUBSECTION_SIZE`).
pub(crate) const WINDOW_ALIGN: u64 = 2 * MIB;

/// Three pages that KVM wants on Intel processors without unrestricted guest mode.
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;
/// One page for the same purpose.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Most RAM, in MiB: what lies below [`MMIO64_START`], the hole left out.
pub(crate) const MEMORY_MIB_MAX: u32 = 256 * 1024 - 1024;
/// Least RAM in which a kernel and an initramfs of usual size come up, in MiB.
pub(crate) const MEMORY_MIB_MIN: u32 = 32;

/// Linux adds memory in blocks that begin at a multiple of their size, which is this at least, and in
/// guests that are as large as [`LARGE_BLOCKS_FROM`] up to [`MEMORY_BLOCK_MAX`]
/// (`memory_block_size_bytes` on x86).
pub(crate) const MEMORY_BLOCK_MIN: u64 = 128 * MIB;
/// See [`MEMORY_BLOCK_MIN`].
pub(crate) const MEMORY_BLOCK_MAX: u64 = 2048 * MIB;
/// First address behind the RAM of a guest that may have larger blocks.
pub(crate) const LARGE_BLOCKS_FROM: u64 = 64 * 1024 * MIB;

/// A range of guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// First address.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) size: u64,
}

impl Range {
    /// First address after the range.
    pub(crate) const fn end(self) -> u64 {
        self.start + self.size
    }

    /// What both have, if anything.
    pub(crate) fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let size = self.end().min(other.end()).checked_sub(start)?;
        (size > 0).then_some(Self { start, size })
    }
}

/// The ranges that `memory_mib` of RAM take: one, or two around the hole.
pub(crate) fn ram_ranges(memory_mib: u32) -> Vec<Range> {
    let size = u64::from(memory_mib) * MIB;
    let low = size.min(RAM_HOLE_START);
    let mut ranges = vec![Range {
        start: 0,
        size: low,
    }];
    if size > low {
        ranges.push(Range {
            start: RAM_HOLE_END,
            size: size - low,
        });
    }
    ranges
}

/// Parts of the RAM of which a start of Linux touches a few pages here and there: a huge page would be
/// cleared, and kept, for each. `ram` is what [`ram_ranges`] returns; `unpacks` tells that the files of
/// an initramfs will fill what the start itself leaves empty. The kernel has some of its own
/// ([`boot::kernel`](super::boot::kernel)).
///
/// - Below the kernel: boot tables, and what the page allocator hands out first.
/// - The end of the first [`MEMORY_BLOCK_MIN`]: a bitmap of that block (`sparse_init_nid`), alone.
/// - The end of RAM: page tables and the like (`memblock` allocates from the top down); the map of all
///   pages, below it, is written as a whole.
pub(crate) fn sparse_ranges(ram: &[Range], unpacks: bool) -> Vec<Range> {
    let mut ranges = vec![Range {
        start: 0,
        size: KERNEL_START,
    }];
    if !unpacks {
        let before = |end: u64| Range {
            start: end.saturating_sub(HUGE_PAGE_SIZE),
            size: HUGE_PAGE_SIZE.min(end),
        };
        ranges.push(before(MEMORY_BLOCK_MIN));
        ranges.extend(ram.last().map(|last| before(last.end())));
    }
    ranges
}

/// Where memory can be added while the guest runs: behind its RAM, as far as RAM can go. Empty at the
/// very most RAM.
pub(crate) fn growth_range(memory_mib: u32) -> Range {
    let ram_end = ram_ranges(memory_mib).last().map_or(0, |range| range.end());
    let start = ram_end
        .max(RAM_HOLE_END)
        .next_multiple_of(MEMORY_BLOCK_MAX)
        .min(MMIO64_START);
    Range {
        start,
        size: MMIO64_START - start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_with_few_pages_are_whole_huge_pages_beside_what_is_written_as_a_whole() {
        let range = |start: u64, end: u64| Range {
            start: start * MIB,
            size: (end - start) * MIB,
        };
        let wanted = [range(0, 16), range(126, 128), range(254, 256)];
        assert_eq!(sparse_ranges(&ram_ranges(256), false), wanted);
        assert_eq!(sparse_ranges(&ram_ranges(256), true), wanted[..1]);
        let above = ram_ranges(8192).pop().unwrap();
        let last = sparse_ranges(&ram_ranges(8192), false).pop().unwrap();
        assert_eq!(last.end(), above.end());
    }

    #[test]
    fn ram_up_to_the_hole_is_one_range() {
        assert_eq!(
            ram_ranges(3072),
            [Range {
                start: 0,
                size: RAM_HOLE_START
            }]
        );
    }

    #[test]
    fn ram_over_the_hole_goes_on_above_4_gib_and_none_is_lost() {
        let ranges = ram_ranges(4096);
        assert_eq!(ranges[1].start, RAM_HOLE_END);
        let total: u64 = ranges.iter().map(|range| range.size).sum();
        assert_eq!(total, 4096 * MIB);
    }

    #[test]
    fn most_ram_ends_below_the_64_bit_window() {
        let last = ram_ranges(MEMORY_MIB_MAX)[1];
        assert!(last.end() <= MMIO64_START);
    }

    #[test]
    fn memory_is_added_behind_all_ram_and_up_to_what_ram_can_be() {
        for memory_mib in [64, 3072, 3073, 10_000, 200 * 1024] {
            let (ram, more) = (ram_ranges(memory_mib), growth_range(memory_mib));
            assert!(ram.iter().all(|range| range.end() <= more.start));
            assert!(more.start.is_multiple_of(MEMORY_BLOCK_MAX));
            assert_eq!(more.end(), MMIO64_START);
        }
        assert_eq!(growth_range(64).size, 252 * 1024 * MIB);
        assert_eq!(growth_range(MEMORY_MIB_MAX).size, 0);
    }
}
