//! Devices that a container may use.
//!
//! A block device of the host becomes a disk of the guest. A character device is the guest's own, if
//! it is one that every kernel has: those are the same everywhere. All others are the host's, and
//! stay there.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use isopod_proto::cri;
use serde::{Deserialize, Serialize};

use crate::field::FieldError;
use crate::id::ContainerId;

/// Most devices of a container.
const DEVICES_MAX: usize = 64;

/// Character devices that a guest has as well, by number (kernel documentation, admin-guide/devices).
const SAME_EVERYWHERE: [(u32, u32); 9] = [
    // null, zero, full, random, urandom, kmsg
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (1, 11),
    // tty
    (5, 0),
    // net/tun, fuse
    (10, 200),
    (10, 229),
];

/// A device that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Device {
    /// Where the container sees it.
    pub(crate) container_path: String,
    /// Of `r`, `w` and `m`.
    pub(crate) access: String,
    /// Permissions of the node.
    pub(crate) mode: u32,
    /// What it is.
    pub(crate) source: DeviceSource,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeviceSource {
    /// The guest's own character device.
    Guest {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device of the host.
    Host {
        /// Where it is, without symbolic links.
        path: PathBuf,
        /// Serial number of the disk in the guest.
        serial: String,
    },
}

impl Device {
    /// The disk that it needs: its serial number, and the host's device.
    pub(crate) fn disk(&self) -> Option<(&str, &Path)> {
        match &self.source {
            DeviceSource::Host { path, serial } => Some((serial, path)),
            DeviceSource::Guest { .. } => None,
        }
    }

    /// Whether nobody in the container writes to it.
    pub(crate) fn read_only(&self) -> bool {
        !self.access.contains('w')
    }
}

/// Opens a block device of the host; the file and its length in bytes. Blocking.
///
/// # Errors
///
/// When it cannot be opened.
pub(crate) fn open(path: &Path, read_only: bool) -> io::Result<(File, u64)> {
    let mut file = File::options().read(true).write(!read_only).open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    Ok((file, length))
}

/// Checks a container's devices and finds what they are. Nothing is opened. Blocking.
///
/// # Errors
///
/// [`FieldError`] names the first that cannot be honoured.
pub(crate) fn resolve(asked: &[cri::Device], id: &ContainerId) -> Result<Vec<Device>, FieldError> {
    if asked.len() > DEVICES_MAX {
        let reason = format!("has more than {DEVICES_MAX} entries");
        return Err(FieldError::new("config.devices", reason));
    }
    let devices = asked.iter().enumerate();
    devices
        .map(|(number, device)| resolve_one(device, id, number))
        .collect()
}

fn resolve_one(asked: &cri::Device, id: &ContainerId, number: usize) -> Result<Device, FieldError> {
    let wrong = |field: &str, reason: String| {
        FieldError::new(
            format!("config.devices.{field}"),
            format!("{:?} {reason}", asked.host_path),
        )
    };
    let container_path = match asked.container_path.as_str() {
        "" => &asked.host_path,
        path => path,
    };
    let plain = Path::new(container_path)
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !container_path.starts_with('/') || !plain || container_path.contains('\0') {
        return Err(wrong(
            "container_path",
            "has no absolute path in the container".into(),
        ));
    }
    let access = match asked.permissions.as_str() {
        "" => "rwm",
        access => access,
    };
    if !access.bytes().all(|letter| b"rwm".contains(&letter)) {
        return Err(wrong("permissions", "has others than r, w and m".into()));
    }
    let path = Path::new(&asked.host_path);
    let found = path.canonicalize().and_then(|path| {
        let metadata = path.metadata()?;
        Ok((path, metadata))
    });
    let (path, metadata) =
        found.map_err(|error| wrong("host_path", format!("cannot be used: {error}")))?;
    let kind = metadata.file_type();
    let source = if kind.is_block_device() {
        let serial = format!("{}.d{number}", id.as_str().get(..15).unwrap_or_default());
        DeviceSource::Host { path, serial }
    } else if kind.is_char_device() {
        let number = metadata.rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        if !SAME_EVERYWHERE.contains(&(major, minor)) {
            let reason = "is a device of the host, which a virtual machine does not have";
            return Err(wrong("host_path", reason.into()));
        }
        DeviceSource::Guest { major, minor }
    } else {
        return Err(wrong("host_path", "is not a device".into()));
    };
    Ok(Device {
        container_path: container_path.to_owned(),
        access: access.to_owned(),
        mode: metadata.mode() & 0o777,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(host_path: &str, permissions: &str) -> Result<Vec<Device>, FieldError> {
        let id = "a".repeat(64).parse().unwrap();
        let device = cri::Device {
            container_path: "/dev/x".into(),
            host_path: host_path.into(),
            permissions: permissions.into(),
        };
        resolve(&[device], &id)
    }

    #[test]
    fn what_every_kernel_has_is_the_guests_own() {
        let devices = resolved("/dev/full", "rw").unwrap();
        assert_eq!(
            devices[0].source,
            DeviceSource::Guest { major: 1, minor: 7 }
        );
        assert!(!devices[0].read_only());
        assert!(resolved("/dev/full", "r").unwrap()[0].read_only());
    }

    #[test]
    fn what_cannot_be_given_is_refused_by_name() {
        let field = |host_path: &str, permissions: &str| {
            resolved(host_path, permissions).unwrap_err().field
        };
        for path in ["/dev/missing", "/etc/passwd", "/dev", "", "/dev/ptmx"] {
            assert_eq!(field(path, "rw"), "config.devices.host_path", "{path}");
        }
        assert_eq!(field("/dev/null", "rx"), "config.devices.permissions");
    }
}
