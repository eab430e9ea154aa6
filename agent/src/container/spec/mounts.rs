//! Mounts: what the caller names, and the files that containers of a sandbox share.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder, Spec};

use super::{ContainerSpec, Place, SpecError};
use crate::container::Serial;

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

impl ContainerSpec {
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
}

/// Binds what the caller names from where it is, and the shared files that the caller mounts nothing
/// over.
pub(super) fn settle(spec: &mut Spec, place: &Place) -> Result<(), SpecError> {
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
