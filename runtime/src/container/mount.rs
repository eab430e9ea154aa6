//! What a container sees of the host and of other images.
//!
//! A folder or a file of the host becomes a *volume* of its sandbox: the daemon opens it, the VMM
//! serves it, the agent binds it. Containers that mount the same one share it. An image becomes a
//! disk of the container's own.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use isopod_proto::cri;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::field::FieldError;
use crate::id::ContainerId;
use crate::image::ImageStore;
use crate::sandbox::{Propagation, UserNamespace, Volume, has_submounts};

/// Most mounts of a container.
const MOUNTS_MAX: usize = 1024;

/// Length of a volume's name: what the agent takes for a name.
const NAME_LEN: usize = 20;

/// Options that a mount can have beside being read-only.
const OPTIONS: [&str; 10] = [
    "dev",
    "nodev",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "atime",
    "noatime",
    "relatime",
    "strictatime",
];

/// A mount that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Where the container sees it.
    pub(crate) container_path: String,
    /// What it is.
    pub(crate) source: Source,
    /// Nobody in the container writes to it.
    pub(crate) read_only: bool,
    /// But to what the host mounted in it: read-only was not asked for recursively.
    #[serde(default)]
    pub(crate) submounts_writable: bool,
    /// That was asked for in so many words.
    pub(crate) recursive_read_only: bool,
    /// Whether later mounts of the host appear in it.
    pub(crate) propagation: Propagation,
    /// Further options.
    pub(crate) options: Vec<String>,
    /// Its files have the ids that they have in the pod's user namespace, which is this one.
    #[serde(default)]
    pub(crate) users: Option<UserNamespace>,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// A folder or a file of the host.
    Host {
        /// As it was asked for.
        path: PathBuf,
        /// Without symbolic links.
        real: PathBuf,
        /// The volume's name.
        volume: String,
    },
    /// A part of an image.
    Image {
        /// As it was asked for.
        image: String,
        /// The image's id.
        image_id: String,
        /// From the image's root on; empty: all of it.
        part: String,
        /// Serial number of its disk.
        serial: String,
    },
}

impl Mount {
    /// The volume that it needs.
    pub(crate) fn volume(&self) -> Option<Volume> {
        match &self.source {
            Source::Host { real, volume, .. } => Some(Volume {
                name: volume.clone(),
                path: real.clone(),
                read_only: self.is_read_only(),
                read_only_root: self.submounts_writable,
                propagation: self.propagation,
            }),
            Source::Image { .. } => None,
        }
    }

    /// Whether nothing at all is written to it.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only && !self.submounts_writable
    }

    /// The disk that it needs: its serial number, and the image's id.
    pub(crate) fn disk(&self) -> Option<(&str, &str)> {
        match &self.source {
            Source::Image {
                serial, image_id, ..
            } => Some((serial, image_id)),
            Source::Host { .. } => None,
        }
    }

    /// As the CRI's status shows it.
    pub(crate) fn to_cri(&self) -> cri::Mount {
        let propagation = match self.propagation {
            Propagation::Private => cri::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        };
        let mappings = self.users.map(|users| users.mappings());
        let [uid_mappings, gid_mappings] = mappings.unwrap_or_default();
        let mut mount = cri::Mount {
            container_path: self.container_path.clone(),
            readonly: self.read_only,
            recursive_read_only: self.recursive_read_only,
            propagation: propagation.into(),
            uid_mappings,
            gid_mappings,
            mount_options: self.options.clone(),
            ..Default::default()
        };
        match &self.source {
            Source::Host { path, .. } => mount.host_path = path.to_string_lossy().into_owned(),
            Source::Image { image, part, .. } => {
                mount.image = Some(cri::ImageSpec {
                    image: image.clone(),
                    ..Default::default()
                });
                mount.image_sub_path.clone_from(part);
            }
        }
        mount
    }
}

/// Checks the mounts of a container in a pod with the user namespace `users`, and finds what they are
/// of: host paths are resolved, images looked up. Nothing is opened or made. Blocking.
///
/// # Errors
///
/// [`FieldError`] names the first that cannot be honoured.
pub(crate) fn resolve(
    asked: &[cri::Mount],
    id: &ContainerId,
    images: &ImageStore,
    users: Option<UserNamespace>,
) -> Result<Vec<Mount>, FieldError> {
    if asked.len() > MOUNTS_MAX {
        let reason = format!("has more than {MOUNTS_MAX} entries");
        return Err(FieldError::new("config.mounts", reason));
    }
    let mut mounts = Vec::with_capacity(asked.len());
    for mount in asked {
        let source = match &mount.image {
            Some(image) => image_source(mount, image, id, mounts.len(), images)?,
            None => host_source(mount)?,
        };
        mounts.push(check(mount, source, users)?);
    }
    Ok(mounts)
}

fn error(field: &str, mount: &cri::Mount, reason: impl std::fmt::Display) -> FieldError {
    let at = &mount.container_path;
    FieldError::new(
        format!("config.mounts.{field}"),
        format!("(at {at:?}) {reason}"),
    )
}

/// What holds for every mount.
fn check(
    mount: &cri::Mount,
    source: Source,
    users: Option<UserNamespace>,
) -> Result<Mount, FieldError> {
    let target = Path::new(&mount.container_path);
    let plain = target
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !plain || !target.is_absolute() || target == Path::new("/") || has_nul(target) {
        let reason = "is not an absolute path below `/` without `..`";
        return Err(error("container_path", mount, reason));
    }
    let propagation = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => Propagation::Private,
        cri::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        cri::MountPropagation::PropagationBidirectional => {
            let reason = "PROPAGATION_BIDIRECTIONAL would let a virtual machine mount on the host";
            return Err(error("propagation", mount, reason));
        }
    };
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        let reason = "needs `readonly`, and propagation to be private";
        return Err(error("recursive_read_only", mount, reason));
    }
    let users = check_mappings(mount, users)?;
    if let Some(wrong) = mount
        .mount_options
        .iter()
        .find(|option| !OPTIONS.contains(&option.as_str()))
    {
        return Err(error(
            "mount_options",
            mount,
            format!("{wrong:?} is not supported"),
        ));
    }
    if mount.selinux_relabel {
        tracing::debug!("a guest has no SELinux: nothing is relabelled");
    }
    let submounts_writable = match &source {
        Source::Host { real, .. } => has_writable_submounts(mount, real),
        Source::Image { .. } => false,
    };
    Ok(Mount {
        container_path: mount.container_path.clone(),
        submounts_writable,
        read_only: mount.readonly || matches!(source, Source::Image { .. }),
        source,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        options: mount.mount_options.clone(),
        users,
    })
}

/// The pod's user namespace for a mount that has its ids, none for one that has none. The guest has no
/// other to map them with.
fn check_mappings(
    mount: &cri::Mount,
    users: Option<UserNamespace>,
) -> Result<Option<UserNamespace>, FieldError> {
    let lists = [&mount.uid_mappings, &mount.gid_mappings];
    if lists.iter().all(|ids| ids.is_empty()) {
        return Ok(None);
    }
    let Some(users) = users else {
        let field = if lists[0].is_empty() {
            "gidMappings"
        } else {
            "uidMappings"
        };
        return Err(error(field, mount, "needs a pod with a user namespace"));
    };
    let wanted = users.mappings();
    for ((field, asked), wanted) in ["uidMappings", "gidMappings"]
        .iter()
        .zip(lists)
        .zip(&wanted)
    {
        if asked != wanted {
            return Err(error(
                field,
                mount,
                "is not that of the pod's user namespace",
            ));
        }
    }
    Ok(Some(users))
}

fn has_nul(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

fn host_source(mount: &cri::Mount) -> Result<Source, FieldError> {
    let path = Path::new(&mount.host_path);
    let wrong = |reason: &str| error("host_path", mount, format!("{} {reason}", path.display()));
    if !path.is_absolute() || has_nul(path) {
        return Err(wrong("is not an absolute path"));
    }
    if !mount.image_sub_path.is_empty() {
        return Err(error("image_sub_path", mount, "needs `image` beside it"));
    }
    let found = path.canonicalize().and_then(|real| {
        let kind = real.metadata()?.file_type();
        Ok((real, kind))
    });
    let (real, kind) = found.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => wrong("does not exist on the host"),
        _ => wrong(&format!("cannot be used: {source}")),
    })?;
    if !kind.is_dir() && !kind.is_file() {
        let what = match () {
            () if kind.is_socket() => "is a socket: nobody in a virtual machine can connect to it",
            () if kind.is_fifo() => "is a pipe, which a virtual machine cannot share with the host",
            () => "is a device: it belongs in `devices`",
        };
        return Err(wrong(what));
    }
    let shallow = has_writable_submounts(mount, &real);
    let volume = volume_name(&real, mount.propagation(), shallow);
    Ok(Source::Host {
        path: path.to_owned(),
        real,
        volume,
    })
}

/// Whether the container may write to what is mounted in a folder that it may not write to (CRI,
/// `Mount.recursive_read_only`). Mounts that the host makes later are never written to.
fn has_writable_submounts(mount: &cri::Mount, real: &Path) -> bool {
    mount.readonly
        && !mount.recursive_read_only
        && mount.propagation() == cri::MountPropagation::PropagationPrivate
        && has_submounts(real)
}

/// The same for the same folder, so that containers share it.
fn volume_name(real: &Path, propagation: cri::MountPropagation, read_only_root: bool) -> String {
    let mut digest = Sha256::new();
    digest.update(propagation.as_str_name());
    digest.update([u8::from(read_only_root)]);
    digest.update([0]);
    digest.update(real.as_os_str().as_encoded_bytes());
    let mut name = hex::encode(digest.finalize());
    name.truncate(NAME_LEN);
    name
}

fn image_source(
    mount: &cri::Mount,
    image: &cri::ImageSpec,
    id: &ContainerId,
    number: usize,
    images: &ImageStore,
) -> Result<Source, FieldError> {
    if !mount.host_path.is_empty() {
        return Err(error("host_path", mount, "and `image` exclude each other"));
    }
    let part = Path::new(&mount.image_sub_path);
    let down = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !part.components().all(down) || has_nul(part) {
        let reason = "is not a relative path without `..`";
        return Err(error("image_sub_path", mount, reason));
    }
    let Some(found) = images.find(&image.image) else {
        let reason = format!("{:?} is not on this node", image.image);
        return Err(error("image", mount, reason));
    };
    // Fewer mounts than the number has room for.
    let serial = format!("{}.{number}", id.as_str().get(..15).unwrap_or_default());
    Ok(Source::Image {
        image: image.image.clone(),
        image_id: found.id,
        part: part.components().as_path().to_string_lossy().into_owned(),
        serial,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn asked(path: &Path) -> cri::Mount {
        cri::Mount {
            container_path: "/data".into(),
            host_path: path.to_str().unwrap().into(),
            ..Default::default()
        }
    }

    fn resolved(mount: &cri::Mount) -> Result<Mount, FieldError> {
        check(mount, host_source(mount)?, None)
    }

    fn refused(mount: &cri::Mount) -> String {
        resolved(mount).unwrap_err().field
    }

    #[test]
    fn a_symbolic_link_stands_for_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", &link).unwrap();
        let through_link = resolved(&asked(&link)).unwrap();
        let direct = resolved(&asked(&dir.path().join("real"))).unwrap();
        assert_eq!(through_link.volume(), direct.volume());
        assert_eq!(through_link.to_cri().host_path, link.to_str().unwrap());
        let mut later = asked(&link);
        later.propagation = cri::MountPropagation::PropagationHostToContainer.into();
        let later = resolved(&later).unwrap().volume().unwrap();
        assert_ne!(later.name, direct.volume().unwrap().name);
        assert_eq!(later.name.len(), NAME_LEN);
    }

    #[test]
    fn what_cannot_be_shared_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        for path in [
            dir.path().join("missing"),
            socket,
            PathBuf::from("/dev/null"),
            PathBuf::from("relative"),
            PathBuf::new(),
        ] {
            assert_eq!(
                refused(&asked(&path)),
                "config.mounts.host_path",
                "{path:?}"
            );
        }
    }

    #[test]
    fn ids_are_mapped_as_the_pods_are_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mapping = |host_id| {
            vec![cri::IdMapping {
                host_id,
                container_id: 0,
                length: 65_536,
            }]
        };
        let options = cri::UserNamespace {
            mode: cri::NamespaceMode::Pod.into(),
            uids: mapping(100_000),
            gids: mapping(200_000),
        };
        let users = UserNamespace::check(Some(&options), "users").unwrap();
        let with = |uids: Vec<cri::IdMapping>, gids: Vec<cri::IdMapping>| {
            let mut mount = asked(dir.path());
            (mount.uid_mappings, mount.gid_mappings) = (uids, gids);
            let checked = check(&mount, host_source(&mount).unwrap(), users);
            checked.map_err(|error| error.field)
        };
        let mapped = with(options.uids.clone(), options.gids.clone()).unwrap();
        assert_eq!(mapped.users, users);
        assert_eq!(mapped.to_cri().uid_mappings, options.uids);
        assert_eq!(mapped.to_cri().gid_mappings, options.gids);
        assert_eq!(with(Vec::new(), Vec::new()).unwrap().users, None);
        let uids = Err("config.mounts.uidMappings".to_owned());
        let gids = Err("config.mounts.gidMappings".to_owned());
        assert_eq!(with(mapping(1), options.gids.clone()), uids);
        assert_eq!(with(Vec::new(), options.gids.clone()), uids);
        assert_eq!(with(options.uids.clone(), mapping(1)), gids);
        assert_eq!(with(options.uids.clone(), Vec::new()), gids);
    }

    #[test]
    fn wrong_wishes_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let with = |change: fn(&mut cri::Mount)| {
            let mut mount = asked(dir.path());
            change(&mut mount);
            refused(&mount)
        };
        for path in ["", "data", "/", "/a/../b", "/a\0b"] {
            let mut mount = asked(dir.path());
            mount.container_path = path.into();
            assert_eq!(refused(&mount), "config.mounts.container_path", "{path:?}");
        }
        let bidirectional = |mount: &mut cri::Mount| {
            mount.propagation = cri::MountPropagation::PropagationBidirectional.into();
        };
        assert_eq!(with(bidirectional), "config.mounts.propagation");
        let recursive = |mount: &mut cri::Mount| mount.recursive_read_only = true;
        assert_eq!(with(recursive), "config.mounts.recursive_read_only");
        let mapped = |mount: &mut cri::Mount| mount.uid_mappings.push(cri::IdMapping::default());
        assert_eq!(with(mapped), "config.mounts.uidMappings");
        let option = |mount: &mut cri::Mount| mount.mount_options = vec!["upperdir=/x".into()];
        assert_eq!(with(option), "config.mounts.mount_options");
        let part = |mount: &mut cri::Mount| mount.image_sub_path = "x".into();
        assert_eq!(with(part), "config.mounts.image_sub_path");
    }
}
