//! What is mounted in every container.

use std::path::{Component, Path};

use serde_json::{Value, json};

use super::linux::Owned;
use crate::container::mount::{Mount, Source};
use crate::sandbox::UserNamespace;

/// Every mount in order. The usual ones give way to those that were asked for at the same place; a
/// mount comes before those below it.
///
/// `writable` are the folders that stay writable whatever the root is.
pub(super) fn mounts(
    privileged: bool,
    owned: &Owned,
    asked: &[Mount],
    writable: &[String],
) -> Vec<Value> {
    let mut mounts = usual(privileged, owned);
    let own = writable.iter().filter(|path| is_plain(path));
    mounts.extend(own.map(|path| {
        json!({ "destination": path, "type": "own", "options": ["rbind", "rprivate", "rw"] })
    }));
    mounts.retain(|mount| {
        let at = destination(mount);
        // Whoever brings a /dev brings all of it.
        let brought = |mount: &Mount| {
            let path = Path::new(&mount.container_path);
            at == path || (path == Path::new("/dev") && at.starts_with(path))
        };
        !asked.iter().any(brought)
    });
    mounts.extend(asked.iter().map(bind));
    // Stable: of two at the same place the later one is on top.
    mounts.sort_by_key(|mount| destination(mount).components().count());
    mounts
}

fn destination(mount: &Value) -> &Path {
    Path::new(mount["destination"].as_str().unwrap_or_default())
}

/// Absolute, below the root, and leading nowhere but down.
fn is_plain(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    parts.next() == Some(Component::RootDir)
        && !path.trim_matches('/').is_empty()
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// A bind of a volume or of a part of an image (`agent.proto`).
fn bind(mount: &Mount) -> Value {
    let (kind, source, always) = match &mount.source {
        Source::Host { volume, .. } => ("volume", volume.clone(), &[][..]),
        Source::Image { serial, part, .. } => (
            "image",
            format!("{serial}/{part}"),
            &["nosuid", "nodev"][..],
        ),
    };
    let access = if mount.is_read_only() { "ro" } else { "rw" };
    let mut options = vec!["rbind", "rprivate", access];
    options.extend(always);
    options.extend(mount.options.iter().map(String::as_str));
    let mut bind = json!({
        "destination": mount.container_path,
        "type": kind,
        "source": source,
        "options": options,
    });
    if let Some(users) = mount.users {
        map(&mut bind, users);
    }
    bind
}

/// Its files have the ids that they have in the user namespace.
fn map(mount: &mut Value, users: UserNamespace) {
    [mount["uidMappings"], mount["gidMappings"]] = users.to_oci();
}

fn usual(privileged: bool, owned: &Owned) -> Vec<Value> {
    let (kernel, all) = if privileged {
        ("rw", "rw")
    } else {
        ("ro", "rro")
    };
    let mut shm = if owned.ipc {
        json!({
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        })
    } else {
        // The guest's own, which the pod's containers share.
        json!({
            "destination": "/dev/shm",
            "type": "bind",
            "source": "/dev/shm",
            "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"],
        })
    };
    let sys = match owned.users {
        None => json!({
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", kernel],
        }),
        // The kernel makes a new one only for who owns the network, which is the guest's.
        Some(_) => json!({
            "destination": "/sys",
            "type": "bind",
            "source": "/sys",
            "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", all],
        }),
    };
    if let (Some(users), false) = (owned.users, owned.ipc) {
        map(&mut shm, users);
    }
    vec![
        json!({
            "destination": "/proc",
            "type": "proc",
            "source": "proc",
            "options": ["nosuid", "noexec", "nodev"],
        }),
        json!({
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        }),
        json!({
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        }),
        json!({
            "destination": "/dev/mqueue",
            "type": "mqueue",
            "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        }),
        sys,
        json!({
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", kernel],
        }),
        shm,
    ]
}
