//! One process's output: read once, sent to its primary sink and to copies.

use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isopod_proto::stream::{HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::copies::Copies;
use super::{Sink, Source, frame};
use crate::process::Exit;

/// After a process has exited, how long its output is awaited from others that hold its pipes.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Sinks that wait to be taken up while the task writes to a slow one.
const NEW_SINKS_MAX: usize = 16;

/// A process has one primary sink.
#[derive(Debug, thiserror::Error)]
#[error("the process has a primary sink already")]
pub(crate) struct PrimaryTaken;

/// A sink, and how to learn that its peer is gone.
pub(super) struct Connected {
    /// Where frames are written to.
    pub(super) sink: Sink,
    /// Resolves when the connection's reader ends; when this is dropped, the reader does.
    pub(super) gone: oneshot::Receiver<()>,
}

/// The right to be the primary sink, until it is dropped.
pub(super) struct Claim(Arc<AtomicBool>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

enum NewSink {
    Primary(Connected, Claim),
    Copy(Connected),
}

/// The handle of an output's task, which ends with it.
#[derive(Debug)]
pub(crate) struct Output {
    sinks: mpsc::Sender<NewSink>,
    taken: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Drop for Output {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Output {
    /// Starts the task that reads `sources`. Nothing is read before there is a primary sink.
    pub(crate) fn start(sources: Vec<Source>, exit: watch::Receiver<Option<Exit>>) -> Self {
        let (sinks, new_sinks) = mpsc::channel(NEW_SINKS_MAX);
        let pump = Pump {
            sources,
            exit,
            new_sinks,
            primary: None,
            copies: Copies::default(),
            buffer: vec![0; HEADER_LEN + MAX_PAYLOAD],
            unsent: None,
            drain: Drain::Alive,
        };
        let task = tokio::spawn(pump.run()).abort_handle();
        Self {
            sinks,
            taken: Arc::default(),
            task,
        }
    }

    /// Closes every connection, and the process's pipes.
    pub(crate) fn close(&self) {
        self.task.abort();
    }

    /// Asks to be the primary sink.
    ///
    /// # Errors
    ///
    /// [`PrimaryTaken`] while there is one.
    pub(super) fn claim(&self) -> Result<Claim, PrimaryTaken> {
        if self.taken.swap(true, Ordering::Relaxed) {
            return Err(PrimaryTaken);
        }
        Ok(Claim(Arc::clone(&self.taken)))
    }

    /// Gives the primary sink.
    pub(super) async fn set_primary(&self, connected: Connected, claim: Claim) {
        // An error says that the task was closed, and the connection closes with it.
        let _ = self.sinks.send(NewSink::Primary(connected, claim)).await;
    }

    /// Adds a copy of what is written from now on.
    pub(super) async fn add_copy(&self, connected: Connected) {
        let _ = self.sinks.send(NewSink::Copy(connected)).await;
    }
}

/// How the sources are read.
#[derive(Clone, Copy)]
enum Drain {
    /// To their end: the process lives.
    Alive,
    /// The process has exited: to their end, but not after this moment.
    Until(Instant),
    /// What is in them now.
    Rest,
}

struct Pump {
    sources: Vec<Source>,
    exit: watch::Receiver<Option<Exit>>,
    new_sinks: mpsc::Receiver<NewSink>,
    primary: Option<(Connected, Claim)>,
    copies: Copies,
    /// Room for a header, then what was read.
    buffer: Vec<u8>,
    /// Length of a frame in the buffer that no primary has received whole.
    unsent: Option<usize>,
    drain: Drain,
}

/// What happened while there was nothing to write.
enum Event {
    Sink(Option<NewSink>),
    PrimaryGone,
    Readable(usize),
    Exited,
    DrainOver,
}

impl Pump {
    async fn run(mut self) {
        while self.unsent.is_some() || !self.sources.is_empty() {
            if self.primary.is_some() && self.unsent.is_some() {
                self.send().await;
                continue;
            }
            match self.next().await {
                Event::Sink(Some(sink)) => self.take(sink),
                // The handle is gone, and the process with it.
                Event::Sink(None) => return,
                Event::PrimaryGone => self.primary = None,
                Event::Readable(index) => self.read(index),
                Event::Exited => self.drain = Drain::Until(Instant::now() + DRAIN_GRACE),
                Event::DrainOver => self.drain_rest(),
            }
        }
        self.end().await;
    }

    async fn next(&mut self) -> Event {
        let Some(((connected, _), sources)) = self.primary.as_mut().zip(Some(&self.sources)) else {
            return Event::Sink(self.new_sinks.recv().await);
        };
        let (exited, drained) = match self.drain {
            Drain::Alive => (false, None),
            Drain::Until(moment) => (true, Some(moment)),
            Drain::Rest => (true, None),
        };
        tokio::select! {
            sink = self.new_sinks.recv() => Event::Sink(sink),
            _ = &mut connected.gone => Event::PrimaryGone,
            index = readable(sources) => Event::Readable(index),
            _ = self.exit.wait_for(Option::is_some), if !exited => Event::Exited,
            () = sleep_until(drained) => Event::DrainOver,
        }
    }

    fn take(&mut self, sink: NewSink) {
        match sink {
            NewSink::Primary(connected, claim) => self.primary = Some((connected, claim)),
            NewSink::Copy(connected) => self.copies.add(connected),
        }
    }

    fn read(&mut self, index: usize) {
        let source = &mut self.sources[index];
        match source.try_read(&mut self.buffer[HEADER_LEN..]) {
            Ok(None) => return,
            Ok(Some(0)) => {}
            Ok(Some(len)) => {
                let header = Header {
                    kind: source.kind,
                    len,
                };
                self.buffer[..HEADER_LEN].copy_from_slice(&header.encode());
                self.unsent = Some(HEADER_LEN + len);
                if !source.drained() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "reading a process's output"),
        }
        self.sources.remove(index);
    }

    fn drain_rest(&mut self) {
        self.drain = Drain::Rest;
        for source in &mut self.sources {
            source.drain();
        }
        self.sources.retain(|source| !source.drained());
    }

    /// Sends what was read. A primary that takes it only in part is gone; the next one gets it whole.
    async fn send(&mut self) {
        let (Some((connected, _)), Some(len)) = (&mut self.primary, self.unsent) else {
            return;
        };
        if connected.sink.write_all(&self.buffer[..len]).await.is_err() {
            self.primary = None;
            return;
        }
        self.unsent = None;
        self.copies.send(&self.buffer[..len]).await;
    }

    /// Tells every sink, and those that come later, that this was all.
    async fn end(mut self) {
        let end = frame(Kind::End, &[]);
        self.copies.send(&end).await;
        drop(self.copies);
        let mut primary = self
            .primary
            .take()
            .map(|(connected, claim)| (connected, Some(claim)));
        loop {
            if let Some((mut connected, claim)) = primary.take() {
                // A peer that is gone needs no farewell.
                if connected.sink.write_all(&end).await.is_ok() {
                    let _ = connected.sink.shutdown().await;
                }
                drop(claim);
            }
            primary = match self.new_sinks.recv().await {
                Some(NewSink::Primary(connected, claim)) => Some((connected, Some(claim))),
                Some(NewSink::Copy(connected)) => Some((connected, None)),
                None => return,
            };
        }
    }
}

/// The index of a source that can be read.
async fn readable(sources: &[Source]) -> usize {
    match sources {
        [] => future::pending().await,
        [only] => {
            only.ready().await;
            0
        }
        [first, second, ..] => tokio::select! {
            () = first.ready() => 0,
            () = second.ready() => 1,
        },
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => future::pending().await,
    }
}
