//! The I/O ports of the machine: power, panic and, for debugging, a serial port.
//!
//! Called on vCPU threads. Every other port reads as all ones and swallows writes, like a bus
//! without a device.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use super::ending::Ending;

/// Sleep control register (ACPI 6.5 section 4.8.3.7).
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
/// Sleep status register (section 4.8.3.8).
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// Reset register (section 4.8.3.6).
pub(crate) const RESET: u16 = 0x602;
/// What to write there.
pub(crate) const RESET_VALUE: u8 = 1;
/// Sleep type that means "power off" here.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// The port of the pvpanic device (QEMU docs/specs/pvpanic).
pub(crate) const PANIC: u16 = 0x505;
/// The first serial port.
pub(crate) const CONSOLE: u16 = 0x3f8;
/// Its number of registers.
pub(crate) const CONSOLE_LEN: u8 = 8;

/// Writing this bit makes the sleep control register take effect; the type is in bits 2 to 4.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Events that the pvpanic device announces and takes: the guest panicked; the guest panicked and
/// now loads a crash kernel.
const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// An interrupt line that leads nowhere: the driver polls.
#[derive(Debug)]
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The devices behind I/O ports.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    console: Option<Mutex<Serial<NoInterrupt, NoEvents, File>>>,
}

impl Ports {
    /// With a serial port that writes to `console`, or without one.
    pub(crate) fn new(console: Option<File>) -> Self {
        Self {
            console: console.map(|file| Mutex::new(Serial::new(NoInterrupt, file))),
        }
    }

    /// Answers a read of `data.len()` bytes.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, &self.console) {
            (PANIC, _) => data.fill(PANICKED),
            (SLEEP_CONTROL | SLEEP_STATUS | RESET, _) => data.fill(0),
            (CONSOLE.., Some(console)) if port < CONSOLE + u16::from(CONSOLE_LEN) => {
                let register = console_register(port);
                let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
                data.iter_mut()
                    .for_each(|byte| *byte = console.read(register));
            }
            _ => {}
        }
    }

    /// Takes a write. Some writes end the guest.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<Ending> {
        let value = data.first().copied().unwrap_or(0);
        match (port, &self.console) {
            (SLEEP_CONTROL, _) if value & SLEEP_ENABLE != 0 => {
                match (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK {
                    SLEEP_TYPE_OFF => Some(Ending::PowerOff),
                    _ => None,
                }
            }
            (RESET, _) if value == RESET_VALUE => Some(Ending::Reset),
            (PANIC, _) if value & (PANICKED | CRASH_LOADED) != 0 => Some(Ending::GuestPanic),
            (CONSOLE.., Some(console)) if port < CONSOLE + u16::from(CONSOLE_LEN) => {
                let register = console_register(port);
                let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
                for byte in data {
                    // A full or closed console loses debug output, and nothing else.
                    let _ = console.write(register, *byte);
                }
                None
            }
            _ => None,
        }
    }
}

fn console_register(port: u16) -> u8 {
    u8::try_from(port - CONSOLE).expect("the caller has checked the port")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn writing_sleep_type_5_with_enable_powers_off() {
        let ports = Ports::default();
        assert_eq!(ports.write(SLEEP_CONTROL, &[5 << 2]), None);
        assert_eq!(ports.write(SLEEP_CONTROL, &[3 << 2 | 0x20]), None);
        assert_eq!(
            ports.write(SLEEP_CONTROL, &[5 << 2 | 0x20]),
            Some(Ending::PowerOff)
        );
    }

    #[test]
    fn reset_and_panic_are_told_apart() {
        let ports = Ports::default();
        assert_eq!(ports.write(RESET, &[1]), Some(Ending::Reset));
        assert_eq!(ports.write(PANIC, &[1]), Some(Ending::GuestPanic));
        assert_eq!(ports.write(PANIC, &[0]), None);
        assert_eq!(ports.write(RESET, &[]), None);
    }

    #[test]
    fn ports_without_a_device_read_as_ones_and_swallow_writes() {
        let ports = Ports::default();
        for port in [0, 0x20, 0x40, 0x60, 0x70, 0xcf8, CONSOLE, u16::MAX] {
            let mut data = [0; 4];
            ports.read(port, &mut data);
            assert_eq!(data, [0xff; 4]);
            assert_eq!(ports.write(port, &[0x5a; 4]), None);
        }
    }

    #[test]
    fn console_output_reaches_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        let ports = Ports::new(Some(file.try_clone().unwrap()));
        assert_eq!(ports.write(CONSOLE, b"isopod"), None);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "isopod");
    }
}
