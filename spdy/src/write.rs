//! The task that writes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::frame::{Encoder, Reply};
use crate::shared::{Shared, Urgent};

/// How often the peer is asked for a sign of life: when it vanished, the kernel says so.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How much is written at once, in bytes, less a frame.
const BATCH: usize = 64 * 1024;

/// Where frames come from.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) urgent: mpsc::UnboundedReceiver<Urgent>,
    pub(crate) data: mpsc::Receiver<Reply>,
}

/// Frames that become bytes.
#[derive(Default)]
struct Batch {
    encoder: Encoder,
    bytes: BytesMut,
    /// The last frame is among them.
    last: bool,
}

impl Batch {
    fn put(&mut self, reply: &Reply) {
        if !self.last {
            self.encoder.put(reply, &mut self.bytes);
            self.last = matches!(reply, Reply::GoAway { .. });
        }
    }

    fn put_urgent(&mut self, queue: &mut mpsc::UnboundedReceiver<Urgent>) {
        while self.bytes.len() < BATCH
            && let Ok(urgent) = queue.try_recv()
        {
            self.put(&urgent.reply);
        }
    }
}

/// Writes until a GOAWAY was, or nothing can be.
pub(crate) async fn write(
    io: impl AsyncWrite + Unpin,
    queues: Queues,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let result = pump(io, queues).await;
    if result.is_err() {
        shared.lost.cancel();
        shared.remove_all();
    }
    result
}

async fn pump(mut io: impl AsyncWrite + Unpin, mut queues: Queues) -> io::Result<()> {
    let mut batch = Batch::default();
    let mut ping = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A server's pings have even numbers (SPDY/3 section 2.6.5).
    let mut ping_id = 0_u32;
    while !batch.last {
        tokio::select! {
            biased;
            Some(urgent) = queues.urgent.recv() => batch.put(&urgent.reply),
            Some(data) = queues.data.recv() => {
                // What it depends on was queued before it, and may have come in between.
                batch.put_urgent(&mut queues.urgent);
                batch.put(&data);
            }
            _ = ping.tick() => {
                ping_id = ping_id.wrapping_add(2).max(2);
                batch.put(&Reply::Ping(ping_id));
            }
        }
        while batch.bytes.len() < BATCH {
            batch.put_urgent(&mut queues.urgent);
            match queues.data.try_recv() {
                Ok(data) => {
                    batch.put_urgent(&mut queues.urgent);
                    batch.put(&data);
                }
                Err(_none) => break,
            }
        }
        io.write_all(&batch.bytes).await?;
        io.flush().await?;
        batch.bytes.clear();
    }
    io.shutdown().await
}
