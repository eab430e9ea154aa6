//! Unix sockets in a sandbox's folder.
//!
//! A socket's address holds 107 bytes of path (`unix(7)`), and a folder named after a sandbox is
//! long. So the folder is opened, and the address goes through `/proc/self/fd`, which is always
//! short.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixStream;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A short path to `path`, good for as long as the descriptor is open.
fn short(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = OwnedFd::from(File::open(dir)?);
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((dir, short))
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// A listening stream socket.
pub(super) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let (_dir, short) = short(path)?;
    UnixListener::bind(short).map(Into::into)
}

/// A listening socket that keeps the borders of messages.
pub(super) fn listen_seqpacket(path: &Path) -> io::Result<OwnedFd> {
    let (_dir, short) = short(path)?;
    let socket = seqpacket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(short)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A connection to a stream socket.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_dir, short) = short(path)?;
    UnixStream::connect(short).await
}

/// A connection that keeps the borders of messages, not yet connected to anything; and the
/// connecting. Blocking.
pub(super) fn connect_seqpacket(
    path: &Path,
    prepare: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let (_dir, short) = short(path)?;
    let socket = seqpacket()?;
    prepare(&socket)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(short)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn path_longer_than_an_address_can_be_reached() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("s".repeat(200));
        std::fs::create_dir(&dir).unwrap();
        let _listener = listen(&dir.join("a.sock")).unwrap();
        connect(&dir.join("a.sock")).await.unwrap();
        let _listener = listen_seqpacket(&dir.join("b.sock")).unwrap();
        connect_seqpacket(&dir.join("b.sock"), |_socket| Ok(())).unwrap();
    }
}
