//! From a request to a guest whose agent answers.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isopod_proto::agent::{Dns, SetUpSandboxRequest};
use isopod_proto::vmm::{Disk, Extent, StartRequest};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    PodConfig, SCRATCH_SERIAL, Sandbox, SandboxError, SandboxPhase, SandboxRecord, SandboxState,
    Sandboxes, Undo, Volumes, create_private_dir, remove_dir,
};
use crate::clock;
use crate::id::SandboxId;
use crate::vm::{Launch, Peer, Vm, VmError};

/// Name under which the writable disk is handed to the VMM.
const SCRATCH_DESCRIPTOR: &str = "scratch";

impl Sandboxes {
    /// Makes a sandbox. It is there and recorded when this returns, or there is no trace of it.
    ///
    /// # Errors
    ///
    /// When the pod's name is taken, a step fails, the guest does not answer in time, or `cancel`
    /// says that nobody waits for it any more.
    #[tracing::instrument(skip_all, fields(sandbox_id))]
    pub(crate) async fn run(
        self: &Arc<Self>,
        config: PodConfig,
        handler: String,
        cancel: &CancellationToken,
    ) -> Result<SandboxId, SandboxError> {
        let id = SandboxId::random().map_err(SandboxError::io("reading", "/dev/urandom"))?;
        tracing::Span::current().record("sandbox_id", id.as_str());
        let name = self.names.reserve(config.full_name(), id.as_str())?;
        let record = SandboxRecord {
            id: id.clone(),
            phase: SandboxPhase::Starting,
            config,
            handler,
            created_at_ns: clock::now_ns(),
            vmm: None,
            end: None,
        };
        let mut undo = Undo::default();
        match self.make(record, &mut undo, cancel).await {
            Ok(sandbox) => {
                *sandbox
                    .name
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(name);
                self.add(Arc::new(sandbox));
                Ok(id)
            }
            Err(error) => {
                undo.unwind().await;
                Err(error)
            }
        }
    }

    async fn make(
        self: &Arc<Self>,
        mut record: SandboxRecord,
        undo: &mut Undo,
        cancel: &CancellationToken,
    ) -> Result<Sandbox, SandboxError> {
        self.begin(&record, undo).await?;
        let vm = self.launch(&record.id, undo).await?;
        record.vmm = Some(vm.process_id());
        // The boot alone takes long and may be left in the middle; the other steps run to their
        // ends, so that undoing them never overtakes them.
        let boot = async {
            tokio::select! {
                biased;
                booted = self.boot(&vm, &record) => booted,
                () = cancel.cancelled() => Err(SandboxError::Cancelled),
            }
        };
        // Until the process is noted, a daemon that starts finds the VMM by its folder.
        let note = self.records.save_sandbox(&record.id, &record);
        let (booted, noted) = tokio::join!(boot, note);
        booted?;
        noted?;
        let sandbox = Sandbox {
            id: record.id,
            config: record.config,
            handler: record.handler,
            created_at_ns: record.created_at_ns,
            volumes: Volumes::default(),
            vm: Some(vm),
            state: watch::Sender::new(SandboxState::Ready),
            stopping: false.into(),
            gate: Arc::default(),
            record: tokio::sync::Mutex::default(),
            name: std::sync::Mutex::default(),
        };
        if cancel.is_cancelled() {
            return Err(SandboxError::Cancelled);
        }
        sandbox.save(&self.records).await?;
        Ok(sandbox)
    }

    /// The record, before anything else exists.
    async fn begin(&self, record: &SandboxRecord, undo: &mut Undo) -> Result<(), SandboxError> {
        let (records, id) = (self.records.clone(), record.id.clone());
        undo.push("remove the record", move || async move {
            records.forget_sandbox(&id).await
        });
        Ok(self.records.save_sandbox(&record.id, record).await?)
    }

    /// The folder, the writable disk and the VMM's process.
    async fn launch(&self, id: &SandboxId, undo: &mut Undo) -> Result<Arc<Vm>, SandboxError> {
        let dir = self.state_dir(id);
        let leftover = dir.clone();
        undo.push("remove the folder of sockets", move || remove_dir(leftover));
        create_private_dir(&dir)?;

        let path = self.records.scratch(id);
        let disk = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(SandboxError::io("creating", &path))?;
        let inherited = disk
            .try_clone()
            .map_err(SandboxError::io("duplicating", &path))?;
        let launch = Launch {
            vmm: self.config.vmm.clone(),
            kvm: self.config.kvm.clone(),
            kernel: self.config.kernel.clone(),
            initramfs: self.config.initramfs.clone(),
            debug_console: self.config.debug_console,
            files: vec![(SCRATCH_DESCRIPTOR.to_owned(), OwnedFd::from(inherited))],
        };
        let launching = Vm::launch(dir, launch).instrument(tracing::debug_span!("launch"));
        let (vm, filled) = tokio::join!(launching, self.fill_scratch(disk, path));
        let vm = Arc::new(vm?);
        let started = Arc::clone(&vm);
        undo.push("end the VMM", move || async move { started.kill().await });
        filled?;
        Ok(vm)
    }

    #[tracing::instrument(level = "debug", skip_all)]
    async fn fill_scratch(self: &Sandboxes, disk: File, path: PathBuf) -> Result<(), SandboxError> {
        let template = Arc::clone(&self.scratch);
        let at = path.clone();
        let filled = tokio::task::spawn_blocking(move || template.fill(&disk, &at)).await;
        filled
            .map_err(|error| SandboxError::io("filling", path)(std::io::Error::other(error)))??;
        Ok(())
    }

    /// From a VMM that waits to a guest that is set up.
    #[tracing::instrument(level = "debug", skip_all)]
    async fn boot(&self, vm: &Vm, record: &SandboxRecord) -> Result<(), SandboxError> {
        let size = record.config.size;
        let scratch = Extent {
            descriptor: SCRATCH_DESCRIPTOR.to_owned(),
            offset: 0,
            length: self.scratch.bytes(),
            ..Default::default()
        };
        let request = StartRequest {
            max_vcpus: size.max_vcpus,
            memory_mib: size.memory_mib,
            kernel_args: self.config.kernel_args.clone(),
            disks: vec![Disk {
                serial: SCRATCH_SERIAL.to_owned(),
                read_only: false,
                extents: vec![scratch],
                ..Default::default()
            }],
            debug_console: self.config.debug_console,
            ..Default::default()
        };
        vm.boot(&request)
            .instrument(tracing::debug_span!("start"))
            .await?;
        let limit = Duration::from_millis(self.config.start_timeout_ms);
        let deadline = Instant::now() + limit;
        vm.wait_for_agent(limit)
            .instrument(tracing::debug_span!("wait_for_agent"))
            .await?;
        let request = set_up_request(record);
        let set_up = vm
            .set_up_sandbox(&request)
            .instrument(tracing::debug_span!("set_up"));
        let (peer, method) = (Peer::Agent, "SetUpSandbox");
        let late = VmError::Timeout {
            peer,
            method,
            limit,
        };
        let set_up = tokio::time::timeout_at(deadline, set_up).await;
        Ok(set_up.unwrap_or(Err(late))?)
    }
}

fn set_up_request(record: &SandboxRecord) -> SetUpSandboxRequest {
    let pod = &record.config;
    let dns = Dns {
        servers: pod.dns.servers.clone(),
        searches: pod.dns.searches.clone(),
        options: pod.dns.options.clone(),
        ..Default::default()
    };
    SetUpSandboxRequest {
        sandbox_id: record.id.to_string(),
        hostname: pod.hostname.clone(),
        sysctls: pod.sysctls.clone().into_iter().collect(),
        dns: Some(dns).into(),
        scratch_serial: SCRATCH_SERIAL.to_owned(),
        clock_ns: clock::now_ns(),
        ..Default::default()
    }
}
