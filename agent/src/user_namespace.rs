//! The user namespace of a sandbox, in which the containers' root is nobody in particular.
//!
//! It is made once, when the sandbox is set up, with all that a container must have power over to feel
//! at home: IPC and UTS namespaces that belong to it, and the pid namespace that containers can share.
//! They live as long as the *holder* ([`crate::pid_namespace`]), which is the first process in them;
//! containers join them by its `/proc/<pid>/ns`.
//!
//! ```text
//!  helper                                         mapper
//!    │── executes itself as ─────────────────────>│ waits
//!    │ unshare(user, ipc, uts)                    │
//!    │── closes its input ───────────────────────>│ writes the helper's uid_map, gid_map
//!    │<────────────────────────────────── exits ──│
//!    │ becomes root inside, sets sysctls of IPC
//!    │ makes the pid namespace and its holder
//! ```
//!
//! A mapping can be written once, by a process with power over the namespace *above*: that is what the
//! mapper is for. It is started before, so that it is outside.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use isopod_proto::agent;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Pid, Uid, getpid, setresgid, setresuid};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use serde::{Deserialize, Serialize};

use crate::pid_namespace;

/// The argument that starts a mapper.
pub(crate) const MAPPER_ROLE: &str = "mapper";

/// Least number of ids: 65534 is nobody, in the holder and in every image.
const LENGTH_MIN: u32 = 1 << 16;

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// The kernel refuses new ones.
    #[error("making a user namespace")]
    Unshare(#[source] nix::Error),
    /// The ids could not be mapped.
    #[error("mapping ids: {0}")]
    Map(String),
    /// The mapper could not be started.
    #[error("starting a mapper of ids")]
    Mapper(#[source] io::Error),
    /// The ids are mapped, and yet nobody can be root.
    #[error("becoming root in the user namespace")]
    Root(#[source] nix::Error),
    /// A sysctl of IPC that the kernel refuses or does not have.
    #[error("sysctl {path}")]
    Sysctl {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The rest of it.
    #[error(transparent)]
    Holder(#[from] pid_namespace::CreateError),
}

/// What ids from 0 on inside are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdRange {
    first: u32,
    length: u32,
}

impl IdRange {
    fn check(range: &agent::IdRange) -> Option<Self> {
        let (first, length) = (range.first, range.length);
        // 2^32 - 1 is no id.
        let fits = first.checked_add(length).is_some();
        (first > 0 && length >= LENGTH_MIN && fits).then_some(Self { first, length })
    }

    /// What `inside` is outside; none for an id that is not mapped.
    pub(crate) fn outside(self, inside: u32) -> Option<u32> {
        (inside < self.length).then(|| self.first + inside)
    }

    /// As the OCI spec writes it.
    pub(crate) fn to_oci(self) -> Option<Vec<LinuxIdMapping>> {
        let mapping = LinuxIdMappingBuilder::default()
            .container_id(0_u32)
            .host_id(self.first)
            .size(self.length);
        Some(vec![mapping.build().ok()?])
    }

    /// A line of `uid_map` (user_namespaces(7)).
    fn line(self) -> String {
        format!("0 {} {}\n", self.first, self.length)
    }
}

/// The ids of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    /// Users.
    pub(crate) uids: IdRange,
    /// Groups.
    pub(crate) gids: IdRange,
}

impl IdMap {
    /// None for what cannot be, or would make the root inside the root outside.
    pub(crate) fn check(wanted: &agent::UserNamespace) -> Option<Self> {
        Some(Self {
            uids: IdRange::check(&wanted.uids)?,
            gids: IdRange::check(&wanted.gids)?,
        })
    }

    /// Whether these are its mappings.
    pub(crate) fn is(
        &self,
        uids: Option<&Vec<LinuxIdMapping>>,
        gids: Option<&Vec<LinuxIdMapping>>,
    ) -> bool {
        self.uids.to_oci().as_ref() == uids && self.gids.to_oci().as_ref() == gids
    }
}

/// The sandbox's user namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Users {
    /// Its ids.
    pub(crate) ids: IdMap,
    /// The process that holds it.
    pub(crate) holder: Pid,
}

impl Users {
    /// Where a namespace of the holder's is: `user`, `ipc`, `uts`.
    pub(crate) fn namespace(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.holder).into()
    }
}

/// What a helper is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CreateRequest {
    /// The ids.
    pub(crate) ids: IdMap,
    /// Files in `/proc/sys` of the IPC namespace, and what is written to them.
    pub(crate) sysctls: Vec<(PathBuf, String)>,
}

/// In a helper: makes the namespaces and their holder; answers the holder's pid. The helper is in
/// them, too, from now on.
///
/// # Errors
///
/// [`CreateError`].
pub(crate) fn create(request: &CreateRequest) -> Result<i32, CreateError> {
    // The holder inherits it, and cannot ask for it from inside.
    pid_namespace::protect_from_oom();
    let IdMap { uids, gids } = request.ids;
    let mut mapper = Command::new("/proc/self/exe")
        .arg0("isopod-agent")
        .args([MAPPER_ROLE, &getpid().to_string()])
        .args([uids.line(), gids.line()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(CreateError::Mapper)?;
    let unshared =
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS);
    drop(mapper.stdin.take());
    let output = mapper.wait_with_output().map_err(CreateError::Mapper)?;
    unshared.map_err(CreateError::Unshare)?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(CreateError::Map(reason.trim_end().to_owned()));
    }
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).map_err(CreateError::Root)?;
    setresuid(uid, uid, uid).map_err(CreateError::Root)?;
    for (path, value) in &request.sysctls {
        fs::write(path, value).map_err(|source| CreateError::Sysctl {
            path: path.clone(),
            source,
        })?;
    }
    Ok(pid_namespace::create()?)
}

/// The mapper's main function: `mapper PID UID_MAP GID_MAP`.
pub(crate) fn map(args: &[std::ffi::OsString]) -> ExitCode {
    let [pid, uids, gids] = args else {
        return ExitCode::from(2);
    };
    // Ends when the helper has left, or has ended.
    let _ = io::stdin().read(&mut [0]);
    for (name, map) in [("uid_map", uids), ("gid_map", gids)] {
        let path = PathBuf::from("/proc").join(pid).join(name);
        if let Err(error) = fs::write(&path, map.as_encoded_bytes()) {
            eprintln!("{name}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(first: u32, length: u32) -> Option<IdRange> {
        IdRange::check(&agent::IdRange {
            first,
            length,
            ..Default::default()
        })
    }

    #[test]
    fn a_range_holds_nobody_and_never_the_root_outside() {
        let range = checked(100_000, 65_536).unwrap();
        assert_eq!(range.outside(0), Some(100_000));
        assert_eq!(range.outside(65_535), Some(165_535));
        assert_eq!(range.outside(65_536), None);
        assert_eq!(range.line(), "0 100000 65536\n");
        for (first, length) in [
            (0, 65_536),
            (1000, 65_535),
            (1000, 0),
            (u32::MAX - 65_535, 65_536),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(checked(first, length), None, "{first} {length}");
        }
    }
}
