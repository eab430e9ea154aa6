//! From a request to a container whose process waits to be started.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use isopod_proto::agent::{BlockDevice, CreateContainerRequest, RootFs};
use isopod_proto::cri;
use isopod_proto::vmm::{Disk, Extent};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::config::ContainerConfig;
use super::record::{ContainerPhase, ContainerUser};
use super::spec::{PidMode, Plan};
use super::{
    Container, ContainerError, ContainerState, Containers, Removed, device, full_name, log, mount,
};
use crate::clock;
use crate::config::ImageDevice;
use crate::events::EventKind;
use crate::field::FieldError;
use crate::id::ContainerId;
use crate::image::{Image, ImageDisk};
use crate::sandbox::{Sandbox, Undo, UserNamespace};
use crate::stats::CpuRate;
use crate::vm::Vm;

/// What is known before anything is made.
struct Order {
    id: ContainerId,
    config: ContainerConfig,
    plan: Plan,
    target: Option<ContainerId>,
}

impl Containers {
    /// Makes a container in `sandbox`. It is there and recorded when this returns, or there is no
    /// trace of it.
    ///
    /// # Errors
    ///
    /// When the request asks for something impossible, the image is not there, the name is taken,
    /// a step fails, or `cancel` says that nobody waits for it any more.
    #[tracing::instrument(skip_all, fields(sandbox_id = %sandbox.id, container_id))]
    pub(crate) async fn create(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        request: &cri::ContainerConfig,
        cancel: &CancellationToken,
    ) -> Result<ContainerId, ContainerError> {
        let admission = sandbox.admit().await?;
        let order = self.order(sandbox, request).await?;
        let id = order.id.clone();
        tracing::Span::current().record("container_id", id.as_str());
        let name = self
            .names
            .reserve(full_name(&sandbox.id, &order.config), id.as_str())?;
        let mut undo = Undo::default();
        let made = self.make(sandbox, &admission.vm, order, &mut undo).await;
        let made = match made {
            Ok(_) if cancel.is_cancelled() => Err(ContainerError::Cancelled),
            made => made,
        };
        match made {
            Ok(container) => {
                let held = container.name.lock();
                *held.unwrap_or_else(std::sync::PoisonError::into_inner) = Some(name);
                self.add(&container);
                self.publish(EventKind::Created, &container);
                self.watch(container);
                Ok(id)
            }
            Err(error) => {
                let _undone = undo.unwind().await;
                Err(error)
            }
        }
    }

    /// Checks everything that can be checked before anything is made.
    async fn order(
        &self,
        sandbox: &Sandbox,
        request: &cri::ContainerConfig,
    ) -> Result<Order, ContainerError> {
        let wanted = request
            .image
            .as_ref()
            .map(|image| image.image.as_str())
            .unwrap_or_default();
        let image: Image = self
            .images
            .find(wanted)
            .ok_or_else(|| ContainerError::NoImage(wanted.to_owned()))?;
        let id = ContainerId::random().map_err(ContainerError::io("reading", "/dev/urandom"))?;
        let users = sandbox.config.user_namespace;
        let (mounts, devices) = self.resolve(request, &id, users).await?;
        let config = ContainerConfig::check(request, &image, mounts, devices)?;
        let plan = Plan::new(request, &image, &sandbox.config, &config)?;
        let target = match &plan.pids {
            PidMode::Pod | PidMode::Container => None,
            PidMode::Target(id) => Some(self.target(sandbox, id)?),
        };
        Ok(Order {
            id,
            config,
            plan,
            target,
        })
    }

    /// What the request's mounts and devices are on this host.
    async fn resolve(
        &self,
        request: &cri::ContainerConfig,
        id: &ContainerId,
        users: Option<UserNamespace>,
    ) -> Result<(Vec<mount::Mount>, Vec<device::Device>), ContainerError> {
        let (images, id) = (self.images.clone(), id.clone());
        let (mounts, devices) = (request.mounts.clone(), request.devices.clone());
        let resolved = tokio::task::spawn_blocking(move || {
            let mounts = mount::resolve(&mounts, &id, &images, users)?;
            Ok::<_, FieldError>((mounts, device::resolve(&devices, &id)?))
        });
        let resolved = resolved.await.map_err(|error| {
            ContainerError::io("resolving", "the container's mounts")(std::io::Error::other(error))
        })?;
        Ok(resolved?)
    }

    fn target(&self, sandbox: &Sandbox, id: &str) -> Result<ContainerId, ContainerError> {
        let target = self.find(id)?;
        if target.sandbox.id != sandbox.id {
            let field = "config.linux.security_context.namespace_options.target_id";
            let reason = "names a container of another sandbox";
            return Err(FieldError::new(field, reason).into());
        }
        if !matches!(target.state(), ContainerState::Running { .. }) {
            return Err(target.wrong_state("joined"));
        }
        Ok(target.id.clone())
    }

    async fn make(
        &self,
        sandbox: &Arc<Sandbox>,
        vm: &Arc<Vm>,
        order: Order,
        undo: &mut Undo,
    ) -> Result<Arc<Container>, ContainerError> {
        let Order {
            id,
            config,
            plan,
            target,
        } = order;
        let mut container = Container {
            id,
            resources: std::sync::Mutex::new(config.resources.clone()),
            config,
            sandbox: Arc::clone(sandbox),
            created_at_ns: clock::now_ns(),
            user: ContainerUser::default(),
            cpu_rate: CpuRate::default(),
            state: tokio::sync::watch::Sender::new(ContainerState::Created),
            verbs: tokio::sync::Mutex::new(Removed::default()),
            removed: CancellationToken::new(),
            name: std::sync::Mutex::default(),
        };
        let (records, sandbox_id) = (self.records.clone(), sandbox.id.clone());
        let id = container.id.clone();
        undo.push("remove the record", move || async move {
            records.forget_container(&sandbox_id, &id).await
        });
        self.save(&container, ContainerPhase::Creating).await?;
        acquire_processors(&container, undo).await?;
        let _search = vm.searching_bus().await;
        acquire_volumes(&container, vm, undo).await?;
        let image_id = container.config.image_id.clone();
        self.add_disk(container.serial(), image_id, vm, undo)
            .await?;
        for mount in &container.config.mounts {
            if let Some((serial, image_id)) = mount.disk() {
                self.add_disk(serial, image_id.to_owned(), vm, undo).await?;
            }
        }
        for device in &container.config.devices {
            add_device(device, vm, undo).await?;
        }
        self.records
            .save_spec(&sandbox.id, &container.id, plan.spec.clone())
            .await?;
        container.user = create_in_guest(&container, vm, plan, target, undo).await?;
        open_log(&container, vm, undo).await?;
        self.save(&container, ContainerPhase::Created).await?;
        Ok(Arc::new(container))
    }

    /// Puts an image's disk on the guest's bus.
    #[tracing::instrument(level = "debug", skip_all)]
    async fn add_disk(
        &self,
        serial: &str,
        image_id: String,
        vm: &Arc<Vm>,
        undo: &mut Undo,
    ) -> Result<(), ContainerError> {
        let images = self.images.clone();
        let opened = tokio::task::spawn_blocking(move || images.disk(&image_id)).await;
        let opened = opened.map_err(|error| {
            ContainerError::io("opening", "the image's disk")(std::io::Error::other(error))
        })?;
        let (mut disk, files) = describe(serial, opened?);
        disk.pmem = self.image_device == ImageDevice::Pmem;
        put_on_bus(disk, files, vm, undo).await
    }
}

async fn put_on_bus(
    disk: Disk,
    files: Vec<(String, OwnedFd)>,
    vm: &Arc<Vm>,
    undo: &mut Undo,
) -> Result<(), ContainerError> {
    vm.send(files).await?;
    let (at, serial) = (Arc::clone(vm), disk.serial.clone());
    undo.push("remove the disk", move || async move {
        let _alone = at.clearing_bus().await;
        at.remove_disk(&serial).await
    });
    Ok(vm.add_disk(disk).await?)
}

/// Puts a block device of the host on the guest's bus.
async fn add_device(
    device: &device::Device,
    vm: &Arc<Vm>,
    undo: &mut Undo,
) -> Result<(), ContainerError> {
    let Some((serial, path)) = device.disk() else {
        return Ok(());
    };
    let (from, read_only) = (path.to_owned(), device.read_only());
    let opened = tokio::task::spawn_blocking(move || device::open(&from, read_only)).await;
    let opened = opened.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let (file, length) = opened.map_err(ContainerError::io("opening", path))?;
    let disk = Disk {
        serial: serial.to_owned(),
        read_only,
        extents: vec![Extent {
            descriptor: serial.to_owned(),
            offset: 0,
            length,
            ..Default::default()
        }],
        ..Default::default()
    };
    put_on_bus(disk, vec![(serial.to_owned(), file.into())], vm, undo).await
}

/// Lets the sandbox run where the container is to run.
async fn acquire_processors(container: &Container, undo: &mut Undo) -> Result<(), ContainerError> {
    let (sandbox, id) = (Arc::clone(&container.sandbox), container.id.clone());
    undo.push("forget its processors", move || async move {
        sandbox.processors.forget(id.as_str()).await
    });
    let (user, set) = (
        container.id.as_str(),
        container.config.resources.processors(),
    );
    Ok(container.sandbox.processors.set(user, set).await?)
}

/// Lets the guest find what the container mounts of the host.
async fn acquire_volumes(
    container: &Container,
    vm: &Arc<Vm>,
    undo: &mut Undo,
) -> Result<(), ContainerError> {
    let volumes = container.config.volumes();
    if volumes.is_empty() {
        return Ok(());
    }
    let (sandbox, at, id) = (
        Arc::clone(&container.sandbox),
        Arc::clone(vm),
        container.id.clone(),
    );
    undo.push("release the volumes", move || async move {
        sandbox.volumes.release(&at, id.as_str()).await
    });
    let user = container.id.as_str();
    Ok(container.sandbox.volumes.acquire(vm, user, volumes).await?)
}

/// The disk for the VMM, and the files that it is made of, each under its name.
fn describe(serial: &str, image: ImageDisk) -> (Disk, Vec<(String, OwnedFd)>) {
    let mut files = Vec::with_capacity(image.extents.len());
    let mut extents = Vec::with_capacity(image.extents.len());
    for (number, extent) in image.extents.into_iter().enumerate() {
        let name = format!("{serial}.{number}");
        extents.push(Extent {
            descriptor: name.clone(),
            offset: extent.offset,
            length: extent.length,
            ..Default::default()
        });
        files.push((name, extent.file.into()));
    }
    let disk = Disk {
        serial: serial.to_owned(),
        read_only: true,
        extents,
        ..Default::default()
    };
    (disk, files)
}

async fn create_in_guest(
    container: &Container,
    vm: &Arc<Vm>,
    plan: Plan,
    target: Option<ContainerId>,
    undo: &mut Undo,
) -> Result<ContainerUser, ContainerError> {
    let (at, id) = (Arc::clone(vm), container.id.clone());
    undo.push("delete it in the guest", move || async move {
        at.delete_container(&id).await
    });
    let request = CreateContainerRequest {
        container_id: container.id.to_string(),
        spec: plan.spec,
        rootfs: Some(RootFs {
            disk_serial: container.serial().to_owned(),
            read_only: plan.read_only,
            ..Default::default()
        })
        .into(),
        user: Some(plan.user).into(),
        stdin: container.config.stdin,
        stdin_once: container.config.stdin_once,
        sandbox_pid_namespace: plan.pids == PidMode::Pod,
        target_container_id: target.map(String::from).unwrap_or_default(),
        devices: block_devices(&container.config),
        ..Default::default()
    };
    let span = tracing::debug_span!("create_in_guest");
    let answer = vm.create_container(&request).instrument(span).await?;
    Ok(ContainerUser {
        uid: answer.uid,
        gid: answer.gid,
        groups: answer.supplemental_groups,
    })
}

fn block_devices(config: &ContainerConfig) -> Vec<BlockDevice> {
    let devices = config.devices.iter();
    let disks = devices.filter_map(|device| Some((device, device.disk()?.0)));
    disks
        .map(|(device, serial)| BlockDevice {
            path: device.container_path.clone(),
            disk_serial: serial.to_owned(),
            access: device.access.clone(),
            mode: device.mode,
            ..Default::default()
        })
        .collect()
}

/// Lets the VMM read the container's output from its first byte on.
async fn open_log(
    container: &Container,
    vm: &Arc<Vm>,
    undo: &mut Undo,
) -> Result<(), ContainerError> {
    let descriptor = log::send(container, vm).await?;
    let (at, id) = (Arc::clone(vm), container.id.clone());
    undo.push(
        "close the log",
        move || async move { at.close_log(&id).await },
    );
    Ok(vm.open_log(&container.id, &descriptor).await?)
}
