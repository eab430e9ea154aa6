//! Finds the disk, mounts the root file system, and makes the container's first process.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use isopod_proto::agent::{BlockDevice, CreateContainerRequest, CreateContainerResponse};
use nix::unistd::Uid;

use super::error::AgentError;
use super::{AgentService, write};
use crate::container::{
    Cgroup, Container, ContainerId, ContainerSpec, Created, Device, MappedMount, PidNamespace,
    Place, Serial, Source, resolve,
};
use crate::helper::{Console, CreateRequest, HelperError, Outcome, Request, launch};
use crate::process::{Follow, Process, Stdio};
use crate::storage::{Attached, Mapped, Rootfs, StorageError};

impl AgentService {
    /// Everything or nothing: what was made is taken down again when a later step fails.
    pub(super) async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, AgentError> {
        let id = ContainerId::new(request.container_id.clone())?;
        let serial = Serial::new(request.rootfs.disk_serial.clone())?;
        let spec = ContainerSpec::parse(&request.spec)?;
        let cgroup = Cgroup::new(&self.cgroup_path(&id));
        let container = self.containers.reserve(id, cgroup)?;
        let _alone = container.lock.write().await;
        match self.create(&container, &request, spec, serial).await {
            Ok(response) => Ok(response),
            Err(error) => {
                if let Err(error) = self.take_down(&container).await {
                    let error = super::chain(&error);
                    tracing::warn!(container_id = %container.id, error, "a failed create left something behind");
                }
                Err(error)
            }
        }
    }

    fn cgroup_path(&self, id: &ContainerId) -> PathBuf {
        self.surroundings.cgroup.join(id.as_str())
    }

    async fn create(
        &self,
        container: &Arc<Container>,
        request: &CreateContainerRequest,
        mut spec: ContainerSpec,
        serial: Serial,
    ) -> Result<CreateContainerResponse, AgentError> {
        let rootfs = self.mount_rootfs(container, serial).await?;
        let identity = {
            let (rootfs, user) = (
                rootfs.path().to_owned(),
                request.user.clone().unwrap_or_default(),
            );
            let looked_up = tokio::task::spawn_blocking(move || resolve(&rootfs, &user)).await;
            looked_up.map_err(|_panic| AgentError::GivenUp)??
        };
        let users = self.users.get();
        let owner = Uid::from_raw(identity.outside(users.map(|users| &users.ids))?);
        let sources = self.open_sources(container, &spec, &rootfs).await?;
        let devices = self.open_devices(container, &request.devices).await?;
        let place = Place {
            rootfs: rootfs.path().to_owned(),
            read_only: request.rootfs.read_only,
            cgroup: self.cgroup_path(&container.id),
            pid_namespace: self.pid_namespace(request).await?,
            shared_files: self.shared_files(),
            sources,
            devices,
            users: users.copied(),
        };
        spec.settle(&place, &identity)?;
        self.map_mounts(container, &mut spec).await?;
        let bundle = self.container_folder(&container.id);
        let json = serde_json::to_vec(spec.spec()).map_err(std::io::Error::from);
        let config = bundle.join("config.json");
        write(&config, json.map_err(AgentError::file(&config))?)?;

        let (init, outcome) = self.launch_init(container, &spec, request, owner).await?;
        let pid = init.pid.as_raw();
        // libcontainer has made the container's own nodes by now; its command does not run yet.
        container.cgroup.restrict_devices(spec.device_rules())?;
        container.set_created(Created {
            init,
            spec,
            outcome: Mutex::new(Some(outcome)),
        });
        Ok(CreateContainerResponse {
            pid,
            uid: identity.uid,
            gid: identity.gid,
            supplemental_groups: identity.groups,
            ..Default::default()
        })
    }

    async fn mount_rootfs(
        &self,
        container: &Container,
        serial: Serial,
    ) -> Result<Rootfs, AgentError> {
        let scratch = self
            .scratch
            .lock()
            .await
            .clone()
            .ok_or(StorageError::NoScratch)?;
        let disk = self.surroundings.disks.find(&serial).await?;
        let folder = self.container_folder(&container.id);
        std::fs::create_dir_all(&folder).map_err(AgentError::file(&folder))?;
        let users = self.users.get().copied();
        let rootfs = Rootfs::new(disk, &folder, &scratch, container.id.as_str(), users);
        if !self.containers.set_rootfs(container, rootfs.clone()) {
            return Err(StorageError::InUse { serial }.into());
        }
        rootfs.mount().await?;
        Ok(rootfs)
    }

    /// Where everything is that the spec's mounts name.
    async fn open_sources(
        &self,
        container: &Container,
        spec: &ContainerSpec,
        rootfs: &Rootfs,
    ) -> Result<Vec<PathBuf>, AgentError> {
        let mut paths = Vec::new();
        for source in spec.sources()? {
            paths.push(match source {
                Source::Volume(name) => self.surroundings.volumes.find(&name).await?,
                Source::Image { serial, part } => {
                    self.attach(container, serial).await?.mount(part).await?
                }
                Source::Own(path) => {
                    let rootfs = rootfs.clone();
                    let found = tokio::task::spawn_blocking(move || rootfs.folder_at(&path)).await;
                    found.map_err(|_panic| AgentError::GivenUp)??
                }
            });
        }
        Ok(paths)
    }

    /// Mounts what shows its files with the ids of the sandbox's user namespace.
    async fn map_mounts(
        &self,
        container: &Container,
        spec: &mut ContainerSpec,
    ) -> Result<(), AgentError> {
        let users = self.users.get();
        let mapped = Mapped::new(&self.container_folder(&container.id));
        for MappedMount { index, source } in spec.take_mapped(users)? {
            let Some(users) = users else { continue };
            let users = users.namespace("user");
            spec.set_source(index, mapped.mount(index, source, users).await?);
        }
        Ok(())
    }

    /// Finds a disk beside that of the container's root.
    async fn attach(&self, container: &Container, serial: Serial) -> Result<Attached, AgentError> {
        let disk = self.surroundings.disks.find(&serial).await?;
        let attached = Attached::new(disk, &self.container_folder(&container.id));
        if !self.containers.attach(container, attached.clone()) {
            return Err(StorageError::InUse { serial }.into());
        }
        Ok(attached)
    }

    /// The container's block devices, as the spec wants them.
    async fn open_devices(
        &self,
        container: &Container,
        wanted: &[BlockDevice],
    ) -> Result<Vec<Device>, AgentError> {
        let mut devices = Vec::with_capacity(wanted.len());
        for device in wanted {
            let serial = Serial::new(device.disk_serial.clone())?;
            let (major, minor) = self.attach(container, serial).await?.device_number()?;
            devices.push(Device {
                path: device.path.clone().into(),
                major: i64::try_from(major).unwrap_or(-1),
                minor: i64::try_from(minor).unwrap_or(-1),
                access: device.access.clone(),
                mode: device.mode,
            });
        }
        Ok(devices)
    }

    async fn pid_namespace(
        &self,
        request: &CreateContainerRequest,
    ) -> Result<PidNamespace, AgentError> {
        let pid = if request.sandbox_pid_namespace {
            self.pid_namespace
                .get_or_try_init(|| self.hold_pid_namespace())
                .await?
                .as_raw()
        } else if !request.target_container_id.is_empty() {
            let target = self.containers.get(&request.target_container_id)?;
            let init = &target.created()?.init;
            if init.exit().is_some() {
                return Err(AgentError::State {
                    id: target.id.clone(),
                    is: "exited",
                    wanted: "running",
                });
            }
            init.pid.as_raw()
        } else {
            return Ok(PidNamespace::Own);
        };
        Ok(PidNamespace::Shared(format!("/proc/{pid}/ns/pid").into()))
    }

    async fn hold_pid_namespace(&self) -> Result<nix::unistd::Pid, AgentError> {
        let launched = launch(&self.reaper, &Request::HoldPidNamespace, &[]).await?;
        Ok(launched.pid.ok_or(HelperError::Silent)?)
    }

    async fn launch_init(
        &self,
        container: &Arc<Container>,
        spec: &ContainerSpec,
        request: &CreateContainerRequest,
        owner: Uid,
    ) -> Result<(Arc<Process>, Outcome), AgentError> {
        let runtime = self.runtime(&container.id);
        let bundle = self.container_folder(&container.id);
        let terminal = spec
            .process()
            .and_then(|process| process.terminal())
            .unwrap_or(false);
        let (outcome, outcome_end) = Outcome::pipe().map_err(AgentError::Pipe)?;

        let (launched, stdio) = if terminal {
            let console = Console::listen(&self.folder("consoles"))?;
            let console_path = Some(console.path().to_owned());
            let create = Request::Create(CreateRequest {
                runtime,
                bundle,
                console: console_path,
            });
            let launched = launch(&self.reaper, &create, &[outcome_end.as_fd()]).await?;
            let master = console.master().await?;
            (launched, Stdio::terminal(master, request.stdin, owner)?)
        } else {
            let (stdio, ends) = Stdio::pipes(request.stdin, request.stdin_once, owner)?;
            let create = Request::Create(CreateRequest {
                runtime,
                bundle,
                console: None,
            });
            let fds = [&ends.stdin, &ends.stdout, &ends.stderr].map(AsFd::as_fd);
            let fds = [outcome_end.as_fd(), fds[0], fds[1], fds[2]];
            (launch(&self.reaper, &create, &fds).await?, stdio)
        };
        let pid = launched.pid.ok_or(HelperError::Silent)?;
        let follow = Follow {
            death: self.reaper.watch(pid),
            container: container.cgroup.clone(),
            kill_rest: !spec.has_own_pid_namespace(),
        };
        Ok((
            Process::adopt(pid, container.cgroup.clone(), stdio, follow),
            outcome,
        ))
    }
}
