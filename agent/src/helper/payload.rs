//! The last steps of a process before it is the container's command.
//!
//! Runs inside the container's namespaces and root, as its user, where nothing found on a file
//! system can be trusted.
#![expect(
    unsafe_code,
    reason = "restoring signals that libc hides takes a raw system call"
)]

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::{env, fs, io};

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{AccessFlags, Gid, access, execv, setgroups};
use oci_spec::runtime::{Process, Spec};

use super::OutcomeEnd;
use super::protocol::{Confinement, Refusal, RefusalKind};

/// The last signal (`_NSIG` of x86_64).
const SIGNAL_MAX: libc::c_long = 64;

/// Executes the command, or says through the outcome pipe why not.
#[derive(Clone)]
pub(super) struct Payload {
    outcome: Rc<OutcomeEnd>,
    /// What libcontainer did not do.
    confinement: Rc<Confinement>,
    /// The user namespace that is joined.
    users: Option<Rc<OwnedFd>>,
}

impl Payload {
    /// A container's init: libcontainer has confined it.
    pub(super) fn init(outcome: OutcomeEnd) -> Self {
        Self {
            outcome: Rc::new(outcome),
            confinement: Rc::default(),
            users: None,
        }
    }

    /// An exec: libcontainer ignores the container's system call filter, and its user namespace.
    pub(super) fn exec(
        outcome: OutcomeEnd,
        confinement: Confinement,
        users: Option<OwnedFd>,
    ) -> Self {
        Self {
            outcome: Rc::new(outcome),
            confinement: Rc::new(confinement),
            users: users.map(Rc::new),
        }
    }

    /// Returns only when the command cannot be executed.
    fn become_command(&self, process: &Process) -> Refusal {
        let Some(args) = process.args().as_ref().filter(|args| !args.is_empty()) else {
            return not_executable("exec: no command".to_owned());
        };
        if let Err(refusal) = self.become_user() {
            return refusal;
        }
        let search = env::var("PATH").unwrap_or_default();
        let path = match find(&args[0], &search) {
            Ok(path) => path,
            Err(refusal) => return refusal,
        };
        let Some((command, args)) = c_strings(&path, args) else {
            return not_executable(format!("exec: {:?}: contains a NUL byte", args[0]));
        };
        if let Err(refusal) = self.confine() {
            return refusal;
        }
        default_signals();
        let Err(errno) = execv(&command, &args);
        let why = io::Error::from(errno);
        match errno {
            Errno::ENOENT => not_found(format!("exec {}: {}", path.display(), text(&why))),
            _ => not_executable(format!("exec {}: {}", path.display(), text(&why))),
        }
    }

    /// Joins the container's user namespace, in which the process has every capability until it is
    /// confined.
    fn become_user(&self) -> Result<(), Refusal> {
        let (Some(users), Some(user)) = (&self.users, &self.confinement.user) else {
            return Ok(());
        };
        setns(users, CloneFlags::CLONE_NEWUSER)
            .map_err(|error| failed("joining the user namespace", &error))?;
        let groups: Vec<_> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        setgroups(&groups).map_err(|error| failed("setting groups", &error))?;
        let syscall = create_syscall();
        let (uid, gid) = (user.uid.into(), user.gid.into());
        syscall
            .set_id(uid, gid)
            .map_err(|error| failed("setting user and group", &error))?;
        reset_effective(&*syscall).map_err(|error| failed("keeping capabilities", &error))
    }

    /// Filters system calls, then gives up the capabilities that this took.
    fn confine(&self) -> Result<(), Refusal> {
        if let Some(seccomp) = &self.confinement.seccomp {
            initialize_seccomp(seccomp).map_err(|error| failed("seccomp filter", &error))?;
        }
        if let Some(capabilities) = &self.confinement.capabilities {
            drop_privileges(capabilities, &*create_syscall())
                .map_err(|error| failed("dropping capabilities", &error))?;
        }
        Ok(())
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Refusal {
    Refusal {
        kind: RefusalKind::Confinement,
        message: format!("{what}: {}", crate::service::chain(error)),
    }
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let refusal = match spec.process() {
            Some(process) => self.become_command(process),
            None => not_executable("exec: no process".to_owned()),
        };
        // If the agent is gone, so is everyone who could read it.
        let _ = self.outcome.refuse(&refusal);
        Err(ExecutorError::Other(refusal.message))
    }

    /// The command is looked up when it is executed: what is missing now may be mounted by then.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}

/// Restores every signal's default action: what is ignored stays so across exec. Rust's runtime
/// ignores SIGPIPE, and glibc's posix_spawn its own two, 32 and 33, which its sigaction hides.
fn default_signals() {
    // `struct sigaction` of the kernel: SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: rt_sigaction reads the action, which is as large as the kernel's, and writes
        // nothing, as there is no place for the old one. SIGKILL and SIGSTOP are refused.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
}

fn not_found(message: String) -> Refusal {
    Refusal {
        kind: RefusalKind::NotFound,
        message,
    }
}

fn not_executable(message: String) -> Refusal {
    Refusal {
        kind: RefusalKind::NotExecutable,
        message,
    }
}

/// An errno in C's words, without Rust's number behind it.
fn text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// Finds a command as a shell does: a name with a slash is a path, any other is searched for.
fn find(command: &str, search: &str) -> Result<PathBuf, Refusal> {
    if command.contains('/') {
        return match check(Path::new(command)) {
            Ok(()) => Ok(command.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_found(format!(
                "exec: {command:?}: stat {command}: {}",
                text(&error)
            ))),
            Err(error) => Err(not_executable(format!(
                "exec: {command:?}: {}",
                text(&error)
            ))),
        };
    }
    let mut denied = false;
    for folder in search.split(':').filter(|_| !command.is_empty()) {
        let folder = if folder.is_empty() { "." } else { folder };
        let path = Path::new(folder).join(command);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(error) => denied |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    if denied {
        return Err(not_executable(format!(
            "exec: {command:?}: permission denied"
        )));
    }
    Err(not_found(format!(
        "exec: {command:?}: executable file not found in $PATH"
    )))
}

/// Whether this user may execute the file.
fn check(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR.into());
    }
    // Even root needs one of the execute bits.
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(Errno::EACCES.into());
    }
    Ok(access(path, AccessFlags::X_OK)?)
}

fn c_strings(path: &Path, args: &[String]) -> Option<(CString, Vec<CString>)> {
    use std::os::unix::ffi::OsStrExt;
    let command = CString::new(path.as_os_str().as_bytes()).ok()?;
    let args = args
        .iter()
        .map(|arg| CString::new(arg.as_bytes()))
        .collect::<Result<_, _>>()
        .ok()?;
    Some((command, args))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, name: &str, mode: u32) {
        let path = folder.join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_command_is_searched_for_in_the_order_of_the_path() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        file(second.path(), "tool", 0o755);
        let search = format!("{}:{}", first.path().display(), second.path().display());
        assert_eq!(find("tool", &search).unwrap(), second.path().join("tool"));
        file(first.path(), "tool", 0o750);
        assert_eq!(find("tool", &search).unwrap(), first.path().join("tool"));
    }

    #[test]
    fn a_missing_command_is_told_in_the_words_that_people_search_for() {
        let refusal = find("no-such-command", "/usr/bin:/bin").unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::NotFound);
        assert_eq!(
            refusal.message,
            r#"exec: "no-such-command": executable file not found in $PATH"#
        );
        let refusal = find("/no/such/command", "").unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::NotFound);
        assert_eq!(
            refusal.message,
            r#"exec: "/no/such/command": stat /no/such/command: no such file or directory"#
        );
    }

    #[test]
    fn a_file_without_an_execute_bit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        file(folder.path(), "data", 0o644);
        let path = folder.path().join("data");
        let refusal = find(path.to_str().unwrap(), "").unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::NotExecutable);
        let refusal = find(folder.path().to_str().unwrap(), "").unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::NotExecutable);
    }
}
