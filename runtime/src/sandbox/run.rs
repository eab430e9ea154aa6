//! From a request to a guest whose agent answers.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isopod_proto::agent::{Dns, SetUpSandboxRequest};
use isopod_proto::vmm::{Disk, Extent, StartRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Memory, PodConfig, Processors, SCRATCH_SERIAL, Sandbox, SandboxError, SandboxPhase,
    SandboxRecord, SandboxState, Sandboxes, Undo, UserNamespace, Volumes, WantedMemory,
    create_private_dir, remove_cgroup, remove_dir,
};
use crate::chain::chain;
use crate::clock;
use crate::config::GuestRoot;
use crate::events::EventKind;
use crate::id::SandboxId;
use crate::network::Attached;
use crate::stats::CpuRate;
use crate::table::Reservation;
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
        self.cgroups.check(&config.cgroup_parent)?;
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
            memory: WantedMemory::default(),
            network: None,
            end: None,
        };
        let mut undo = Undo::default();
        match self.make(record.clone(), &mut undo, cancel).await {
            Ok(sandbox) => {
                *sandbox
                    .name
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(name);
                let sandbox = Arc::new(sandbox);
                self.publish(EventKind::Created, &sandbox);
                self.publish(EventKind::Started, &sandbox);
                self.add(sandbox);
                Ok(id)
            }
            Err(error) => {
                let undone = undo.unwind().await;
                self.forget_or_keep(record, name, undone).await;
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
        // Before anything else exists.
        self.records.save_sandbox(&record.id, &record).await?;
        let (networks, id) = (Arc::clone(&self.networks), record.id.clone());
        undo.push("leave the network", move || async move {
            networks.detach(&id).await
        });
        // The one that fails ends the other.
        let both = cancel.child_token();
        let pod = record.clone();
        let (attached, started) = tokio::join!(
            ending(&both, self.networks.attach(&pod.id, &pod.config, &both)),
            ending(&both, self.start(&mut record, undo, &both)),
        );
        let (attached, vm) = match (attached, started) {
            (Ok(attached), Ok(vm)) => (attached, vm),
            (Err(network), Err(SandboxError::Cancelled) | Ok(_)) => return Err(network.into()),
            (_, Err(error)) => return Err(error),
        };
        record.network = attached.as_ref().map(|attached| attached.network.clone());
        tokio::select! {
            biased;
            set_up = self.set_up(&vm, &record, attached) => set_up?,
            () = cancel.cancelled() => return Err(SandboxError::Cancelled),
        }
        let sandbox = Sandbox {
            processors: self.processors(&record),
            memory: self.memory(&record),
            volumes: Volumes::new(record.id.clone(), Arc::clone(&self.changes)),
            id: record.id,
            config: record.config,
            handler: record.handler,
            created_at_ns: record.created_at_ns,
            cpu_rate: CpuRate::default(),
            vm: Some(vm),
            network: std::sync::Mutex::new(record.network),
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

    pub(super) fn processors(&self, record: &SandboxRecord) -> Processors {
        let parent = record.config.cgroup_parent.clone();
        Processors::new(Arc::clone(&self.cgroups), parent, record.id.clone())
    }

    pub(super) fn memory(&self, record: &SandboxRecord) -> Memory {
        Memory::new(&record.id, &record.config, record.memory, &self.config)
    }

    /// The last step of undoing, if all others were done. Otherwise the sandbox stays known, so that
    /// whoever asked for it can have it removed.
    async fn forget_or_keep(
        self: &Arc<Self>,
        record: SandboxRecord,
        name: Reservation,
        undone: bool,
    ) {
        let id = record.id.clone();
        let done = match undone {
            true => self
                .records
                .forget_sandbox(&id)
                .await
                .map_err(SandboxError::from),
            false => self.keep(record, name).await.map(drop),
        };
        if let Err(error) = done {
            let error = chain(&error);
            tracing::warn!(sandbox_id = %id, error, "what is left waits for the next daemon");
        }
    }

    /// A VMM whose guest's agent answers.
    async fn start(
        &self,
        record: &mut SandboxRecord,
        undo: &mut Undo,
        cancel: &CancellationToken,
    ) -> Result<Arc<Vm>, SandboxError> {
        let vm = self.launch(record, undo).await?;
        record.vmm = Some(vm.process_id());
        // The boot alone takes long and may be left in the middle; the other steps run to their
        // ends, so that undoing them never overtakes them.
        let boot = async {
            tokio::select! {
                biased;
                booted = self.boot(&vm, record) => booted,
                () = cancel.cancelled() => Err(SandboxError::Cancelled),
            }
        };
        // Until the process is noted, a daemon that starts finds the VMM by its folder.
        let note = self.records.save_sandbox(&record.id, record);
        let (booted, noted) = tokio::join!(boot, note);
        booted?;
        noted?;
        Ok(vm)
    }

    /// The folder, the cgroup, the writable disk and the VMM's process.
    async fn launch(
        &self,
        record: &SandboxRecord,
        undo: &mut Undo,
    ) -> Result<Arc<Vm>, SandboxError> {
        let id = &record.id;
        let dir = self.state_dir(id);
        let leftover = dir.clone();
        undo.push("remove the folder of sockets", move || remove_dir(leftover));
        create_private_dir(&dir)?;
        let cgroup = self.make_cgroup(record, undo).await?;

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
            root: self.config.root(),
            debug_console: self.config.debug_console,
            cgroup,
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

    async fn make_cgroup(
        &self,
        record: &SandboxRecord,
        undo: &mut Undo,
    ) -> Result<Option<OwnedFd>, SandboxError> {
        let (parent, id) = (record.config.cgroup_parent.clone(), record.id.clone());
        let (cgroups, at, of) = (Arc::clone(&self.cgroups), parent.clone(), id.clone());
        undo.push("remove the cgroup", move || remove_cgroup(cgroups, at, of));
        let cgroups = Arc::clone(&self.cgroups);
        let made = tokio::task::spawn_blocking(move || cgroups.create(&parent, &id)).await;
        Ok(made.map_err(|error| {
            SandboxError::io("creating", "a cgroup")(std::io::Error::other(error))
        })??)
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

    /// From a VMM that waits to an agent that answers.
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
            initramfs: matches!(self.config.root(), GuestRoot::Initramfs(_)),
            ..Default::default()
        };
        vm.boot(&request)
            .instrument(tracing::debug_span!("start"))
            .await?;
        let limit = Duration::from_millis(self.config.start_timeout_ms);
        vm.wait_for_agent(limit)
            .instrument(tracing::debug_span!("wait_for_agent"))
            .await?;
        Ok(())
    }

    /// From an agent that answers to a guest that takes containers.
    #[tracing::instrument(level = "debug", skip_all)]
    async fn set_up(
        &self,
        vm: &Vm,
        record: &SandboxRecord,
        attached: Option<Attached>,
    ) -> Result<(), SandboxError> {
        let mut request = set_up_request(record);
        if let Some(Attached { nics, dns, .. }) = attached {
            request.dns = Some(resolver(&dns)).into();
            for nic in nics {
                request.interfaces.push(nic.interface.clone());
                vm.add_nic(nic).await?;
            }
        }
        let limit = Duration::from_millis(self.config.start_timeout_ms);
        let set_up = tokio::time::timeout(limit, vm.set_up_sandbox(&request)).await;
        let late = VmError::Timeout {
            peer: Peer::Agent,
            method: "SetUpSandbox",
            limit,
        };
        Ok(set_up.unwrap_or(Err(late))?)
    }
}

/// Ends the other half of the work when this one fails.
async fn ending<T, E>(
    both: &CancellationToken,
    half: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let done = half.await;
    if done.is_err() {
        both.cancel();
    }
    done
}

fn resolver(dns: &super::Dns) -> Dns {
    Dns {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
        ..Default::default()
    }
}

/// Those that were asked for. The network is the guest's, and so a right over it that is held in a user
/// namespace counts for nothing: every user may do what the root of a container usually may.
fn sysctls(pod: &PodConfig) -> HashMap<String, String> {
    let mut all: HashMap<_, _> = pod.sysctls.clone().into_iter().collect();
    if pod.user_namespace.is_some() {
        for (name, value) in [
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ] {
            if !all.keys().any(|asked| asked.replace('/', ".") == name) {
                all.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    all
}

fn set_up_request(record: &SandboxRecord) -> SetUpSandboxRequest {
    let pod = &record.config;
    SetUpSandboxRequest {
        sandbox_id: record.id.to_string(),
        hostname: pod.hostname.clone(),
        sysctls: sysctls(pod),
        user_namespace: pod.user_namespace.map(UserNamespace::to_agent).into(),
        dns: Some(resolver(&pod.dns)).into(),
        scratch_serial: SCRATCH_SERIAL.to_owned(),
        clock_ns: clock::now_ns(),
        ..Default::default()
    }
}
