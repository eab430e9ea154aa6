//! The thread that writes one container's log.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Builder;

use tokio::sync::watch;

use super::lines::{LINE_MAX, Lines, Output};
use super::sink::{Closed, Sink};
use super::stream::{Piece, Pieces, StreamError};

/// Lines are gathered up to this many bytes for one write.
const BATCH_LEN: usize = 64 * 1024;

/// Characters of the container's id in the thread's name, which the kernel cuts at 15.
const THREAD_ID_LEN: usize = 11;

/// How far a log has come.
#[derive(Debug)]
pub(super) struct Progress {
    /// Bytes of output that are in the file.
    pub(super) bytes: AtomicU64,
    /// True when no more will come and all is written.
    pub(super) ended: watch::Sender<bool>,
}

/// Starts the thread. It ends when the stream does or the sink is closed.
///
/// # Errors
///
/// When the thread cannot be started.
pub(super) fn start(
    container_id: &str,
    stream: UnixStream,
    sink: Arc<Sink>,
    progress: Arc<Progress>,
) -> std::io::Result<()> {
    let short: String = container_id.chars().take(THREAD_ID_LEN).collect();
    let container_id = container_id.to_owned();
    let run = move || {
        let mut writer = Writer {
            lines: Lines::default(),
            batch: Vec::with_capacity(BATCH_LEN + LINE_MAX),
            batch_bytes: 0,
            sink: &sink,
            progress: &progress,
        };
        if let Err(error) = writer.run(&mut Pieces::new(stream)) {
            tracing::warn!(container_id, error = %error, "the container's output ended early");
        }
        progress.ended.send_replace(true);
    };
    Builder::new().name(format!("log-{short}")).spawn(run)?;
    Ok(())
}

struct Writer<'a> {
    lines: Lines,
    /// Lines that are not written yet.
    batch: Vec<u8>,
    /// Bytes of output that those lines stand for.
    batch_bytes: usize,
    sink: &'a Sink,
    progress: &'a Progress,
}

impl Writer<'_> {
    /// Writes until the end. A closed sink is an end like any other.
    fn run(&mut self, pieces: &mut Pieces) -> Result<(), StreamError> {
        loop {
            let (output, bytes) = match pieces.next() {
                Ok(Piece::Bytes(output, bytes)) => (output, bytes),
                Ok(Piece::End) => {
                    let _closed = self.finish();
                    return Ok(());
                }
                Err(error) => {
                    return match self.finish() {
                        Ok(()) => Err(error),
                        Err(Closed) => Ok(()),
                    };
                }
            };
            if let Err(Closed) = self.take(output, bytes) {
                return Ok(());
            }
        }
    }

    fn take(&mut self, output: Output, mut bytes: &[u8]) -> Result<(), Closed> {
        while let Some(len) = self.lines.next_line(output, &mut bytes, &mut self.batch) {
            self.batch_bytes += len;
            if self.batch.len() >= BATCH_LEN {
                self.flush()?;
            }
        }
        self.flush()
    }

    fn finish(&mut self) -> Result<(), Closed> {
        for output in [Output::Stdout, Output::Stderr] {
            self.batch_bytes += self.lines.last_line(output, &mut self.batch).unwrap_or(0);
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Closed> {
        self.sink.write(&self.batch)?;
        self.progress
            .bytes
            .fetch_add(self.batch_bytes as u64, Ordering::Relaxed);
        self.batch.clear();
        self.batch_bytes = 0;
        Ok(())
    }
}
