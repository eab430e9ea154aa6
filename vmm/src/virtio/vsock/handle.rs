//! Connections that the VMM itself opens to the guest.
//!
//! A [`VsockHandle`] may be used on any thread. It makes a socket pair, keeps one end and passes
//! the other to the muxer, which treats it as it treats the stream of any host program.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most connection requests that wait for the muxer.
const WAITING_MAX: usize = 64;

/// The guest could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nothing in the guest listens on the port, or a limit of ours is reached.
    #[error("the guest refuses connections to vsock port {0}")]
    Refused(u32),
    /// The guest did not answer in time.
    #[error("the guest did not answer on vsock port {0}")]
    TimedOut(u32),
    /// [`WAITING_MAX`] requests are waiting already.
    #[error("too many vsock connections are waiting for the guest")]
    Busy,
    /// The device is gone: the machine has ended.
    #[error("the vsock device is gone")]
    Gone,
    /// The socket pair could not be made or the muxer not woken.
    #[error("making a socket pair")]
    Socket(#[source] std::io::Error),
}

/// What a handle asks of the muxer.
#[derive(Debug)]
pub(crate) struct ConnectRequest {
    /// The guest's port.
    pub(crate) port: u32,
    /// The muxer's end, non-blocking.
    pub(crate) stream: UnixStream,
    /// True when the guest accepted, false when it refused. Has room for the one answer.
    pub(crate) answer: SyncSender<bool>,
}

/// The muxer's side of all handles.
#[derive(Debug)]
pub(crate) struct ConnectRequests {
    /// Requests in order.
    pub(crate) requests: Receiver<ConnectRequest>,
    /// Readable after a request was sent.
    pub(crate) wake: EventFd,
    /// Written by the muxer, read by handles: open connections.
    pub(crate) open: Arc<AtomicU32>,
}

/// Opens connections to the guest and counts the open ones.
#[derive(Debug, Clone)]
pub(crate) struct VsockHandle {
    requests: SyncSender<ConnectRequest>,
    wake: Arc<EventFd>,
    open: Arc<AtomicU32>,
}

/// A handle and the muxer's side of it.
///
/// # Errors
///
/// When the event descriptor cannot be made.
pub(crate) fn channel() -> std::io::Result<(VsockHandle, ConnectRequests)> {
    let wake = EventFd::new(EFD_NONBLOCK)?;
    let open = Arc::new(AtomicU32::new(0));
    let (sender, receiver) = mpsc::sync_channel(WAITING_MAX);
    let handle = VsockHandle {
        requests: sender,
        wake: Arc::new(wake.try_clone()?),
        open: Arc::clone(&open),
    };
    let requests = ConnectRequests {
        requests: receiver,
        wake,
        open,
    };
    Ok((handle, requests))
}

impl VsockHandle {
    /// Connects to a port of the guest. Blocks, for `timeout` at most; a request made before the
    /// guest's driver is ready, or while the machine is paused, waits for it.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] when the guest does not accept.
    pub(crate) fn connect(&self, port: u32, timeout: Duration) -> Result<UnixStream, ConnectError> {
        let (ours, theirs) = UnixStream::pair().map_err(ConnectError::Socket)?;
        theirs.set_nonblocking(true).map_err(ConnectError::Socket)?;
        let (answer, answered) = mpsc::sync_channel(1);
        let request = ConnectRequest {
            port,
            stream: theirs,
            answer,
        };
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                TrySendError::Full(_) => ConnectError::Busy,
                TrySendError::Disconnected(_) => ConnectError::Gone,
            })?;
        self.wake.write(1).map_err(ConnectError::Socket)?;
        match answered.recv_timeout(timeout) {
            Ok(true) => Ok(ours),
            Ok(false) => Err(ConnectError::Refused(port)),
            Err(RecvTimeoutError::Timeout) => Err(ConnectError::TimedOut(port)),
            Err(RecvTimeoutError::Disconnected) => Err(ConnectError::Gone),
        }
    }

    /// Open connections, those that are being closed included.
    pub(crate) fn connections(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }
}
