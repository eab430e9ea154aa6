//! The pid namespace that a sandbox's containers can share.
//!
//! A pid namespace lives as long as its first process. That is the *holder*: the agent executed
//! under another name, which gives everything up and then only collects orphans. It is made by a
//! helper, which enters no namespace itself: its children are born in the new one.
//!
//! Containers see the holder as PID 1, and a privileged one could look through `/proc/1/root` or
//! trace it. So it has an empty, read-only root, no user of note and no capability.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_name, set_no_new_privs};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};
use rustix::process::{WaitOptions, wait};

/// The holder's `argv[0]`, which makes it one, and the name of its thread: of both `ps` in a container
/// makes what it shows.
pub(crate) const HOLDER_NAME: &str = "pause";
/// The same for prctl(2).
const HOLDER_TITLE: &CStr = c"pause";

/// Who the holder runs as: nobody in particular.
const HOLDER_ID: u32 = 65534;

/// The kernel's out-of-memory killer takes anyone before the holder (proc_pid_oom_score_adj(5));
/// the value is that of Kubernetes' own sandboxes.
const OOM_SCORE: &str = "-998";

/// Any folder: the holder's empty root is mounted over it, in the holder's own mount namespace.
const ROOT: &str = "/proc";

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// The kernel refuses a new one.
    #[error("making a pid namespace")]
    Unshare(#[source] nix::Error),
    /// The holder does not start.
    #[error("starting the holder of a pid namespace")]
    Holder(#[source] io::Error),
}

/// In a helper: makes the namespace and its holder; answers the holder's pid.
///
/// # Errors
///
/// [`CreateError`].
pub(crate) fn create() -> Result<i32, CreateError> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(CreateError::Unshare)?;
    let holder = Command::new("/proc/self/exe")
        .arg0(HOLDER_NAME)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(CreateError::Holder)?;
    i32::try_from(holder.id())
        .map_err(|_range| CreateError::Holder(io::ErrorKind::InvalidData.into()))
}

/// The holder's main function. Ends only when it is killed.
pub(crate) fn hold() -> ExitCode {
    let children = SigSet::from(Signal::SIGCHLD);
    if children.thread_block().is_err() || give_up_everything().is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if children.wait().is_err() {
            return ExitCode::FAILURE;
        }
    }
}

/// Every container of the namespace would die with it. A host that refuses takes the risk.
pub(crate) fn protect_from_oom() {
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
}

fn give_up_everything() -> nix::Result<()> {
    protect_from_oom();
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(
        Some("none"),
        ROOT,
        Some("tmpfs"),
        flags,
        Some("size=4k,nr_inodes=2,mode=555"),
    )?;
    // The old root is stacked over the new one, then taken off: no folder is needed for it
    // (pivot_root(2), NOTES).
    chdir(ROOT)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;

    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(HOLDER_ID), Gid::from_raw(HOLDER_ID));
    setresgid(gid, gid, gid)?;
    // Leaving uid 0 clears every capability (capabilities(7)).
    setresuid(uid, uid, uid)?;
    set_no_new_privs()?;
    set_name(HOLDER_TITLE)?;
    set_dumpable(false)
}
