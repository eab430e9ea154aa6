//! virtio-vsock (virtio 1.2 section 5.10).

mod handle;

#[cfg(test)]
pub(crate) use self::handle::channel;
pub(crate) use self::handle::{ConnectError, VsockHandle};
