//! The common configuration structure (virtio 1.2 section 4.1.4.3) and the device's initialisation
//! (section 3.1.1).
//!
//! ```text
//!  reset ── ACKNOWLEDGE, DRIVER ──> features ── FEATURES_OK ──> queues ── DRIVER_OK ──> running
//!    ^      (only here are features taken)  (only here are queue registers taken)         │
//!    └───────────────────────────── status = 0, from anywhere ────────────────────────────┘
//! ```
//!
//! A register that is written at the wrong time, with the wrong width or with a value out of range
//! keeps its value; the driver can read that back.

use serde::{Deserialize, Serialize};

use super::interrupt::FunctionInterrupt;

/// Device status bits (section 2.1).
pub(crate) mod status {
    /// The driver has noticed the device.
    pub(crate) const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub(crate) const DRIVER: u8 = 2;
    /// The driver is ready.
    pub(crate) const DRIVER_OK: u8 = 4;
    /// Both sides agree about features.
    pub(crate) const FEATURES_OK: u8 = 8;
    /// The device is broken until it is reset.
    pub(crate) const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub(crate) const FAILED: u8 = 128;
    /// What the driver may set.
    pub(crate) const DRIVERS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// `VIRTIO_F_VERSION_1`: not a legacy device (section 6).
pub(crate) const FEATURE_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_INDIRECT_DESC`.
pub(crate) const FEATURE_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub(crate) const FEATURE_EVENT_IDX: u64 = 1 << 29;

/// Length of the structure in bytes.
pub(crate) const COMMON_LEN: usize = 0x40;

/// Largest queue (section 2.7).
const QUEUE_SIZE_LIMIT: u16 = 32768;

/// What the driver has told about a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueRegisters {
    /// Most descriptors.
    pub(crate) max_size: u16,
    /// Descriptors that the driver uses; a power of two.
    pub(crate) size: u16,
    /// The driver wants it.
    pub(crate) enabled: bool,
    /// Guest physical addresses of descriptor table, available ring and used ring.
    pub(crate) descriptors: u64,
    /// See `descriptors`.
    pub(crate) available: u64,
    /// See `descriptors`.
    pub(crate) used: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }
}

/// The registers that only the driver changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommonConfig {
    offered: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

/// What a write asks of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing more.
    None,
    /// The driver has set DRIVER_OK.
    Activate,
    /// The driver has written 0 to the status.
    Reset,
}

impl CommonConfig {
    /// For a device that offers `offered` features and queues of at most `queue_sizes` descriptors.
    pub(crate) fn new(offered: u64, queue_sizes: &[u16]) -> Self {
        let queues = queue_sizes.iter().map(|size| {
            debug_assert!(size.is_power_of_two() && *size <= QUEUE_SIZE_LIMIT);
            QueueRegisters::new(*size)
        });
        Self {
            offered,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: queues.collect(),
        }
    }

    /// Features that both sides want; meaningful once FEATURES_OK is set.
    pub(crate) fn features(&self) -> u64 {
        self.driver_features & self.offered
    }

    /// Every queue.
    pub(crate) fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// Forgets what the driver has written.
    pub(crate) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes);
    }

    /// Answers a read; zeros behind the end.
    pub(crate) fn read(&self, interrupt: &FunctionInterrupt, offset: usize, data: &mut [u8]) {
        let image = self.image(interrupt);
        for (at, byte) in (offset..).zip(data) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    fn image(&self, interrupt: &FunctionInterrupt) -> [u8; COMMON_LEN] {
        let mut image = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(
            0x04,
            &half(self.offered, self.device_feature_select).to_le_bytes(),
        );
        put(0x08, &self.driver_feature_select.to_le_bytes());
        let accepted = half(self.driver_features, self.driver_feature_select);
        put(0x0c, &accepted.to_le_bytes());
        put(0x10, &interrupt.config_vector().to_le_bytes());
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        put(0x12, &count.to_le_bytes());
        put(0x14, &[interrupt.status(), interrupt.config_generation()]);
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that does not exist reads as zero (section 4.1.4.3.1).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            let vector = interrupt.queue_vector(usize::from(self.queue_select));
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            // Each queue has its own notification address.
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.available.to_le_bytes());
            put(0x30, &queue.used.to_le_bytes());
        }
        image
    }

    /// Takes a write of one field; 64-bit fields may come in halves (section 4.1.3.1).
    pub(crate) fn write(
        &mut self,
        interrupt: &FunctionInterrupt,
        offset: usize,
        data: &[u8],
    ) -> Action {
        match *data {
            [value] if offset == 0x14 => return self.write_status(interrupt, value),
            [a, b] => self.write_u16(interrupt, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_u32(interrupt, offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if matches!(offset, 0x20 | 0x28 | 0x30) => {
                self.write_u32(interrupt, offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(interrupt, offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Action::None
    }

    fn write_u16(&mut self, interrupt: &FunctionInterrupt, offset: usize, value: u16) {
        match offset {
            0x10 => interrupt.set_config_vector(value),
            0x16 => self.queue_select = value,
            0x18 => {
                if let Some(queue) = self.open_queue(interrupt)
                    && value.is_power_of_two()
                    && value <= queue.max_size
                {
                    queue.size = value;
                }
            }
            0x1a if self.open_queue(interrupt).is_some() => {
                interrupt.set_queue_vector(usize::from(self.queue_select), value);
            }
            0x1c => {
                if let Some(queue) = self.open_queue(interrupt)
                    && value == 1
                {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
    }

    fn write_u32(&mut self, interrupt: &FunctionInterrupt, offset: usize, value: u32) {
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            0x0c if interrupt.status() & status::FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_feature_select, value);
            }
            0x20..0x38 => {
                if let Some(queue) = self.open_queue(interrupt) {
                    match offset {
                        0x20 => set_half(&mut queue.descriptors, 0, value),
                        0x24 => set_half(&mut queue.descriptors, 1, value),
                        0x28 => set_half(&mut queue.available, 0, value),
                        0x2c => set_half(&mut queue.available, 1, value),
                        0x30 => set_half(&mut queue.used, 0, value),
                        0x34 => set_half(&mut queue.used, 1, value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// The selected queue while its registers may be written: between FEATURES_OK and DRIVER_OK, and
    /// not once it is enabled. A device that runs must never see its queue change (CVE-2026-5747).
    fn open_queue(&mut self, interrupt: &FunctionInterrupt) -> Option<&mut QueueRegisters> {
        let open = interrupt.status() & (status::FEATURES_OK | status::DRIVER_OK);
        if open != status::FEATURES_OK {
            return None;
        }
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!queue.enabled).then_some(queue)
    }

    fn write_status(&mut self, interrupt: &FunctionInterrupt, value: u8) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        let current = interrupt.status();
        let mut added = value & status::DRIVERS & !current;
        // Bits are only ever added (section 2.1.1), and in order.
        if added & status::FEATURES_OK != 0 && !self.features_are_acceptable() {
            added &= !status::FEATURES_OK;
        }
        if (current | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        interrupt.add_status(added);
        if added & status::DRIVER_OK != 0 {
            Action::Activate
        } else {
            Action::None
        }
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.offered == 0 && self.driver_features & FEATURE_VERSION_1 != 0
    }
}

/// The half of `value` that a select register names; zero for halves that do not exist.
fn half(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = (*value & !0xffff_ffff) | u64::from(half),
        1 => *value = (*value & 0xffff_ffff) | u64::from(half) << 32,
        _ => {}
    }
}
