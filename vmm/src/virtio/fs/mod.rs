//! virtio-fs, the pod's volumes (virtio 1.2 section 5.11).
//!
//! One device for each sandbox, which comes with its first volume. Its root is a directory that
//! exists nowhere on the host: its entries are the volumes, each a directory or a file that arrived
//! as a descriptor. The guest mounts the device once and binds `<volume>` into its containers, so no
//! container costs the host a mount.
//!
//! ```text
//!  chain ── request.rs ──> Request ── server.rs ──┬─ names.rs       names in directories
//!                                                 ├─ files.rs       what is in files and directories
//!                                                 ├─ attributes.rs  what files are
//!                                                 └─ xattr.rs       extended attributes
//!           nodes.rs: what the guest knows        handles.rs: what it has open
//!           replay.rs: changes of the host, seen by the guest's watches
//!           wire.rs: the protocol                 credentials.rs: whose files are made
//! ```
//!
//! The protocol is FUSE; the server is our own, because what it leaves out is what matters: no path
//! of the host is ever resolved, only names below descriptors; nothing is cached by the guest, so
//! that what changes on the host is seen at once; no device, pipe or socket of the host is opened.
//!
//! There is one queue of requests, whose interrupt finds a processor that is online. The guest's driver
//! would give each processor a queue if there were more, and wait for ever for answers on the queue of
//! one that is taken offline meanwhile, as processors are when a pod's limits shrink.
//!
//! Two threads, "fs" and "fs-forget", serve the queue of requests and the one of high priority. A
//! request that breaks FUSE's rules is answered with an error; a chain that is none makes the device
//! need a reset.

mod attributes;
mod credentials;
mod files;
mod handles;
mod names;
mod nodes;
mod replay;
mod request;
mod server;
#[cfg(test)]
mod tests;
mod wire;
mod xattr;

use std::sync::Arc;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use serde_json::json;

pub(crate) use self::nodes::VolumeError;
use self::request::{Malformed, Request};
pub(crate) use self::server::Server;
use super::chain::Chain;
use super::queue_worker::{QueueWorker, RequestHandler};
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};

const NAME: &str = "fs";
const DEVICE_TYPE: u16 = 26;

/// The high priority queue, which carries what the guest forgets, and the queue of requests. The
/// second has room for a request of the largest size: a descriptor for each page, and some more.
const QUEUE_SIZES: [u16; 2] = [128, 512];

/// Length of the tag in `struct virtio_fs_config`.
const TAG_LEN: usize = 36;

/// What the guest mounts the device by (`isopod_proto::VOLUMES_TAG`).
const TAG: &str = isopod_proto::VOLUMES_TAG;

/// The device.
#[derive(Debug)]
pub(crate) struct Fs {
    server: Arc<Server>,
    workers: Vec<QueueWorker>,
}

impl Fs {
    /// An idle device with the volumes of `server`.
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            workers: Vec::new(),
        }
    }

    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues;
        queues.sort_by_key(|queue| queue.index);
        for index in 0..QUEUE_SIZES.len() {
            if queues.get(index).is_none_or(|queue| queue.index != index) {
                return Err(ActivateError::QueueMissing(index));
            }
        }
        for queue in queues {
            let thread = match queue.index {
                0 => "fs-forget",
                _ => "fs",
            };
            let one = Activation {
                memory: activation.memory.clone(),
                features: activation.features,
                queues: vec![queue],
                interrupt: Arc::clone(&activation.interrupt),
            };
            let handler = Handler {
                server: Arc::clone(&self.server),
                prepared: false,
            };
            let worker = QueueWorker::start(NAME, thread.to_owned(), one, handler)?;
            self.workers.push(worker);
        }
        Ok(())
    }
}

impl VirtioDevice for Fs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    /// `struct virtio_fs_config` (section 5.11.4): the tag, and how many queues of requests.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; TAG_LEN];
        config[..TAG.len()].copy_from_slice(TAG.as_bytes());
        config.extend(1_u32.to_le_bytes());
        config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let started = self.start(activation);
        if started.is_err() {
            self.deactivate();
        }
        started
    }

    fn deactivate(&mut self) -> Vec<ActiveQueue> {
        let workers = self.workers.drain(..);
        workers.flat_map(QueueWorker::stop).collect()
    }

    fn reset(&mut self) {
        self.server.forget_all();
    }

    fn state(&self) -> serde_json::Value {
        json!({ "volumes": self.server.volumes() })
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.deactivate();
    }
}

/// Serves one queue.
#[derive(Debug)]
struct Handler {
    server: Arc<Server>,
    /// The thread has a umask of its own.
    prepared: bool,
}

impl Handler {
    /// Modes come from the guest, whose kernel has applied its umask.
    fn prepare(&mut self) {
        if !self.prepared {
            if let Err(error) = unshare(CloneFlags::CLONE_FS) {
                tracing::warn!(%error, "files in volumes are made with the process's umask");
            } else {
                umask(Mode::empty());
            }
            self.prepared = true;
        }
    }
}

impl RequestHandler for Handler {
    type Malformed = Malformed;

    fn serve(&mut self, chain: Chain<'_>) -> Result<u32, Malformed> {
        self.prepare();
        let mut request = Request::parse(chain)?;
        let result = self.server.serve(&mut request);
        if let Err(error) = result {
            let opcode = request.header.opcode;
            tracing::trace!(opcode, %error, "a file system request was refused");
        }
        Ok(request.answer(result))
    }
}
