//! virtio-net, a network interface (virtio 1.2 section 5.1).
//!
//! The host's side is a tap, one queue of it for each pair of virtqueues. Packets go between guest
//! memory and the tap without a copy in between; checksums and segments that one side leaves to the
//! other are described by a header that both understand. Each pair has a thread, named after the
//! interface:
//!
//! ```text
//!  receive queue  <── to_guest.rs <──┐
//!  (guest)                           worker.rs ── tap.rs ── (host)
//!  transmit queue ── from_guest.rs ──┘
//!        header.rs: what the guest may ask of the host's kernel; limiter.rs: how fast packets go
//!  control queue ── control.rs: how many pairs the guest uses
//! ```
//!
//! A packet that cannot go through is dropped, as networks do. A chain that is none makes the device
//! need a reset.

mod control;
mod from_guest;
#[cfg(any(test, fuzzing))]
#[cfg_attr(
    not(fuzzing),
    expect(
        unreachable_pub,
        reason = "the fuzz crate compiles these files as its own"
    )
)]
pub mod fuzz;
mod header;
mod limiter;
mod tap;
#[cfg(test)]
mod tests;
mod to_guest;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde::Serialize;

use self::control::PairSwitch;
use self::header::HEADER_LEN;
use self::limiter::Limiter;
use self::tap::Tap;
use self::worker::PairWorker;
use super::queue_worker::QueueWorker;
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};

const NAME: &str = "net";
const DEVICE_TYPE: u16 = 1;

/// Descriptors in a queue of packets: buffers for six packets of the largest size, in the pieces
/// that Linux makes them of.
const PACKET_QUEUE_SIZE: u16 = 256;
/// Descriptors in the control queue. Linux has one command under way.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Most pairs of queues: what one vCPU each can use, within reason.
pub(crate) const PAIRS_MAX: usize = 16;

/// Longest packet: what an IP length can say, the Ethernet header and a VLAN tag.
const PACKET_MAX: usize = 65_535 + 14 + 4;
/// Longest packet with its header.
const FRAME_MAX: usize = HEADER_LEN + PACKET_MAX;

/// Least and largest MTU (section 5.1.4.1).
const MTU_MIN: u16 = 68;

/// Longest name of an interface, in bytes (`IFNAMSIZ` without the zero).
const NIC_NAME_MAX: usize = 15;

/// Feature bits (section 5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const MQ: u64 = 1 << 22;
    pub(super) const GUEST_USO4: u64 = 1 << 54;
    pub(super) const GUEST_USO6: u64 = 1 << 55;
    pub(super) const HOST_USO: u64 = 1 << 56;
}

/// Length of `struct virtio_net_config` up to the fields of features that are never offered.
const CONFIG_LEN: usize = 12;

/// What an interface is made of.
#[derive(Debug)]
pub(crate) struct NicOptions {
    /// 1 to 15 bytes of `[A-Za-z0-9._-]`.
    pub(crate) name: String,
    /// Not a group address.
    pub(crate) mac: [u8; 6],
    /// Bytes, without the Ethernet header; at least 68.
    pub(crate) mtu: u16,
    /// The queues of the tap, 1 to [`PAIRS_MAX`].
    pub(crate) taps: Vec<OwnedFd>,
    /// Bits per second to the guest; 0: as many as there are.
    pub(crate) to_guest_rate: u64,
    /// Bits per second from the guest; 0: as many as there are.
    pub(crate) from_guest_rate: u64,
}

/// An interface cannot be made of what was given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NicError {
    /// The name is too long, empty or has other characters.
    #[error("not the name of an interface: {0:?}")]
    Name(String),
    /// A group address, or none.
    #[error("not the address of an interface: {0:02x?}")]
    Mac([u8; 6]),
    /// Too small for IP.
    #[error("an MTU of {0} bytes is too small")]
    Mtu(u16),
    /// No queues, or more than an interface can have.
    #[error("an interface cannot have {0} queues")]
    Queues(usize),
    /// A descriptor is not what it should be.
    #[error("queue {index} is not a tap's, or lacks offloads")]
    Tap {
        /// Which.
        index: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A network interface.
#[derive(Debug)]
pub(crate) struct Nic {
    name: String,
    mac: [u8; 6],
    mtu: u16,
    taps: Vec<Tap>,
    queue_sizes: Vec<u16>,
    /// To the guest, and from it.
    limiters: (Limiter, Limiter),
    udp_offloads: bool,
    /// Pairs that the driver uses.
    pairs: Arc<AtomicU16>,
    workers: Vec<PairWorker>,
    control: Option<QueueWorker>,
    /// Queues that nobody works on.
    unused: Vec<ActiveQueue>,
}

/// What a snapshot keeps of an interface, its tap aside.
#[derive(Debug, Serialize)]
struct NicState<'a> {
    name: &'a str,
    mac: [u8; 6],
    mtu: u16,
    pairs_max: usize,
    pairs: u16,
}

impl Nic {
    /// An idle interface.
    ///
    /// # Errors
    ///
    /// [`NicError`] names what is wrong with the options.
    pub(crate) fn new(options: NicOptions) -> Result<Self, NicError> {
        let mut taps = Vec::with_capacity(options.taps.len().min(PAIRS_MAX));
        for (index, fd) in options.taps.into_iter().enumerate() {
            taps.push(Tap::new(fd).map_err(|source| NicError::Tap { index, source })?);
        }
        let mut nic = Self::on_taps(options.name, options.mac, options.mtu, taps)?;
        nic.limiters = (
            Limiter::new(options.to_guest_rate),
            Limiter::new(options.from_guest_rate),
        );
        Ok(nic)
    }

    fn on_taps(name: String, mac: [u8; 6], mtu: u16, taps: Vec<Tap>) -> Result<Self, NicError> {
        let in_set = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=NIC_NAME_MAX).contains(&name.len()) || !name.bytes().all(in_set) {
            return Err(NicError::Name(name.chars().take(64).collect()));
        }
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(NicError::Mac(mac));
        }
        if mtu < MTU_MIN {
            return Err(NicError::Mtu(mtu));
        }
        if !(1..=PAIRS_MAX).contains(&taps.len()) {
            return Err(NicError::Queues(taps.len()));
        }
        let mut queue_sizes = vec![PACKET_QUEUE_SIZE; taps.len() * 2];
        if taps.len() > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let udp_offloads = taps[0]
            .has_udp_offloads()
            .map_err(|source| NicError::Tap { index: 0, source })?;
        Ok(Self {
            name,
            mac,
            mtu,
            taps,
            queue_sizes,
            limiters: Default::default(),
            udp_offloads,
            pairs: Arc::new(AtomicU16::new(1)),
            workers: Vec::new(),
            control: None,
            unused: Vec::new(),
        })
    }

    /// Its name.
    pub(crate) fn interface_name(&self) -> &str {
        &self.name
    }

    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
        } = activation;
        let failed = |source| ActivateError::Worker {
            device: NAME,
            source,
        };
        self.unused = queues;
        self.taps[0].set_offloads(features).map_err(failed)?;
        let multi_queue = features & feature::MQ != 0;
        let pairs = if multi_queue { self.taps.len() } else { 1 };
        let mut switch = PairSwitch::new(&self.taps, &self.pairs).map_err(failed)?;
        switch.restore().map_err(failed)?;
        for pair in 0..pairs {
            // The driver need not enable pairs that it does not use.
            let (Some(rx), Some(tx)) = (self.take(2 * pair), self.take(2 * pair + 1)) else {
                if pair == 0 {
                    return Err(ActivateError::QueueMissing(0));
                }
                continue;
            };
            let worker = PairWorker::start(
                format!("{}-{pair}", self.name),
                self.taps[pair].try_clone().map_err(failed)?,
                (rx, tx),
                self.limiters.clone(),
                (memory.clone(), features, Arc::clone(&interrupt)),
            )?;
            switch.tell(worker.waker().map_err(failed)?);
            self.workers.push(worker);
        }
        if features & feature::CTRL_VQ != 0
            && let Some(control) = self.take(2 * pairs)
        {
            let activation = Activation {
                memory,
                features,
                queues: vec![control],
                interrupt,
            };
            let thread_name = format!("{}-control", self.name);
            let worker = QueueWorker::start(NAME, thread_name, activation, switch)?;
            self.control = Some(worker);
        }
        Ok(())
    }

    fn take(&mut self, index: usize) -> Option<ActiveQueue> {
        let at = self.unused.iter().position(|queue| queue.index == index)?;
        Some(self.unused.swap_remove(at))
    }
}

impl VirtioDevice for Nic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut features = feature::CSUM
            | feature::GUEST_CSUM
            | feature::MTU
            | feature::MAC
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::GUEST_ECN
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::HOST_ECN
            | feature::MRG_RXBUF;
        if self.udp_offloads {
            features |= feature::GUEST_USO4 | feature::GUEST_USO6 | feature::HOST_USO;
        }
        if self.taps.len() > 1 {
            features |= feature::CTRL_VQ | feature::MQ;
        }
        features
    }

    /// `struct virtio_net_config` (section 5.1.4); the status is of a feature that is not offered.
    fn config(&self) -> Vec<u8> {
        let pairs = u16::try_from(self.taps.len()).expect("at most PAIRS_MAX");
        let mut config = vec![0; CONFIG_LEN];
        config[..6].copy_from_slice(&self.mac);
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let started = self.start(activation);
        if started.is_err() {
            self.deactivate();
        }
        started
    }

    fn deactivate(&mut self) -> Vec<ActiveQueue> {
        let mut queues = std::mem::take(&mut self.unused);
        queues.extend(self.control.take().map_or_else(Vec::new, QueueWorker::stop));
        queues.extend(self.workers.drain(..).flat_map(PairWorker::stop));
        queues.sort_by_key(|active| active.index);
        queues
    }

    fn reset(&mut self) {
        self.pairs.store(1, Ordering::Release);
    }

    fn state(&self) -> serde_json::Value {
        let state = NicState {
            name: &self.name,
            mac: self.mac,
            mtu: self.mtu,
            pairs_max: self.taps.len(),
            pairs: self.pairs.load(Ordering::Acquire),
        };
        serde_json::to_value(state).expect("strings and numbers are JSON")
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.deactivate();
    }
}
