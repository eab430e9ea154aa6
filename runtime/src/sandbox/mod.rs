//! Sandboxes: a pod, its virtual machine, its network, its cgroup and its writable disk.
//!
//! One [`Sandboxes`] holds them all. The CRI's methods call it from their tasks; one task per
//! sandbox waits for the end of its machine. A sandbox lives from RunPodSandbox to
//! RemovePodSandbox, whatever its containers do, and knows nothing of them: `container` holds the
//! sandbox that a container is in.
//!
//! ```text
//!             run                         stop, or the machine ends
//!   (starting) ───────────────> READY ──────────────────────────────> NOTREADY ──> (removed)
//!       │                                                                 ^  remove
//!       ├──> undone: no trace                 a daemon that starts finds it ended │
//!       └──> what cannot be undone stays until it can be removed ─────────────────┘
//! ```
//!
//! The record on disk says `starting` before anything else exists, and is `ready` before anybody
//! is told; a daemon that starts undoes what it finds `starting`, and goes on with the rest
//! (`recover`). Creating or starting a container takes the sandbox's gate for reading, stopping
//! the sandbox takes it for writing: so a stop finds no container half made.

mod changes;
mod config;
mod error;
mod memory;
mod processors;
mod record;
mod recover;
mod remove;
mod resize;
mod run;
mod scratch;
mod size;
mod stop;
mod undo;
mod users;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};

use self::changes::Changes;
pub(crate) use self::config::{Dns, PodConfig, USERS};
pub(crate) use self::error::SandboxError;
pub(crate) use self::memory::Memory;
use self::memory::WantedMemory;
pub(crate) use self::processors::{ProcessorSet, Processors};
pub(crate) use self::record::{SandboxPhase, SandboxRecord};
pub(crate) use self::scratch::ScratchError;
use self::scratch::ScratchTemplate;
pub(crate) use self::size::mebibytes;
pub(crate) use self::undo::Undo;
pub(crate) use self::users::UserNamespace;
pub(crate) use self::volumes::{Propagation, Volume, Volumes, has_submounts};
use crate::cgroup::Cgroups;
use crate::config::{Config, VmConfig};
use crate::events::{EventKind, Events};
use crate::id::SandboxId;
use crate::network::{Networks, PodNetwork};
use crate::record::Records;
use crate::stats::CpuRate;
use crate::table::{Names, Reservation, Table};
use crate::vm::{Vm, VmEnd};

/// How long a sandbox that is stopped waits for containers in the making.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Serial number of the writable disk.
const SCRATCH_SERIAL: &str = "scratch";

/// Every sandbox of this node.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    config: VmConfig,
    state_dir: PathBuf,
    records: Records,
    scratch: Arc<ScratchTemplate>,
    networks: Arc<Networks>,
    events: Arc<Events>,
    cgroups: Arc<Cgroups>,
    changes: Arc<Changes>,
    table: Table<Sandbox>,
    names: Names,
}

/// One pod and its machine.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Its identifier.
    pub(crate) id: SandboxId,
    /// What was asked for.
    pub(crate) config: PodConfig,
    /// The runtime handler that was asked for.
    pub(crate) handler: String,
    /// When, in nanoseconds since the epoch.
    pub(crate) created_at_ns: i64,
    /// What of the host its guest can find.
    pub(crate) volumes: Volumes,
    /// What its containers use of processors, from one look to the next.
    pub(crate) cpu_rate: CpuRate,
    /// Which of the host's processors it may use.
    pub(crate) processors: Processors,
    /// How much memory its guest has.
    pub(crate) memory: Memory,
    vm: Option<Arc<Vm>>,
    network: Mutex<Option<PodNetwork>>,
    state: watch::Sender<SandboxState>,
    stopping: AtomicBool,
    gate: Arc<RwLock<()>>,
    record: tokio::sync::Mutex<Removed>,
    name: Mutex<Option<Reservation>>,
}

/// Whether a sandbox takes containers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SandboxState {
    /// It does.
    Ready,
    /// Its machine has ended.
    NotReady {
        /// How, when nobody asked it to.
        end: Option<VmEnd>,
    },
}

/// Whether the record is gone for good and must not be written again.
#[derive(Debug, Default)]
struct Removed(bool);

/// Leave to change a sandbox's containers: it is not stopped while one of these is there.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The sandbox's machine.
    pub(crate) vm: Arc<Vm>,
    _gate: OwnedRwLockReadGuard<()>,
}

impl Sandboxes {
    /// No sandboxes yet: [`recover`](Self::recover) finds those of an earlier daemon. Blocking.
    ///
    /// # Errors
    ///
    /// When the folder of sandboxes cannot be made.
    pub(crate) fn open(
        config: &Config,
        records: Records,
        networks: Arc<Networks>,
        events: Arc<Events>,
    ) -> Result<Self, SandboxError> {
        let state_dir = config.state_dir.join("sandboxes");
        create_private_dir(&state_dir)?;
        Ok(Self {
            scratch: Arc::new(ScratchTemplate::new(
                &config.root_dir,
                config.vm.scratch_mib,
            )),
            config: config.vm.clone(),
            state_dir,
            records,
            networks,
            events,
            cgroups: Arc::new(Cgroups::of_host()),
            changes: Arc::new(Changes::start()),
            table: Table::default(),
            names: Names::default(),
        })
    }

    /// The sandbox that an id, or a unique beginning of one, stands for.
    ///
    /// # Errors
    ///
    /// When none or several do.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Sandbox>, SandboxError> {
        Ok(self.table.find(id)?)
    }

    /// Every sandbox, by id.
    pub(crate) fn list(&self) -> Vec<Arc<Sandbox>> {
        self.table.list()
    }

    /// A sandbox's folder of sockets.
    pub(crate) fn state_dir(&self, id: &SandboxId) -> PathBuf {
        self.state_dir.join(id.as_str())
    }

    /// Tells that something happened to the sandbox itself.
    fn publish(&self, kind: EventKind, sandbox: &Sandbox) {
        self.events.publish(kind, sandbox.id.as_str(), sandbox);
    }

    /// Makes a sandbox known and follows its machine.
    fn add(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        self.table.insert(sandbox.id.as_str(), Arc::clone(&sandbox));
        let Some(vm) = sandbox.vm.clone() else { return };
        let sandboxes = Arc::clone(self);
        tokio::spawn(async move {
            let end = vm.ended().await;
            sandboxes.machine_ended(&sandbox, end).await;
        });
    }

    /// Notes that a sandbox's machine has ended. Idempotent.
    async fn machine_ended(&self, sandbox: &Sandbox, end: VmEnd) {
        let asked = sandbox.stopping.load(Ordering::Acquire);
        let noted = sandbox.state.send_if_modified(|state| {
            let ready = *state == SandboxState::Ready;
            if ready {
                *state = SandboxState::NotReady {
                    end: (!asked).then(|| end.clone()),
                };
            }
            ready
        });
        if !noted {
            return;
        }
        self.publish(EventKind::Stopped, sandbox);
        if !asked {
            tracing::warn!(sandbox_id = %sandbox.id, %end, "a virtual machine has ended by itself");
        }
        if let Err(error) = sandbox.save(&self.records).await {
            // The next daemon finds the process gone and comes to the same state.
            tracing::warn!(sandbox_id = %sandbox.id, error = %error, "could not note the end");
        }
    }
}

impl Sandbox {
    /// Whether it takes containers.
    pub(crate) fn state(&self) -> SandboxState {
        self.state.borrow().clone()
    }

    /// Where it is in the network; nowhere when it has none, or none any more.
    pub(crate) fn network(&self) -> Option<PodNetwork> {
        self.network
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Its machine, running or not; none when an earlier daemon's has ended.
    pub(crate) fn vm(&self) -> Option<&Arc<Vm>> {
        self.vm.as_ref()
    }

    /// Its machine, if it runs.
    ///
    /// # Errors
    ///
    /// [`SandboxError::NotReady`].
    pub(crate) fn running_vm(&self) -> Result<Arc<Vm>, SandboxError> {
        let end = match (self.state(), &self.vm) {
            (SandboxState::Ready, Some(vm)) => return Ok(Arc::clone(vm)),
            (SandboxState::NotReady { end }, _) => end,
            (SandboxState::Ready, None) => None,
        };
        Err(SandboxError::NotReady {
            id: self.id.to_string(),
            end,
        })
    }

    /// Leave to make or change a container.
    ///
    /// # Errors
    ///
    /// [`SandboxError::NotReady`] when it has ended or is about to.
    pub(crate) async fn admit(&self) -> Result<Admission, SandboxError> {
        let gate = Arc::clone(&self.gate).read_owned().await;
        let vm = self.running_vm()?;
        if self.stopping.load(Ordering::Acquire) {
            return Err(SandboxError::NotReady {
                id: self.id.to_string(),
                end: None,
            });
        }
        Ok(Admission { vm, _gate: gate })
    }

    /// Turns new containers away and waits until those in the making are made or undone. The
    /// sandbox stays closed: whoever stops it may fail and try again, and nothing else.
    ///
    /// # Errors
    ///
    /// When the machine has to be ended for it, and does not end.
    pub(crate) async fn close(&self) -> Result<OwnedRwLockWriteGuard<()>, SandboxError> {
        self.stopping.store(true, Ordering::Release);
        let gate = Arc::clone(&self.gate).write_owned();
        tokio::pin!(gate);
        if let Ok(closed) = tokio::time::timeout(CLOSE_LIMIT, &mut gate).await {
            return Ok(closed);
        }
        // A guest that does not answer holds them up; without it they fail at once.
        tracing::warn!(sandbox_id = %self.id, "ending a machine that does not answer");
        if let Some(vm) = &self.vm {
            vm.kill().await?;
        }
        Ok(gate.await)
    }

    /// Writes the record, unless it is gone for good.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(crate) async fn save(&self, records: &Records) -> Result<(), SandboxError> {
        let removed = self.record.lock().await;
        if removed.0 {
            return Ok(());
        }
        Ok(records.save_sandbox(&self.id, &self.to_record()).await?)
    }

    fn release_name(&self) {
        self.name
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// Removes a sandbox's cgroup, which may be gone already.
async fn remove_cgroup(
    cgroups: Arc<Cgroups>,
    parent: String,
    id: SandboxId,
) -> Result<(), SandboxError> {
    let removed = tokio::task::spawn_blocking(move || cgroups.remove(&parent, &id)).await;
    Ok(removed.map_err(|error| {
        SandboxError::io("removing", "a cgroup")(std::io::Error::other(error))
    })??)
}

fn create_private_dir(path: &Path) -> Result<(), SandboxError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(SandboxError::io("creating", path))
}

/// Removes a folder that may be gone already.
async fn remove_dir(path: PathBuf) -> Result<(), SandboxError> {
    match tokio::fs::remove_dir_all(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SandboxError::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}
