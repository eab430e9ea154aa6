//! What the containers of a sandbox share.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use isopod_proto::agent::{Dns, SetUpSandboxRequest, SetUpSandboxResponse};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_settime};
use nix::unistd::sethostname;

use super::error::AgentError;
use super::{AgentService, write};
use crate::container::Serial;
use crate::helper::{HelperError, Request, launch};
use crate::network::{self, Wanted};
use crate::storage::Scratch;
use crate::user_namespace::{CreateRequest, IdMap, Users};

/// Longest host name (`HOST_NAME_MAX`).
const HOSTNAME_MAX: usize = 64;

/// Most entries of a DNS list.
const DNS_ENTRIES_MAX: usize = 64;

/// Longest sysctl name, in bytes.
const SYSCTL_NAME_MAX: usize = 256;

impl AgentService {
    /// Names the machine, sets its clock, network interfaces and sysctls, writes the shared files and
    /// mounts the writable disk. Once.
    pub(super) async fn set_up_sandbox(
        &self,
        request: SetUpSandboxRequest,
    ) -> Result<SetUpSandboxResponse, AgentError> {
        let serial = Serial::new(request.scratch_serial.clone())?;
        let resolv_conf = resolv_conf(&request.dns)?;
        check_hostname(&request.hostname)?;
        let interfaces = network::check(&request.interfaces)?;
        let users = match request.user_namespace.as_ref() {
            None => None,
            Some(wanted) => Some(IdMap::check(wanted).ok_or(AgentError::SetUp(
                "the user namespace has too few ids, or such as it cannot have",
            ))?),
        };
        let sysctls = request
            .sysctls
            .iter()
            .map(|(name, value)| Ok((name, sysctl_path(name)?, value)))
            .collect::<Result<Vec<_>, AgentError>>()?;

        let mut scratch = self.scratch.lock().await;
        if scratch.is_some() {
            return Err(AgentError::AlreadySetUp);
        }
        (self.surroundings.before_set_up)();
        if request.clock_ns > 0 {
            set_clock(request.clock_ns);
        }
        if !request.hostname.is_empty() {
            sethostname(&request.hostname).map_err(|errno| AgentError::Sysctl {
                name: "kernel.hostname".to_owned(),
                source: errno.into(),
            })?;
        }
        // Sysctls may be an interface's.
        network::set_up(&interfaces, self.surroundings.search_bus).await?;
        let mut of_ipc = Vec::new();
        for (name, path, value) in sysctls {
            if users.is_some() && is_of_ipc(&path) {
                of_ipc.push((path, value.clone()));
                continue;
            }
            fs::write(path, value).map_err(|source| AgentError::Sysctl {
                name: name.clone(),
                source,
            })?;
        }
        if let Some(ids) = users {
            self.hold_user_namespace(ids, of_ipc).await?;
        }
        let folder = self.folder("sandbox");
        write(&folder.join("resolv.conf"), resolv_conf)?;
        let hostname = if request.hostname.is_empty() {
            "localhost"
        } else {
            &request.hostname
        };
        write(&folder.join("hostname"), format!("{hostname}\n"))?;
        write(
            &folder.join("hosts"),
            hosts(hostname, interfaces.first().and_then(Wanted::address)),
        )?;

        let disk = self.surroundings.disks.find(&serial).await?;
        *scratch = Some(Scratch::open(&disk, &self.folder("scratch")).await?);
        // Nobody waits for it.
        let bring_up_processors = self.surroundings.after_set_up;
        tokio::task::spawn_blocking(move || {
            bring_up_processors();
            network::use_all_queues(&interfaces);
        });
        Ok(SetUpSandboxResponse::new())
    }

    /// Makes the containers' user namespace, unless an earlier try has.
    async fn hold_user_namespace(
        &self,
        ids: IdMap,
        sysctls: Vec<(PathBuf, String)>,
    ) -> Result<(), AgentError> {
        if let Some(users) = self.users.get() {
            return match users.ids == ids {
                true => Ok(()),
                false => Err(AgentError::AlreadySetUp),
            };
        }
        let request = Request::HoldUserNamespace(CreateRequest { ids, sysctls });
        let launched = launch(&self.reaper, &request, &[]).await?;
        let holder = launched.pid.ok_or(HelperError::Silent)?;
        // Set-up is done once, under the scratch disk's lock.
        let _ = self.users.set(Users { ids, holder });
        let _ = self.pid_namespace.set(holder);
        Ok(())
    }

    /// The sandbox's files, and where containers see them.
    pub(super) fn shared_files(&self) -> Vec<(PathBuf, &'static str)> {
        let folder = self.folder("sandbox");
        [
            ("resolv.conf", "/etc/resolv.conf"),
            ("hostname", "/etc/hostname"),
            ("hosts", "/etc/hosts"),
        ]
        .map(|(name, path)| (folder.join(name), path))
        .to_vec()
    }
}

/// A guest without a privilege to set it, on a host, keeps that host's clock.
fn set_clock(nanoseconds: i64) {
    if let Err(error) = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::nanoseconds(nanoseconds)) {
        tracing::warn!(%error, "the clock was not set");
    }
}

fn check_hostname(hostname: &str) -> Result<(), AgentError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if hostname.len() > HOSTNAME_MAX || !hostname.bytes().all(allowed) {
        return Err(AgentError::SetUp(
            "the host name is too long, or has characters of no host name",
        ));
    }
    Ok(())
}

/// `net.ipv4.ip_forward`, or with slashes where a component has dots in it (sysctl(8)).
fn sysctl_path(name: &str) -> Result<PathBuf, AgentError> {
    let error = |kind: io::ErrorKind| AgentError::Sysctl {
        name: name.to_owned(),
        source: kind.into(),
    };
    let first = name.find(['.', '/']);
    let relative = match first.map(|index| name.as_bytes()[index]) {
        Some(b'.') => name.replace('.', "/"),
        _ => name.to_owned(),
    };
    let plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if name.len() > SYSCTL_NAME_MAX || !relative.split('/').all(plain) {
        return Err(error(io::ErrorKind::InvalidInput));
    }
    Ok(Path::new("/proc/sys").join(relative))
}

/// Whether a sysctl is an IPC namespace's (`ipc_namespaces(7)`).
fn is_of_ipc(path: &Path) -> bool {
    let path = path.strip_prefix("/proc/sys").unwrap_or(path);
    let name = path.strip_prefix("kernel").ok().and_then(Path::to_str);
    let of_system_v = ["sem", "auto_msgmni"];
    let prefixes = ["shm", "msg", "sem_"];
    path.starts_with("fs/mqueue")
        || name.is_some_and(|name| {
            of_system_v.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
        })
}

/// resolv.conf(5).
fn resolv_conf(dns: &Dns) -> Result<String, AgentError> {
    let lists = [&dns.servers, &dns.searches, &dns.options];
    let bad = |entry: &String| entry.is_empty() || entry.contains(char::is_whitespace);
    if lists
        .iter()
        .any(|list| list.len() > DNS_ENTRIES_MAX || list.iter().any(bad))
    {
        return Err(AgentError::SetUp(
            "a DNS entry is empty, has white space, or is one too many",
        ));
    }
    let mut text = String::new();
    for (keyword, list) in [("search", &dns.searches), ("options", &dns.options)] {
        if !list.is_empty() {
            text += &format!("{keyword} {}\n", list.join(" "));
        }
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    Ok(text)
}

/// hosts(5): the sandbox's name is that of its address, when it has one.
fn hosts(hostname: &str, address: Option<IpAddr>) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if hostname != "localhost" {
        let address = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1).into());
        text += &format!("{address}\t{hostname}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_search_options_and_servers() {
        let dns = Dns {
            servers: vec!["10.0.0.10".to_owned(), "fd00::a".to_owned()],
            searches: vec!["a.svc".to_owned(), "svc".to_owned()],
            options: vec!["ndots:5".to_owned()],
            ..Default::default()
        };
        let text = "search a.svc svc\noptions ndots:5\nnameserver 10.0.0.10\nnameserver fd00::a\n";
        assert_eq!(resolv_conf(&dns).unwrap(), text);
        assert_eq!(resolv_conf(&Dns::new()).unwrap(), "");
    }

    #[test]
    fn a_dns_entry_cannot_smuggle_in_a_line() {
        let dns = Dns {
            servers: vec!["1.1.1.1\nnameserver 6.6.6.6".to_owned()],
            ..Default::default()
        };
        assert!(resolv_conf(&dns).is_err());
    }

    #[test]
    fn a_sysctl_stays_below_proc_sys() {
        let path = |name| sysctl_path(name).ok();
        assert_eq!(
            path("net.ipv4.ip_forward"),
            Some("/proc/sys/net/ipv4/ip_forward".into())
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.1/mtu"),
            Some("/proc/sys/net/ipv4/conf/eth0.1/mtu".into())
        );
        for bad in [
            "",
            "net..x",
            "../../etc/passwd",
            "net/../../x",
            "/etc",
            "a\0b",
        ] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_hostname_is_checked() {
        assert!(check_hostname("web-0.example").is_ok());
        assert!(check_hostname("a b").is_err());
        assert!(check_hostname(&"a".repeat(65)).is_err());
    }
}
