//! virtio-vsock, sockets between the host and the guest (virtio 1.2 section 5.10).
//!
//! The host's side is not `vhost_vsock` but unix sockets in the sandbox's directory, in the way of
//! Firecracker and Cloud Hypervisor:
//!
//! - To reach the guest, a program connects to the listening socket and says `CONNECT <port>\n`. It
//!   reads `OK <host port>\n` when the guest has accepted, and the end of the stream when not.
//! - When the guest connects to port P of the host, the device connects to `vsock.sock_<P>`. If
//!   nobody listens there, the guest's connection is reset.
//! - The VMM itself reaches the guest through a [`VsockHandle`].
//!
//! ```text
//!  queues ── worker.rs ── muxer.rs ──┬── connection.rs ─┬─ to_host.rs ──> unix socket
//!  (guest)   thread       every      │   one of them    └─ to_guest.rs <──
//!            "vsock"      connection └── handshake.rs: a program that has not said CONNECT
//! ```
//!
//! A connection's life, as the device sees it. The peers of a connection may each close one
//! direction first; SHUTDOWN carries that both ways.
//!
//! ```text
//!  CONNECT, handle                 guest's REQUEST, and a program accepts
//!        v                                  v
//!    requested ────── RESPONSE ──────────> open ──── host is gone, SHUTDOWN sent ───> closing
//!        │                                  │                                            │
//!        │ RST, or no answer in time        │ RST, both directions shut by the guest,    │ RST, or
//!        v                                  v or a broken rule                           v too late
//!      gone <─── host took everything ── draining                                      gone
//! ```
//!
//! What a guest can make the host keep is bounded: [`CONNECTIONS_MAX`] connections with at most
//! `to_host::BUFFER_LEN` bytes each, and as many answers as `muxer::RESETS_MAX`. Beyond that the
//! device stops to take packets until the guest takes answers (section 5.10.6.2 leaves that to it).
//!
//! A pause keeps every connection: they belong to the muxer, which outlives the worker. A reset
//! ends them, after what the guest had sent is with the host's programs.

mod connection;
mod handle;
mod handshake;
mod muxer;
mod packet;
mod to_guest;
mod to_host;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

pub(crate) use self::handle::{ConnectError, VsockHandle, channel};
use self::muxer::Muxer;
use self::worker::VsockWorker;
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};

const NAME: &str = "vsock";
const DEVICE_TYPE: u16 = 19;

/// The guest's context id. It is the same in every sandbox: each has a host of its own.
const GUEST_CID: u64 = 3;

/// To the guest, from the guest, events. Linux puts a page into the first queue for each
/// descriptor, and eight buffers into the last.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// VIRTIO_VSOCK_F_STREAM (section 5.10.3).
const FEATURE_STREAM: u64 = 1 << 0;

/// Most connections, programs that have not said CONNECT included. Each has a file descriptor.
const CONNECTIONS_MAX: usize = 512;

/// The device cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VsockError {
    /// The listening socket cannot be watched, or there are no descriptors left.
    #[error("watching the vsock listener")]
    Listener(#[source] io::Error),
}

/// The vsock device.
#[derive(Debug)]
pub(crate) struct Vsock {
    muxer: Arc<Mutex<Muxer>>,
    handle: VsockHandle,
    worker: Option<VsockWorker>,
}

/// What a snapshot keeps of the device. Connections are not kept: their peers are not either.
#[derive(Debug, Serialize)]
struct VsockState {
    guest_cid: u64,
    /// How many connections a restored guest has to be told are gone.
    connections: u32,
}

impl Vsock {
    /// An idle device whose host programs come to `listener`, or listen in `dir`.
    ///
    /// # Errors
    ///
    /// [`VsockError`] when the sockets cannot be watched.
    pub(crate) fn new(
        listener: UnixListener,
        dir: &Path,
    ) -> Result<(Self, VsockHandle), VsockError> {
        let (handle, requests) = channel().map_err(VsockError::Listener)?;
        let muxer = Muxer::new(listener, dir, requests).map_err(VsockError::Listener)?;
        let device = Self {
            muxer: Arc::new(Mutex::new(muxer)),
            handle: handle.clone(),
            worker: None,
        };
        Ok((device, handle))
    }

    /// The muxer, while no worker has it.
    fn muxer(&self) -> MutexGuard<'_, Muxer> {
        self.muxer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    /// `struct virtio_vsock_config` (section 5.10.4).
    fn config(&self) -> Vec<u8> {
        GUEST_CID.to_le_bytes().to_vec()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker = VsockWorker::start(activation, Arc::clone(&self.muxer))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<ActiveQueue> {
        self.worker.take().map_or_else(Vec::new, VsockWorker::stop)
    }

    fn reset(&mut self) {
        self.muxer().hang_up();
    }

    fn state(&self) -> serde_json::Value {
        let state = VsockState {
            guest_cid: GUEST_CID,
            connections: self.handle.connections(),
        };
        serde_json::to_value(state).expect("numbers are JSON")
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.deactivate();
        self.muxer().hang_up();
    }
}
