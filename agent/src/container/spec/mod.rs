//! Makes the caller's OCI spec the container's own.
//!
//! The caller describes the container; where it lies in this guest is the agent's to say: the root
//! file system, the cgroup, the pid namespace to join, the files that the sandbox shares.

mod users;

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxDeviceBuilder,
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, Mount, MountBuilder, Process,
    RootBuilder, Spec, UserBuilder,
};

pub(crate) use self::users::MappedMount;
use super::{IdError, Identity, Serial};
use crate::user_namespace::Users;

/// Longest spec, in bytes of JSON.
const SPEC_MAX: usize = 2 * 1024 * 1024;

/// Most arguments of a command, and most variables in its environment.
const STRINGS_MAX: usize = 65_536;

/// A spec that cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// Larger than any real one.
    #[error("a spec of {0} bytes is over the limit of {SPEC_MAX}")]
    Size(usize),
    /// Not an OCI runtime spec.
    #[error("not an OCI runtime spec")]
    Json(#[source] serde_json::Error),
    /// It says nothing about something that is needed.
    #[error("the spec has no {0}")]
    Missing(&'static str),
    /// A command line or environment that cannot be passed to exec(2).
    #[error("the spec's {0} has a NUL byte in it, or too many entries")]
    Strings(&'static str),
    /// Not of this form.
    #[error("the spec's version {0:?} is not 1.x")]
    Version(String),
    /// A mount of something that has no such name.
    #[error("the spec's mount at {destination}")]
    Mount {
        /// Where.
        destination: PathBuf,
        /// Why not.
        #[source]
        source: IdError,
    },
    /// A mount of an image's part that is no path in it.
    #[error("the spec's mount at {0} has no source in the form `serial/path`, without `..`")]
    Part(PathBuf),
    /// The user namespace, or the ids of a mount, are not the sandbox's.
    #[error("the spec's {0} is not that of the sandbox")]
    Users(&'static str),
    /// Something that does not fit together.
    #[error("the spec's {0}")]
    Builder(&'static str),
}

/// Which pid namespace a container is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidNamespace {
    /// What the spec says: a new one, usually.
    Own,
    /// That of the process at this path (`/proc/<pid>/ns/pid`).
    Shared(PathBuf),
}

/// Where a container lies in this guest.
#[derive(Debug)]
pub(crate) struct Place {
    /// Mount point of its root file system.
    pub(crate) rootfs: PathBuf,
    /// No process may write to it.
    pub(crate) read_only: bool,
    /// Its cgroup, absolute in the hierarchy.
    pub(crate) cgroup: PathBuf,
    /// Its pid namespace.
    pub(crate) pid_namespace: PidNamespace,
    /// Files of the sandbox, and where containers see them.
    pub(crate) shared_files: Vec<(PathBuf, &'static str)>,
    /// What the mounts are of that the caller names ([`ContainerSpec::sources`]), in their order.
    pub(crate) sources: Vec<PathBuf>,
    /// Block devices beside those of the spec.
    pub(crate) devices: Vec<Device>,
    /// The sandbox's user namespace.
    pub(crate) users: Option<Users>,
}

/// A block device of a container.
#[derive(Debug)]
pub(crate) struct Device {
    /// Where the container sees it.
    pub(crate) path: PathBuf,
    /// Major number.
    pub(crate) major: i64,
    /// Minor number.
    pub(crate) minor: i64,
    /// Of `r`, `w` and `m`.
    pub(crate) access: String,
    /// Permissions of the node.
    pub(crate) mode: u32,
}

/// What a mount is of, in the caller's words (`agent.proto`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A folder or a file of the host.
    Volume(Serial),
    /// A part of an image, on a disk of its own.
    Image {
        /// The disk.
        serial: Serial,
        /// Which part, from the image's root on.
        part: PathBuf,
    },
    /// A folder of the container's own root file system, which stays writable.
    Own(PathBuf),
}

/// A checked spec.
#[derive(Debug)]
pub(crate) struct ContainerSpec {
    spec: Spec,
}

impl ContainerSpec {
    /// Reads a spec that a caller sent.
    ///
    /// # Errors
    ///
    /// [`SpecError`] when it is not one, or misses what every container needs.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, SpecError> {
        if json.len() > SPEC_MAX {
            return Err(SpecError::Size(json.len()));
        }
        let spec: Spec = serde_json::from_slice(json).map_err(SpecError::Json)?;
        if !spec.version().starts_with("1.") {
            return Err(SpecError::Version(spec.version().clone()));
        }
        if spec.linux().is_none() {
            return Err(SpecError::Missing("linux section"));
        }
        let process = spec
            .process()
            .as_ref()
            .ok_or(SpecError::Missing("process"))?;
        check_strings("command", process.args().as_deref().unwrap_or_default())?;
        check_strings("environment", process.env().as_deref().unwrap_or_default())?;
        if process.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(SpecError::Missing("command"));
        }
        Ok(Self { spec })
    }

    /// What the mounts are of that the caller names, in their order.
    ///
    /// # Errors
    ///
    /// [`SpecError::Mount`] and [`SpecError::Part`].
    pub(crate) fn sources(&self) -> Result<Vec<Source>, SpecError> {
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        let sources = mounts.iter().filter_map(|mount| source(mount).transpose());
        sources.collect()
    }

    /// Puts the container in its place and gives its process an identity.
    ///
    /// # Errors
    ///
    /// [`SpecError::Builder`] for what the spec's own rules refuse.
    pub(crate) fn settle(&mut self, place: &Place, identity: &Identity) -> Result<(), SpecError> {
        let spec = &mut self.spec;
        let root = RootBuilder::default()
            .path(&place.rootfs)
            .readonly(place.read_only);
        spec.set_root(Some(
            root.build().map_err(|_field| SpecError::Builder("root"))?,
        ));

        let mut linux = spec
            .linux()
            .clone()
            .ok_or(SpecError::Missing("linux section"))?;
        linux.set_cgroups_path(Some(place.cgroup.clone()));
        for device in &place.devices {
            add_device(&mut linux, device)?;
        }
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        if let PidNamespace::Shared(path) = &place.pid_namespace {
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
            namespaces.push(join(LinuxNamespaceType::Pid, path)?);
        }
        users::settle(&mut linux, &mut namespaces, place.users.as_ref())?;
        // Without a namespace of its own the container has the sandbox's name, and must not set it.
        if !namespaces.iter().any(|namespace| {
            namespace.typ() == LinuxNamespaceType::Uts && namespace.path().is_none()
        }) {
            spec.set_hostname(None);
            spec.set_domainname(None);
        }
        linux.set_namespaces(Some(namespaces));
        spec.set_linux(Some(linux));

        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let mut sources = place.sources.iter();
        for mount in &mut mounts {
            if source(mount)?.is_some() {
                let path = sources
                    .next()
                    .ok_or(SpecError::Missing("source of a mount"))?;
                mount.set_typ(Some("bind".to_owned()));
                mount.set_source(Some(path.clone()));
            }
        }
        for (source, destination) in &place.shared_files {
            let destination = Path::new(destination);
            if !mounts
                .iter()
                .any(|mount| mount.destination() == destination)
            {
                let mut mount = bind(source, destination, place.read_only)?;
                if let Some(users) = &place.users {
                    mount.set_uid_mappings(users.ids.uids.to_oci());
                    mount.set_gid_mappings(users.ids.gids.to_oci());
                }
                mounts.push(mount);
            }
        }
        spec.set_mounts(Some(mounts));

        let mut process = spec
            .process()
            .clone()
            .ok_or(SpecError::Missing("process"))?;
        settle_process(&mut process, identity)?;
        spec.set_process(Some(process));
        Ok(())
    }

    /// The spec as libcontainer reads it.
    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The container's first process, whose environment and rights its execs inherit.
    pub(crate) fn process(&self) -> Option<&Process> {
        self.spec.process().as_ref()
    }

    /// The system call filter.
    pub(crate) fn seccomp(&self) -> Option<&LinuxSeccomp> {
        self.spec.linux().as_ref()?.seccomp().as_ref()
    }

    /// Rules for devices, beside the standard ones.
    pub(crate) fn device_rules(&self) -> &[LinuxDeviceCgroup] {
        let resources = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref());
        resources
            .and_then(|resources| resources.devices().as_deref())
            .unwrap_or_default()
    }

    /// Whether the init's end ends every process: it is PID 1 of a namespace of its own.
    pub(crate) fn has_own_pid_namespace(&self) -> bool {
        let namespaces = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        namespaces.is_some_and(|namespaces| {
            namespaces.iter().any(|namespace| {
                namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none()
            })
        })
    }
}

/// Checks a command line or an environment.
///
/// # Errors
///
/// [`SpecError::Strings`].
pub(crate) fn check_strings(what: &'static str, strings: &[String]) -> Result<(), SpecError> {
    if strings.len() > STRINGS_MAX || strings.iter().any(|string| string.contains('\0')) {
        return Err(SpecError::Strings(what));
    }
    Ok(())
}

/// The node of a block device, and the right to use it.
fn add_device(linux: &mut Linux, device: &Device) -> Result<(), SpecError> {
    let failed = |_field| SpecError::Builder("devices");
    let node = LinuxDeviceBuilder::default()
        .path(&device.path)
        .typ(LinuxDeviceType::B)
        .major(device.major)
        .minor(device.minor)
        .file_mode(device.mode)
        .uid(0_u32)
        .gid(0_u32)
        .build()
        .map_err(failed)?;
    let rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::B)
        .major(device.major)
        .minor(device.minor)
        .access(&device.access)
        .build()
        .map_err(failed)?;
    let mut nodes = linux.devices().clone().unwrap_or_default();
    nodes.push(node);
    linux.set_devices(Some(nodes));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(rule);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}

fn settle_process(process: &mut Process, identity: &Identity) -> Result<(), SpecError> {
    let mut user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone());
    if let Some(umask) = process.user().umask() {
        user = user.umask(umask);
    }
    process.set_user(user.build().map_err(|_field| SpecError::Builder("user"))?);

    let mut env = process.env().clone().unwrap_or_default();
    // Otherwise libcontainer asks glibc, which loads what the container's nsswitch.conf names.
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    process.set_env(Some(env));

    // libcontainer takes "false" for a wish to have it, when it loads the system call filter.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    // What is not listed is not granted; libcontainer leaves a missing set as it is.
    let given = process.capabilities().as_ref();
    let set = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        given
            .and_then(|given| get(given).clone())
            .unwrap_or_default()
    };
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(set(LinuxCapabilities::bounding))
        .effective(set(LinuxCapabilities::effective))
        .permitted(set(LinuxCapabilities::permitted))
        .inheritable(set(LinuxCapabilities::inheritable))
        .ambient(set(LinuxCapabilities::ambient))
        .build()
        .map_err(|_field| SpecError::Builder("capabilities"))?;
    process.set_capabilities(Some(capabilities));
    Ok(())
}

/// What a mount is of, if the caller names it.
fn source(mount: &Mount) -> Result<Option<Source>, SpecError> {
    let destination = || mount.destination().clone();
    let named = |name: &Path| {
        let name = name.to_string_lossy().into_owned();
        Serial::new(name).map_err(|source| SpecError::Mount {
            destination: destination(),
            source,
        })
    };
    let given = mount.source().clone().unwrap_or_default();
    Ok(match mount.typ().as_deref() {
        Some("volume") => Some(Source::Volume(named(&given)?)),
        Some("image") => {
            let mut parts = given.components();
            let serial = match parts.next() {
                Some(Component::Normal(serial)) => named(Path::new(serial))?,
                _ => return Err(SpecError::Part(destination())),
            };
            let part = parts.as_path();
            if !part
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
            {
                return Err(SpecError::Part(destination()));
            }
            let part = Path::new("/").join(part);
            Some(Source::Image { serial, part })
        }
        Some("own") => Some(Source::Own(destination())),
        _ => None,
    })
}

fn join(typ: LinuxNamespaceType, path: &Path) -> Result<LinuxNamespace, SpecError> {
    LinuxNamespaceBuilder::default()
        .typ(typ)
        .path(path)
        .build()
        .map_err(|_field| SpecError::Builder("namespaces"))
}

fn bind(source: &Path, destination: &Path, read_only: bool) -> Result<Mount, SpecError> {
    let access = if read_only { "ro" } else { "rw" };
    let options = ["rbind", "rprivate", access].map(str::to_owned).to_vec();
    MountBuilder::default()
        .source(source)
        .destination(destination)
        .typ("bind")
        .options(options)
        .build()
        .map_err(|_field| SpecError::Builder("mounts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(process: &str, rest: &str) -> String {
        format!(
            r#"{{"ociVersion":"1.2.0","process":{{"cwd":"/","user":{{"uid":9,"gid":9,"umask":18}},
            "args":["true"],"env":["PATH=/bin"]{process}}},
            "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"pid"}}]}}{rest}}}"#
        )
    }

    fn settled(json: &str, pid_namespace: PidNamespace) -> ContainerSpec {
        let place = Place {
            rootfs: "/run/rootfs".into(),
            read_only: true,
            cgroup: "/isopod/c1".into(),
            pid_namespace,
            shared_files: vec![("/run/resolv.conf".into(), "/etc/resolv.conf")],
            sources: vec!["/run/volumes/v1".into(), "/run/images/i1/etc".into()],
            devices: vec![Device {
                path: "/dev/data".into(),
                major: 254,
                minor: 3,
                access: "r".into(),
                mode: 0o660,
            }],
            users: None,
        };
        let identity = Identity {
            uid: 33,
            gid: 34,
            groups: vec![34, 40],
            home: "/var/www".to_owned(),
        };
        let mut spec = ContainerSpec::parse(json.as_bytes()).unwrap();
        spec.settle(&place, &identity).unwrap();
        spec
    }

    #[test]
    fn what_every_container_needs_is_asked_for() {
        for bad in [
            "",
            "[]",
            r#"{"ociVersion":"2.0.0","linux":{}}"#,
            r#"{"ociVersion":"1.0.0","linux":{}}"#,
            r#"{"ociVersion":"1.0.0","process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["a"]}}"#,
            r#"{"ociVersion":"1.0.0","linux":{},"process":{"cwd":"/","user":{"uid":0,"gid":0}}}"#,
        ] {
            assert!(ContainerSpec::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(ContainerSpec::parse(json("", "").as_bytes()).is_ok());
    }

    #[test]
    fn a_nul_byte_in_the_command_is_refused() {
        let bad = json("", "").replace("true", r"tr\u0000ue");
        let error = ContainerSpec::parse(bad.as_bytes()).unwrap_err();
        assert!(matches!(error, SpecError::Strings("command")));
    }

    #[test]
    fn place_and_identity_replace_the_callers() {
        let container = settled(
            &json("", r#","root":{"path":"/etc"},"hostname":"h""#),
            PidNamespace::Own,
        );
        let spec = container.spec();
        let root = spec.root().as_ref().unwrap();
        assert_eq!(
            (root.path().to_str(), root.readonly()),
            (Some("/run/rootfs"), Some(true))
        );
        assert_eq!(spec.hostname(), &None);
        let process = container.process().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
        assert_eq!(process.user().umask(), Some(18));
        assert!(
            process
                .env()
                .as_ref()
                .unwrap()
                .contains(&"HOME=/var/www".to_owned())
        );
        assert!(container.has_own_pid_namespace());
    }

    #[test]
    fn a_home_in_the_spec_stays() {
        let json = json("", "").replace("PATH=/bin", "HOME=/elsewhere");
        let container = settled(&json, PidNamespace::Own);
        let env = container.process().unwrap().env().clone().unwrap();
        assert_eq!(env, ["HOME=/elsewhere"]);
    }

    #[test]
    fn capabilities_that_are_not_listed_are_not_granted() {
        let container = settled(&json("", ""), PidNamespace::Own);
        let none = container.process().unwrap().capabilities().clone().unwrap();
        assert!(none.bounding().as_ref().unwrap().is_empty());
        let some = json(r#","capabilities":{"bounding":["CAP_KILL"]}"#, "");
        let container = settled(&some, PidNamespace::Own);
        let some = container.process().unwrap().capabilities().clone().unwrap();
        assert_eq!(some.bounding().as_ref().unwrap().len(), 1);
        assert!(some.ambient().as_ref().unwrap().is_empty());
    }

    #[test]
    fn a_shared_pid_namespace_replaces_the_specs() {
        let path = PathBuf::from("/proc/7/ns/pid");
        let container = settled(&json("", ""), PidNamespace::Shared(path.clone()));
        let linux = container.spec().linux().clone().unwrap();
        let namespaces = linux.namespaces().clone().unwrap();
        let pid: Vec<_> = namespaces
            .iter()
            .filter(|ns| ns.typ() == LinuxNamespaceType::Pid)
            .collect();
        assert_eq!(pid.len(), 1);
        assert_eq!(pid[0].path(), &Some(path));
        assert!(!container.has_own_pid_namespace());
    }

    #[test]
    fn mounts_of_volumes_and_images_are_bound_from_where_they_are() {
        let mounts = r#","mounts":[
            {"destination":"/a","type":"volume","source":"v1","options":["rbind","ro"]},
            {"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/b","type":"image","source":"i1/etc"}]"#;
        let json = json("", mounts);
        let sources = ContainerSpec::parse(json.as_bytes()).unwrap().sources();
        let serial = |name: &str| Serial::new(name.to_owned()).unwrap();
        let image = Source::Image {
            serial: serial("i1"),
            part: "/etc".into(),
        };
        assert_eq!(sources.unwrap(), [Source::Volume(serial("v1")), image]);
        let container = settled(&json, PidNamespace::Own);
        let mounts = container.spec().mounts().clone().unwrap();
        let source = |index: usize| mounts[index].source().clone().unwrap();
        assert_eq!(source(0), Path::new("/run/volumes/v1"));
        assert_eq!(mounts[0].typ().as_deref(), Some("bind"));
        assert_eq!(source(1), Path::new("proc"));
        assert_eq!(source(2), Path::new("/run/images/i1/etc"));
    }

    #[test]
    fn a_block_device_has_a_node_and_a_rule() {
        let container = settled(&json("", ""), PidNamespace::Own);
        let linux = container.spec().linux().clone().unwrap();
        let node = &linux.devices().as_ref().unwrap()[0];
        assert_eq!((node.path().to_str(), node.minor()), (Some("/dev/data"), 3));
        let rule = container.device_rules().last().unwrap();
        assert_eq!(
            (rule.major(), rule.access().as_deref()),
            (Some(254), Some("r"))
        );
    }

    #[test]
    fn a_mount_of_something_without_a_name_is_refused() {
        for (kind, name) in [
            ("volume", ""),
            ("volume", "../etc"),
            ("volume", "a/b"),
            ("image", "/etc"),
            ("image", "i1/../.."),
            ("image", ".."),
        ] {
            let mounts =
                format!(r#","mounts":[{{"destination":"/a","type":"{kind}","source":"{name}"}}]"#);
            let spec = ContainerSpec::parse(json("", &mounts).as_bytes()).unwrap();
            assert!(spec.sources().is_err(), "{kind} {name:?}");
        }
    }

    #[test]
    fn shared_files_give_way_to_the_callers_mounts() {
        let mount = r#","mounts":[{"destination":"/etc/resolv.conf","source":"/x","type":"bind"}]"#;
        let container = settled(&json("", mount), PidNamespace::Own);
        let mounts = container.spec().mounts().clone().unwrap();
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/x")));
        let mounts = settled(&json("", ""), PidNamespace::Own)
            .spec()
            .mounts()
            .clone()
            .unwrap();
        assert!(
            mounts[0]
                .options()
                .as_ref()
                .unwrap()
                .contains(&"ro".to_owned())
        );
    }
}
