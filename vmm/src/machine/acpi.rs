//! The ACPI tables (ACPI 6.5): hardware-reduced, and as short as a guest that finds its devices on
//! PCI allows. The kernel interprets every object of the DSDT while it boots.

use acpi_tables::aml::{self, AddressSpace, AddressSpaceCacheable, EISAName, Name, Path};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use super::layout;
use super::ports;

const OEM_ID: [u8; 6] = *b"ISOPOD";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;

/// "Boot architecture flags" of the FADT (ACPI 6.5 section 5.2.9.3): no VGA, no CMOS clock; the
/// bits that are not set say no legacy devices and no 8042.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// Where the local APICs answer.
const LOCAL_APIC: u32 = 0xfee0_0000;

/// Alignment of each table, for the eye.
const TABLE_ALIGN: usize = 64;

/// What the tables tell about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AcpiConfig {
    /// Processors that can be brought up, 1 to 64.
    pub(crate) max_vcpus: u8,
    /// There is a serial port.
    pub(crate) debug_console: bool,
}

/// All tables as they lie in memory from `address` on; the root pointer comes first.
pub(crate) fn tables(address: u64, config: AcpiConfig) -> Vec<u8> {
    let mut image = Image {
        address,
        bytes: vec![0; Rsdp::len().next_multiple_of(TABLE_ALIGN)],
    };
    let dsdt = image.push(&dsdt(config));
    let fadt = image.push(&bytes_of(&fadt(dsdt)));
    let madt = image.push(&bytes_of(&madt(config.max_vcpus)));
    let mcfg = image.push(&bytes_of(&mcfg()));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = image.push(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    image.bytes
}

/// Tables one after the other, and where they will lie.
struct Image {
    address: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and returns its guest physical address.
    fn push(&mut self, table: &[u8]) -> u64 {
        let at = self.address + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        let end = self.bytes.len().next_multiple_of(TABLE_ALIGN);
        self.bytes.resize(end, 0);
        at
    }
}

struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Bytes(Vec::new());
    aml.to_aml_bytes(&mut bytes);
    bytes.0
}

fn port_register(port: u16) -> GAS {
    GAS::new(
        GasSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}

/// Fixed ACPI description table (section 5.2.9) of a hardware-reduced machine (section 4.1): sleep
/// and reset registers are all that there is.
fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    fadt.reset_reg = port_register(ports::RESET);
    fadt.reset_value = ports::RESET_VALUE;
    fadt.sleep_control_reg = port_register(ports::SLEEP_CONTROL);
    fadt.sleep_status_reg = port_register(ports::SLEEP_STATUS);
    fadt.finalize()
}

/// Multiple APIC description table (section 5.2.12): one local APIC per possible vCPU, enabled, so
/// that the guest can bring each up without hot-plug; no I/O APIC.
fn madt(max_vcpus: u8) -> impl Aml {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for id in 0..max_vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt
}

/// Where bus 0 has its configuration space (PCI firmware specification 3.3 section 4.1.2).
fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_CONFIG_START, 0, 0, 0);
    mcfg
}

/// The differentiated system description table (section 5.2.11.1).
fn dsdt(config: AcpiConfig) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut devices = vec![host_bridge(), reserved_memory(), panic_device()];
    if config.debug_console {
        devices.push(serial_port());
    }
    for device in devices {
        dsdt.append_slice(&device);
    }
    dsdt.append_slice(&power_off_state());
    dsdt.as_slice().to_vec()
}

fn u32_of(address: u64) -> u32 {
    u32::try_from(address).expect("the 32-bit windows lie below 4 GiB")
}

/// The root of bus 0 and the windows that its BARs are placed in.
fn host_bridge() -> Vec<u8> {
    let crs = aml::ResourceTemplate::new;
    let bus = AddressSpace::<u16>::new_bus_number(0, 0);
    let low = AddressSpace::<u32>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        u32_of(layout::MMIO32_START),
        u32_of(layout::MMIO32_START + layout::MMIO32_SIZE - 1),
        None,
    );
    let high = AddressSpace::<u64>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::MMIO64_START,
        layout::MMIO64_START + layout::MMIO64_SIZE - 1,
        None,
    );
    device(
        "_SB_.PCI0",
        &[
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_CRS"), &crs(vec![&bus, &low, &high])),
        ],
    )
}

/// Without this the kernel does not trust the MCFG.
fn reserved_memory() -> Vec<u8> {
    let config = aml::Memory32Fixed::new(
        true,
        u32_of(layout::PCI_CONFIG_START),
        u32_of(layout::PCI_CONFIG_SIZE),
    );
    device(
        "_SB_.MRES",
        &[
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(
                Path::new("_CRS"),
                &aml::ResourceTemplate::new(vec![&config]),
            ),
        ],
    )
}

/// QEMU's "pvpanic" device: the guest writes to its port when it panics.
fn panic_device() -> Vec<u8> {
    let port = aml::IO::new(ports::PANIC, ports::PANIC, 1, 1);
    device(
        "_SB_.PEVT",
        &[
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_CRS"), &aml::ResourceTemplate::new(vec![&port])),
        ],
    )
}

/// A 16550 without an interrupt, which makes the driver poll.
fn serial_port() -> Vec<u8> {
    let port = aml::IO::new(ports::CONSOLE, ports::CONSOLE, 1, ports::CONSOLE_LEN);
    device(
        "_SB_.COM1",
        &[
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_CRS"), &aml::ResourceTemplate::new(vec![&port])),
        ],
    )
}

/// Says what to write to the sleep control register to power off (section 7.4.2).
fn power_off_state() -> Vec<u8> {
    let state = aml::Package::new(vec![&ports::SLEEP_TYPE_OFF]);
    bytes_of(&Name::new(Path::new("_S5_"), &state))
}

fn device(path: &str, children: &[&dyn Aml]) -> Vec<u8> {
    bytes_of(&aml::Device::new(Path::new(path), children.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = layout::ACPI_TABLES;

    fn image(max_vcpus: u8) -> Vec<u8> {
        tables(
            AT,
            AcpiConfig {
                max_vcpus,
                debug_console: true,
            },
        )
    }

    fn u32_at(image: &[u8], address: u64) -> u32 {
        let at = usize::try_from(address - AT).unwrap();
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
    }

    fn u64_at(image: &[u8], address: u64) -> u64 {
        u64::from(u32_at(image, address)) | u64::from(u32_at(image, address + 4)) << 32
    }

    /// The bytes of the table at `address`, by the length that it gives itself.
    fn table(image: &[u8], address: u64) -> &[u8] {
        let at = usize::try_from(address - AT).unwrap();
        let length = usize::try_from(u32_at(image, address + 4)).unwrap();
        &image[at..at + length]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Every table that the root pointer leads to.
    fn all_tables(image: &[u8]) -> Vec<&[u8]> {
        let xsdt_at = u64_at(image, AT + 24);
        let xsdt = table(image, xsdt_at);
        let mut tables = vec![xsdt];
        for entry in 0..(xsdt.len() - 36) / 8 {
            let at = u64_at(image, xsdt_at + 36 + 8 * entry as u64);
            tables.push(table(image, at));
            if tables.last().unwrap().starts_with(b"FACP") {
                tables.push(table(image, u64_at(image, at + 140)));
            }
        }
        tables
    }

    #[test]
    fn every_table_is_reached_from_the_root_and_sums_to_zero() {
        let image = image(4);
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!(sum(&image[..20]), 0);
        assert_eq!(sum(&image[..36]), 0);
        let tables = all_tables(&image);
        let signatures: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(
            signatures,
            [&b"XSDT"[..], b"FACP", b"DSDT", b"APIC", b"MCFG"]
        );
        for table in tables {
            assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        }
    }

    #[test]
    fn the_madt_lists_every_possible_vcpu_as_enabled() {
        let image = image(64);
        let tables = all_tables(&image);
        let madt = tables.iter().find(|t| t.starts_with(b"APIC")).unwrap();
        let entries: Vec<&[u8]> = madt[44..].chunks(8).collect();
        assert_eq!(entries.len(), 64);
        for (id, entry) in (0_u8..).zip(entries) {
            assert_eq!(entry, [0, 8, id, id, 1, 0, 0, 0]);
        }
    }

    #[test]
    fn the_tables_fit_into_their_place() {
        assert!(image(64).len() as u64 <= layout::HIGH_RAM_START - layout::ACPI_TABLES);
    }
}
