//! Starts a VMM: its sockets are bound, what it opens is opened here, and all of it is inherited.

#![expect(
    unsafe_code,
    reason = "a hook between fork and exec puts the descriptors in their places"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use isopod_proto::descriptors;

use super::error::VmError;
use super::process::VmmProcess;
use super::{CONTROL_SOCKET, DESCRIPTORS_SOCKET, VSOCK_SOCKET, socket};
use crate::config::GuestRoot;

/// Where inherited descriptors begin (`sd_listen_fds(3)`).
const FIRST_FD: RawFd = 3;
/// Standard error of the VMM, in the sandbox's folder.
const LOG_FILE: &str = "vmm.log";
/// The debug console's output, in the sandbox's folder.
const CONSOLE_FILE: &str = "console.log";
/// The log filter of the VMM; the daemon's own is passed on.
const LOG_ENVIRONMENT: &str = "ISOPOD_LOG";

/// What a VMM is started with.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The VMM's binary.
    pub(crate) vmm: PathBuf,
    /// The KVM device.
    pub(crate) kvm: PathBuf,
    /// The guest's kernel.
    pub(crate) kernel: PathBuf,
    /// What holds the agent.
    pub(crate) root: GuestRoot,
    /// Keep the guest's console.
    pub(crate) debug_console: bool,
    /// `cgroup.procs` of the cgroup that it is to be in.
    pub(crate) cgroup: Option<OwnedFd>,
    /// Further descriptors, by the names that the start request uses.
    pub(crate) files: Vec<(String, OwnedFd)>,
}

/// Binds the sockets in `dir` and starts the VMM there, in a session of its own. Blocking.
///
/// # Errors
///
/// When a socket, a file or the process cannot be made.
pub(super) fn spawn(dir: &Path, launch: Launch) -> Result<VmmProcess, VmError> {
    let vmm = launch.vmm.clone();
    let mut launch = launch;
    let cgroup = launch.cgroup.take();
    let log = create(&dir.join(LOG_FILE))?;
    let (names, fds) = inheritance(dir, launch)?
        .into_iter()
        .unzip::<_, _, Vec<_>, Vec<_>>();
    let mut command = Command::new(&vmm);
    command
        .arg("--dir")
        .arg(dir)
        .current_dir("/")
        .env_clear()
        .env("LISTEN_FDS", fds.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    if let Some(filter) = std::env::var_os(LOG_ENVIRONMENT) {
        command.env(LOG_ENVIRONMENT, filter);
    }
    inherit(&mut command, fds, cgroup).map_err(VmError::io("passing descriptors to", &vmm))?;
    // `Child` is dropped without waiting, on purpose: the process outlives the daemon, and while
    // the daemon lives the pidfd's reader reaps it.
    let mut child = command.spawn().map_err(VmError::missing("VMM", &vmm))?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other);
    pid.and_then(VmmProcess::of_child).map_err(|error| {
        // Nobody would ever hold it. Neither call can fail on a child that was not waited for.
        let _ended = child.kill().and_then(|()| child.wait());
        VmError::io("watching", vmm)(error)
    })
}

/// Every descriptor that the VMM gets, under its name.
fn inheritance(dir: &Path, launch: Launch) -> Result<Vec<(String, OwnedFd)>, VmError> {
    let mut fds = vec![
        (
            descriptors::CONTROL,
            bound(&dir.join(CONTROL_SOCKET), socket::listen)?,
        ),
        (
            descriptors::DESCRIPTORS,
            bound(&dir.join(DESCRIPTORS_SOCKET), socket::listen_seqpacket)?,
        ),
        (
            descriptors::VSOCK,
            bound(&dir.join(VSOCK_SOCKET), socket::listen)?,
        ),
        (descriptors::KVM, open_device("KVM device", &launch.kvm)?),
        (descriptors::KERNEL, open("guest kernel", &launch.kernel)?),
        match &launch.root {
            GuestRoot::AgentImage(path) => (descriptors::AGENT_IMAGE, open("agent image", path)?),
            GuestRoot::Initramfs(path) => (descriptors::INITRAMFS, open("initramfs", path)?),
        },
    ];
    if launch.debug_console {
        fds.push((
            descriptors::CONSOLE,
            create(&dir.join(CONSOLE_FILE))?.into(),
        ));
    }
    let named = fds.into_iter().map(|(name, fd)| (name.to_owned(), fd));
    Ok(named.chain(launch.files).collect())
}

fn bound(path: &Path, bind: impl FnOnce(&Path) -> io::Result<OwnedFd>) -> Result<OwnedFd, VmError> {
    bind(path).map_err(VmError::io("listening on", path))
}

fn open(what: &'static str, path: &Path) -> Result<OwnedFd, VmError> {
    let opened = File::open(path);
    opened.map(Into::into).map_err(VmError::missing(what, path))
}

fn open_device(what: &'static str, path: &Path) -> Result<OwnedFd, VmError> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map(Into::into).map_err(VmError::missing(what, path))
}

fn create(path: &Path) -> Result<File, VmError> {
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .map_err(VmError::io("creating", path))
}

/// Makes the child find `fds` from [`FIRST_FD`] on, in order, and itself in a new session and in
/// the cgroup.
fn inherit(command: &mut Command, fds: Vec<OwnedFd>, cgroup: Option<OwnedFd>) -> io::Result<()> {
    let count = RawFd::try_from(fds.len()).map_err(|_error| io::ErrorKind::InvalidInput)?;
    // Sources above every target, so that no move overwrites a descriptor that is still to move.
    let mut sources = Vec::with_capacity(fds.len());
    for fd in &fds {
        sources.push(rustix::io::fcntl_dupfd_cloexec(
            fd.as_fd(),
            FIRST_FD + count,
        )?);
    }
    drop(fds);
    // Above every target, too.
    let cgroup = cgroup
        .map(|procs| rustix::io::fcntl_dupfd_cloexec(procs, FIRST_FD + count))
        .transpose()?;
    let hook = move || {
        // Before it becomes the VMM: all that it ever allocates is the pod's.
        if let Some(procs) = &cgroup {
            rustix::io::write(procs, b"0")?;
        }
        for (target, source) in (FIRST_FD..).zip(&sources) {
            // SAFETY: dup2 works on numbers alone. The source is open, `sources` owns it; whatever
            // the target was belongs to this forked child only, which is about to exec.
            if unsafe { libc::dup2(source.as_raw_fd(), target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes system calls only: write, dup2 and setsid
    // are async-signal-safe, `sources` was allocated before the fork, and nothing is freed in it.
    unsafe { command.pre_exec(hook) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn descriptors_arrive_in_order_and_under_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("vmm");
        let body = "#!/bin/sh\nls -l /proc/self/fd >&2\necho $LISTEN_FDS $LISTEN_FDNAMES >&2\n\
                    read line <&9\necho \"$1 $line\" >&2\n";
        std::fs::write(&script, body).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let launch = Launch {
            vmm: script.clone(),
            kvm: "/dev/null".into(),
            kernel: "/dev/zero".into(),
            root: GuestRoot::AgentImage("/dev/full".into()),
            debug_console: false,
            cgroup: None,
            files: vec![("extra".into(), theirs.into())],
        };
        let process = spawn(dir.path(), launch).unwrap();
        ours.write_all(b"hello\n").unwrap();
        tokio::time::timeout(Duration::from_secs(20), process.ended())
            .await
            .unwrap();

        let mut log = String::new();
        File::open(dir.path().join(LOG_FILE))
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        assert!(
            log.contains("7 control:descriptors:vsock:kvm:kernel:agent-image:extra"),
            "{log}"
        );
        assert!(
            log.contains("6 -> /dev/null") && log.contains("7 -> /dev/zero"),
            "{log}"
        );
        assert!(
            log.contains("8 -> /dev/full") && log.contains("--dir hello"),
            "{log}"
        );
    }

    #[tokio::test]
    async fn missing_kernel_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch {
            vmm: "/bin/true".into(),
            kvm: "/dev/null".into(),
            kernel: "/nowhere/vmlinux".into(),
            root: GuestRoot::AgentImage("/dev/null".into()),
            debug_console: false,
            cgroup: None,
            files: Vec::new(),
        };
        let error = spawn(dir.path(), launch).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest kernel, /nowhere/vmlinux, cannot be used (`isopod doctor` tells more)"
        );
    }
}
