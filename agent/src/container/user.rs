//! Who a process runs as, looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The rules are those of runc and containerd: a number is an id whether or not the files know it,
//! a name must be in them; without a group the user's own is taken, and the groups that list the
//! user as a member are added.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use isopod_proto::agent;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::user_namespace::IdMap;

/// Longest file that is read, in bytes. The image's author chooses it.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// Most groups of a process (`NGROUPS_MAX` is 65536; a request must fit in a message).
const GROUPS_MAX: usize = 4096;

/// Ids that chown(2) and setresuid(2) take as "do not change".
const ID_NONE: u32 = u32::MAX;

/// A user that is not in the image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// Not in `/etc/passwd`.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// Not in `/etc/group`.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// 2^32 - 1 stands for "no id".
    #[error("{0} is not an id")]
    NotAnId(u32),
    /// The sandbox's user namespace does not have it.
    #[error("{what} {id} is not in the sandbox's user namespace")]
    NotMapped {
        /// User or group.
        what: &'static str,
        /// Its id.
        id: u32,
    },
    /// More groups than a process can be given.
    #[error("{0} groups: at most {GROUPS_MAX}")]
    TooManyGroups(usize),
    /// The file is there and cannot be read.
    #[error("reading {path} of the container")]
    Read {
        /// Which file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Ids, and where the user is at home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: u32,
    /// Primary group id.
    pub(crate) gid: u32,
    /// All groups, the primary one first: a file that denies it something must not be open to the
    /// process because it is missing from the list.
    pub(crate) groups: Vec<u32>,
    /// Value of `HOME`.
    pub(crate) home: String,
}

impl Identity {
    /// What the user's id is outside of a user namespace with these ids.
    ///
    /// # Errors
    ///
    /// [`UserError::NotMapped`] when the user or a group is not in it.
    pub(crate) fn outside(&self, ids: Option<&IdMap>) -> Result<u32, UserError> {
        let Some(ids) = ids else {
            return Ok(self.uid);
        };
        let missing = |what, id| UserError::NotMapped { what, id };
        for gid in self.groups.iter().chain([&self.gid]) {
            let mapped = ids.gids.outside(*gid);
            mapped.ok_or_else(|| missing("group", *gid))?;
        }
        let uid = ids.uids.outside(self.uid);
        uid.ok_or_else(|| missing("user", self.uid))
    }
}

/// Looks `user` up in the file system at `rootfs`.
///
/// # Errors
///
/// [`UserError`] when it is not there or the files cannot be read.
pub(crate) fn resolve(rootfs: &Path, user: &agent::User) -> Result<Identity, UserError> {
    let passwd = read(rootfs, "/etc/passwd")?;
    let group = read(rootfs, "/etc/group")?;
    lookup(&passwd, &group, user)
}

fn lookup(passwd: &str, group: &str, user: &agent::User) -> Result<Identity, UserError> {
    let (user_name, group_name) = match user.name.split_once(':') {
        Some((user_name, group_name)) => (user_name, group_name),
        None => (user.name.as_str(), ""),
    };
    let wanted = if user_name.is_empty() { "0" } else { user_name };
    let number = wanted.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .filter_map(Account::parse)
        .find(|account| match number {
            Some(uid) => account.uid == uid,
            None => account.name == wanted,
        });
    let (uid, own_gid, home) = match (&entry, number) {
        (Some(account), _) => (account.uid, account.gid, account.home),
        (None, Some(uid)) => (uid, 0, ""),
        (None, None) => return Err(UserError::NoUser(wanted.to_owned())),
    };
    let gid = if group_name.is_empty() {
        own_gid
    } else {
        find_group(group, group_name)?
    };

    let mut groups = vec![gid];
    if !user.strict_groups
        && let Some(account) = &entry
    {
        let listed = group.lines().filter_map(Group::parse);
        groups.extend(
            listed
                .filter(|group| group.has(account.name))
                .map(|group| group.gid),
        );
    }
    groups.extend(&user.supplemental_groups);
    let mut seen = std::collections::HashSet::new();
    groups.retain(|gid| seen.insert(*gid));
    if groups.len() > GROUPS_MAX {
        return Err(UserError::TooManyGroups(groups.len()));
    }
    if let Some(id) = groups.iter().chain([&uid]).find(|id| **id == ID_NONE) {
        return Err(UserError::NotAnId(*id));
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

fn find_group(file: &str, wanted: &str) -> Result<u32, UserError> {
    if let Ok(gid) = wanted.parse() {
        return Ok(gid);
    }
    file.lines()
        .filter_map(Group::parse)
        .find(|group| group.name == wanted)
        .map(|group| group.gid)
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

/// A line of `/etc/passwd` (passwd(5)).
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _comment = fields.next();
        Some(Self {
            name,
            uid,
            gid,
            home: fields.next().unwrap_or_default(),
        })
    }
}

/// A line of `/etc/group` (group(5)).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }

    fn has(&self, member: &str) -> bool {
        self.members.split(',').any(|name| name == member)
    }
}

/// Reads a regular file of the container, links resolved inside its root. Empty when there is none.
fn read(rootfs: &Path, path: &'static str) -> Result<String, UserError> {
    let error = |source| UserError::Read { path, source };
    match open(rootfs, path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(FILE_MAX + 1)
                .read_to_end(&mut bytes)
                .map_err(error)?;
            if bytes.len() as u64 > FILE_MAX {
                return Err(error(io::ErrorKind::FileTooLarge.into()));
            }
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(error(source)),
    }
}

fn open(rootfs: &Path, path: &str) -> io::Result<File> {
    let root = File::open(rootfs)?;
    // Non-blocking: the image may have a fifo there, which would wait for a writer.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let fd = openat2(&root, path, how)?;
    let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                          # a comment\n\
                          www:x:33:34:www:/var/www:/sbin/nologin\n\
                          bare:x:50:51\n\
                          bad:x:many:0::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:40:root,www\nother:x:41:www2\n";

    fn find(name: &str) -> Result<Identity, UserError> {
        lookup(
            PASSWD,
            GROUP,
            &agent::User {
                name: name.to_owned(),
                ..Default::default()
            },
        )
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        }
    }

    #[test]
    fn no_user_is_root() {
        assert_eq!(find("").unwrap(), identity(0, 0, &[0, 40], "/root"));
    }

    #[test]
    fn a_name_gives_ids_groups_and_home() {
        assert_eq!(
            find("www").unwrap(),
            identity(33, 34, &[34, 40], "/var/www")
        );
        assert_eq!(find("bare").unwrap(), identity(50, 51, &[51], "/"));
    }

    #[test]
    fn a_number_that_the_files_know_is_that_user() {
        assert_eq!(find("33").unwrap(), identity(33, 34, &[34, 40], "/var/www"));
    }

    #[test]
    fn a_number_that_nobody_knows_is_itself_in_group_0() {
        assert_eq!(find("1234").unwrap(), identity(1234, 0, &[0], "/"));
        assert_eq!(
            find("1234:5678").unwrap(),
            identity(1234, 5678, &[5678], "/")
        );
    }

    #[test]
    fn a_group_by_name_or_number_replaces_the_users_own() {
        assert_eq!(
            find("www:log").unwrap(),
            identity(33, 40, &[40], "/var/www")
        );
        assert_eq!(
            find("www:0").unwrap(),
            identity(33, 0, &[0, 40], "/var/www")
        );
    }

    #[test]
    fn names_that_are_not_in_the_files_are_errors() {
        assert!(matches!(find("nobody"), Err(UserError::NoUser(_))));
        assert!(matches!(find("www:nogroup"), Err(UserError::NoGroup(_))));
        assert!(matches!(find("bad"), Err(UserError::NoUser(_))));
        assert!(matches!(find("4294967296"), Err(UserError::NoUser(_))));
        assert!(matches!(find("4294967295"), Err(UserError::NotAnId(_))));
    }

    #[test]
    fn supplemental_groups_are_added_once_and_strict_leaves_out_the_files() {
        let mut user = agent::User {
            name: "www".to_owned(),
            supplemental_groups: vec![40, 99, 34],
            ..Default::default()
        };
        assert_eq!(lookup(PASSWD, GROUP, &user).unwrap().groups, [34, 40, 99]);
        user.strict_groups = true;
        user.supplemental_groups = vec![99];
        assert_eq!(lookup(PASSWD, GROUP, &user).unwrap().groups, [34, 99]);
    }

    #[test]
    fn links_are_resolved_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/../../etc/real", root.path().join("etc/passwd")).unwrap();
        std::fs::write(root.path().join("etc/real"), "inside:x:7:8::/in:\n").unwrap();
        let user = agent::User {
            name: "inside".to_owned(),
            ..Default::default()
        };
        assert_eq!(
            resolve(root.path(), &user).unwrap(),
            identity(7, 8, &[8], "/in")
        );
    }

    #[test]
    fn a_passwd_that_is_a_folder_or_a_fifo_is_an_error_and_does_not_block() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/passwd")).unwrap();
        let user = agent::User::default();
        assert!(matches!(
            resolve(root.path(), &user),
            Err(UserError::Read { .. })
        ));
        std::fs::remove_dir(root.path().join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&root.path().join("etc/passwd"), Mode::S_IRUSR).unwrap();
        assert!(matches!(
            resolve(root.path(), &user),
            Err(UserError::Read { .. })
        ));
    }

    #[test]
    fn an_image_without_the_files_has_root() {
        let root = tempfile::tempdir().unwrap();
        let identity = resolve(root.path(), &agent::User::default()).unwrap();
        assert_eq!(
            (identity.uid, identity.gid, identity.home.as_str()),
            (0, 0, "/")
        );
    }
}
