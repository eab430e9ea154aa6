//! Serves the descriptor socket, on the control thread.
#![expect(unsafe_code, reason = "received descriptors begin as numbers")]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use isopod_proto::descriptors::NAME_MAX;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockFlag, accept4, recvmsg, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

use super::Descriptors;

/// Most connections at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 16;

/// Accepts connections on `listener` for ever. A connection that fails ends alone.
///
/// # Errors
///
/// When the listener does.
pub(crate) async fn serve(listener: OwnedFd, table: Arc<Descriptors>) -> io::Result<()> {
    set_nonblocking(&listener)?;
    let listener = watch(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let connection = listener.async_io(Interest::READABLE, accept).await?;
        let table = Arc::clone(&table);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = serve_connection(connection, &table).await {
                tracing::debug!(%error, "a connection for descriptors failed");
            }
        });
    }
}

fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let number = accept4(listener.as_raw_fd(), flags)?;
    Ok(owned(number))
}

/// Takes ownership of a descriptor that the kernel has just made for us.
fn owned(number: RawFd) -> OwnedFd {
    // SAFETY: both callers pass a number that a system call returned a moment ago as a new
    // descriptor of this process, and keep no other copy of it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one descriptor, open and the same, until it is dropped.
    let watched = unsafe { AsyncFd::register(socket) }?;
    Ok(watched)
}

fn set_nonblocking(socket: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

async fn serve_connection(connection: OwnedFd, table: &Descriptors) -> io::Result<()> {
    let connection = watch(connection)?;
    while let Some(message) = connection.async_io(Interest::READABLE, receive).await? {
        let answer = match message.into_parts() {
            Ok((name, descriptor)) => match table.put(&name, descriptor) {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            },
            Err(reason) => reason.to_owned(),
        };
        connection
            .async_io(Interest::WRITABLE, |socket| {
                send(
                    socket.as_fd().as_raw_fd(),
                    answer.as_bytes(),
                    MsgFlags::MSG_NOSIGNAL,
                )
                .map_err(io::Error::from)
            })
            .await?;
    }
    Ok(())
}

/// One message: a name and what came with it.
#[derive(Debug)]
struct Message {
    name: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    truncated: bool,
}

impl Message {
    fn into_parts(self) -> Result<(String, OwnedFd), &'static str> {
        let mut descriptors = self.descriptors.into_iter();
        match (descriptors.next(), descriptors.next()) {
            _ if self.truncated => Err("the name or the descriptors are too many"),
            (None, _) => Err("the message carries no descriptor"),
            (Some(_), Some(_)) => Err("the message carries more than one descriptor"),
            (Some(descriptor), None) => match String::from_utf8(self.name) {
                Ok(name) => Ok((name, descriptor)),
                Err(_) => Err("the name is not UTF-8"),
            },
        }
    }
}

/// `None` at the end of the connection.
fn receive(socket: &OwnedFd) -> io::Result<Option<Message>> {
    let mut name = [0; NAME_MAX + 1];
    // Room for two, so that a second one is seen and closed.
    let mut control = cmsg_space!([RawFd; 2]);
    let mut buffers = [IoSliceMut::new(&mut name)];
    let received = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    let truncation = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
    let truncated = received.flags.intersects(truncation);
    if let Ok(messages) = received.cmsgs() {
        for message in messages {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                descriptors.extend(numbers.into_iter().map(owned));
            }
        }
    }
    let length = received.bytes;
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    Ok(Some(Message {
        name: name[..length].to_vec(),
        descriptors,
        truncated,
    }))
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::time::Duration;

    use isopod_proto::descriptors::WAITING_MAX;
    use nix::sys::socket::{
        AddressFamily, Backlog, ControlMessage, SockType, UnixAddr, bind, connect, listen, recv,
        sendmsg, socket,
    };

    use super::*;

    fn seqpacket() -> OwnedFd {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap()
    }

    /// Runs `client` on a thread of its own against a served socket.
    fn with_socket(client: impl FnOnce(OwnedFd) + Send + 'static) -> Arc<Descriptors> {
        let dir = tempfile::tempdir().unwrap();
        let address = UnixAddr::new(&dir.path().join("descriptors.sock")).unwrap();
        let listener = seqpacket();
        bind(listener.as_raw_fd(), &address).unwrap();
        listen(&listener, Backlog::new(8).unwrap()).unwrap();
        let table = Arc::new(Descriptors::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let server = tokio::spawn(serve(listener, Arc::clone(&table)));
            let client = tokio::task::spawn_blocking(move || {
                let socket = seqpacket();
                connect(socket.as_raw_fd(), &address).unwrap();
                client(socket);
            });
            tokio::time::timeout(Duration::from_secs(10), client)
                .await
                .unwrap()
                .unwrap();
            server.abort();
        });
        table
    }

    fn call(socket: &OwnedFd, name: &[u8], descriptors: &[RawFd]) -> String {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights
        };
        let data = [IoSlice::new(name)];
        sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::empty(), None).unwrap();
        let mut answer = [0; 256];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        String::from_utf8(answer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_sent_descriptor_waits_under_its_name() {
        let table = with_socket(|socket| {
            assert_eq!(call(&socket, b"disk", &[0]), "");
        });
        assert!(table.take("disk").is_ok());
    }

    #[test]
    fn messages_that_break_the_rules_are_answered_with_a_sentence() {
        let table = with_socket(|socket| {
            for (name, descriptors) in [
                (&b"none"[..], &[][..]),
                (b"two", &[0, 1]),
                (b"three", &[0, 1, 2]),
                (b"a:b", &[0]),
                (b"\xff", &[0]),
                (&[b'x'; 500], &[0]),
            ] {
                assert_ne!(call(&socket, name, descriptors), "");
            }
            assert_eq!(call(&socket, b"good", &[0]), "");
        });
        assert!(table.take("good").is_ok());
        assert!(table.take("two").is_err());
    }

    #[test]
    fn more_descriptors_than_may_wait_are_refused() {
        with_socket(|socket| {
            for n in 0..WAITING_MAX {
                assert_eq!(call(&socket, n.to_string().as_bytes(), &[0]), "");
            }
            assert!(call(&socket, b"more", &[0]).contains("waiting"));
        });
    }
}
