//! The tables of the PVH boot protocol (Xen, "x86/HVM direct boot ABI", and its
//! public/arch-x86/hvm/start_info.h).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::machine::layout::{self, Range};

const START_INFO_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_INFO_VERSION: u32 = 1;

/// Memory types, as in ACPI's `E820` (ACPI 6.5 section 15.4).
const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI: u32 = 3;

// The tables do not overlap.
const _: () = {
    assert!(layout::PVH_START_INFO + 56 <= layout::PVH_MODULES);
    assert!(layout::PVH_MODULES + 32 <= layout::PVH_MEMORY_MAP);
    assert!(layout::PVH_MEMORY_MAP + 24 * 8 <= layout::COMMAND_LINE);
    assert!(layout::COMMAND_LINE + (layout::COMMAND_LINE_MAX as u64) < layout::LOW_RAM_END);
};

/// What the boot protocol hands over.
#[derive(Debug)]
pub(crate) struct BootInfo<'a> {
    /// RAM, as [`layout::ram_ranges`] returns it.
    pub(crate) ram: &'a [Range],
    /// Where the initramfs lies, if there is one.
    pub(crate) initramfs: Option<Range>,
    /// The command line, without its NUL.
    pub(crate) command_line: &'a str,
    /// Address of the ACPI root pointer.
    pub(crate) rsdp: u64,
}

/// Writes the tables to where [`layout`] says, start info at [`layout::PVH_START_INFO`].
///
/// # Errors
///
/// When guest memory is smaller than the layout's first MiB.
pub(crate) fn write(memory: &GuestMemoryMmap, info: &BootInfo<'_>) -> Result<(), GuestMemoryError> {
    let memory_map = memory_map(info.ram);
    write_at(
        memory,
        layout::PVH_START_INFO,
        &start_info(info, &memory_map),
    )?;
    if let Some(initramfs) = info.initramfs {
        write_at(memory, layout::PVH_MODULES, &module(initramfs))?;
    }
    let entries: Vec<u8> = memory_map.iter().flat_map(|e| entry(*e)).collect();
    write_at(memory, layout::PVH_MEMORY_MAP, &entries)?;
    let mut line = info.command_line.as_bytes().to_vec();
    line.push(0);
    write_at(memory, layout::COMMAND_LINE, &line)
}

fn write_at(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) -> Result<(), GuestMemoryError> {
    memory.write_slice(bytes, GuestAddress(at))
}

/// The memory map: every range with its type, ascending.
fn memory_map(ram: &[Range]) -> Vec<(Range, u32)> {
    let between = |start, end| Range {
        start,
        size: end - start,
    };
    let mut map = vec![
        (between(0, layout::LOW_RAM_END), RAM),
        (between(layout::ACPI_TABLES, layout::HIGH_RAM_START), ACPI),
    ];
    for range in ram {
        let start = range.start.max(layout::HIGH_RAM_START);
        map.push((between(start, range.end()), RAM));
    }
    let config = Range {
        start: layout::PCI_CONFIG_START,
        size: layout::PCI_CONFIG_SIZE,
    };
    map.push((config, RESERVED));
    map.sort_by_key(|(range, _)| range.start);
    map
}

/// `struct hvm_start_info`, 56 bytes.
fn start_info(info: &BootInfo<'_>, memory_map: &[(Range, u32)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(56);
    let modules = u32::from(info.initramfs.is_some());
    for word in [START_INFO_MAGIC, START_INFO_VERSION, 0, modules] {
        bytes.extend(word.to_le_bytes());
    }
    for address in [
        // Not read when there are none.
        layout::PVH_MODULES,
        layout::COMMAND_LINE,
        info.rsdp,
        layout::PVH_MEMORY_MAP,
    ] {
        bytes.extend(address.to_le_bytes());
    }
    let entries = u32::try_from(memory_map.len()).expect("the map has a handful of entries");
    for word in [entries, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// `struct hvm_modlist_entry`: address, length, no command line, reserved.
fn module(range: Range) -> Vec<u8> {
    [range.start, range.size, 0, 0]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect()
}

/// `struct hvm_memmap_table_entry`: address, length, type, reserved.
fn entry((range, kind): (Range, u32)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(range.start.to_le_bytes());
    bytes.extend(range.size.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory;

    const INITRAMFS: Range = Range {
        start: 0x1f0_0000,
        size: 77,
    };

    fn written(memory_mib: u32) -> GuestMemoryMmap {
        let memory = memory::allocate(memory_mib).unwrap();
        let info = BootInfo {
            ram: &layout::ram_ranges(memory_mib),
            initramfs: Some(INITRAMFS),
            command_line: "quiet",
            rsdp: layout::ACPI_TABLES,
        };
        write(&memory, &info).unwrap();
        memory
    }

    fn u64_in(memory: &GuestMemoryMmap, at: u64) -> u64 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn u32_in(memory: &GuestMemoryMmap, at: u64) -> u32 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn start_info_points_at_module_command_line_map_and_rsdp() {
        let memory = written(64);
        let at = layout::PVH_START_INFO;
        assert_eq!(u32_in(&memory, at), 0x336e_c578);
        assert_eq!(u32_in(&memory, at + 4), 1);
        assert_eq!(u32_in(&memory, at + 12), 1);
        let module = u64_in(&memory, at + 16);
        assert_eq!(u64_in(&memory, module), INITRAMFS.start);
        assert_eq!(u64_in(&memory, module + 8), INITRAMFS.size);
        let line = u64_in(&memory, at + 24);
        let mut text = [1; 6];
        memory.read_slice(&mut text, GuestAddress(line)).unwrap();
        assert_eq!(&text, b"quiet\0");
        assert_eq!(u64_in(&memory, at + 32), layout::ACPI_TABLES);
        assert_eq!(u64_in(&memory, at + 40), layout::PVH_MEMORY_MAP);
        assert_eq!(u32_in(&memory, at + 48), 4);
    }

    #[test]
    fn memory_map_is_ascending_without_overlap_and_covers_the_ram() {
        for memory_mib in [64, 3072, 8192] {
            let map = memory_map(&layout::ram_ranges(memory_mib));
            for pair in map.windows(2) {
                assert!(pair[0].0.end() <= pair[1].0.start);
            }
            let ram: u64 = map
                .iter()
                .filter(|(_, kind)| *kind == RAM)
                .map(|(range, _)| range.size)
                .sum();
            let hole = layout::HIGH_RAM_START - layout::LOW_RAM_END;
            assert_eq!(ram, u64::from(memory_mib) * layout::MIB - hole);
        }
    }
}
