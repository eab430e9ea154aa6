//! The client of a VMM's descriptor socket (`isopod_proto::descriptors`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use isopod_proto::descriptors::NAME_MAX;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use super::error::{VmError, printable};
use super::socket::connect_seqpacket;

/// How long the VMM may take for one descriptor.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest refusal, in bytes.
const ANSWER_MAX: usize = 1024;

/// Sends descriptors, each under its name, over one connection to the socket at `path`. Blocking.
///
/// # Errors
///
/// When the socket cannot be reached or the VMM does not take one of them.
pub(super) fn send(path: &Path, files: &[(String, OwnedFd)]) -> Result<(), VmError> {
    let limit = |socket: &OwnedFd| -> io::Result<()> {
        set_socket_timeout(socket, Timeout::Send, Some(LIMIT))?;
        Ok(set_socket_timeout(socket, Timeout::Recv, Some(LIMIT))?)
    };
    let socket = connect_seqpacket(path, limit).map_err(VmError::io("connecting to", path))?;
    for (name, fd) in files {
        let answer = exchange(&socket, name, fd).map_err(VmError::io("sending through", path))?;
        if !answer.is_empty() {
            return Err(VmError::Descriptor {
                name: name.clone(),
                reason: printable(&answer),
            });
        }
    }
    Ok(())
}

/// One descriptor; what the VMM answers, nothing when it took it.
fn exchange(socket: &OwnedFd, name: &str, fd: &OwnedFd) -> io::Result<String> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the name has a wrong length",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let payload = [IoSlice::new(name.as_bytes())];
    rustix::net::sendmsg(socket, &payload, &mut control, SendFlags::NOSIGNAL)?;

    let mut answer = [0; ANSWER_MAX];
    let mut none = RecvAncillaryBuffer::default();
    let mut buffer = [IoSliceMut::new(&mut answer)];
    let received = rustix::net::recvmsg(socket, &mut buffer, &mut none, RecvFlags::empty())?;
    // An empty message is how the VMM says yes, and also what a closed connection reads as: the
    // request that uses the name then says that it is unknown.
    Ok(String::from_utf8_lossy(answer.get(..received.bytes).unwrap_or_default()).into_owned())
}
