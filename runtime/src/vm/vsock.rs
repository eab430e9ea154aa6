//! Connections into the guest, through the VMM's vsock device.
//!
//! The host's side of the device is a unix socket. A connection to it begins with the line
//! `CONNECT <port>\n` and is the guest's once `OK <host port>\n` has come back; the VMM closes it
//! instead when nothing listens on that port.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::socket;

/// Longest answer, in bytes: `OK `, ten digits and the line's end.
const ANSWER_MAX: usize = 32;

/// Connects to a port of the guest.
///
/// # Errors
///
/// When the VMM cannot be reached, or the guest does not listen on the port.
pub(super) async fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = socket::connect(path).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    // Byte by byte: what follows the line belongs to the guest.
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            break;
        }
        if answer.len() == ANSWER_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is too long",
            ));
        }
        answer.push(byte);
    }
    let accepted = answer
        .strip_prefix(b"OK ")
        .is_some_and(|port| !port.is_empty() && port.iter().all(u8::is_ascii_digit));
    if accepted {
        return Ok(stream);
    }
    Err(io::Error::new(
        io::ErrorKind::ConnectionRefused,
        "the VMM refused the connection",
    ))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn answered(answer: &'static [u8]) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
        });
        let mut stream = connect(&path, 1024).await?;
        server.await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    #[tokio::test]
    async fn bytes_behind_the_answer_are_the_guests() {
        assert_eq!(answered(b"OK 1073741824\nhello").await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn answers_that_are_no_acceptance_are_errors() {
        for answer in [&b"NO\n"[..], b"OK \n", b"OK x\n", b"", &[b'1'; 100]] {
            answered(answer).await.unwrap_err();
        }
    }
}
