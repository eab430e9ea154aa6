//! The command's output as it comes, and its exit status at the end.
//!
//! QEMU connects each port to a unix socket that this process listens on. After the last byte of
//! output the lab writes a mark that the command cannot know, so the end is certain although the
//! machine lives on; the mark itself is not passed on.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context as _, Result};

/// Bytes of the status port that are read: a year of them.
const STATUS_LIMIT: u64 = 64 << 20;

/// What a port told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// An output port came to its end.
    Ended,
    /// The host still schedules processes.
    Alive,
    /// The command's exit status.
    Status(u8),
}

/// Copies an output port to `sink` until `end` comes or the machine is gone.
pub(super) fn output(
    listener: UnixListener,
    mut sink: impl Write + Send + 'static,
    end: String,
    events: Sender<Event>,
) -> Result<()> {
    spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            // Nobody reads our output any more: the status is still worth waiting for.
            let _ = copy_until(stream, &mut sink, end.as_bytes());
        }
        let _ = events.send(Event::Ended);
    })
}

/// Reads the status port: a line every few seconds, and the exit status as the last one.
pub(super) fn status(listener: UnixListener, events: Sender<Event>) -> Result<()> {
    spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            let lines = BufReader::new(stream.take(STATUS_LIMIT)).lines();
            for event in lines.map_while(Result::ok).filter_map(|line| said(&line)) {
                let _ = events.send(event);
            }
        }
    })
}

/// What a line of the status port says.
fn said(line: &str) -> Option<Event> {
    if line == "alive" {
        return Some(Event::Alive);
    }
    let number = line.strip_prefix("exit ")?;
    number.parse().ok().map(Event::Status)
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name("lab-relay".to_owned())
        .spawn(work)
        .context("starting a thread")?;
    Ok(())
}

/// Copies until the last bytes read are `end`, holding back only what could be its beginning.
fn copy_until(mut source: impl Read, sink: &mut impl Write, end: &[u8]) -> io::Result<()> {
    let mut held: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match source.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        held.extend_from_slice(&buffer[..length]);
        let ended = length == 0 || held.ends_with(end);
        let keep = match (held.ends_with(end), length) {
            (true, _) => end.len(),
            (false, 0) => 0,
            (false, _) => (0..end.len())
                .rev()
                .find(|&count| held.ends_with(&end[..count]))
                .unwrap_or(0),
        };
        let pass = held.len() - keep;
        sink.write_all(&held[..pass])?;
        sink.flush()?;
        held.drain(..pass);
        if ended {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its chunks one a read.
    struct Chunks(Vec<Vec<u8>>);

    impl Read for Chunks {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let chunk = self.0.remove(0);
            buffer[..chunk.len()].copy_from_slice(&chunk);
            Ok(chunk.len())
        }
    }

    fn copied(chunks: &[&str]) -> String {
        let source = Chunks(
            chunks
                .iter()
                .map(|chunk| chunk.as_bytes().to_vec())
                .collect(),
        );
        let mut sink = Vec::new();
        copy_until(source, &mut sink, b"#END#").unwrap();
        String::from_utf8(sink).unwrap()
    }

    #[test]
    fn the_end_mark_is_cut_off_however_it_is_split() {
        assert_eq!(copied(&["hello#END#"]), "hello");
        assert_eq!(copied(&["hello#E", "ND#"]), "hello");
        assert_eq!(copied(&["hel", "lo", "#", "E", "N", "D", "#"]), "hello");
        assert_eq!(copied(&["#END#"]), "");
    }

    #[test]
    fn what_only_begins_like_the_end_mark_is_passed_on() {
        assert_eq!(copied(&["a#EN", "b#", "c##END#"]), "a#ENb#c#");
    }

    #[test]
    fn the_status_port_tells_life_and_exit_status() {
        assert_eq!(said("alive"), Some(Event::Alive));
        assert_eq!(said("exit 42"), Some(Event::Status(42)));
        for other in ["", "exit", "exit 256", "alive!"] {
            assert_eq!(said(other), None, "{other}");
        }
    }

    #[test]
    fn a_stream_that_breaks_off_is_passed_on_whole() {
        assert_eq!(copied(&["hello #EN"]), "hello #EN");
        assert_eq!(copied(&[]), "");
    }
}
