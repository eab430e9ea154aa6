//! The file systems that every Linux process expects.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

/// A mount of the guest's own.
struct Mount {
    kind: &'static str,
    path: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const NO_EXEC: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);
const NO_DEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const MOUNTS: [Mount; 8] = [
    Mount {
        kind: "proc",
        path: "/proc",
        flags: NO_EXEC,
        options: "",
    },
    Mount {
        kind: "sysfs",
        path: "/sys",
        flags: NO_EXEC,
        options: "",
    },
    Mount {
        kind: "devtmpfs",
        path: "/dev",
        flags: MsFlags::MS_NOSUID,
        options: "mode=755",
    },
    Mount {
        kind: "devpts",
        path: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "mode=620,gid=5,ptmxmode=666",
    },
    Mount {
        kind: "tmpfs",
        path: "/dev/shm",
        flags: NO_EXEC,
        // As large as container runtimes make it. Pages count for whoever writes them.
        options: "mode=1777,size=64m",
    },
    Mount {
        kind: "mqueue",
        path: "/dev/mqueue",
        flags: NO_EXEC,
        options: "",
    },
    Mount {
        kind: "tmpfs",
        path: "/run",
        flags: NO_DEV,
        options: "mode=755",
    },
    Mount {
        kind: "cgroup2",
        path: "/sys/fs/cgroup",
        flags: NO_EXEC,
        options: "nsdelegate",
    },
];

/// Where the root is mounted a second time, to become the root that containers leave. The agent's image
/// has the folder, as those of [`MOUNTS`].
const NEW_ROOT: &str = "/newroot";

/// Mounts all of them, on a root that containers can leave.
///
/// # Errors
///
/// When the kernel lacks one: it is not the guest's kernel.
pub(super) fn mount_all() -> io::Result<()> {
    leave_rootfs()?;
    for Mount {
        kind,
        path,
        flags,
        options,
    } in MOUNTS
    {
        fs::create_dir_all(path)?;
        match mount(Some(kind), path, Some(kind), flags, Some(options)) {
            // The kernel has mounted it itself (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(io::Error::other(format!("{kind} on {path}: {errno}"))),
        }
    }
    Ok(())
}

/// `pivot_root(2)`, by which a container leaves the guest's root, cannot leave the kernel's first
/// mount, where an initramfs is. So the same files are mounted once more, on top of it; an image, which
/// is no first mount, takes no harm.
fn leave_rootfs() -> io::Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    mount(
        Some("/"),
        NEW_ROOT,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}
