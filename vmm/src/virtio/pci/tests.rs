//! A driver, good and bad, against the transport and the bus.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::common::status;
use super::testing::{Recorder, TEST_FEATURE, TestDevice, TestDeviceLog};
use super::*;
use crate::machine::layout::{self, MIB, Range};
use crate::machine::memory;
use crate::pci::bus::{self, PciBus};
use crate::pci::config::{COMMAND, COMMAND_MEMORY};

const AT: Address = Address::new(3, 0);
const BASE: u64 = 0xd000_0000;
const DESCRIPTORS: u64 = 0x10_0000;
const READY: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;

/// A driver of one device on a bus, as a guest would see it.
struct Driver {
    bus: PciBus,
    hypervisor: Arc<Recorder>,
    log: Arc<Mutex<TestDeviceLog>>,
}

impl Driver {
    fn new() -> Self {
        let bus = PciBus::new().unwrap();
        let hypervisor = Arc::new(Recorder::default());
        let device = TestDevice::default();
        let log = Arc::clone(&device.log);
        bus.add(
            AT,
            function(device, &hypervisor, memory::allocate(32).unwrap()),
        );
        let driver = Self {
            bus,
            hypervisor,
            log,
        };
        driver.write_config(0x10, &u32::try_from(BASE).unwrap().to_le_bytes());
        driver.write_config(COMMAND, &[COMMAND_MEMORY]);
        driver
    }

    fn write_config(&self, register: usize, data: &[u8]) {
        let offset = AT.config_offset() + register;
        self.bus.write_config(offset as u64, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.bus.write_memory(BASE + offset, data);
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read_memory(BASE + offset, &mut data);
        data
    }

    fn status(&self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    fn accept_features(&self, features: u64) {
        self.write(0x14, &[status::ACKNOWLEDGE | status::DRIVER]);
        for (select, half) in [(0_u32, features), (1, features >> 32)] {
            self.write(0x08, &select.to_le_bytes());
            self.write(0x0c, &half.to_le_bytes()[..4]);
        }
        self.write(0x14, &[READY & !status::DRIVER_OK]);
    }

    fn set_up_queue(&self, index: u16, descriptors: u64) {
        self.write(0x16, &index.to_le_bytes());
        self.write(0x18, &16_u16.to_le_bytes());
        self.write(0x1a, &index.to_le_bytes());
        self.write(0x20, &descriptors.to_le_bytes());
        self.write(0x28, &(descriptors + 0x1000).to_le_bytes());
        self.write(0x30, &(descriptors + 0x2000).to_le_bytes());
        self.write(0x1c, &1_u16.to_le_bytes());
    }

    fn start(&self) {
        self.accept_features(common::FEATURE_VERSION_1 | TEST_FEATURE);
        self.set_up_queue(0, DESCRIPTORS);
        self.set_up_queue(1, DESCRIPTORS + 0x1_0000);
        self.write(0x14, &[READY]);
    }

    fn program_vector(&self, vector: u64) {
        for (at, word) in [0xfee0_0000_u32, 0, 0x30, 0].iter().enumerate() {
            self.write(
                MSIX_TABLE + vector * 16 + at as u64 * 4,
                &word.to_le_bytes(),
            );
        }
        // MSI-X is the first capability.
        self.write_config(0x40 + 3, &[crate::pci::msix::CONTROL_ENABLE]);
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        let log = self.log.lock().unwrap();
        Arc::clone(log.interrupt.as_ref().unwrap())
    }
}

fn function(device: TestDevice, hypervisor: &Arc<Recorder>, memory: GuestMemoryMmap) -> VirtioPci {
    let hypervisor: Arc<dyn Hypervisor> = Arc::clone(hypervisor) as _;
    VirtioPci::new(Box::new(device), AT, true, memory, hypervisor)
}

#[test]
fn a_driver_that_follows_the_rules_activates_the_device() {
    let driver = Driver::new();
    driver.start();
    assert_eq!(driver.status(), READY);
    let log = driver.log.lock().unwrap();
    assert_eq!(log.activations, 1);
    assert_eq!(log.features, common::FEATURE_VERSION_1 | TEST_FEATURE);
}

#[test]
fn device_configuration_is_readable_and_ends_in_zeros() {
    let driver = Driver::new();
    assert_eq!(&driver.read::<8>(DEVICE), b"isopod\0\0");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for features in [common::FEATURE_VERSION_1 | 1, TEST_FEATURE] {
        let driver = Driver::new();
        driver.accept_features(features);
        assert_eq!(driver.status() & status::FEATURES_OK, 0);
        driver.write(0x14, &[READY]);
        assert_eq!(driver.status() & status::DRIVER_OK, 0);
        assert_eq!(driver.log.lock().unwrap().activations, 0);
    }
}

#[test]
fn queue_registers_keep_their_values_after_driver_ok() {
    let driver = Driver::new();
    driver.start();
    driver.write(0x16, &0_u16.to_le_bytes());
    let before = driver.read::<64>(0);
    driver.write(0x18, &64_u16.to_le_bytes());
    driver.write(0x1a, &2_u16.to_le_bytes());
    driver.write(0x1c, &0_u16.to_le_bytes());
    for register in [0x20, 0x28, 0x30] {
        driver.write(register, &0x7777_0000_u64.to_le_bytes());
    }
    driver.write(0x0c, &0_u32.to_le_bytes());
    assert_eq!(driver.read::<64>(0), before);
}

#[test]
fn queue_size_that_is_no_power_of_two_or_too_large_is_refused() {
    let driver = Driver::new();
    driver.accept_features(common::FEATURE_VERSION_1);
    for size in [0_u16, 3, 128, 0xffff] {
        driver.write(0x18, &size.to_le_bytes());
        assert_eq!(driver.read(0x18), 64_u16.to_le_bytes());
    }
}

#[test]
fn a_queue_outside_memory_needs_reset_and_a_reset_helps() {
    let driver = Driver::new();
    driver.accept_features(common::FEATURE_VERSION_1);
    driver.set_up_queue(0, 1 << 40);
    driver.write(0x14, &[READY]);
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    assert_eq!(driver.log.lock().unwrap().activations, 0);

    driver.write(0x14, &[0]);
    assert_eq!(driver.status(), 0);
    driver.start();
    assert_eq!(driver.status(), READY);
}

#[test]
fn a_device_that_does_not_start_needs_reset() {
    let driver = Driver::new();
    driver.log.lock().unwrap().refuse = true;
    driver.start();
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    assert!(driver.hypervisor.notifiers().is_empty());
}

#[test]
fn reset_deactivates_the_device_and_forgets_the_queues() {
    let driver = Driver::new();
    driver.start();
    driver.write(0x14, &[0]);
    let log = driver.log.lock().unwrap();
    assert_eq!((log.deactivations, log.resets), (1, 1));
    drop(log);
    driver.write(0x16, &0_u16.to_le_bytes());
    assert_eq!(driver.read(0x1c), [0; 2]);
    assert_eq!(driver.read(0x20), [0; 8]);
    assert!(driver.hypervisor.notifiers().is_empty());
}

#[test]
fn notification_addresses_follow_the_window() {
    let driver = Driver::new();
    assert!(driver.hypervisor.notifiers().is_empty());
    driver.start();
    assert_eq!(
        driver.hypervisor.notifiers(),
        [BASE + NOTIFY, BASE + NOTIFY + NOTIFY_STRIDE]
    );
    driver.write_config(0x10, &0xd800_0000_u32.to_le_bytes());
    assert_eq!(driver.hypervisor.notifiers()[0], 0xd800_0000 + NOTIFY);
    assert_eq!(
        driver.read::<4>(0),
        [0xff; 4],
        "nothing answers at the old place"
    );
    driver.write_config(COMMAND, &[0]);
    assert!(driver.hypervisor.notifiers().is_empty());
}

#[test]
fn an_interrupt_is_sent_on_the_queues_vector() {
    let driver = Driver::new();
    driver.start();
    driver.program_vector(1);
    driver.interrupt().queue(1);
    assert_eq!(driver.hypervisor.take_messages(), [(0xfee0_0000, 0x30)]);
    assert_eq!(driver.read::<1>(ISR), [1]);
    assert_eq!(driver.read::<1>(ISR), [0], "reading clears it");
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let driver = Driver::new();
    driver.accept_features(common::FEATURE_VERSION_1);
    driver.write(0x1a, &3_u16.to_le_bytes());
    assert_eq!(driver.read(0x1a), NO_VECTOR.to_le_bytes());
    driver.write(0x10, &2_u16.to_le_bytes());
    assert_eq!(driver.read(0x10), 2_u16.to_le_bytes());
}

#[test]
fn needs_reset_tells_the_driver() {
    let driver = Driver::new();
    driver.write(0x10, &0_u16.to_le_bytes());
    driver.start();
    driver.program_vector(0);
    driver.interrupt().needs_reset();
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    assert_eq!(driver.hypervisor.take_messages().len(), 1);
}

#[test]
fn pause_stops_the_device_and_resume_starts_it_with_its_queues() {
    let driver = Driver::new();
    driver.start();
    let function = driver.bus.functions().remove(0);
    bus::lock(&function).pause();
    bus::lock(&function).pause();
    assert_eq!(driver.log.lock().unwrap().deactivations, 1);
    let state = serde_json::to_value(bus::lock(&function).state()).unwrap();
    assert_eq!(state["queues"].as_array().unwrap().len(), 2);
    bus::lock(&function).resume();
    bus::lock(&function).resume();
    assert_eq!(driver.log.lock().unwrap().activations, 2);
    assert_eq!(driver.status(), READY);
}

#[test]
fn more_memory_reaches_a_device_that_runs_at_once_and_others_when_they_start() {
    let driver = Driver::new();
    let function = driver.bus.functions().remove(0);
    let small = memory::allocate(32).unwrap();
    let more = Range {
        start: layout::RAM_HOLE_END,
        size: 32 * MIB,
    };
    let (large, _) = memory::extended(&small, more).unwrap();
    let seen = || {
        let log = driver.log.lock().unwrap();
        (log.activations, log.memory / MIB)
    };
    bus::lock(&function).set_memory(small.clone());
    assert_eq!(seen().0, 0, "it does not run");
    driver.start();
    assert_eq!(seen(), (1, 32));
    let notifiers = driver.hypervisor.notifiers();
    bus::lock(&function).set_memory(large);
    assert_eq!(seen(), (2, 64));
    assert_eq!(driver.hypervisor.notifiers(), notifiers);
    bus::lock(&function).pause();
    bus::lock(&function).set_memory(small);
    assert_eq!(seen().0, 2, "it is paused");
    bus::lock(&function).resume();
    assert_eq!(seen(), (3, 32));
    assert_eq!(driver.status(), READY);
}

#[test]
fn a_removed_function_reads_as_ones_and_leaves_nothing_behind() {
    let driver = Driver::new();
    driver.start();
    driver.program_vector(0);
    let interrupt = driver.interrupt();
    driver.bus.remove(AT);
    assert_eq!(driver.read::<8>(0), [0xff; 8]);
    assert!(driver.hypervisor.notifiers().is_empty());
    assert_eq!(driver.log.lock().unwrap().deactivations, 1);
    interrupt.queue(0);
    interrupt.config();
    assert!(driver.hypervisor.take_messages().is_empty());
    driver.write_config(COMMAND, &[COMMAND_MEMORY]);
    driver.bus.remove(AT);
    assert_eq!(driver.bus.free_address().unwrap(), AT);
}

#[test]
fn function_zero_of_every_slot_is_filled_before_any_other() {
    let bus = PciBus::new().unwrap();
    let hypervisor = Arc::new(Recorder::default());
    let memory = memory::allocate(32).unwrap();
    let mut addresses = Vec::new();
    while let Ok(address) = bus.free_address() {
        bus.add(
            address,
            function(TestDevice::default(), &hypervisor, memory.clone()),
        );
        addresses.push(address);
    }
    assert_eq!(addresses.len(), 29 * 8);
    assert!(
        addresses[..29]
            .iter()
            .all(|address| address.index() % 8 == 0)
    );
    bus.remove(Address::new(7, 0));
    assert_eq!(bus.free_address(), Ok(Address::new(7, 0)));
}

#[test]
fn the_access_capability_reads_and_writes_the_window() {
    let driver = Driver::new();
    // MSI-X, common, notify, ISR, device, access: the last one's registers.
    let access = 0x40 + 12 + 16 + 20 + 16 + 16;
    driver.write_config(access + 12, &1_u32.to_le_bytes());
    driver.write_config(access + 8, &0x14_u32.to_le_bytes());
    driver.write_config(access + 16, &[status::ACKNOWLEDGE]);
    assert_eq!(driver.status(), status::ACKNOWLEDGE);
    let function = driver.bus.functions().remove(0);
    let data = bus::lock(&function).config().bytes()[access + 16];
    assert_eq!(data, status::ACKNOWLEDGE);
    for hostile in [u32::MAX, 0x3fff, 0x4000] {
        driver.write_config(access + 8, &hostile.to_le_bytes());
        driver.write_config(access + 12, &4_u32.to_le_bytes());
        driver.write_config(access + 16, &[0xff; 4]);
    }
    assert_eq!(driver.status(), status::ACKNOWLEDGE);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_or_leaks_notifiers(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0_u64..BAR_SIZE + 16, proptest::collection::vec(any::<u8>(), 1..=8)),
            1..200,
        ),
    ) {
        let driver = Driver::new();
        for (to_config, offset, data) in accesses {
            if to_config {
                driver.write_config(usize::try_from(offset % 4096).unwrap(), &data);
            } else {
                // Mostly where the registers are.
                let offset = if offset % 3 == 0 { offset } else { offset % 0x40 };
                driver.write(offset, &data);
                driver.read::<8>(offset);
            }
        }
        driver.bus.remove(AT);
        prop_assert!(driver.hypervisor.notifiers().is_empty());
    }
}
