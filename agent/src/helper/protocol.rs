//! What the agent and its helper say to each other.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::user_namespace;

/// Longest request, in bytes: a few paths.
const REQUEST_MAX: usize = 32 * 1024;

/// Descriptors that come with a request: the outcome pipe and three standard streams.
const FDS_MAX: usize = 4;

/// One operation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The OCI `create` step. Comes with the outcome pipe and, without a terminal, stdio.
    Create(CreateRequest),
    /// The OCI `start` step.
    Start(RuntimeRequest),
    /// One more process. Comes with the same descriptors as `Create`.
    Exec(ExecRequest),
    /// Forgets what libcontainer knows, and removes the cgroup.
    Delete(RuntimeRequest),
    /// Makes a pid namespace and the process that holds it.
    HoldPidNamespace,
    /// Makes the sandbox's user namespace, what belongs to it, and the process that holds it all.
    HoldUserNamespace(user_namespace::CreateRequest),
}

/// A container as libcontainer finds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RuntimeRequest {
    /// The folder that has one folder per container with libcontainer's state.
    pub(crate) root: PathBuf,
    /// The container's id.
    pub(crate) container_id: String,
}

/// The OCI `create` step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CreateRequest {
    /// The container.
    pub(crate) runtime: RuntimeRequest,
    /// The folder with `config.json`.
    pub(crate) bundle: PathBuf,
    /// Where the terminal's master side is sent to, if there is one.
    pub(crate) console: Option<PathBuf>,
}

/// A process that joins a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    /// The container. Its root is a folder of this exec's own, with a copy of the state: files that
    /// libcontainer leaves behind go away with it.
    pub(crate) runtime: RuntimeRequest,
    /// An OCI process as JSON.
    pub(crate) process: PathBuf,
    /// A [`Confinement`] as JSON.
    pub(crate) confinement: PathBuf,
    /// Name of the exec's cgroup, below the container's.
    pub(crate) cgroup: String,
    /// Where the terminal's master side is sent to, if there is one.
    pub(crate) console: Option<PathBuf>,
}

/// What libcontainer does not do for an exec, and the payload does at its very end.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// The container's system call filter.
    pub(crate) seccomp: Option<LinuxSeccomp>,
    /// What the process may keep once the filter is in place.
    pub(crate) capabilities: Option<LinuxCapabilities>,
    /// Who it becomes, and in which user namespace: libcontainer joins every one but this.
    pub(crate) user: Option<MappedUser>,
}

/// A user of a user namespace.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MappedUser {
    /// Where the namespace is.
    pub(crate) namespace: PathBuf,
    /// User id inside.
    pub(crate) uid: u32,
    /// Group id inside.
    pub(crate) gid: u32,
    /// All groups.
    pub(crate) groups: Vec<u32>,
}

/// What the helper says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// libcontainer's words about an error.
    Detail(String),
    /// Done. With the pid of the process that was started, as the agent sees it.
    Done {
        /// None for an operation that starts nothing.
        pid: Option<i32>,
    },
    /// It failed; nothing is left of it but the container's folder.
    Failed {
        /// Why.
        message: String,
    },
}

/// Why a command cannot be executed; what the outcome pipe carries.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// Whose mistake it is.
    pub(crate) kind: RefusalKind,
    /// In runc's words, which people search for.
    pub(crate) message: String,
}

/// Classes of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RefusalKind {
    /// There is no such file.
    NotFound,
    /// The file is there and cannot be executed.
    NotExecutable,
    /// The process could not be confined as the container asks.
    Confinement,
}

/// Sends a request and its descriptors.
///
/// # Errors
///
/// When the helper is gone already.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(request)?;
    bytes.push(b'\n');
    if bytes.len() > REQUEST_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives bytes, and descriptors that come with them.
///
/// # Errors
///
/// What recvmsg(2) says.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((received.bytes, fds))
}

/// The helper's end of the socket pair.
#[derive(Debug)]
pub(super) struct Channel(File);

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket.into())
    }

    /// One more handle of the same socket.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Reads the request.
    pub(super) fn receive(&mut self) -> io::Result<(Request, Vec<OwnedFd>)> {
        let mut bytes = Vec::new();
        let mut all_fds = Vec::new();
        let mut buffer = vec![0; REQUEST_MAX];
        while bytes.last() != Some(&b'\n') && bytes.len() < REQUEST_MAX {
            let (count, fds) = receive(self.0.as_fd(), &mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&buffer[..count]);
            all_fds.extend(fds);
        }
        Ok((serde_json::from_slice(&bytes)?, all_fds))
    }

    /// Writes a report, in one piece: processes that libcontainer forked write to the same socket.
    pub(super) fn report(&mut self, report: &Report) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }

    /// Waits until the agent closes its end.
    pub(super) fn wait_closed(&mut self) -> io::Result<()> {
        io::copy(&mut (&self.0).take(1), &mut io::sink()).map(drop)
    }
}
