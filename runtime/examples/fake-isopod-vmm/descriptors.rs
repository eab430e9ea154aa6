//! Descriptors: those that are inherited, and those that come later.
#![expect(
    unsafe_code,
    reason = "inherited descriptors are taken by their numbers"
)]

use std::collections::HashMap;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use super::{Fake, lock};

/// Takes descriptors for as long as the process lives. Blocking.
pub(super) fn take_descriptors(listener: &OwnedFd, fake: &Arc<Fake>) -> std::io::Result<()> {
    loop {
        let socket = rustix::net::accept(listener)?;
        let fake = Arc::clone(fake);
        std::thread::Builder::new().spawn(move || while take_one(&socket, &fake).is_some() {})?;
    }
}

pub(super) fn take_one(socket: &OwnedFd, fake: &Fake) -> Option<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 96];
    let mut buffer = [std::io::IoSliceMut::new(&mut name)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut buffer, &mut control, flags).ok()?;
    let name = String::from_utf8_lossy(name.get(..received.bytes).filter(|n| !n.is_empty())?);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            lock(&fake.files).extend(fds.map(|fd| (name.to_string(), fd)));
        }
    }
    rustix::net::send(socket, b"", SendFlags::NOSIGNAL)
        .ok()
        .map(drop)
}

/// Inherited descriptors by name.
pub(super) fn inherited() -> HashMap<String, OwnedFd> {
    let names = std::env::var("LISTEN_FDNAMES").expect("started by the daemon");
    let numbers = 3 as RawFd..;
    names
        .split(':')
        .zip(numbers)
        // SAFETY: the daemon put one descriptor behind each name, from 3 on, and nobody else here
        // has touched them.
        .map(|(name, number)| (name.to_owned(), unsafe { OwnedFd::from_raw_fd(number) }))
        .collect()
}
