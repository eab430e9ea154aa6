//! What a container asks for, checked, in the form that its record keeps.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use isopod_proto::cri;
use serde::{Deserialize, Serialize};

use super::device::Device;
use super::mount::Mount;
use super::signal::Signal;
use crate::field::FieldError;
use crate::image::Image;
use crate::sandbox::{ProcessorSet, Volume};

/// Annotations that ask for devices, as device plugins set them beside `CDI_devices`.
const CDI_ANNOTATIONS: &str = "cdi.k8s.io/";

/// What is kept of a container's configuration. Its environment and command are not: they may hold
/// secrets, and nobody asks for them again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerConfig {
    /// With the attempt: which container of the pod it is.
    pub(crate) name: String,
    /// Which try at it.
    pub(crate) attempt: u32,
    /// The image as it was asked for.
    pub(crate) image: String,
    /// The image as the user wrote it, when the caller says so.
    pub(crate) user_specified_image: String,
    /// The image's id.
    pub(crate) image_id: String,
    /// The image's name with its digest, when it has one.
    pub(crate) image_ref: String,
    /// For selection.
    pub(crate) labels: BTreeMap<String, String>,
    /// For others.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Where its output goes, below the pod's log directory; empty: nowhere.
    pub(crate) log_path: PathBuf,
    /// It has a terminal.
    pub(crate) tty: bool,
    /// It has a standard input.
    pub(crate) stdin: bool,
    /// Which closes with the first stream.
    pub(crate) stdin_once: bool,
    /// What asks it to end.
    pub(crate) stop_signal: Signal,
    /// Its limits.
    pub(crate) resources: Resources,
    /// What it sees of the host and of other images.
    #[serde(default)]
    pub(crate) mounts: Vec<Mount>,
    /// Which devices it may use beside the usual ones.
    #[serde(default)]
    pub(crate) devices: Vec<Device>,
}

/// Limits of a container, as they were asked for (CRI `LinuxContainerResources`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resources {
    pub(crate) cpu_period: i64,
    pub(crate) cpu_quota: i64,
    pub(crate) cpu_shares: i64,
    pub(crate) memory_limit_in_bytes: i64,
    pub(crate) memory_swap_limit_in_bytes: i64,
    pub(crate) oom_score_adj: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) cpuset_mems: String,
    pub(crate) unified: BTreeMap<String, String>,
}

impl ContainerConfig {
    /// Checks a request's configuration; its mounts and devices were
    /// [resolved](super::mount::resolve).
    ///
    /// # Errors
    ///
    /// [`FieldError`] names the first field that is wrong or cannot be honoured.
    pub(crate) fn check(
        config: &cri::ContainerConfig,
        image: &Image,
        mounts: Vec<Mount>,
        devices: Vec<Device>,
    ) -> Result<Self, FieldError> {
        let metadata = config
            .metadata
            .as_ref()
            .ok_or_else(|| FieldError::new("config.metadata", "is missing"))?;
        if metadata.name.is_empty() {
            return Err(FieldError::new("config.metadata.name", "is empty"));
        }
        refuse_unsupported(config)?;
        let spec = config.image.clone().unwrap_or_default();
        let resources = config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.as_ref());
        Ok(Self {
            name: metadata.name.clone(),
            attempt: metadata.attempt,
            image: spec.image,
            user_specified_image: spec.user_specified_image,
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            labels: config.labels.clone().into_iter().collect(),
            annotations: config.annotations.clone().into_iter().collect(),
            log_path: log_path(&config.log_path)?,
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            stop_signal: stop_signal(config, image),
            resources: resources.map(Resources::of).unwrap_or_default(),
            mounts,
            devices,
        })
    }
}

impl ContainerConfig {
    /// What it needs of the host.
    pub(crate) fn volumes(&self) -> Vec<Volume> {
        self.mounts.iter().filter_map(Mount::volume).collect()
    }

    /// Serial numbers of the disks beside that of its root.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &str> {
        let images = self.mounts.iter().filter_map(Mount::disk);
        let devices = self.devices.iter().filter_map(Device::disk);
        let images = images.map(|(serial, _)| serial);
        images.chain(devices.map(|(serial, _)| serial))
    }
}

impl Resources {
    fn of(resources: &cri::LinuxContainerResources) -> Self {
        Self {
            cpu_period: resources.cpu_period,
            cpu_quota: resources.cpu_quota,
            cpu_shares: resources.cpu_shares,
            memory_limit_in_bytes: resources.memory_limit_in_bytes,
            memory_swap_limit_in_bytes: resources.memory_swap_limit_in_bytes,
            oom_score_adj: resources.oom_score_adj,
            cpuset_cpus: resources.cpuset_cpus.clone(),
            cpuset_mems: resources.cpuset_mems.clone(),
            unified: resources.unified.clone().into_iter().collect(),
        }
    }

    /// These with the changes of `update`: what it does not name stays as it is.
    pub(super) fn updated(&self, update: &cri::LinuxContainerResources) -> Self {
        let number = |new: i64, old: i64| if new == 0 { old } else { new };
        let text = |new: &String, old: &String| if new.is_empty() { old } else { new }.clone();
        let mut unified = self.unified.clone();
        unified.extend(update.unified.clone());
        Self {
            cpu_period: number(update.cpu_period, self.cpu_period),
            cpu_quota: number(update.cpu_quota, self.cpu_quota),
            cpu_shares: number(update.cpu_shares, self.cpu_shares),
            memory_limit_in_bytes: number(update.memory_limit_in_bytes, self.memory_limit_in_bytes),
            memory_swap_limit_in_bytes: number(
                update.memory_swap_limit_in_bytes,
                self.memory_swap_limit_in_bytes,
            ),
            oom_score_adj: number(update.oom_score_adj, self.oom_score_adj),
            cpuset_cpus: text(&update.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(&update.cpuset_mems, &self.cpuset_mems),
            unified,
        }
    }

    /// Which of the host's processors run it.
    pub(super) fn processors(&self) -> ProcessorSet {
        ProcessorSet {
            cpus: self.cpuset_cpus.clone(),
            mems: self.cpuset_mems.clone(),
        }
    }

    /// As the CRI's status shows them.
    pub(crate) fn to_cri(&self) -> cri::LinuxContainerResources {
        cri::LinuxContainerResources {
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_shares: self.cpu_shares,
            memory_limit_in_bytes: self.memory_limit_in_bytes,
            memory_swap_limit_in_bytes: self.memory_swap_limit_in_bytes,
            oom_score_adj: self.oom_score_adj,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            unified: self.unified.clone().into_iter().collect(),
            hugepage_limits: Vec::new(),
        }
    }
}

/// Refuses what would be left out silently otherwise. What the kubelet sends with every container
/// and means nothing in a guest of its own (SELinux labels on a node without SELinux, AppArmor's
/// default profile, hugepage limits of 0) passes.
fn refuse_unsupported(config: &cri::ContainerConfig) -> Result<(), FieldError> {
    FieldError::refuse_if(!config.cdi_devices.is_empty(), "config.CDI_devices")?;
    let by_annotation = |name: &&String| name.starts_with(CDI_ANNOTATIONS);
    if let Some(name) = config.annotations.keys().find(by_annotation) {
        let field = format!("config.annotations.{name}");
        return Err(FieldError::new(field, "CDI devices are not supported yet"));
    }
    FieldError::refuse_if(config.windows.is_some(), "config.windows")?;
    let Some(linux) = &config.linux else {
        return Ok(());
    };
    let Some(security) = &linux.security_context else {
        return Ok(());
    };
    let apparmor = security.apparmor.as_ref().is_some_and(|profile| {
        profile.profile_type() == cri::security_profile::ProfileType::Localhost
    });
    FieldError::refuse_if(apparmor, "config.linux.security_context.apparmor")?;
    refuse_deprecated_profiles(security)
}

#[expect(
    deprecated,
    reason = "old callers still send these fields, and they must not be ignored"
)]
fn refuse_deprecated_profiles(
    security: &cri::LinuxContainerSecurityContext,
) -> Result<(), FieldError> {
    let default = |profile: &str| ["", "runtime/default", "unconfined"].contains(&profile);
    FieldError::refuse_if(
        !default(&security.apparmor_profile),
        "config.linux.security_context.apparmor_profile",
    )?;
    FieldError::refuse_if(
        security.seccomp.is_none() && !default(&security.seccomp_profile_path),
        "config.linux.security_context.seccomp_profile_path",
    )
}

/// A path below the pod's log directory.
fn log_path(path: &str) -> Result<PathBuf, FieldError> {
    let down = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if Path::new(path).components().all(down) && !path.ends_with('/') {
        return Ok(path.into());
    }
    Err(FieldError::new(
        "config.log_path",
        "is not a relative path of a file, without `..`",
    ))
}

/// The caller's, or the image's, or TERM. An image that names no known signal means the default.
fn stop_signal(config: &cri::ContainerConfig, image: &Image) -> Signal {
    let of_image = || {
        let config = image.config.config().as_ref()?;
        config.stop_signal().as_deref().and_then(Signal::parse)
    };
    Signal::of_cri(config.stop_signal())
        .or_else(of_image)
        .unwrap_or(Signal::TERM)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    pub(crate) fn image(config: &str) -> Image {
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{config},
                "rootfs":{{"type":"layers","diff_ids":[]}},"history":[]}}"#
        );
        Image {
            id: "sha256:1".into(),
            repo_tags: vec!["registry/busybox:1".into()],
            repo_digests: vec!["registry/busybox@sha256:2".into()],
            size: 1,
            pinned: false,
            config: Arc::new(serde_json::from_str(&json).unwrap()),
        }
    }

    pub(crate) fn request() -> cri::ContainerConfig {
        let metadata = cri::ContainerMetadata {
            name: "main".into(),
            attempt: 0,
        };
        cri::ContainerConfig {
            metadata: Some(metadata),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut cri::ContainerConfig)) -> String {
        let mut config = request();
        change(&mut config);
        ContainerConfig::check(&config, &image("{}"), Vec::new(), Vec::new())
            .unwrap_err()
            .field
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        assert_eq!(refused(|config| config.metadata = None), "config.metadata");
        let cdi = "cdi.k8s.io/vendor_device";
        assert_eq!(
            refused(|config| {
                config
                    .annotations
                    .insert(cdi.into(), "vendor.com/device=0".into());
            }),
            format!("config.annotations.{cdi}")
        );
        for path in ["/var/log/x", "../x", "a/../b", "dir/"] {
            assert_eq!(
                refused(|config| config.log_path = path.into()),
                "config.log_path"
            );
        }
    }

    #[test]
    fn stop_signal_is_the_callers_then_the_images_then_term() {
        let signal = |config: &cri::ContainerConfig, image: &Image| {
            ContainerConfig::check(config, image, Vec::new(), Vec::new())
                .unwrap()
                .stop_signal
                .number()
        };
        let mut config = request();
        assert_eq!(signal(&config, &image("{}")), 15);
        assert_eq!(signal(&config, &image(r#"{"StopSignal":"SIGQUIT"}"#)), 3);
        assert_eq!(signal(&config, &image(r#"{"StopSignal":"nonsense"}"#)), 15);
        config.stop_signal = cri::Signal::Sigusr1.into();
        assert_eq!(signal(&config, &image(r#"{"StopSignal":"SIGQUIT"}"#)), 10);
    }
}
