//! What a daemon that starts does with the sandboxes of an earlier one.
//!
//! ```text
//!  record      process     becomes
//!  starting    any         undone: killed, detached, folders removed; NOTREADY if that fails
//!  ready       runs        READY, adopted
//!  ready       gone        NOTREADY, with the VMM's last words
//!  not-ready   any         NOTREADY, killed
//!  none        any         killed, detached, folders removed
//!  unreadable  any         left alone, and said so
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::{
    Memory, Processors, Sandbox, SandboxError, SandboxPhase, SandboxRecord, SandboxState,
    Sandboxes, Volumes, remove_cgroup, remove_dir,
};
use crate::chain::chain;
use crate::id::SandboxId;
use crate::stats::CpuRate;
use crate::table::Reservation;
use crate::vm::{ProcessId, Vm, VmEnd, find_vmms, kill_leftover};

/// The VMMs that run, by the folder that they were started for.
type Running = BTreeMap<PathBuf, Vec<ProcessId>>;

impl Sandboxes {
    /// Finds the sandboxes of an earlier daemon, and cleans up what it left half done.
    ///
    /// # Errors
    ///
    /// When the folders cannot be listed. What is wrong with one sandbox is logged and does not
    /// keep the others from being found.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<Vec<Arc<Sandbox>>, SandboxError> {
        let this = Arc::clone(self);
        let scanned = tokio::task::spawn_blocking(move || this.scan()).await;
        let (found, mut running) = scanned.map_err(|error| {
            SandboxError::io("listing", "/proc")(std::io::Error::other(error))
        })??;
        let mut sandboxes = Vec::new();
        let mut known = BTreeSet::new();
        for found in found {
            let dir = self.state_dir(&found.id);
            let leftovers = running.remove(&dir).unwrap_or_default();
            known.insert(dir);
            let recovered = match found.record {
                Ok(record) => self.recover_one(&found.id, record, leftovers).await,
                Err(error) => Err(error.into()),
            };
            match recovered {
                Ok(sandbox) => sandboxes.extend(sandbox),
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(sandbox_id = %found.id, error, "could not recover a sandbox");
                }
            }
        }
        self.remove_orphans(&known, running).await;
        Ok(sandboxes)
    }

    fn scan(&self) -> Result<(Vec<crate::record::Found<SandboxRecord>>, Running), SandboxError> {
        let mut running = Running::new();
        let vmms = find_vmms(&self.state_dir).map_err(SandboxError::io("listing", "/proc"))?;
        for (dir, process) in vmms {
            running.entry(dir).or_default().push(process);
        }
        Ok((self.records.sandboxes()?, running))
    }

    async fn recover_one(
        self: &Arc<Self>,
        id: &SandboxId,
        record: Option<SandboxRecord>,
        running: Vec<ProcessId>,
    ) -> Result<Option<Arc<Sandbox>>, SandboxError> {
        let dir = self.state_dir(id);
        let keep = record
            .as_ref()
            .filter(|record| record.phase == SandboxPhase::Ready);
        let keep = keep.and_then(|record| record.vmm);
        for process in running.into_iter().filter(|process| Some(*process) != keep) {
            tracing::warn!(sandbox_id = %id, pid = process.pid, "ending a leftover VMM");
            kill_leftover(&dir, process).await?;
        }
        match record {
            Some(record) if record.phase != SandboxPhase::Starting && record.id == *id => {
                let name = self.reserve(&record)?;
                self.adopt(record, dir, name).await.map(Some)
            }
            half_made => {
                if let Some(process) = half_made.as_ref().and_then(|record| record.vmm) {
                    kill_leftover(&dir, process).await?;
                }
                tracing::info!(sandbox_id = %id, "removing a sandbox that was never finished");
                remove_dir(dir).await?;
                if let Some(record) = &half_made {
                    let parent = record.config.cgroup_parent.clone();
                    remove_cgroup(Arc::clone(&self.cgroups), parent, id.clone()).await?;
                }
                match (self.networks.detach(id).await, half_made) {
                    (Ok(()), _) => {}
                    (Err(error), Some(record)) if record.id == *id => {
                        let error = chain(&error);
                        tracing::warn!(sandbox_id = %id, error, "it stays in the network");
                        let name = self.reserve(&record)?;
                        return self.keep(record, name).await.map(Some);
                    }
                    (Err(error), _) => return Err(error.into()),
                }
                self.records.forget_sandbox(id).await?;
                Ok(None)
            }
        }
    }

    fn reserve(&self, record: &SandboxRecord) -> Result<Reservation, SandboxError> {
        let name = record.config.full_name();
        Ok(self.names.reserve(name, record.id.as_str())?)
    }

    /// Keeps a sandbox that was never ready and cannot be undone, so that its removal can.
    pub(super) async fn keep(
        self: &Arc<Self>,
        mut record: SandboxRecord,
        name: Reservation,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        record.phase = SandboxPhase::NotReady;
        record.vmm = None;
        self.records.save_sandbox(&record.id, &record).await?;
        let dir = self.state_dir(&record.id);
        self.adopt(record, dir, name).await
    }

    /// Asks whether the sandboxes' networks still are as they were made, and throws away what is
    /// left of others.
    pub(crate) async fn check_networks(&self) {
        for sandbox in self.list() {
            if sandbox.state() == SandboxState::Ready
                && let Err(error) = self.networks.check(&sandbox.id).await
            {
                let error = chain(&error);
                tracing::warn!(sandbox_id = %sandbox.id, error, "a network is not what it was");
            }
        }
        if self.networks.is_enabled()
            && let Err(error) = self.networks.collect_garbage().await
        {
            tracing::warn!(
                error = chain(&error),
                "could not collect a network's garbage"
            );
        }
    }

    async fn adopt(
        self: &Arc<Self>,
        record: SandboxRecord,
        dir: PathBuf,
        name: Reservation,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let vm = match (record.phase, record.vmm) {
            (SandboxPhase::Ready, Some(process)) => Vm::adopt(dir.clone(), process)?,
            _ => None,
        };
        let ended = vm.is_none() && record.phase == SandboxPhase::Ready;
        let state = match (&vm, ended) {
            (Some(_), _) => SandboxState::Ready,
            (None, true) => SandboxState::NotReady {
                end: Some(last_words(dir).await),
            },
            (None, false) => SandboxState::NotReady {
                end: record.end.clone(),
            },
        };
        tracing::info!(sandbox_id = %record.id, running = vm.is_some(), "found a sandbox again");
        let processors = self.processors(&record);
        let memory = self.memory(&record);
        let volumes = Volumes::new(record.id.clone(), Arc::clone(&self.changes));
        let sandbox = Arc::new(sandbox(
            record,
            (processors, memory, volumes),
            vm.map(Arc::new),
            state,
            name,
        ));
        if ended {
            sandbox.save(&self.records).await?;
        }
        self.add(Arc::clone(&sandbox));
        Ok(sandbox)
    }

    /// Ends VMMs and removes folders of sockets that belong to no sandbox.
    async fn remove_orphans(&self, known: &BTreeSet<PathBuf>, running: Running) {
        for (dir, process) in running
            .iter()
            .flat_map(|(dir, all)| all.iter().map(move |p| (dir, p)))
        {
            tracing::warn!(dir = %dir.display(), pid = process.pid, "ending an orphaned VMM");
            if let Err(error) = kill_leftover(dir, *process).await {
                tracing::error!(error = %error, "could not end an orphaned VMM");
            }
        }
        let Ok(entries) = std::fs::read_dir(&self.state_dir) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_id = entry
                .file_name()
                .to_str()
                .is_some_and(|n| n.parse::<SandboxId>().is_ok());
            if !is_id || known.contains(&path) {
                continue;
            }
            tracing::warn!(dir = %path.display(), "removing an orphaned folder");
            if let Err(error) = remove_dir(path).await {
                tracing::error!(error = %error, "could not remove an orphaned folder");
            }
        }
    }
}

fn sandbox(
    record: SandboxRecord,
    (processors, memory, volumes): (Processors, Memory, Volumes),
    vm: Option<Arc<Vm>>,
    state: SandboxState,
    name: Reservation,
) -> Sandbox {
    Sandbox {
        id: record.id,
        config: record.config,
        handler: record.handler,
        created_at_ns: record.created_at_ns,
        cpu_rate: CpuRate::default(),
        volumes,
        processors,
        memory,
        vm,
        network: std::sync::Mutex::new(record.network),
        state: watch::Sender::new(state),
        stopping: false.into(),
        gate: Arc::default(),
        record: tokio::sync::Mutex::default(),
        name: std::sync::Mutex::new(Some(name)),
    }
}

async fn last_words(dir: PathBuf) -> VmEnd {
    let read = tokio::task::spawn_blocking(move || Vm::last_words(&dir)).await;
    read.expect("reading a file does not panic, and the runtime is still there")
}
