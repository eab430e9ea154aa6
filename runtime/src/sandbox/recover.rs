//! What a daemon that starts does with the sandboxes of an earlier one.
//!
//! ```text
//!  record      process     becomes
//!  starting    any         undone: killed, folders removed
//!  ready       runs        READY, adopted
//!  ready       gone        NOTREADY, with the VMM's last words
//!  not-ready   any         NOTREADY, killed
//!  none        any         killed, folders removed
//!  unreadable  any         left alone, and said so
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::{
    Sandbox, SandboxError, SandboxPhase, SandboxRecord, SandboxState, Sandboxes, Volumes,
    remove_dir,
};
use crate::chain::chain;
use crate::id::SandboxId;
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
                self.adopt(record, dir).await.map(Some)
            }
            half_made => {
                if let Some(process) = half_made.and_then(|record| record.vmm) {
                    kill_leftover(&dir, process).await?;
                }
                tracing::info!(sandbox_id = %id, "removing a sandbox that was never finished");
                remove_dir(dir).await?;
                self.records.forget_sandbox(id).await?;
                Ok(None)
            }
        }
    }

    async fn adopt(
        self: &Arc<Self>,
        record: SandboxRecord,
        dir: PathBuf,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let name = self
            .names
            .reserve(record.config.full_name(), record.id.as_str())?;
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
        let sandbox = Arc::new(sandbox(record, vm.map(Arc::new), state, name));
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
    vm: Option<Arc<Vm>>,
    state: SandboxState,
    name: Reservation,
) -> Sandbox {
    Sandbox {
        id: record.id,
        config: record.config,
        handler: record.handler,
        created_at_ns: record.created_at_ns,
        volumes: Volumes::default(),
        vm,
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
