//! What a host program says first: `CONNECT <port>\n`, as with Firecracker and Cloud Hypervisor.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

const PREFIX: &[u8] = b"CONNECT ";

/// Longest line, with its newline.
const LINE_MAX: usize = PREFIX.len() + "4294967295\n".len();

/// How far a handshake is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// The line is not complete.
    Waiting,
    /// The program wants this port of the guest. Its line is taken off the stream, what follows is
    /// not.
    Connect(u32),
    /// Not a handshake, or the program is gone.
    Broken,
}

/// Looks at what has arrived.
pub(super) fn advance(mut stream: &UnixStream) -> Handshake {
    let mut line = [0; LINE_MAX];
    let len = loop {
        match recv(stream.as_raw_fd(), &mut line, MsgFlags::MSG_PEEK) {
            Ok(len) => break len,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Handshake::Waiting,
            Err(_broken) => return Handshake::Broken,
        }
    };
    let Some(newline) = line[..len].iter().position(|byte| *byte == b'\n') else {
        let possible = (1..LINE_MAX).contains(&len);
        return if possible {
            Handshake::Waiting
        } else {
            Handshake::Broken
        };
    };
    let Some(port) = parse(&line[..newline]) else {
        return Handshake::Broken;
    };
    match stream.read_exact(&mut line[..=newline]) {
        Ok(()) => Handshake::Connect(port),
        Err(_broken) => Handshake::Broken,
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(PREFIX)?;
    // `parse` alone would take a sign as well.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn outcome(pieces: &[&[u8]]) -> (Handshake, Vec<u8>) {
        let (mut program, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut handshake = advance(&ours);
        for piece in pieces {
            assert_eq!(handshake, Handshake::Waiting);
            program.write_all(piece).unwrap();
            handshake = advance(&ours);
        }
        drop(program);
        let mut rest = Vec::new();
        (&ours).read_to_end(&mut rest).unwrap();
        (handshake, rest)
    }

    #[test]
    fn a_line_names_a_port_and_what_follows_stays() {
        let (handshake, rest) = outcome(&[b"CONNECT 1024\nhello\n"]);
        assert_eq!(handshake, Handshake::Connect(1024));
        assert_eq!(rest, b"hello\n");
        let (handshake, _) = outcome(&[b"CONNECT 4294967295\n"]);
        assert_eq!(handshake, Handshake::Connect(u32::MAX));
    }

    #[test]
    fn a_line_may_arrive_in_pieces() {
        let (handshake, _) = outcome(&[b"CON", b"NECT 7", b"7\n"]);
        assert_eq!(handshake, Handshake::Connect(77));
    }

    #[test]
    fn anything_else_is_broken() {
        for line in [
            &b"connect 1\n"[..],
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT +1\n",
            b"CONNECT 1 \n",
            b"CONNECT 4294967296\n",
            b"\n",
            b"CONNECT 00000000000001\n",
            b"GET / HTTP/1.1 and no newline",
        ] {
            assert_eq!(outcome(&[line]).0, Handshake::Broken, "{line:?}");
        }
    }

    #[test]
    fn a_program_that_leaves_is_broken() {
        let (program, ours) = UnixStream::pair().unwrap();
        drop(program);
        assert_eq!(advance(&ours), Handshake::Broken);
    }
}
