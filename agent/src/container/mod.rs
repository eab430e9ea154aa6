//! Containers, and what each is made of.
//!
//! ```text
//!             create            start                init exits
//!  (absent) ─────────> created ───────> running ─────────────────> exited
//!      ^                  │                │                          │
//!      └──────────────────┴────────────────┴──────────────────────────┘
//!                       delete (kills what still runs)
//! ```
//!
//! The state is not stored but told by what is there: nothing yet while it is created, a process
//! that was not started, one that runs, one that has exited. Verbs that change a container
//! ([`crate::service`]) hold its lock: create, start and delete alone, execs together.

mod cgroup;
mod devices;
mod id;
mod spec;
mod user;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use isopod_proto::agent;

pub(crate) use cgroup::{Cgroup, CgroupError, MOUNT as CGROUP_MOUNT};
pub(crate) use devices::DevicesError;
pub(crate) use id::{ContainerId, ExecId, IdError, Serial};
pub(crate) use spec::{
    ContainerSpec, Device, MappedMount, PidNamespace, Place, Source, SpecError, check_strings,
};
pub(crate) use user::{Identity, UserError, resolve};

use crate::helper::Outcome;
use crate::process::Process;
use crate::stats::LayerUsage;
use crate::storage::{Attached, Rootfs};

/// Most containers of a sandbox, those that exited included.
const CONTAINERS_MAX: usize = 1024;

/// Most execs of a container that the caller has not deleted.
const EXECS_MAX: usize = 1024;

/// The name is not known, or cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    /// Not a name.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No such container.
    #[error("container {0} does not exist")]
    Container(String),
    /// No such exec in it.
    #[error("exec {exec_id} does not exist in container {container_id}")]
    Exec {
        /// The container.
        container_id: ContainerId,
        /// What was asked for.
        exec_id: String,
    },
    /// The container is being created or was not created whole.
    #[error("container {0} has no process yet")]
    NotCreated(ContainerId),
    /// The id is taken.
    #[error("{what} {id} exists already")]
    Exists {
        /// Container or exec.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// Too many.
    #[error("{max} {what} are the most at once")]
    TooMany {
        /// Containers or execs.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

/// Everything that `create` made.
#[derive(Debug)]
pub(crate) struct Created {
    /// The first process.
    pub(crate) init: Arc<Process>,
    /// The spec as it runs.
    pub(crate) spec: ContainerSpec,
    /// Says at start whether the command could be executed.
    pub(crate) outcome: Mutex<Option<Outcome>>,
}

/// A container from the moment that its id is taken.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its id.
    pub(crate) id: ContainerId,
    /// Its cgroup.
    pub(crate) cgroup: Cgroup,
    /// Written while the container is created, started or deleted; read while an exec is.
    pub(crate) lock: tokio::sync::RwLock<()>,
    created: OnceLock<Created>,
    started: AtomicBool,
    rootfs: Mutex<Option<Rootfs>>,
    /// What its writable layer takes.
    pub(crate) layer: Arc<LayerUsage>,
    /// Disks beside that of the root.
    attached: Mutex<Vec<Attached>>,
    /// None while an exec is being started.
    execs: Mutex<HashMap<ExecId, Option<Arc<Process>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    fn new(id: ContainerId, cgroup: Cgroup) -> Self {
        Self {
            id,
            cgroup,
            lock: tokio::sync::RwLock::default(),
            created: OnceLock::new(),
            started: AtomicBool::new(false),
            rootfs: Mutex::new(None),
            layer: Arc::default(),
            attached: Mutex::default(),
            execs: Mutex::default(),
        }
    }

    /// What was created.
    ///
    /// # Errors
    ///
    /// [`LookupError::NotCreated`].
    pub(crate) fn created(&self) -> Result<&Created, LookupError> {
        self.created
            .get()
            .ok_or_else(|| LookupError::NotCreated(self.id.clone()))
    }

    /// Takes up what was created.
    pub(crate) fn set_created(&self, created: Created) {
        // The creator holds the lock and does this once.
        let _ = self.created.set(created);
    }

    /// The container's command runs from now on.
    pub(crate) fn set_started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Where what it writes lies, while it has a root file system.
    pub(crate) fn upper(&self) -> Option<PathBuf> {
        lock(&self.rootfs).as_ref().map(Rootfs::upper)
    }

    /// Hands the root file system over, to take it down.
    pub(crate) fn take_rootfs(&self) -> Option<Rootfs> {
        self.layer.stop();
        lock(&self.rootfs).take()
    }

    /// Hands the disks beside that of the root over, to take them down.
    pub(crate) fn take_attached(&self) -> Vec<Attached> {
        std::mem::take(&mut lock(&self.attached))
    }

    fn uses_disk(&self, serial: &Serial) -> bool {
        let root = lock(&self.rootfs);
        root.as_ref()
            .is_some_and(|root| root.disk.serial == *serial)
            || lock(&self.attached)
                .iter()
                .any(|attached| attached.disk.serial == *serial)
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> agent::ContainerState {
        use agent::ContainerState::{
            CONTAINER_STATE_CREATED, CONTAINER_STATE_EXITED, CONTAINER_STATE_RUNNING,
            CONTAINER_STATE_UNSPECIFIED,
        };
        let Some(created) = self.created.get() else {
            return CONTAINER_STATE_UNSPECIFIED;
        };
        if created.init.exit().is_some() {
            CONTAINER_STATE_EXITED
        } else if self.started.load(Ordering::Relaxed) {
            CONTAINER_STATE_RUNNING
        } else {
            CONTAINER_STATE_CREATED
        }
    }

    /// Takes an exec id.
    ///
    /// # Errors
    ///
    /// When it is taken, or there are too many.
    pub(crate) fn reserve_exec(&self, exec_id: &ExecId) -> Result<(), LookupError> {
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec_id) {
            return Err(LookupError::Exists {
                what: "exec",
                id: exec_id.to_string(),
            });
        }
        if execs.len() >= EXECS_MAX {
            return Err(LookupError::TooMany {
                what: "execs",
                max: EXECS_MAX,
            });
        }
        execs.insert(exec_id.clone(), None);
        Ok(())
    }

    /// The exec that runs under a reserved id; none gives the id back.
    pub(crate) fn settle_exec(&self, exec_id: &ExecId, process: Option<Arc<Process>>) {
        let mut execs = lock(&self.execs);
        match process {
            Some(process) => execs.insert(exec_id.clone(), Some(process)),
            None => execs.remove(exec_id),
        };
    }

    /// Forgets an exec. One that is being started stays.
    pub(crate) fn remove_exec(&self, exec_id: &ExecId) -> Option<Arc<Process>> {
        let mut execs = lock(&self.execs);
        match execs.get(exec_id) {
            Some(Some(_)) => execs.remove(exec_id).flatten(),
            _ => None,
        }
    }

    /// The init for an empty `exec_id`, or that exec.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, LookupError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.created()?.init));
        }
        lock(&self.execs)
            .get(exec_id)
            .and_then(Clone::clone)
            .ok_or_else(|| LookupError::Exec {
                container_id: self.id.clone(),
                exec_id: exec_id.to_owned(),
            })
    }

    /// The init and every exec.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        let init = self.created.get().map(|created| Arc::clone(&created.init));
        init.into_iter()
            .chain(lock(&self.execs).values().flatten().cloned())
            .collect()
    }
}

/// Every container of the sandbox.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    by_id: Mutex<HashMap<ContainerId, Arc<Container>>>,
}

impl Containers {
    /// Takes an id for a new container with this cgroup.
    ///
    /// # Errors
    ///
    /// When it is taken, or there are too many.
    pub(crate) fn reserve(
        &self,
        id: ContainerId,
        cgroup: Cgroup,
    ) -> Result<Arc<Container>, LookupError> {
        let mut by_id = lock(&self.by_id);
        if by_id.contains_key(&id) {
            return Err(LookupError::Exists {
                what: "container",
                id: id.to_string(),
            });
        }
        if by_id.len() >= CONTAINERS_MAX {
            return Err(LookupError::TooMany {
                what: "containers",
                max: CONTAINERS_MAX,
            });
        }
        let container = Arc::new(Container::new(id.clone(), cgroup));
        by_id.insert(id, Arc::clone(&container));
        Ok(container)
    }

    /// The container with this id.
    ///
    /// # Errors
    ///
    /// [`LookupError::Container`].
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Container>, LookupError> {
        lock(&self.by_id)
            .get(id)
            .cloned()
            .ok_or_else(|| LookupError::Container(id.to_owned()))
    }

    /// A container's init (empty `exec_id`) or one of its execs.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub(crate) fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, LookupError> {
        self.get(id)?.process(exec_id)
    }

    /// Keeps a container's root file system, to take it down when it is deleted. False when another
    /// container has the disk.
    pub(crate) fn set_rootfs(&self, container: &Container, rootfs: Rootfs) -> bool {
        if self.has_disk(container, &rootfs.disk.serial) {
            return false;
        }
        *lock(&container.rootfs) = Some(rootfs);
        true
    }

    /// Keeps a disk of a container, to take it down when the container is deleted. False when another
    /// container, or its own root, has it.
    pub(crate) fn attach(&self, container: &Container, attached: Attached) -> bool {
        let serial = &attached.disk.serial;
        if container.uses_disk(serial) || self.has_disk(container, serial) {
            return false;
        }
        lock(&container.attached).push(attached);
        true
    }

    /// Whether a container other than this one has the disk.
    fn has_disk(&self, container: &Container, serial: &Serial) -> bool {
        let mut others = lock(&self.by_id).clone();
        others.remove(container.id.as_str());
        others.values().any(|other| other.uses_disk(serial))
    }

    /// Forgets a container.
    pub(crate) fn remove(&self, id: &ContainerId) {
        lock(&self.by_id).remove(id);
    }

    /// Every container, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.by_id).values().cloned().collect()
    }
}
