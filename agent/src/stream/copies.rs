//! Copies of a process's output, for those who attached to it.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::output::Connected;

/// Frames that wait for one slow copy; then the process waits with them.
const QUEUE_FRAMES: usize = 16;

/// How long the process waits for one that takes nothing at all. It is then cut off: a suspended
/// terminal must not stop a service, nor its log.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everyone who attached.
#[derive(Debug, Default)]
pub(super) struct Copies {
    queues: Vec<mpsc::Sender<Bytes>>,
}

impl Copies {
    /// Adds one, with a task that writes to it.
    pub(super) fn add(&mut self, connected: Connected) {
        self.queues.retain(|queue| !queue.is_closed());
        let (queue, frames) = mpsc::channel(QUEUE_FRAMES);
        self.queues.push(queue);
        tokio::spawn(write(connected, frames));
    }

    /// Sends a frame to each.
    pub(super) async fn send(&mut self, frame: &[u8]) {
        if self.queues.is_empty() {
            return;
        }
        let frame = Bytes::copy_from_slice(frame);
        let mut kept = Vec::with_capacity(self.queues.len());
        for queue in self.queues.drain(..) {
            if queue.send_timeout(frame.clone(), PATIENCE).await.is_ok() {
                kept.push(queue);
            }
        }
        self.queues = kept;
    }
}

async fn write(mut connected: Connected, mut frames: mpsc::Receiver<Bytes>) {
    loop {
        let frame = tokio::select! {
            frame = frames.recv() => frame,
            _ = &mut connected.gone => return,
        };
        let Some(frame) = frame else { break };
        if connected.sink.write_all(&frame).await.is_err() {
            return;
        }
    }
    let _ = connected.sink.shutdown().await;
}
